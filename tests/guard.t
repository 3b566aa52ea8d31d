#!/bin/sh
# --guard: levels are checked, and in a control group that others fill a trainer stops with a checkpoint and
# chr-generate takes no more prompts, before the kernel kills anything.
. "$(dirname "$0")/lib.sh"
[ "$bld" = "$top/build" ] || skip_all "a sanitizer takes memory of its own"
world "$tmp/w"
cd "$tmp/w" || exit 1

sums()
{
	(cd "$1" && cat model.safetensors optimizer.safetensors train_state.json | sha256sum)
}
pretrain()
{
	chr-pretrain -q -c config.json -t tokenizer.json -b 2 --seq 64 "$@" datasets/pretrain.jsonl
}
hog=
finish()
{
	[ -z "$hog" ] || kill "$hog" 2> /dev/null
	rm -f "$tmp/fifo"
	for _ in 1 2 3 4 5 6 7 8 9 10; do
		rmdir "$group" 2> /dev/null && break
		sleep 0.2
	done
	rm -rf "$tmp"
}

status "a warning above the limit: 64" 64 pretrain -n 1 -o no --guard --guard-warn 90 --guard-stop 80
pretrain -n 4 -o plain > /dev/null
pretrain -n 4 -o watched --guard > /dev/null
is "where there is enough, nothing changes" "$(sums watched)" "$(sums plain)"
for _ in 1 2 3 4; do head -3 datasets/openings.jsonl; done > prompts.jsonl
chr-generate -q -m model -n 3 --temperature 0 prompts.jsonl | sed 's/"timing".*//' > plain.out
chr-generate -q -m model -n 3 --temperature 0 --guard prompts.jsonl | sed 's/"timing".*//' > watched.out
ok "nor for chr-generate" cmp plain.out watched.out

# A group of our own, below the one we are in
v1=$(sed -n 's/^[0-9]*:\([^:]*,\)*memory\(,[^:]*\)*:\(.*\)/\3/p' /proc/self/cgroup)
v2=$(sed -n 's/^0:://p' /proc/self/cgroup)
group=/sys/fs/cgroup/memory$v1/chr-test-$$
limit=memory.limit_in_bytes
if [ -z "$v1" ] || ! mkdir "$group" 2> /dev/null; then
	group=/sys/fs/cgroup$v2/chr-test-$$
	limit=memory.max
	mkdir "$group" 2> /dev/null
fi
if ! echo 64M > "$group/$limit" 2> /dev/null || ! sh -c 'echo $$ > "$1/cgroup.procs"' sh "$group" 2> /dev/null; then
	rmdir "$group" 2> /dev/null
	skip "in a control group" "none can be made here"
	done_testing
fi
trap finish EXIT

# inside COMMAND...: in the group
inside()
{
	sh -c 'echo $$ > "$1/cgroup.procs" && shift && exec "$@"' sh "$group" "$@"
}
# A process that holds 52 MB of the 64 in the group, until it is told to go
fill()
{
	rm -f "$tmp/fifo"
	mkfifo "$tmp/fifo"
	inside tail -c 52000000 < "$tmp/fifo" > /dev/null &
	hog=$!
	exec 9> "$tmp/fifo"
	head -c 52000000 /dev/zero >&9
}
empty()
{
	exec 9>&-
	wait $hog
	hog=
}
# wait_for PID: until it has ended, half a minute at most
wait_for()
{
	n=0
	while kill -0 "$1" 2> /dev/null && [ $n -lt 300 ]; do
		sleep 0.1
		n=$((n + 1))
	done
	kill -9 "$1" 2> /dev/null
	wait "$1"
}
train="chr-pretrain -q -c config.json -t tokenizer.json -b 2 --seq 64 -n 1000000 --epochs 1000000 --guard --guard-warn 50 --guard-stop 80"

status "a plan that the group has no room for: 71" 71 inside chr-pretrain -c config.json -t tokenizer.json -b 32 --seq 1024 --guard \
	-o no datasets/pretrain.jsonl
ok "which says so before any work" test ! -e no
inside $train -o run datasets/pretrain.jsonl > run.log 2> run.err &
pid=$!
while [ ! -s run.log ] && kill -0 $pid 2> /dev/null; do sleep 0.1; done
fill
wait_for $pid
is "a trainer whose group fills up: 75" $? 75
ok "it says why" grep -q "of the 64.0 MiB of /sys/fs/cgroup.*chr-test.* are in use; the limit is at 80 %" run.err
steps=$(grep -c '"type":"step"' run.log)
ok "with a checkpoint of its last step" test -d "run/checkpoint-$steps"
status "while the group is full it does not begin again" 71 inside $train -o run --resume datasets/pretrain.jsonl
for _ in $(seq 400); do cat prompts.jsonl; done > many.jsonl
empty
inside chr-generate -m model -n 20 --guard --kv-warn 50 --kv-shed 80 many.jsonl > many.out 2> many.err &
pid=$!
while [ ! -s many.out ] && kill -0 $pid 2> /dev/null; do sleep 0.1; done
fill
wait_for $pid
is "chr-generate whose group fills up: 75" $? 75
done=$(wc -l < many.out)
ok "it ends what it began: $done of 4800" [ "$done" -gt 0 -a "$done" -lt 4800 -a "$(grep -c '"finish":"\(length\|stop\)"' many.out)" = "$done" ]
ok "and says how many" grep -q "stopped after $done prompts" many.err
empty
ok "nothing was killed" sh -c '! grep -q "oom_kill [1-9]" "$1"/memory.events "$1"/memory.oom_control 2> /dev/null' sh "$group"
again="chr-pretrain -q -c config.json -t tokenizer.json -b 2 --seq 64 -n 1000000 --epochs 1000000 --stop-after 2"
$again -o run --resume datasets/pretrain.jsonl > /dev/null
is "it goes on" $? 75
ok "from that step" test -d run/checkpoint-$((steps + 2))
done_testing
