# TAP from shell. A test starts with
#	. "$(dirname "$0")/lib.sh"
# which goes to the top of the tree, puts the programs of $BUILD first in PATH and makes $tmp,
# removed at the end; and it ends with done_testing.
# shellcheck shell=sh disable=SC2034
cd "$(dirname "$0")/.." || exit 1
top=$PWD
bld=$(cd "${BUILD:-build}" && pwd) || exit 1
PATH=$bld:$PATH
shared=${CHR_SHARED:-../shared}
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
tap_n=0
tap_failed=0

# result NAME 0|1: one line; what the command printed ($tmp/log) follows a failure
result()
{
	tap_n=$((tap_n + 1))
	if [ "$2" = 0 ]; then
		echo "ok $tap_n - $1"
	else
		echo "not ok $tap_n - $1"
		tap_failed=1
		head -20 "$tmp/log" 2> /dev/null | cut -c 1-300 | sed 's/^/# /'
	fi
}

# ok NAME COMMAND...: passes when the command does
ok()
{
	tap_name=$1
	shift
	if "$@" > "$tmp/log" 2>&1; then result "$tap_name" 0; else result "$tap_name" 1; fi
}

# status NAME WANT COMMAND...: passes when the command exits with status WANT
status()
{
	tap_name=$1
	tap_want=$2
	shift 2
	"$@" > "$tmp/log" 2>&1
	tap_got=$?
	[ "$tap_got" = "$tap_want" ] || echo "status $tap_got, want $tap_want: $*" >> "$tmp/log"
	result "$tap_name" $((tap_got != tap_want))
}

# is NAME GOT WANT: passes when the strings are equal
is()
{
	printf 'got:  %s\nwant: %s\n' "$2" "$3" > "$tmp/log"
	if [ "$2" = "$3" ]; then result "$1" 0; else result "$1" 1; fi
}

# skip NAME WHY: a test that cannot run here
skip()
{
	tap_n=$((tap_n + 1))
	echo "ok $tap_n - $1 # SKIP $2"
}

# skip_all WHY: nothing in this file can run here
skip_all()
{
	echo "1..0 # SKIP $1"
	exit 0
}

# world DIR: a directory that looks like the top of the tree, with small things in it that the
# programs made: a tokenizer.json, config.json, in.jsonl, model/, act.jsonl, manifest.json, packed/
world()
{
	mkdir -p "$1/tests" && ln -s "$top/datasets" "$1" && ln -s "$top/tests/data" "$1/tests" ||
		exit 1
	(
		cd "$1" || exit 1
		cat > config.json <<-END
			{"chronos_format": 2, "vocab_size": 320, "hidden_size": 32,
			"num_hidden_layers": 2,
			"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
			"moe_intermediate_size": 16,
			"num_experts": 8, "num_experts_per_tok": 2, "num_shared_experts": 1,
			"kv_latent_dim": 16,
			"rope_dim": 4, "sliding_window_size": 32, "max_position_embeddings": 1024,
			"lookahead_steps": 2}
		END
		head -5 datasets/pretrain.jsonl > in.jsonl &&
		chr-tokenize -q --train -v 320 -o tokenizer.json datasets/pretrain.jsonl &&
		chr-pretrain -q -c config.json -t tokenizer.json -n 2 -b 2 --seq 32 -o model \
			datasets/pretrain.jsonl > log.jsonl &&
		chr-actlog -q -m model in.jsonl > act.jsonl &&
		chr-cluster -q act.jsonl > manifest.json &&
		chr-pack -q -m model -o packed manifest.json > pack.json
	) || { echo "Bail out! the programs cannot make the files of the tests"; exit 1; }
}

# memory NAME COMMAND...: what holds of the memory of a plain build; a sanitizer takes some of its
# own
memory()
{
	if [ "$bld" = "$top/build" ]; then
		ok "$@"
	else
		skip "$1" "a sanitizer takes memory of its own"
	fi
}

done_testing()
{
	echo "1..$tap_n"
	exit $tap_failed
}

# rare CONFIG CONDITION: a small model's configuration, and docs.jsonl: forty documents of a row of
# 32 tokens, of which those that CONDITION is true for (awk, number i) have token 250
rare()
{
	cat > "$1" <<-END
		{"chronos_format": 2, "vocab_size": 256, "hidden_size": 16, "num_hidden_layers": 2,
		"num_attention_heads": 2,
		"num_key_value_heads": 1, "head_dim": 8, "moe_intermediate_size": 16,
		"num_experts": 4, "num_experts_per_tok": 2,
		"num_shared_experts": 1, "kv_latent_dim": 8, "rope_dim": 4,
		"sliding_window_size": 16,
		"max_position_embeddings": 64, "lookahead_steps": 2, "tie_word_embeddings": false,
		"fallback_mask_prob": 0}
	END
	awk 'BEGIN {
		for (i = 1; i <= 40; i++) {
			s = ""
			for (j = 0; j < 32; j++)
				s = s (j ? "," : "") (j == 9 &&
					('"$2"') ? 250 : (i * 7 + j * 13) % 240)
			print "{\"tokens\":[" s "]}"
		}
	}' > docs.jsonl
}
# infinite DIR: there, the embedding of that token becomes so
infinite()
{
	at=$(chr-ls "$1/model.safetensors" |
		sed -n 's/.*"name":"model.embed_tokens.weight".*"offset":\([0-9]*\).*/\1/p')
	printf '\000\000\200\177' |
		dd of="$1/model.safetensors" bs=1 seek=$((at + 250 * 16 * 4)) conv=notrunc \
			2> "$tmp/noise"
}
# marks: chat.jsonl and prefs.jsonl, thirteen records each that say their own line numbers
marks()
{
	for i in 1 2 3 4 5 6 7 8 9 10 11 12 13; do
		echo '{"messages":[{"role":"user","content":"(mark'$i')"},{"role":"assistant","content":"so"}]}' >&3
		echo '{"prompt":"(mark'$i')","chosen":"so","rejected":"not so"}' >&4
	done 3> chat.jsonl 4> prefs.jsonl
}
# names_own NAME FILE COMMAND...: a run over one of them that stops and dumps names the records that
# the rows are of
names_own()
{
	name=$1 file=$2
	shift 2
	"$@" -q -j 1 --seq 64 --accum 2 -n 40 -o stage --force --max-spike 1e-7 \
		--dump-bad stage.jsonl "$file" > noise 2>&1
	sed -n 's/.*"source":"'"$file"':\([0-9]*\)".*/(mark\1)/p' stage.jsonl > said
	chr-tokenize -q -d -t tokenizer.json stage.jsonl | grep -o '(mark[0-9]*)' > meant
	is "$name" "$(cat meant)" "$(cat said)"
	ok "and there are some" [ "$(wc -l < said)" -gt 5 ]
}

# have_ranks: may mpirun start several here? As root, on a machine with fewer CPUs than ranks, with
# a library that never frees all it has.
have_ranks()
{
	case $(chr-pretrain -V) in *mpi*) ;; *) return 1 ;; esac
	command -v mpirun > /dev/null || return 1
	export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
		OMPI_MCA_rmaps_base_oversubscribe=1 \
		OMPI_MCA_mpi_yield_when_idle=1 ASAN_OPTIONS=detect_leaks=0
}

# own_group LIMIT: $group, a control group below the one we are in; where there can be none, the
# tests end here
own_group()
{
	v1=$(sed -n 's/^[0-9]*:\([^:]*,\)*memory\(,[^:]*\)*:\(.*\)/\3/p' /proc/self/cgroup)
	group=/sys/fs/cgroup/memory$v1/chr-test-$$
	limit=memory.limit_in_bytes
	if [ -z "$v1" ] || ! mkdir "$group" 2> /dev/null; then
		group=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)/chr-test-$$
		limit=memory.max
		mkdir "$group" 2> /dev/null
	fi
	if ! echo "$1" > "$group/$limit" 2> /dev/null || ! sh -c 'echo $$ > "$1/cgroup.procs"' sh \
		"$group" 2> /dev/null; then
		rmdir "$group" 2> /dev/null
		skip "in a control group" "none can be made here"
		done_testing
	fi
}

# tensors DIR: every tensor with the bytes it holds, in an order of its own
tensors()
{
	chr-ls -q --all "$1"/model*.safetensors | grep '"type":"tensor"' |
		sed 's/.*"name":"\([^"]*\)","dtype":"\([^"]*\)","shape":\([^]]*\].*\),"offset":\([0-9]*\),"file":"\([^"]*\)".*/\1 \2 \3 \4 \5/' |
		while read -r name type shape offset file; do
			bytes=${shape##*:}
			echo "$name $type $shape $(tail -c +$((offset + 1)) "$file" |
				head -c "$bytes" | cksum)"
		done | sort
}

# doc_tokens N: a record of N tokens below 293, the same always
doc_tokens()
{
	awk -v n="$1" 'BEGIN { printf "{\"tokens\":[3"
		for (i = 1; i < n; i++) printf ",%d", 3 + i * i * 7 % 290
		print "]}" }'
}
