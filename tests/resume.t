#!/bin/sh
# --resume goes on with the run that the checkpoint is of, or says what is another: data, starting model, tokenizer,
# held-out data that choose the result; and a checkpoint whose numbers make no sense is none.
. "$(dirname "$0")/lib.sh"
. "$top/tests/poke.sh"
command -v chr-sft > /dev/null || skip_all "chr-sft is not built"
world "$tmp/w"
cd "$tmp/w" || exit 1
head -12 datasets/chat.jsonl > talks.jsonl
head -6 talks.jsonl > part1.jsonl
sed -n 7,12p talks.jsonl > part2.jsonl
sed -n '1!G;h;$p' talks.jsonl > backwards.jsonl
sed '3s/\(.*\)e/\1a/' talks.jsonl > letter.jsonl
cp -r model other
chr-sft -q -m model -o other --force -n 1 talks.jsonl > log || exit 1

# stopped DIR COMMAND...: a run of two steps
stopped()
{
	dir=$1
	shift
	rm -rf "$dir"
	"$@" -o "$dir" --stop-after 2 > log 2>&1
	[ $? = 75 ] || cat log
}
# refuses NAME STATUS PATTERN COMMAND...: and leaves what there is as it was
refuses()
{
	name=$1 want=$2 pattern=$3
	shift 3
	find "$dir" -type f -exec cksum {} + | sort > before
	status "$name: $want" "$want" "$@" -o "$dir" --resume
	"$@" -o "$dir" --resume > why 2>&1
	ok "$name: says so" grep -q -e "$pattern" why
	find "$dir" -type f -exec cksum {} + | sort > after
	ok "$name: and nothing was changed" cmp before after
}

sft="chr-sft -q -m model -b 1 --seq 64 -n 6"
stopped a $sft talks.jsonl
refuses "another order" 64 "backwards.jsonl: not the data" $sft backwards.jsonl
refuses "one letter" 64 "letter.jsonl: not the data\|data_tokens" $sft letter.jsonl
refuses "another model" 64 "other: not the model that a/checkpoint-2 started from" chr-sft -q -m other -b 1 --seq 64 -n 6 talks.jsonl
refuses "no model" 64 "no -m: not the model\|-m DIR" chr-sft -q -b 1 --seq 64 -n 6 talks.jsonl
refuses "fewer steps than were done" 65 "beyond the 1 steps" chr-sft -q -m model -b 1 --seq 64 -n 1 talks.jsonl
cp talks.jsonl copy.jsonl
status "a copy of the data under another name does" 0 $sft -o a --resume copy.jsonl
stopped two $sft part1.jsonl part2.jsonl
refuses "files in another order" 64 "part2.jsonl: not the data" $sft part2.jsonl part1.jsonl
refuses "one file less" 64 "conversations\|files of data" $sft part1.jsonl
ok "both files are named in the model" sh -c 'head -c 20000 two/checkpoint-2/model.safetensors |
	grep -a -q "part1.jsonl.*part2.jsonl"'

stopped pipe sh -c 'cat talks.jsonl | "$@"' - $sft
refuses "a pipe with other records" 65 "its first 2 records are others" sh -c 'cat backwards.jsonl | "$@"' - $sft
status "with the same it goes on" 0 sh -c 'cat talks.jsonl | "$@"' - $sft -o pipe --resume

best="--eval part2.jsonl --eval-every 2 --keep-best base"
stopped best $sft $best talks.jsonl
refuses "other held-out data that choose the result" 64 "keep-best" $sft --eval part1.jsonl --eval-every 2 --keep-best base talks.jsonl

mkdir t2 && chr-tokenize --train -q -v 320 -o t2/tokenizer.json datasets/chat.jsonl
pre="chr-pretrain -q -c config.json -b 2 --seq 64 -n 6"
stopped tok $pre -t tokenizer.json datasets/pretrain.jsonl
refuses "another tokenizer" 64 "tokenizer is not that" $pre -t t2 datasets/pretrain.jsonl
chr-tokenize -q -t tokenizer.json -o ids.safetensors datasets/pretrain.jsonl > log 2>&1
stopped shard $pre -t tokenizer.json ids.safetensors
refuses "another tokenizer beside a shard" 64 "tokenizer is not that" $pre -t t2 ids.safetensors

head -8 datasets/prefs.jsonl > prefs.jsonl
sed -n '1!G;h;$p' prefs.jsonl > prefs2.jsonl
for stage in dpo orpo; do
	run="chr-$stage -q -m model -b 1 --seq 96 -n 6"
	stopped $stage $run prefs.jsonl
	refuses "$stage: another order" 64 "not the data" $run prefs2.jsonl
	refuses "$stage: another model" 64 "not the model" chr-$stage -q -m other -b 1 --seq 96 -n 6 prefs.jsonl
done
stopped distill chr-distill -q -m model --teacher model -b 1 --seq 64 -n 6 talks.jsonl
refuses "distill: another order" 64 "not the data" chr-distill -q -m model --teacher model -b 1 --seq 64 -n 6 backwards.jsonl
refuses "distill: another teacher" 64 "teacher" chr-distill -q -m model --teacher other -b 1 --seq 64 -n 6 talks.jsonl
head -6 datasets/prompts.jsonl > prompts.jsonl
sed -n '1!G;h;$p' prompts.jsonl > prompts2.jsonl
grpo="chr-grpo -q -m model -b 1 -G 2 --seq 96 --new 4 -n 6"
stopped grpo $grpo --reward toy prompts.jsonl
refuses "grpo: another order" 64 "not the data" $grpo --reward toy prompts2.jsonl
refuses "grpo: no model" 64 "not the model\\|-m DIR" chr-grpo -q -b 1 -G 2 --seq 96 --new 4 -n 6 --beta 0 --reward toy prompts.jsonl
stopped lm $grpo --reward lm:model prompts.jsonl
rm -rf keep && mv model keep && cp -r other model
refuses "grpo: another model that judges, in the same place" 64 "reward" chr-grpo -q -m keep -b 1 -G 2 --seq 96 --new 4 -n 6 \
	--reward lm:model prompts.jsonl
rm -rf model && mv keep model

# A checkpoint that is none
stopped c $sft talks.jsonl
spoil()		# NAME PATTERN SED
{
	cp c/checkpoint-2/train_state.json state
	sed "$3" state > c/checkpoint-2/train_state.json
	ok "$1: the test changes it" sh -c '! cmp -s state c/checkpoint-2/train_state.json'
	refuses "$1" 65 "$2" $sft talks.jsonl
	cp state c/checkpoint-2/train_state.json
}
spoil "a step that is not that of the name" "not that of its name" 's/"step": 2,/"step": 3,/'
spoil "a step of 64 bits" "not that of its name" 's/"step": 2,/"step": 4294967296,/'
spoil "negative tokens" "tokens are below 0" 's/"tokens": [0-9]*,/"tokens": -5,/'
spoil "more steps skipped than done" "more steps were skipped" 's/"skipped": 0/"skipped": 9/'
spoil "steps skipped below none" "no count of skipped steps" 's/"skipped": 0/"skipped": -1/'
mv c/checkpoint-2 c/checkpoint-9
refuses "a directory of another name" 65 "not that of its name" $sft -n 20 talks.jsonl
mv c/checkpoint-9 c/checkpoint-2

optimizer=c/checkpoint-2/optimizer.safetensors
for kind in 'negative:\377\377\177\277' 'infinite:\000\000\200\177' 'no number:\000\000\300\177'; do
	cp $optimizer keep
	poke $optimizer v.model.norm.weight "${kind#*:}"
	ok "${kind%%:*}: the test changes it" sh -c '! cmp -s keep '$optimizer
	refuses "a second moment that is ${kind%%:*}" 65 "v.model.norm.weight: holds values" $sft talks.jsonl
	cp keep $optimizer
done
poke $optimizer m.model.norm.weight '\000\000\300\177'
refuses "a first moment that is no number" 65 "m.model.norm.weight: holds values" $sft talks.jsonl
cp keep $optimizer
status "as it was it goes on" 0 $sft -o c --resume talks.jsonl
done_testing
