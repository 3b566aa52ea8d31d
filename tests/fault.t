#!/bin/sh
# A drive that fails, is slow, or loses files under a running program: a clear error with file and
# status, or the right text; never wrong text, never a hang. And --ram holds under a limit of the
# kernel's at that value.
# shellcheck disable=SC2154
. "$(dirname "$0")/lib.sh"
world "$tmp/w"
cd "$tmp/w" && rm -r packed || exit 1
uring=
if chr-generate -V | grep -q liburing && pkg-config --exists liburing; then
	uring="-DHAVE_URING $(pkg-config --cflags liburing)"
fi
# shellcheck disable=SC2086
${CC:-cc} -O1 -shared -fPIC $uring -o fault.so "$top/tests/fault/preload.c" -ldl > cc.log 2>&1 ||
	{ cat cc.log; echo "Bail out! no shim"; exit 1; }
# A sanitizer's library need not come first: the shim calls on to it.
export ASAN_OPTIONS="verify_asan_link_order=0:detect_leaks=0:$ASAN_OPTIONS"

cat > big.json <<END
{"chronos_format": 2, "vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 4,
"num_attention_heads": 4,
"num_key_value_heads": 2, "head_dim": 16, "moe_intermediate_size": 64, "num_experts": 16,
"num_experts_per_tok": 2,
"num_shared_experts": 1, "kv_latent_dim": 16, "rope_dim": 8, "sliding_window_size": 16,
"max_position_embeddings": 8192, "lookahead_steps": 2}
END
chr-pretrain -q -c big.json -t tokenizer.json -n 2 -b 2 --seq 32 -l 1e-6 \
	-o big datasets/pretrain.jsonl > /dev/null &&
	chr-actlog -q -m big in.jsonl > big.act &&
	chr-cluster -q --layout louvain --max-bytes 512K big.act |
		chr-pack -q -m big -o packed > /dev/null ||
	{ echo "Bail out! no model"; exit 1; }
head -3 datasets/prompts.jsonl > prompts.jsonl

# The smallest limit that is accepted, in MiB, from the message that refuses 1 MiB
chr-generate -q -m packed -n 24 --context 64 --chunk 32 -j 2 \
	--ram 1M prompts.jsonl > /dev/null 2> refused
least=$(sed -n 's/.*use --ram \([0-9]*\)M.*/\1/p' refused)
ram=${least:-20}M

# gen FILE OPTIONS...: completions without their timing in FILE, messages in FILE.err, token records
# in FILE.stats
gen()
{
	gen_out=$1
	shift
	timeout -k 5 60 "$bld/chr-generate" -q -n 24 -s 5 --context 64 --chunk 32 -j 2 \
		--stats "$gen_out.stats" "$@" prompts.jsonl \
		> "$gen_out.all" 2> "$gen_out.err"
	gen_status=$?
	cat "$gen_out.err"
	sed 's/,"timing":{.*//' "$gen_out.all" > "$gen_out"
	return $gen_status
}

# faulty FILE KIND AFTER TIMES OPTIONS...: the same over a drive with faults
faulty()
{
	faulty_out=$1
	export FAULT="$2" FAULT_AFTER="$3" FAULT_TIMES="$4" FAULT_LOG="$1.log"
	shift 4
	rm -f "$FAULT_LOG"
	(
		export LD_PRELOAD="$PWD/fault.so"
		exec timeout -k 5 60 "$bld/chr-generate" -q -n 24 -s 5 --context 64 --chunk 32 -j \
			2 --ram "$ram" --stats "$faulty_out.stats" \
			"$@" prompts.jsonl
	) > "$faulty_out.all" 2> "$faulty_out.err"
	faulty_status=$?
	unset FAULT FAULT_AFTER FAULT_TIMES FAULT_LOG
	cat "$faulty_out.err"
	sed 's/,"timing":{.*//' "$faulty_out.all" > "$faulty_out"
	[ -s "$faulty_out.log" ] || { echo "no fault happened"; return 99; }
	return $faulty_status
}

# failed STATUS MESSAGE COMMAND...: it ends with that status and one line that names file, layer and
# expert
failed()
{
	failed_want=$1 failed_message=$2
	shift 2
	"$@" > failed.out
	failed_got=$?
	cat failed.out
	[ "$failed_got" = "$failed_want" ] || { echo "status $failed_got"; return 1; }
	grep -Eq "^chr-generate: packed/cluster_[0-9]+\.ctsr: layer [0-9]+, expert [0-9]+: $failed_message" failed.out
}

# right FILE COMMAND...: it ends with 0 and makes the text that there should be
right()
{
	right_out=$1
	shift
	"$@" && cmp want "$right_out"
}

# One or the other: what is wrong may lie where nobody looks any more
either()
{
	failed "$@" || right f [ "$failed_got" = 0 ]
}

# Where the shared experts may stand in, a run may also end well; but it says what was replaced.
excused()
{
	failed "$@" && return 0
	[ "$failed_got" = 0 ] && ! tail -n 1 "$excused_stats" | grep -q '"replaced_mass":0\.0,'
}

ok "resident" gen want -m big
cp -r packed whole
for how in uring:none uring:gate uring:all threads:none threads:gate threads:all; do
	io=${how%:*} predict=${how#*:}
	if [ $io = uring ] && { [ -z "$uring" ] ||
		! gen f --io uring -m packed --ram "$ram" > /dev/null; }; then
		skip "$how" "no io_uring here"
		continue
	fi
	o="-m packed --io $io --predict $predict"
	ok "$how: every read fails" failed 74 \
		"Input/output error at offset [0-9]+" faulty f eio 0 1000000 $o
	ok "$how: reads fail from the 40th on" failed 74 \
		"Input/output error" faulty f eio 40 1000000 $o
	ok "$how: the file ends too early" failed 74 \
		"unexpected end of file" faulty f end 40 1000000 $o
	ok "$how: short reads" right f faulty f short 0 1000000 $o
	ok "$how: short reads, not direct" right f faulty f short 0 1000000 $o --buffered
	ok "$how: ten times slower" right f faulty f slow 0 1000000 $o
	ok "$how: ten times slower, half way through a simulated drive" right f faulty f slow 60 \
		1000000 $o --sim-ssd 0.1,500M
	excused_stats=f.stats
	ok "$how, shared: every read fails" failed 74 \
		"Input/output error" faulty f eio 0 1000000 $o --on-miss shared
	ok "$how, shared: reads fail from the 50th on" excused 74 \
		"Input/output error" faulty f eio 50 1000000 $o --on-miss shared
	ok "$how, shared: short reads" faulty f short 0 1000000 $o --on-miss shared
	ok "$how, shared: ten times slower" faulty f slow 0 1000000 $o --on-miss shared
	# One read fails and the next would not: an error, or the right text when it was a guess
	# that nobody had asked for.
	for after in 0 13 40; do
		ok "$how: read $after fails, once" either 74 \
			"Input/output error" faulty f eio $after 1 $o
	done
done

# while_running ACTION OPTIONS...: does ACTION when some token records are out; the status of the
# program
while_running()
{
	action=$1
	shift
	rm -rf packed fifo && cp -r whole packed && mkfifo fifo
	gen f --stats fifo --sim-ssd 1 --ram "$ram" -m packed "$@" > f.log &
	{
		for _ in 1 2 3 4 5; do read -r _; done
		$action
		cat > rest
	} < fifo
	wait $!
	running_status=$?
	cat f.log
	return $running_status
}
cut_short() { truncate -s 0 packed/*.ctsr; }
cut_half() { for f in packed/*.ctsr; do truncate -s $(($(wc -c < "$f") / 2)) "$f"; done; }
delete() { rm packed/*.ctsr; }
replace() { for f in packed/*.ctsr; do head -c "$(wc -c < "$f")" /dev/zero > f.zero &&
	mv f.zero "$f"; done; }

for predict in none gate all; do
	o="--predict $predict"
	ok "$predict: files cut to nothing while it runs" failed 74 \
		"unexpected end of file" while_running cut_short $o
	ok "$predict: files cut in half while it runs" either 74 \
		"unexpected end of file" while_running cut_half $o
	ok "$predict: files deleted while it runs" right f while_running delete $o
	ok "$predict: files replaced while it runs" right f while_running replace $o
	excused_stats=rest
	ok "$predict, shared: files cut while it runs" excused 74 \
		"unexpected end of file" while_running cut_short $o --on-miss shared
done

# What is wrong before it starts
fresh() { rm -rf packed && cp -r whole packed; }
fresh && cut_half
status "truncated files" 65 gen f -m packed --ram "$ram"
ok "named" grep -Eq '^chr-generate: packed/cluster_[0-9]+\.ctsr: layer [0-9]+, expert [0-9]+: ' \
	f.err
fresh && rm packed/cluster_001.ctsr
status "a missing file" 66 gen f -m packed --ram "$ram"
ok "named" grep -q '^chr-generate: packed/cluster_001.ctsr: No such file' f.err
fresh
for f in packed/*.ctsr; do
	printf 'XXXXXXXXXXXXXXXX' |
		dd of="$f" bs=1 seek=$(($(wc -c < "$f") / 2)) conv=notrunc 2> /dev/null
done
for predict in none gate all; do
	ok "$predict: a corrupt expert" failed 65 "CRC-32 is [0-9a-f]+, the manifest says" gen f \
		-m packed --ram "$ram" --predict $predict
done
rm -rf packed && mv whole packed

# The promise of --ram, under a limit of the kernel's at that value: 50 MB of experts, 16 MiB more
# than what is needed
group=/sys/fs/cgroup/memory/chr-fault-$$
# shellcheck disable=SC2016
limited() { timeout -k 5 120 sh -c 'echo $$ > "$0/cgroup.procs" && exec "$@"' "$group" "$@"; }
case $bld in *-san | *-tsan) group=/nowhere/$$ ;; esac
if mkdir "$group" 2> /dev/null; then
	trap 'rmdir "$group"; rm -rf "$tmp"' EXIT
	sed 's/"hidden_size": 64/"hidden_size": 128/;
		s/"moe_intermediate_size": 64/"moe_intermediate_size": 256/
		s/"num_experts": 16/"num_experts": 32/' big.json > wide.json
	chr-pretrain -q -c wide.json -t tokenizer.json -n 1 -b 1 --seq 8 \
		-o wide datasets/pretrain.jsonl > /dev/null &&
		chr-actlog -q -m wide in.jsonl | chr-cluster -q --layout layer |
			chr-pack -q -m wide -o wider > /dev/null ||
		{ echo "Bail out! no model"; exit 1; }
	for n in 2 500 4000; do
		seq $n | awk \
			'BEGIN { printf "{\"tokens\":[1" } NR > 1 { printf ",%d",
			4 + $1 * 7 % 300 } END { print "]}" }' > long.jsonl
		o="-q -m wider -n 8 -j 2 --context $((n + 16)) --predict all --stats stats"
		chr-generate $o --ram 1M long.jsonl > /dev/null 2> refused
		limit=$((($(sed -n 's/.*use --ram \([0-9]*\)M.*/\1/p' refused) + 16) << 20))
		echo $limit > "$group/memory.limit_in_bytes"
		status "$n tokens within a limit of $((limit >> 20)) MiB of the kernel's" 0 \
			limited "$bld/chr-generate" $o --ram $limit long.jsonl
		rss=$(tail -n 1 stats | sed 's/.*"peak_rss":\([0-9]*\).*/\1/')
		ok "$n tokens: peak memory of $((rss >> 10)) KiB is at most 1.02 of --ram" \
			expr "${rss:-0}" \> 0 \& "${rss:-0}" \<= $((limit + limit / 50))
	done
else
	skip "the promise of --ram" "no memory group can be made here, or a sanitizer takes memory of its own"
fi
done_testing
