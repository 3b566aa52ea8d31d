#!/bin/sh
# Several ranks and what may go wrong: data with shares, from a pipe with a window, not kept in
# memory; a loss that is not finite on one rank; a rank whose memory runs out.
. "$(dirname "$0")/lib.sh"
. tests/near.sh
have_ranks || skip_all "no mpirun, or built without MPI"
world "$tmp/w"
cd "$tmp/w" || exit 1

# both NAME INPUT COMMAND...: two ranks with -b 2 are one with -b 4; INPUT for standard input
both()
{
	both_name=$1 input=$2
	shift 2
	rm -rf one two
	ok "$both_name: one rank" sh -c 'in=$1; shift; "$@" -q -b 4 -o one < "$in" > one.log' \
		- "$input" "$@"
	ok "$both_name: two ranks" sh \
		-c 'in=$1; shift; mpirun -n 2 "$@" -q -b 2 -o two < "$in" > two.log' - "$input" "$@"
	ok "$both_name: the same losses" losses one.log two.log
	ok "$both_name: the same model" near one/model.safetensors two/model.safetensors
	# The position in the data, but for what each run has of its own
	ok "$both_name: the same place in the data" sh -c 'for d in one two; do
		tr -d "\n " < $d/train_state.json | sed "s/.*\"position\":\({[^}]*}\).*/\1/" > $d.place; done; cmp one.place two.place'
}
head -40 datasets/pretrain.jsonl > a.jsonl
tail -n +41 datasets/pretrain.jsonl | head -30 > b.jsonl
# A first step of AdamW is of the size of the learning rate, however small the gradient: rounding
# shows in proportion.
pretrain="chr-pretrain -c config.json -t tokenizer.json --seq 32 -n 6 -l 2e-4 --accum 2"
both "a mixture" /dev/null $pretrain a.jsonl:0.7 b.jsonl:0.3
both "a mixture of pairs" /dev/null chr-dpo -m model --seq 128 \
	-n 4 datasets/prefs.jsonl:2 datasets/prefs.jsonl:1
both "a window on a pipe" a.jsonl $pretrain --shuffle-window 16
both "nothing kept" /dev/null $pretrain --data-ram 0 a.jsonl b.jsonl
both "little kept, of conversations" /dev/null chr-sft -m model --seq 64 -n 4 \
	--data-ram 2K datasets/chat.jsonl

# A loss that is not finite on rank 1 only: token 250, whose embedding is infinite, is in the second
# half of what both take
rare small.json 'i == 19'
run="chr-pretrain -q -j 1 --seq 32 --no-shuffle --epochs 1"
$run -b 1 -c small.json -n 1 -o start docs.jsonl > start.log || exit 1
infinite start
two() { mpirun -n 2 $run -b 2 -m start "$@" docs.jsonl; }
one() { $run -b 4 -m start "$@" docs.jsonl; }
status "one rank stops" 65 one -o bad1 --dump-bad bad1.jsonl
grep -v '^status' "$tmp/log" | tail -1 > said1
status "two ranks stop" 65 two -o bad2 --dump-bad bad2.jsonl
sed -n '/^chr-pretrain/p' "$tmp/log" > said2
is "and say so once, in the same words" "$(sed 's/(-*nan)//' said2)" "$(sed 's/(-*nan)//' said1)"
ok "and dump the same batch, that of both" sh \
	-c '[ "$(wc -l < bad1.jsonl)" = 4 ] && cmp bad1.jsonl bad2.jsonl'
status "one rank skips the step" 0 sh -c '"$@" > one.log' - $run -b 4 -m start -o skip1 \
	--skip-nonfinite 1 docs.jsonl
status "two ranks skip it" 0 sh -c 'mpirun -n 2 "$@" > two.log' - $run -b 2 -m start -o skip2 \
	--skip-nonfinite 1 docs.jsonl
is "both count it" "$(grep -c '"skipped":1' two.log) $(grep -c '"loss":null' two.log)" \
	"$(grep -c '"skipped":1' one.log) 1"
grep -v '"loss":null' one.log > one.some
grep -v '"loss":null' two.log > two.some
ok "the losses beside it are the same" losses one.some two.some
# Token 250 itself keeps its infinity, which is no difference to speak of
ok "the same optimizer" near skip1/optimizer.safetensors skip2/optimizer.safetensors
{ for _ in $(seq 120); do sed -n 1p docs.jsonl; done; sed -n 2,9p docs.jsonl; } > jump.jsonl
jump="$run -c small.json -l 2e-2 --max-spike 2"
status "a jump stops one rank" 65 $jump -b 4 -o jump1 --dump-bad jump1.jsonl jump.jsonl
status "and two" 65 mpirun -n 2 $jump -b 2 -o jump2 --dump-bad jump2.jsonl jump.jsonl
ok "with the same dump" sh -c '[ -s jump1.jsonl ] && cmp jump1.jsonl jump2.jsonl'
status "a dump that rank 0 cannot write" 74 two -o full --dump-bad /dev/full

# Every stage knows which record a row is of, on every rank: each says its own line number
marks
names_own chr-sft chat.jsonl mpirun -n 2 chr-sft -m model -b 2
names_own chr-dpo prefs.jsonl mpirun -n 2 chr-dpo -m model -b 2
names_own chr-grpo prefs.jsonl mpirun -n 2 chr-grpo -m model -b 2 -G 2 --new 4 --reward toy \
	--iterations 2
chr-generate -q -m packed -n 6 -b 2 datasets/prompts.jsonl | sed 's/,"timing.*//' > one.jsonl
mpirun -n 2 chr-generate -q -m packed -n 6 -b 2 --guard datasets/prompts.jsonl |
	sed 's/,"timing.*//' > two.jsonl
ok "two ranks generate under a guard" sh -c '[ -s one.jsonl ] && cmp one.jsonl two.jsonl'

# In a control group that a neighbour fills: of one rank only, then of both
own_group 128M
finish()
{
	exec 9>&-
	for _ in 1 2 3 4 5 6 7 8 9 10; do
		rmdir "$group" 2> /dev/null && break
		sleep 0.2
	done
	rm -rf "$tmp"
}
trap finish EXIT
echo 'echo $$ > "$1/cgroup.procs" && shift && exec "$@"' > inside
inside="sh inside $group"
# filled NAME COMMAND...: trains without end, until a neighbour takes most of the group
long="chr-pretrain -c config.json -t tokenizer.json -b 2 --seq 64 --epochs 1000000 -n 1000000 --guard --guard-warn 50 --guard-stop 80"
filled()
{
	out=$1
	shift
	"$@" > $out.log 2> $out.err &
	pid=$!
	while [ ! -s $out.log ] && kill -0 $pid 2> /dev/null; do sleep 0.1; done
	mkfifo $out.fifo
	$inside tail -c 500000000 < $out.fifo > /dev/null &
	hog=$!
	exec 9> $out.fifo
	n=0
	while kill -0 $pid 2> /dev/null && [ $n -lt 400 ]; do
		[ $n -gt 110 ] || head -c 1000000 /dev/zero >&9
		sleep 0.05
		n=$((n + 1))
	done
	kill -9 $pid 2> /dev/null
	wait $pid
	filled=$?
	exec 9>&-
	wait $hog
}
filled other mpirun -n 1 $long -o other datasets/pretrain.jsonl : -n 1 $inside $long \
	-o other datasets/pretrain.jsonl
is "a rank whose group fills up stops both: 75" $filled 75
ok "with a checkpoint of the last step" test \
	-d "other/checkpoint-$(grep -c '"type":"step"' other.log)"
ok "and says whose memory it was" grep -q 'memory is short for another rank' other.err
filled both $inside mpirun -n 2 $long -o both datasets/pretrain.jsonl
is "a group of both: 75" $filled 75
is "one line says why" "$(grep -c 'are in use; the limit is at 80 %\|memory is short' both.err)" 1
ok "with a checkpoint of the last step" test \
	-d "both/checkpoint-$(grep -c '"type":"step"' both.log)"
status "it goes on" 75 mpirun -n 2 $long -q -o both --resume --stop-after 1 datasets/pretrain.jsonl

# Ranks that share a limit share what it leaves
one="chr-pretrain -q -c config.json -t tokenizer.json -b 32 --seq 512 -n 1 --guard"
plan=$($one --dry-run datasets/pretrain.jsonl 2> noise | sed -n 's/.*"total":\([0-9]*\).*/\1/p')
echo $((plan * 3 / 2)) > "$group/$limit"
status "room for one" 0 $inside $one -o fits datasets/pretrain.jsonl
status "is no room for two" 71 $inside mpirun -n 2 $one -o fits2 datasets/pretrain.jsonl
ok "nothing was killed" sh \
	-c '! grep -q "oom_kill [1-9]" "$1"/memory.events "$1"/memory.oom_control 2> /dev/null' sh \
	"$group"
done_testing
