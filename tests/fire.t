#!/bin/sh
# Checkpoints under fire: kill -9 at any moment, inside the write too, a full disk, a directory that
# may not be written, an input that goes away. Whatever happened, the last checkpoint is whole, and
# --resume ends with the bytes of a calm run. `make check-fire` kills 50 times; here it is
# CHR_KILLS, 10 by default. The moments are drawn from CHR_FIRE_SEED. Mounts are made in a name
# space of our own, so nothing is left of them; where there is none to be had, what needs them is
# skipped.
if [ -z "$CHR_FIRE_MOUNTS" ]; then
	export CHR_FIRE_MOUNTS=no
	for ns in "unshare -m" "unshare -rm"; do
		if $ns sh -c 'mount -t tmpfs -o size=1m none /tmp' 2> /dev/null; then
			CHR_FIRE_MOUNTS=yes
			exec $ns sh "$0"
		fi
	done
fi
. "$(dirname "$0")/lib.sh"
command -v chr-pretrain > /dev/null || skip_all "chr-pretrain is not built"
cd "$tmp" || exit 1
kills=${CHR_KILLS:-10}
seed=${CHR_FIRE_SEED:-1}

# A checkpoint of 3 MB: with --save-every 1 a run spends most of its time in writing them.
cat > config.json <<-END
	{"chronos_format": 2, "vocab_size": 288, "hidden_size": 64, "num_hidden_layers": 2,
	"num_attention_heads": 2,
	"num_key_value_heads": 1, "head_dim": 32, "moe_intermediate_size": 64, "num_experts": 8,
	"num_experts_per_tok": 2,
	"num_shared_experts": 1, "kv_latent_dim": 16, "rope_dim": 8, "sliding_window_size": 16,
	"max_position_embeddings": 64, "lookahead_steps": 2, "dropout": 0.1,
	"fallback_mask_prob": 0.2}
END
head -60 "$top/datasets/pretrain.jsonl" > docs.jsonl
chr-tokenize -q --train -v 288 -o tokenizer.json docs.jsonl || exit 1
run="chr-pretrain -q -j 1 -c config.json -t tokenizer.json -b 1 --seq 32"

random()	# N: 0..N-1 into $drawn
{
	seed=$(((seed * 1103515245 + 12345) % 2147483648))
	drawn=$((seed / 65536 % $1))
}
spin()		# N: a very short while
{
	i=0
	while [ $i -lt "$1" ]; do i=$((i + 1)); done
}
sums()		# DIR: of the weights and of the whole resume state
{
	(cd "$1" && sha256sum model.safetensors optimizer.safetensors train_state.json)
}
losses()	# LOG: step and loss, each once
{
	sed -n 's/.*"step":\([0-9]*\),"loss":\([^,]*\),.*/\1 \2/p' "$1" | sort -u | sort -n
}
same()		# NAME A B: the same bytes, and the same losses in A.log and B.log
{
	is "$1" "$(sums "$2")" "$(sums "$3")"
	is "and the same losses" "$(losses "$2.log" | sha256sum)" "$(losses "$3.log" | sha256sum)"
}
there()		# PATTERN-ALREADY-EXPANDED...: is there such a file?
{
	[ -e "$1" ]
}
stepped()	# has the run written a record? Then what the one before left half done has been cleared away
{
	[ "$(cat shot.log | wc -l)" -gt "$was" ]
}
whole()		# DIR: every checkpoint in it, and the model if it says that it is there
{
	set -- "$1" "$1"/checkpoint-*
	[ -f "$1/train_state.json" ] || shift
	[ ! -d "$1" ] || chr-ls --check "$@" > check.log 2>&1
}
until_there()	# PID PATTERN: waits for such a file while the process lives, looking as often as a shell can
{
	while kill -0 "$1" 2> /dev/null && ! there $2; do :; done
}

# kill -9. A third of the kills come some time after the start, a third as soon as a half-written
# checkpoint is seen, a third between checkpoints.
steps=$((40 + 40 * kills))
$run -n $steps -o calm docs.jsonl > calm.log
: > shot.log
n=0 inside=0 early=0 broken=0
while [ $n -lt "$kills" ]; do
	was=$(cat shot.log | wc -l)
	every=1
	[ $((n % 3)) != 2 ] || every=20
	$run -n $steps -o shot --save-every $every --resume docs.jsonl >> shot.log &
	pid=$!
	if [ $((n % 3)) = 0 ]; then
		random 230
		sleep "0.$(printf %03d $((20 + drawn)))"
	else
		while kill -0 $pid 2> /dev/null && ! stepped; do :; done
		random 3000
		spin $drawn
		[ $((n % 3)) = 2 ] || until_there $pid "shot/.checkpoint-*.tmp"
		random 600
		spin $drawn
	fi
	kill -KILL $pid
	wait $pid 2> /dev/null
	[ $? = 137 ] || break
	n=$((n + 1))
	if ! stepped; then
		early=$((early + 1))
	elif there shot/.checkpoint-*; then
		inside=$((inside + 1))
	fi
	whole shot || broken=$((broken + 1))
done
is "killed $kills times" "$n" "$kills"
echo "# $inside inside the write of a checkpoint, $early before a first step; $(losses shot.log |
	wc -l) of $steps steps done"
ok "inside the write too" [ $inside -gt 0 ]
is "every checkpoint was whole each time" $broken 0
$run -n $steps -o shot --resume docs.jsonl >> shot.log
same "the bytes of a calm run" shot calm
is "nothing is left half done" "$(find shot -name '*.tmp' -o -name '*.old' | wc -l)" 0

# kill -9 while the last checkpoint becomes the model
$run -n 6 -o calm6 docs.jsonl > calm6.log
$run -n 6 --stop-after 5 -o almost docs.jsonl > almost.log
n=0 broken=0 differ=0
while [ $n -lt $((kills / 2)) ]; do
	n=$((n + 1))
	rm -rf end && cp -r almost end
	$run -n 6 -o end --resume docs.jsonl > /dev/null &
	pid=$!
	until_there $pid "end/checkpoint-6"
	random 200
	spin $drawn
	kill -KILL $pid 2> /dev/null
	wait $pid 2> /dev/null
	whole end || broken=$((broken + 1))
	$run -n 6 -o end --resume docs.jsonl > /dev/null
	[ "$(sums end)" = "$(sums calm6)" ] || differ=$((differ + 1))
done
is "killed $n times at the end of a run: whole" $broken 0
is "and the same bytes" $differ 0

# A full disk: room for one checkpoint and a half
if [ $CHR_FIRE_MOUNTS = yes ]; then
	mkdir full && mount -t tmpfs -o size=24m none full || exit 1
	size=$(du -sk calm | cut -f 1)
	head -c $((24 * 1024 * 1024 - size * 1024 * 3 / 2)) /dev/zero > full/filler
	status "a full disk: 74" 74 $run -n 8 -o full/out --save-every 1 docs.jsonl
	cp log why
	ok "says so in one line" sh -c '[ "$(grep -v ^{ why | grep -ci "no space")" = 1 ]'
	is "has the last checkpoint that fitted" "$(cd full/out && ls -A)" checkpoint-1
	ok "whole" whole full/out
	$run -n 8 -o full/out --save-every 1 --resume docs.jsonl > /dev/null 2>&1
	is "again, and it is still full" "$(cd full/out && ls -A)" checkpoint-1
	rm full/filler
	status "with room again" 0 $run -n 8 -o full/out --resume docs.jsonl
	$run -n 8 -o calm8 docs.jsonl > calm8.log
	is "the bytes of a calm run" "$(sums full/out)" "$(sums calm8)"
	umount full
else
	skip "a full disk" "may not mount a small one"
fi

# A directory that becomes read-only in mid-run. The run is held by a pipe that its records go
# through.
mkfifo steps
start()		# OUT OPTIONS...: a run whose records come on descriptor 3
{
	out=$1
	shift
	$run -n 400 -o "$out" "$@" docs.jsonl > steps 2> why &
	pid=$!
	exec 3< steps
	while [ ! -d "$out/checkpoint-2" ] && read -r _ <&3; do :; done
}
drain()
{
	cat <&3 > rest
	exec 3<&-
	wait $pid
}
$run -n 400 -o calm400 docs.jsonl > calm400.log
if [ $CHR_FIRE_MOUNTS = yes ]; then
	mkdir ro && mount -t tmpfs none ro && mkdir ro/out || exit 1
	start ro/out --save-every 2
	until mount -o remount,ro ro 2> busy; do sleep \
		0.02; done	# refused as long as the run is writing something
	drain
	is "a directory that became read-only: 73" $? 73
	ok "says so in one line" sh -c 'grep -qi "read-only" why && [ $(wc -l < why) = 1 ]'
	ok "the last checkpoint is whole" whole ro/out
	status "and cannot be gone on with: 73" 73 $run -n 400 -o ro/out --resume docs.jsonl
	mount -o remount,rw ro
	status "writable again" 0 $run -n 400 -o ro/out --resume docs.jsonl
	is "the bytes of a calm run" "$(sums ro/out)" "$(sums calm400)"
	umount ro
else
	skip "a directory that became read-only" "may not mount one"
fi

# The input goes away
start gone --save-every 2
mv docs.jsonl elsewhere
kill -TERM $pid
drain
is "an input that goes away is not missed by who reads it: 75" $? 75
ok "the last checkpoint is whole" whole gone
status "going on without it: 66" 66 $run -n 400 -o gone --resume docs.jsonl
cp log why
ok "names it" grep -q "docs.jsonl: No such file" why
ok "the checkpoint is still whole" whole gone
mv elsewhere docs.jsonl
status "with it again" 0 $run -n 400 -o gone --resume docs.jsonl
is "the bytes of a calm run" "$(sums gone)" "$(sums calm400)"
done_testing
