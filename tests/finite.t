#!/bin/sh
# Numbers that are none do not end with status 0: the last update, evaluations, rewards that cannot be added up, a cache
# with other bits.
. "$(dirname "$0")/lib.sh"
. "$top/tests/poke.sh"
command -v chr-sft > /dev/null || skip_all "chr-sft is not built"
world "$tmp/w"
cd "$tmp/w" || exit 1
head -12 datasets/chat.jsonl > talks.jsonl

# The last update: no pass after it would show what it did. An expert that is never chosen, since all gates are zero, has a
# weight that decay makes too large.
cp -r model edge
for l in 0 1; do
	n=$((4 * $(sed -n 's/.*"num_experts": *\([0-9]*\).*/\1/p' model/config.json | head -1) * 32))
	head -c $n /dev/zero | dd of=edge/model.safetensors bs=1 conv=notrunc 2> /dev/null \
		seek="$(where edge/model.safetensors model.layers.$l.mlp.gate.weight)"
	poke edge/model.safetensors model.layers.$l.mlp.experts.3.down_proj.weight '\000\000\160\177'
done
status "the last update makes a weight infinite: 65" 65 chr-sft -q -m edge -b 1 --seq 64 -n 1 -l 100 --weight-decay 10 \
	--fallback-mask-prob 0 -o edged talks.jsonl
chr-sft -q -m edge -b 1 --seq 64 -n 1 -l 100 --weight-decay 10 --fallback-mask-prob 0 -o edged talks.jsonl > log 2> why
ok "it says so" grep -q "weights are not finite after the update" why
ok "and no model is published" test ! -e edged/config.json

# An evaluation: the embedding of a token that only the held-out text has is so large that sums with it overflow
chr-pretrain -q -c config.json -t tokenizer.json --set tie_word_embeddings=false -b 2 --seq 64 -n 1 -o untied datasets/pretrain.jsonl > log
sed 's/~/-/g' datasets/pretrain.jsonl | head -20 > plain.jsonl
echo '{"text":"a ~ and a ~"}' > held.jsonl
id=$(echo '{"text":"~"}' | chr-tokenize -t tokenizer.json | sed -n 's/.*"tokens":\[\([^]]*\)\].*/\1/p' | tr ',' '\n' | sort -n | tail -1)
for i in $(seq 0 31); do		# the lookahead head, alone without a norm, adds them up
	poke untied/model.safetensors model.embed_tokens.weight '\377\377\177\177' $((id * 32 + i))
	poke untied/model.safetensors model.lookahead_router.proj.0.weight '\000\000\200\077' "$i"
done
run="chr-pretrain -q -m untied -b 2 --seq 64 -n 4"
status "without the held-out text: done" 0 $run -o fine plain.jsonl
status "an evaluation that is no number: 65" 65 $run --eval held.jsonl --eval-every 2 -o evaluated plain.jsonl
rm -rf evaluated
$run --eval held.jsonl --eval-every 2 -o evaluated plain.jsonl > log 2> why
ok "it says which" grep -q "step 2, eval record: .* is not finite" why
ok "what was trained is kept" test -e evaluated/checkpoint-2/model.safetensors
ok "and nothing is published" test ! -e evaluated/config.json
rm -rf evaluated
status "at the end too" 65 $run --eval held.jsonl -o evaluated plain.jsonl
ok "with the last checkpoint" test -e evaluated/checkpoint-4/model.safetensors

# Rewards
head -4 datasets/prompts.jsonl > prompts.jsonl
cat > judge <<-'END'
	n=0
	while read -r line; do n=$((n + 1)); [ $((n % 2)) = 1 ] && echo "$1" || echo "$2"; done
END
grpo="chr-grpo -q -m model -b 1 -G 2 --seq 96 --new 4 -n 2 -o paid --force"
huge()		# NAME REWARDS [OPTION...]
{
	name=$1 rewards=$2
	shift 2
	status "rewards $name: 65" 65 $grpo --reward "sh ./judge $rewards" "$@" prompts.jsonl
	$grpo --reward "sh ./judge $rewards" "$@" prompts.jsonl > log 2> why
	ok "rewards $name: the reward is named, not the loss" grep -q "reward 'sh ./judge .*': .* is too large" why
}
huge "whose sum overflows" "1e308 1e308"
huge "whose squares overflow" "1e200 -1e200"
huge "too large for an advantage" "1e60 1" --scale-rewards none
huge "of a batch" "1e180 1" --scale-rewards batch
huge "with a weight" "1e30 1" --reward-weight 1e300
status "large ones that can be added up are done" 0 $grpo --reward "sh ./judge 1e100 -1e100" prompts.jsonl

# The cache of a reference
head -6 datasets/prefs.jsonl > prefs.jsonl
dpo="chr-dpo -q -m model -b 1 --seq 96 -n 2 --precompute-ref ref.safetensors"
$dpo -o pairs prefs.jsonl > log
cp ref.safetensors keep
for value in 0 1 5; do
	poke ref.safetensors logp '\001\002\003' $value
	ok "value $value: the test changes it" sh -c '! cmp -s keep ref.safetensors'
	status "a cache of log-probs with other bits: 65" 65 $dpo -o no prefs.jsonl
	$dpo -o no prefs.jsonl > log 2> why
	ok "it is named" grep -q "ref.safetensors: " why
	cp keep ref.safetensors
done
poke ref.safetensors keys '\001'
status "with other keys: 65" 65 $dpo -o no prefs.jsonl
cp keep ref.safetensors
status "as it was it is read" 0 $dpo -o again prefs.jsonl
done_testing
