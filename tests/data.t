#!/bin/sh
# Training data through the trainers: files that are not kept in memory, shares, a pipe's window;
# the same bytes, whatever is in memory and however often a run was stopped.
. "$(dirname "$0")/lib.sh"
command -v chr-pretrain > /dev/null || skip_all "chr-pretrain is not built"
world "$tmp/w"
cd "$tmp/w" || exit 1
head -40 datasets/chat.jsonl > chat.jsonl
head -20 datasets/prefs.jsonl > prefs.jsonl
head -12 datasets/prompts.jsonl > prompts.jsonl
head -40 datasets/pretrain.jsonl > a.jsonl
tail -n +41 datasets/pretrain.jsonl | head -80 > b.jsonl
chr-tokenize -q -t tokenizer.json -o shard.safetensors a.jsonl > noise

sums()
{
	(cd "$1" && cat model.safetensors optimizer.safetensors train_state.json | sha256sum)
}
values()	# FILE KEY: one a line
{
	sed -n 's/.*"'"$2"'":\([^,}]*\).*/\1/p' "$1"
}

# same NAME COMMAND... FILES: with everything in memory, with nothing, with a little, and in two
# pieces
same()
{
	name=$1
	shift
	rm -rf kept none little pieces
	"$@" -o kept > noise || echo "status $?"
	for ram in 0 2K; do
		"$@" -o some$ram --data-ram $ram > noise || echo "status $?"
		is "$name, --data-ram $ram: the same bytes" "$(sums some$ram)" "$(sums kept)"
		rm -rf some$ram
	done
	"$@" -o pieces --data-ram 0 --stop-after 3 > noise
	"$@" -o pieces --data-ram 0 --resume > noise
	is "$name, stopped and resumed: the same bytes" "$(sums pieces)" "$(sums kept)"
}
pretrain="chr-pretrain -q -c config.json -t tokenizer.json -b 2 --seq 32"
same chr-pretrain $pretrain -n 8 a.jsonl b.jsonl
same "chr-pretrain, a shard" $pretrain -n 8 shard.safetensors b.jsonl
same "chr-pretrain, in order" $pretrain -n 8 --no-shuffle a.jsonl b.jsonl
same "chr-pretrain, shares" $pretrain -n 8 a.jsonl:3 b.jsonl:1
same chr-sft chr-sft -q -m model -b 2 --seq 64 -n 8 chat.jsonl
same chr-dpo chr-dpo -q -m model -b 2 --seq 256 -n 8 prefs.jsonl
same chr-grpo chr-grpo -q -m model -b 1 -G 2 --seq 96 --new 4 --reward toy -n 6 prompts.jsonl
head -20 chat.jsonl > chat1.jsonl
tail -20 chat.jsonl > chat2.jsonl
same "chr-sft, shares, two epochs" chr-sft -q -m model -b 8 --seq 128 \
	--epochs 2 chat1.jsonl:1 chat2.jsonl:2

# Memory: what is not kept is not in the plan
plan()
{
	$pretrain --dry-run "$@" 2> noise | values /dev/stdin 'training data'
}
words=$($pretrain -n 1 -o size --force a.jsonl b.jsonl > noise; sed -n \
	's/.*"data_tokens": \([0-9]*\).*/\1/p' size/train_state.json)
items=$(sed -n 's/.*"documents": \([0-9]*\).*/\1/p' size/train_state.json)
is "the plan: words, and 24 bytes of index a document" \
	"$(plan a.jsonl b.jsonl)" $((4 * words + 24 * items + 8))
is "nothing kept: 16 bytes a document" $(($(plan --data-ram 0 a.jsonl b.jsonl) / 16)) "$items"

ok "a window: at least its rows" [ "$(cat a.jsonl | plan --shuffle-window 1000)" -ge 128000 ]

# A pipe with a window
window()	# OUT OPTIONS...
{
	out=$1
	shift
	cat a.jsonl b.jsonl | $pretrain -n 20 --shuffle-window 16 -o "$out" "$@" > noise
}
window whole
window cut --stop-after 7
window cut --resume
is "a pipe's window, stopped and resumed: the same bytes" "$(sums cut)" "$(sums whole)"
window other --shuffle-window 17
ok "another window gives others" [ "$(sums other)" != "$(sums whole)" ]

# What is refused
refuses()	# NAME STATUS PATTERN COMMAND...
{
	name=$1 want=$2 pattern=$3
	shift 3
	"$@" > noise 2> why
	is "$name: $want" $? "$want"
	ok "and says why" grep -q -e "$pattern" why
}
gzip -c a.jsonl > a.jsonl.gz
status "gzip within --data-ram" 0 $pretrain -n 2 -o zipped a.jsonl.gz
refuses "gzip above --data-ram" 71 "a.jsonl.gz: .*--data-ram.*--shuffle-window" $pretrain -n 2 \
	-o no --data-ram 1K a.jsonl.gz
refuses "a share for one of two" 64 "every file" $pretrain -n 2 -o no a.jsonl:0.5 b.jsonl
refuses "a share of a pipe" 64 "pipe" $pretrain -n 2 -o no -- -:0.5
refuses "no share" 66 "b.jsonl:0: " $pretrain -n 2 -o no b.jsonl:0
$pretrain -n 20 -o mixed --stop-after 5 a.jsonl:3 b.jsonl:1 > noise 2>&1
refuses "resuming with other shares" 64 "share" $pretrain -n 20 -o mixed \
	--resume a.jsonl:1 b.jsonl:1
refuses "resuming without" 64 "share" $pretrain -n 20 -o mixed --resume a.jsonl b.jsonl

# A file that is cut short under a run that reads it by its index. A pipe holds the run until it is.
cp b.jsonl cut.jsonl
mkfifo steps
$pretrain -n 4000 -o shot --data-ram 0 --save-every 5 cut.jsonl > steps 2> why &
pid=$!
exec 3< steps
while [ ! -d shot/checkpoint-5 ] && read -r _ <&3; do :; done
truncate -s 2000 cut.jsonl
cat <&3 > noise
exec 3<&-
wait $pid
is "a file cut short in mid-run: 65" $? 65
ok "and says so" grep -q "cut.jsonl: is not what it was" why
ok "the last checkpoint is whole" chr-ls --check shot/checkpoint-*
done_testing
