#!/bin/sh
# Adapters of the trainers on published families, on every matrix and the head: two stages after
# each other, what the trainer says of its model is what the merged one is, and every stage has them.
. "$(dirname "$0")/lib.sh"
families=$shared/golden/families
[ -d "$families" ] || skip_all "no $families"
families=$(cd "$families" && pwd)
world "$tmp/w"
cd "$tmp/w" || exit 1
head -n 3 in.jsonl > three.jsonl
doc_tokens 48 > doc.jsonl
head -n 4 datasets/chat.jsonl > chat.jsonl
head -n 2 datasets/prefs.jsonl > prefs.jsonl
head -n 2 datasets/prompts.jsonl > sums.jsonl

# stage PROGRAM MODEL ADAPTER OPTIONS... FILE: with the head, where it is not the embedding
stage()
{
	program=$1 model=$2 adapter=$3
	shift 3
	head=
	grep -q '"tie_word_embeddings": true' "$model/config.json" || head='--lora-target lm_head'
	# shellcheck disable=SC2086
	"$program" -q -m "$model" -t tokenizer.json -o "$adapter" -b 1 -l 1e-2 --warmup 1 \
		--lora-rank 2 --lora-target all-linear $head "$@"
}

# nll FILE: of the last evaluation in a trainer's records, or of the sum that chr-score ends with
nll()
{
	sed -n 's/.*"type":"eval".*"base":\([0-9.]*\).*/\1/p;
		s/.*"type":"total".*"nll":\([0-9.]*\).*/\1/p' "$1" | tail -n 1 | cut -c 1-6
}

for f in deepseek_v2 deepseek_v3 deepseek_v3-fp8 dots1 ernie4_5_moe glm4_moe glm4_moe_lite \
	gpt_oss gpt_oss-mxfp4 granitemoe hunyuan_v1_moe llama minimax_m2 mixtral olmoe qwen2 \
	qwen2_moe qwen3 qwen3_moe; do
	rm -rf a b m n
	stage chr-pretrain "$families/$f" a --seq 48 -n 3 doc.jsonl > a.log &&
		chr-merge -q -m "$families/$f" -o m a > log.jsonl &&
		stage chr-sft m b --seq 512 -n 2 --eval chat.jsonl chat.jsonl > b.log &&
		chr-merge -q -m m -o n b > log.jsonl
	result "$f: two stages" $?
	chr-score -q -m n -t tokenizer.json chat.jsonl > n.log
	is "$f: merged is what was trained" "$(nll n.log)" "$(nll b.log)"
	is "$f: an adapter and nothing of the model" "$(find a -name 'model*' -o -name 'config*' | wc -l)" 0
done

for f in qwen3_moe gpt_oss; do
	d=$families/$f
	rm -rf o && mkdir o
	stage chr-dpo "$d" o/dpo --seq 128 -n 1 prefs.jsonl > log.jsonl &&
		stage chr-orpo "$d" o/orpo --seq 128 -n 1 prefs.jsonl > log.jsonl &&
		stage chr-grpo "$d" o/grpo --seq 96 -n 1 --new 2 --reward toy sums.jsonl > log.jsonl &&
		stage chr-distill "$d" o/distill --seq 32 -n 1 --teacher "$d" three.jsonl > log.jsonl &&
		for a in dpo orpo grpo distill; do
			chr-merge -q -m "$d" -o m --force o/$a > log.jsonl || exit 1
		done
	result "$f: the other stages" $?
	# shellcheck disable=SC2046
	ok "$f: an adapter resumes" sh -e -c '
		for how in whole cut; do
			n=2
			[ $how = whole ] || n=1
			for i in $(seq 3); do
				chr-sft -q -m "$1" -t tokenizer.json -o r/$how -b 1 --seq 64 -n 3 \
					--lora-rank 2 --lora-target experts --resume \
					$([ $how = whole ] || echo "--stop-after $n") chat.jsonl \
					> log.jsonl || [ $? = 75 ]
			done
		done
		cmp r/whole/adapter_model.safetensors r/cut/adapter_model.safetensors; rm -rf r' sh "$d"
done
done_testing
