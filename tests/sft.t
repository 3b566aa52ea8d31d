#!/bin/sh
# chr-sft, and what every trainer has from the loop when it starts from a model: router anchor,
# frozen parameters, adapters, the longest batch first.
. "$(dirname "$0")/lib.sh"
world "$tmp/w"
cd "$tmp/w" || exit 1
head -60 datasets/chat.jsonl > talks.jsonl
tail -12 datasets/chat.jsonl > held.jsonl

sft()
{
	chr-sft -q -m model -b 2 --seq 192 "$@"
}
values()	# FILE KEY: one a line
{
	sed -n 's/.*"'"$2"'":\([^,}]*\).*/\1/p' "$1"
}
eval_of()	# FILE KEY: of the last evaluation
{
	grep '"type":"eval"' "$1" | tail -1 | values /dev/stdin "$2"
}
less()		# A B: a number below another
{
	awk 'BEGIN { exit !('"$1"' < '"$2"') }'
}
sums()
{
	(cd "$1" && cat -- *model.safetensors optimizer.safetensors train_state.json | sha256sum)
}

# The stage
status "conversations" 0 sh -c '"$@" > one.log' sh chr-sft -q -m model -b 2 --seq 192 -n 30 \
	-l 1e-2 --eval held.jsonl \
	--eval-every 10 -o one talks.jsonl
ok "are learned" less "$(eval_of one.log base)" \
	"$(grep '"eval"' one.log | head -1 | values /dev/stdin base)"
is "their records say sft" "$(head -1 one.log | cut -d, -f 1-3)" \
	'{"type":"step","stage":"sft","step":1'
score=$(chr-score -m one held.jsonl | tail -1)
is "targets are what the assistant says" "$(eval_of one.log targets)" \
	"$(echo "$score" | values /dev/stdin tokens)"
is "the loss is their mean" "$(eval_of one.log base | cut -c 1-5)" \
	"$(echo "$score" | values /dev/stdin nll | cut -c 1-5)"
until sft -n 30 -l 1e-2 -o two --resume --stop-after 7 talks.jsonl > two.log; do :; done
is "30 steps = 7 + 7 + 7 + 7 + 2" "$(sums one)" "$(sums two)"
chr-tokenize -t tokenizer.json --mask held.jsonl |
	sed 's/"messages":.*"tokens"/"tokens"/' > ids.jsonl
sft -n 3 -o text held.jsonl | values /dev/stdin base > text.base
sft -n 3 -o ids ids.jsonl | values /dev/stdin base > ids.base
ok "tokens and mask do for text" cmp text.base ids.base
cat talks.jsonl | sft -n 6 --stop-after 4 -o pipe > /dev/null
is "a pipe, stopped: 75" $? 75
cat talks.jsonl | sft -n 6 -o pipe --resume > /dev/null
cat talks.jsonl | sft -n 6 -o pipe2 > /dev/null
is "resumes exactly" "$(sums pipe)" "$(sums pipe2)"
chr-sft -m model -b 2 --seq 40 -n 1 -o cut talks.jsonl 2>&1 > /dev/null |
	grep -q " conversations cut to --seq, 0 left out"
is "what is cut is counted" $? 0
chr-sft -m model -b 2 --seq 40 -n 1 -o dropped --truncate drop talks.jsonl 2>&1 > /dev/null |
	grep -q "[1-9][0-9]* left out as too long"
is "what is dropped is counted" $? 0
ok "and written down" sh -c 'chr-ls dropped | grep -q too_long'
sft --seq 256 --no-shuffle -n 2 -o plain talks.jsonl | values /dev/stdin tokens > plain.tokens
sft --seq 256 --no-shuffle -n 2 -o think --think talks.jsonl |
	values /dev/stdin tokens > think.tokens
ok "--think opens answers" sh -c '! cmp -s plain.tokens think.tokens'
sft -n 3 -o quiet talks.jsonl | values /dev/stdin base > quiet.base
sft -n 3 -o noisy --neftune 5 talks.jsonl | values /dev/stdin base > noisy.base
ok "--neftune makes a difference" sh -c '! cmp -s quiet.base noisy.base'

# The longest batch first: the first step has a few short conversations, the last is full
sed -n '/^.\{0,150\}$/p' talks.jsonl | head -2 > growing.jsonl
cat talks.jsonl >> growing.jsonl
sft --no-shuffle -b 1 -n 20 -o mem growing.jsonl > mem.log
first=$(values mem.log mem_bytes | head -1)
last=$(values mem.log mem_bytes | tail -1)
memory "the first step has seen all the memory: $first, $last" less "$last" "$first + 200000"

# The anchor
values one.log anchor | head -1 > first.anchor
is "the anchor begins at nothing" "$(cat first.anchor)" "0.0"
for a in 0.01 1; do sft -n 30 -l 1e-2 --anchor-lambda $a --eval held.jsonl \
	-o a$a talks.jsonl > a$a.log; done
ok "a strong one holds the router" less "$(eval_of a1.log anchor)" "$(eval_of a0.01.log anchor) / 2"
is "0.01 is this stage's" "$(eval_of a0.01.log anchor)" "$(eval_of one.log anchor)"
plan()
{
	chr-sft -m model -b 2 --seq 192 --dry-run -o no "$@" talks.jsonl 2> /dev/null |
		values /dev/stdin total
}
ok "none takes no memory" less "$(plan --anchor-lambda 0)" "$(plan) - 100000"
status "none needs no model to compare with" 0 sft --anchor-lambda 0 -n 1 -o none talks.jsonl
status "one that is asked for does: 64" 64 chr-sft -q -c config.json -t tokenizer.json \
	--anchor-lambda 0.1 -o no talks.jsonl

# Frozen: the router cannot move when nothing before it does
sft -n 8 -l 1e-1 --freeze 'model.layers.*' --freeze '*embed_tokens*' --eval held.jsonl \
	-o frozen talks.jsonl > frozen.log
is "--freeze" "$(eval_of frozen.log anchor)" "0.0"
ok "the rest is learned" less "$(eval_of frozen.log base)" \
	"$(chr-score -m model held.jsonl | tail -1 | values /dev/stdin nll)"
ok "and frozen parameters have no moments" less "$(wc -c < frozen/optimizer.safetensors)" \
	"$(wc -c < one/optimizer.safetensors) / 2"
status "a pattern that matches nothing: 64" 64 sft --freeze nosuch -o no talks.jsonl
status "everything frozen: 64" 64 sft --freeze '*' -o no talks.jsonl

# Adapters
lora="--lora-rank 4 --lora-alpha 16 --lora-target *_proj.weight --lora-target *.mlp.gate.weight -l 1e-2 -n 12"
set -f
# shellcheck disable=SC2086
{
sft $lora --eval held.jsonl -o adapter talks.jsonl > adapter.log
until sft $lora --eval held.jsonl -o adapter2 --resume --stop-after 5 talks.jsonl \
	> adapter2.log; do :; done
sft --seq 160 $lora -o adapter --resume talks.jsonl > /dev/null 2> why
}
set +f
is "an adapter resumes exactly" "$(sums adapter)" "$(sums adapter2)"
is "with the same options only: 64" "$(grep -c 'seq is 160, but was 192' why)" 1
is "a directory as PEFT has it" "$(ls adapter | tr '\n' ' ')" \
	"adapter_config.json adapter_model.safetensors \
optimizer.safetensors tokenizer.json tokenizer_config.json train_state.json "
status "merged" 0 chr-merge -q -m model -o merged adapter
is "says what the trainer said" "$(chr-score -m merged held.jsonl | tail -1 |
	values /dev/stdin nll | cut -c 1-6)" \
	"$(eval_of adapter.log base | cut -c 1-6)"
ok "which is not what the model said" less \
	"$(chr-score -m merged held.jsonl | tail -1 | values /dev/stdin nll)" \
	"$(chr-score -m model held.jsonl | tail -1 | values /dev/stdin nll)"
is "three ancestors" "$(chr-ls merged | grep -c '"type":"ancestry"')" 3
status "not into another model: 65" 65 chr-merge -q -m one -o other adapter
status "but with --force" 0 chr-merge -q -m one -o other --force adapter
status "an adapter of nothing: 64" 64 chr-sft -q -c config.json -t tokenizer.json --lora-rank 2 \
	-o no talks.jsonl
status "of a norm: 64" 64 sft --lora-rank 2 --lora-target '*norm*' -o no talks.jsonl
done_testing
