#!/bin/sh
# Packing a published model: read once, in a memory that is planned; and cut at any moment, by kill
# -9, a signal, a full disk or a model that goes away, it goes on to the bytes of a calm run. Kills
# are CHR_KILLS, 10 by default; their moments are drawn from CHR_FIRE_SEED.
# shellcheck disable=SC2154
. "$(dirname "$0")/lib.sh"
world "$tmp/w"
cd "$tmp/w" || exit 1
kills=${CHR_KILLS:-10}
seed=${CHR_FIRE_SEED:-1}

# 50 MB, of which 42 MB in 128 experts; experts go into two dozen files.
cat > big.json <<END
{"chronos_format": 2, "vocab_size": 320, "hidden_size": 128, "num_hidden_layers": 2,
"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "moe_intermediate_size": 192,
"num_experts": 64, "num_experts_per_tok": 2, "num_shared_experts": 1, "kv_latent_dim": 16,
"rope_dim": 8, "sliding_window_size": 16, "max_position_embeddings": 64, "lookahead_steps": 2}
END
chr-pretrain -q -c big.json -t tokenizer.json -n 1 -b 1 --seq 16 -l 1e-6 -o own \
	datasets/pretrain.jsonl > noise &&
	chr-actlog -q -m own in.jsonl |
		chr-cluster -q --layout layer --min-bytes 1 --max-bytes 1700K > order.json ||
	{ echo "Bail out! no model"; exit 1; }
# As published: nobody says its fingerprint.
cp -r own pub
perl -pi -e 's/chronos\.fingerprint/chronos.fingerXXXXX/' pub/model.safetensors
perl -pi -e 's/"fingerprint"/"unprinted"/' order.json

job="-m pub --quant q4a --quant-for *.experts.*.down_proj.weight=q8 --quant-dense q8 --shard-size 400K"
pack()	# OUT OPTIONS...
{
	packed=$1
	shift
	set -f
	# shellcheck disable=SC2086
	chr-pack -q $job -o "$packed" "$@" order.json > "$packed.json" 2> "$packed.err"
	pack_status=$?
	set +f
	cat "$packed.err"
	return $pack_status
}
field()	# NAME FILE
{
	sed -n 's/.*"'"$1"'":"\{0,1\}\([-0-9a-z_.e+]*\).*/\1/p' "$2" | head -n 1
}
sums()		# DIR
{
	(cd "$1" && sha256sum -- *)
}
random()	# N: 0..N-1 into $drawn
{
	seed=$(((seed * 1103515245 + 12345) % 2147483648))
	drawn=$((seed / 65536 % $1))
}
started()	# the pid of a run of pack shot: $pid
{
	set -f
	# shellcheck disable=SC2086
	chr-pack -q $job -o shot "$@" order.json > shot.json 2> shot.err &
	pid=$!
	set +f
}
until_done()	# N: waits until so many files of shot are in the journal, or the run has ended
{
	while kill -0 $pid 2> noise &&
		[ "$(cat shot.partial/pack.journal 2> noise | wc -l)" -lt "$1" ]; do :; done
}
as_calm()	# NAME: shot is what a run that nobody cut makes, and nothing is left beside it
{
	is "$1" "$(sums shot)" "$(sums calm)"
	is "... and nothing else" "$(echo shot*)" "shot shot.err shot.json"
	rm -rf shot shot.*
}

ok "a run that nobody cuts" pack calm
ok "in many files" [ "$(find calm -name '*.ctsr' | wc -l)" -gt 20 ]
ok "and shards with an index" [ -e calm/model.safetensors.index.json ]
is "it finds the fingerprint on the way" "$(field fingerprint calm.json)" \
	"$(chr-ls -q own | sed -n 's/.*"fingerprint":"\([0-9a-f]*\)".*/\1/p' | head -1)"
is "all headers have it" "$(grep -la "$(field fingerprint calm.json)" calm/* | wc -l)" \
	"$(find calm -name '*.ctsr' -o -name '*.safetensors' -o -name '*manifest.json' | wc -l)"
ok "chr-ls finds it whole" chr-ls -q --check calm
chr-diff -q own calm in.jsonl > diff.json
ok "it runs, close to the floats" awk -v kl="$(field kl diff.json)" \
	'BEGIN { exit !(kl != "" && kl < 1e-2) }'
chr-pack -q -m pub -o plain order.json > plain.json
ok "without other types the model comes back, with its fingerprint" \
	sh -c 'chr-pack -q --unpack -m plain -o back > back.json &&
	grep -q "$(sed "s/.*\(\"fingerprint\":\"[0-9a-f]*\"\).*/\1/" plain.json)" back.json'
rm -rf plain back

# ---- memory ----

near()		# PLAN PEAK: 5 %, or 512 KiB of what is never the same twice
{
	echo "plan $1, peak $2"
	awk 'BEGIN { d = '"$1 - $2"'; d = d < 0 ? -d : d; exit !(d <= 0.05 * '"$2"' ||
		d <= 524288) }'
}
memory "the plan is the peak" near "$(field mem_plan calm.json)" "$(field mem_peak calm.json)"
status "a limit that is too small" 71 pack shot --ram 1M
least=$(sed -n 's/.*use --ram \([0-9]*\)M.*/\1/p' shot.err)
ok "says which one would do" [ "${least:-0}" -gt 1 ]
ok "that one does" pack shot --ram "${least}M"
memory "and holds" [ "$(field mem_peak shot.json)" -le $((least * 1024 * 1024)) ]
as_calm "with the same bytes"
is "what --dry-run says" \
	"$(pack shot --dry-run > noise; field type shot.json)" mem_plan
ok "... writes nothing" [ ! -e shot ]

# ---- cut ----

n=0 broken=0
while [ $n -lt "$kills" ]; do
	started
	random 600
	sleep "0.$(printf %03d $((50 + drawn)))"
	kill -KILL $pid 2> noise
	wait $pid 2> noise
	[ $? = 137 ] || { [ -e shot ] && rm -r shot; continue; }
	n=$((n + 1))
	[ ! -e shot ] || chr-ls -q --check shot > noise || broken=$((broken + 1))
	[ ! -e shot ] || rm -r shot
done
is "killed $kills times: never half a model" $broken 0
ok "the next run ends" pack shot
as_calm "with the bytes of a calm one"

until_kill()	# SIGNAL N: shot is cut by a signal when N files are complete
{
	started
	until_done "$2"
	kill "-$1" $pid
	wait $pid
	cut=$?
}
until_kill KILL 5
is "killed after five files" $cut 137
ok "the next run" pack shot
ok "goes on after those" [ "$(field resumed_files shot.json)" -ge 5 ]
as_calm "with the bytes of a calm one"

until_kill TERM 3
is "SIGTERM" $cut 75
ok "says how to go on" grep -q 'files are complete in shot.partial: the same command' shot.err
ok "so does that" pack shot
ok "from there" [ "$(field resumed_files shot.json)" -ge 3 ]
as_calm "with the bytes of a calm one"

until_kill KILL 5
printf 'x' | dd of=shot.partial/cluster_001.ctsr bs=1 seek=9000 conv=notrunc 2> noise
printf 'x' | dd of=shot.partial/cluster_002.ctsr bs=1 seek=100 conv=notrunc 2> noise
whole=$(($(wc -l < shot.partial/pack.journal) - 2))
ok "files that were changed since" pack shot
is "are not trusted" "$(field resumed_files shot.json)" $whole
as_calm "and written again"

until_kill KILL 5
perl -pi -e 's/"parts":\[\[\d/"parts":[[7/ if $. == 3' shot.partial/pack.journal
printf '01234567 {"file":' >> shot.partial/pack.journal
echo rubbish > shot.partial/rubbish
ok "a journal that was changed" pack shot
ok "is believed as far as it is whole" [ "$(field resumed_files shot.json)" = 2 ]
as_calm "and the rest written again"

until_kill KILL 5
chr-pack -q -m pub -o shot --layout layer > shot.json
ok "another command starts anew" [ -z "$(field resumed_files shot.json)" ]
ok "and is whole" chr-ls -q --check shot
is "with files of its own" "$(find shot -name pack.journal | wc -l)" 0
rm -rf shot shot.*
until_kill KILL 5
touch pub/model.safetensors
ok "another model" pack shot
ok "too" [ -z "$(field resumed_files shot.json)" ]
as_calm "and has its own bytes"

until_kill KILL 2
status "another process at it" 75 flock shot.partial.job chr-pack -q -m pub -o shot --layout layer
rm -rf shot.*

# ---- what fails ----

(ulimit -f 700; pack shot > noise)
is "a full disk" $? 74
ok "what was complete stays" grep -q 'files are complete in shot.partial' shot.err
ok "once there is room" pack shot
as_calm "the bytes are those of a calm run"

# A file system that holds all tensors, but not their headers as well; and one that is too small.
needs=$(sed 's/.*"experts":[0-9]*,"bytes":\([0-9]*\).*"dense_bytes":\([0-9]*\).*/\1 + \2/' calm.json)
on_small()	# BYTES: the status of pack there, in $tmp/status
{
	unshare -rm sh -c 'mkdir -p small && mount -t tmpfs -o size="$1" none small || exit
		shift; "$@" 2> small.err; echo $? > small.status; ls -a small > small.ls' \
		sh "$1" chr-pack -q -m pub -o small/shot --quant q4a \
		--quant-for '*.experts.*.down_proj.weight=q8' --quant-dense q8 order.json > noise
}
if on_small 1M; then
	is "a file system that is too small" "$(cat small.status)" 73
	ok "is measured before" grep -q 'needs [0-9]* bytes, its file system has' small.err
	on_small $(($needs + 65536))
	is "one that becomes full" "$(cat small.status)" 74
		ok "keeps what is complete" grep -q 'files are complete in small/shot.partial' small.err
else
	skip "a full file system" "mounts are not permitted"
fi

cp -r pub gone
set -f
started -m gone --ram "${least}M"
set +f
until_done 1
kill -STOP $pid
truncate -s 20000000 gone/model.safetensors
kill -CONT $pid
wait $pid
is "a model that is cut off meanwhile" $? 74
ok "is named" grep -q gone/model.safetensors shot.err
rm -rf gone shot shot.*

cp -r pub bad
at=$(chr-ls bad/model.safetensors |
	sed -n 's/.*"name":"[^"]*experts.63.up_proj.weight".*"offset":\([0-9]*\).*/\1/p' | tail -1)
printf '\000\000\200\177' | dd of=bad/model.safetensors bs=1 seek=$((at + 400)) conv=notrunc 2> noise
status "an infinite value" 65 pack shot -m bad
ok "is named with its tensor" grep -q 'experts.63.up_proj.weight has a value that is not finite' \
	shot.err
ok "and nothing stays" [ ! -e shot ] && [ ! -e shot.partial ]
rm -rf bad shot.*

perl -pe 's/"version"/"fingerprint":"5eed","version"/' order.json > other.json
status "a manifest of another fingerprint" 65 chr-pack -q -m pub -o shot other.json
ok "leaves nothing" [ ! -e shot ] && [ ! -e shot.partial ]

# ---- no experts ----

sed 's/"chronos_format"/"use_moe": false, "intermediate_size": 512, "chronos_format"/' \
	config.json > dense.json
chr-pretrain -q -c dense.json -t tokenizer.json -n 2 -b 2 --seq 32 -o dense \
	datasets/pretrain.jsonl > noise || { echo "Bail out! no dense model"; exit 1; }
ok "a model without experts" chr-pack -q -m dense -o dense8 --layout layer --quant-dense q8 \
	--shard-size 50K
ok "is a plain directory in blocks" [ ! -e dense8/cluster_manifest.json ]
ok "in shards" [ -e dense8/model.safetensors.index.json ]
ok "whole, and of the fingerprint that it says" chr-ls -q --check dense8
chr-diff -q dense dense8 in.jsonl > diff.json
ok "close to the floats" awk -v kl="$(field kl diff.json)" 'BEGIN { exit !(kl != "" && kl < 1e-3) }'
status "types for experts" 64 chr-pack -q -m dense -o no --layout layer --quant q4
status "nothing to do" 65 chr-pack -q -m dense -o no --layout layer
status "no layout" 64 chr-pack -q -m dense -o no --quant-dense q8 order.json

# ---- what is said meanwhile, and a limit of the kernel's ----

if command -v script > noise; then
	script -qec "$bld/chr-pack -j 1 -m pub -o shot --layout layer --quant q4a" said \
		> noise < /dev/null
	ok "bytes, bytes a second and what is left" \
		grep -qE 'packing: [0-9]+ of [0-9]+ MB \([0-9]+%, [0-9:]+ left\) [0-9.]+ MB/s' said
	rm -rf shot
else
	skip "what is said" "no script(1)"
fi
own_group 24M
inside() { sh -c 'echo $$ > "$1/cgroup.procs" && shift && exec "$@"' sh "$group" "$@"; }
set -f
# shellcheck disable=SC2086
inside chr-pack -q $job -o shot --ram 16M order.json > shot.json 2> shot.err
is "in a control group of half the model" $? 0
set +f
as_calm "the same bytes"
rmdir "$group"
done_testing
