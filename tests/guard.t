#!/bin/sh
# --guard: levels are checked, and in a control group that others fill a trainer stops with a
# checkpoint, and chr-generate holds fewer experts and then takes no more prompts, before the kernel
# kills anything.
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

status "a warning above the limit: 64" 64 pretrain -n 1 -o no --guard --guard-warn 90 \
	--guard-stop 80
pretrain -n 4 -o plain > /dev/null
pretrain -n 4 -o watched --guard > /dev/null
is "where there is enough, nothing changes" "$(sums watched)" "$(sums plain)"
for _ in 1 2 3 4; do head -3 datasets/openings.jsonl; done > prompts.jsonl
chr-generate -q -m model -n 3 --temperature 0 prompts.jsonl | sed 's/"timing".*//' > plain.out
chr-generate -q -m model -n 3 --temperature 0 --guard prompts.jsonl |
	sed 's/"timing".*//' > watched.out
ok "nor for chr-generate" cmp plain.out watched.out

# A group of our own, below the one we are in
own_group 64M
trap finish EXIT

# inside COMMAND...: in the group; its process id goes to $tmp/pid
inside()
{
	sh -c 'echo $$ > "$1/cgroup.procs" && echo $$ > "$2" && shift 2 && exec "$@"' sh "$group" \
		"$tmp/pid" "$@"
}
# fill MB: a process in the group that comes to hold so much, a megabyte after the other, until it
# is told to go
fill()
{
	rm -f "$tmp/fifo"
	mkfifo "$tmp/fifo"
	inside tail -c 500000000 < "$tmp/fifo" > /dev/null &
	hog=$!
	exec 9> "$tmp/fifo"
	for _ in $(seq "$1"); do head -c 1000000 /dev/zero >&9; sleep "${2:-0}"; done
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

inside chr-generate -v -m packed -n 1 -p x --guard > out 2> told
ok "--verbose says what the kernel tells of" grep -q -- '--guard: the kernel tells of' told
[ "$limit" = memory.max ] || ok "a v1 group tells when its usage passes the limit" grep \
	-q "the group's usage" told
status "a plan that the group has no room for: 71" 71 inside chr-pretrain -c config.json \
	-t tokenizer.json -b 32 --seq 1024 --guard \
	-o no datasets/pretrain.jsonl
ok "which says so before any work" test ! -e no
inside $train -o run datasets/pretrain.jsonl > run.log 2> run.err &
pid=$!
while [ ! -s run.log ] && kill -0 $pid 2> /dev/null; do sleep 0.1; done
fill 52
wait_for $pid
is "a trainer whose group fills up: 75" $? 75
ok "it says why" grep \
	-q "of the 64.0 MiB of /sys/fs/cgroup.*chr-test.* are in use; the limit is at 80 %" run.err
steps=$(grep -c '"type":"step"' run.log)
ok "with a checkpoint of its last step" test -d "run/checkpoint-$steps"
status "while the group is full it does not begin again" 71 inside $train -o run \
	--resume datasets/pretrain.jsonl
for _ in $(seq 400); do cat prompts.jsonl; done > many.jsonl
empty
inside chr-generate -m model -n 20 --guard --kv-warn 50 --kv-shed 80 many.jsonl \
	> many.out 2> many.err &
pid=$!
while [ ! -s many.out ] && kill -0 $pid 2> /dev/null; do sleep 0.1; done
fill 52
wait_for $pid
is "chr-generate whose group fills up: 75" $? 75
done=$(wc -l < many.out)
ok "it ends what it began: $done of 4800" [ "$done" -gt 0 -a "$done" -lt 4800 \
	-a "$(grep -c '"finish":"\(length\|stop\)"' many.out)" = "$done" ]
ok "and says how many" grep -q "stopped after $done prompts" many.err
empty

# A trainer whose plan leaves little of the limit
cat > wide.json <<-END
	{"chronos_format": 2, "vocab_size": 320, "hidden_size": 128, "num_hidden_layers": 2,
	"num_attention_heads": 4,
	"num_key_value_heads": 2, "head_dim": 16, "moe_intermediate_size": 512, "num_experts": 32,
	"num_experts_per_tok": 2,
	"num_shared_experts": 1, "kv_latent_dim": 16, "rope_dim": 8, "sliding_window_size": 32,
	"max_position_embeddings": 1024, "lookahead_steps": 2}
END
wide="chr-pretrain -q -c wide.json -t tokenizer.json -b 2 --seq 64"
plan=$($wide --dry-run datasets/pretrain.jsonl 2> /dev/null |
	sed -n 's/.*"total":\([0-9]*\).*/\1/p')
echo $((plan * 112 / 100)) > "$group/$limit"
inside $wide -n 1000000 --epochs 1000000 --guard -o tight datasets/pretrain.jsonl \
	> tight.log 2> tight.err &
pid=$!
while [ "$(grep -c '"step"' tight.log)" -lt 2 ] && kill -0 $pid 2> /dev/null; do sleep 0.1; done
ok "a plan of nine tenths of the limit is begun with" kill -0 $pid
fill $((plan / 10000000)) 0.05
wait_for $pid
is "a neighbour that takes the rest: 75" $? 75
ok "with a checkpoint that is whole" chr-ls -q \
	--check "tight/checkpoint-$(grep -c '"type":"step"' tight.log)"
empty

# A packed model gives back what its experts take, and goes on
$wide -n 1 -o wide datasets/pretrain.jsonl > /dev/null
chr-actlog -q -m wide in.jsonl | chr-cluster -q | chr-pack -q -m wide -o wide.packed > /dev/null
echo 128M > "$group/$limit"
stats() { [ -e stats.jsonl ] &&
	sed -n "s/.*\"type\":\"token\".*\"$1\":\([0-9]*\).*/\1/p" stats.jsonl; }
rss() { sed -n 's/^VmRSS:[^0-9]*\([0-9]*\) kB/\1/p' "/proc/$program/status"; }
# until EXPRESSION: of awk, on the newest number of slots, and at most ten seconds
until_slots()
{
	n=0
	until stats slots | tail -1 | awk '{ exit !('"$1"') }' ||
		[ $n -gt 100 ]; do sleep 0.1; n=$((n + 1)); done
}
inside chr-generate -m wide.packed -n 20 --temperature 0 --guard --kv-warn 60 --kv-shed 75 \
	--sim-ssd 1,1G --stats stats.jsonl \
	many.jsonl > squeezed.out 2> squeezed.err &
pid=$!
until_slots '$1 == 64'
while [ ! -s squeezed.out ] && kill -0 $pid 2> /dev/null; do sleep 0.1; done
program=$(cat "$tmp/pid")
before=$(rss)
fill 64
until_slots '$1 < 64'
sleep 0.2
after=$(rss)
ok "chr-generate gives memory back: $before kB, then $after" [ $((before - after)) -gt 10000 ]
ok "and says so once" [ "$(grep -c 'memory is short: [0-9]* of 64 experts' squeezed.err)" = 1 ]
least=$(stats slots | sort -n | head -1)
ok "and for each token: down to $least slots" [ "$least" -lt 64 -a "$least" -ge 4 ]
ended=$(wc -l < squeezed.out)
empty
until_slots '$1 > '"$least"
ok "takes it again when there is enough" [ "$(stats slots | tail -1)" -gt "$least" ]
kill "$program"
wait_for $pid
is "it lived until it was stopped" $? 75
is "slots times their size are the bytes given back" \
	"$(stats given_bytes | awk '{ n += $1 } END { print n }')" \
	$(((64 - least) * 786432))
grep -v '"finish":"interrupted"' squeezed.out | sed 's/"timing".*//' > squeezed.text
ok "ended some before that and some after" [ "$ended" -gt 0 -a "$(wc -l < squeezed.text)" \
	-gt "$ended" ]
chr-generate -q -m wide -n 20 --temperature 0 prompts.jsonl | sed 's/"timing".*//' > plain.out
ok "and wrote what a run does that has all it wants" sh -c 'n=$(wc -l < squeezed.text)
: > all
	while [ "$(wc -l < all)" -lt "$n" ]; do cat plain.out >> all; done;
		head -$n all | cmp - squeezed.text' 2>&1
ok "nothing was killed" sh \
	-c '! grep -q "oom_kill [1-9]" "$1"/memory.events "$1"/memory.oom_control 2> /dev/null' sh \
	"$group"
again="chr-pretrain -q -c config.json -t tokenizer.json -b 2 --seq 64 -n 1000000 --epochs 1000000 --stop-after 2"
$again -o run --resume datasets/pretrain.jsonl > /dev/null
is "it goes on" $? 75
ok "from that step" test -d run/checkpoint-$((steps + 2))
done_testing
