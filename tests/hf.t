#!/bin/sh
# chr-convert --to hf: transformers computes what we do, with our Python file and without it.
# Skipped where torch and transformers are not (make check-hf has them).
. "$(dirname "$0")/lib.sh"
py=${PYTHON:-python3}
"$py" -c 'import torch, transformers' 2> /dev/null || skip_all "no torch and transformers here"
export HF_HOME="$tmp/cache" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
[ ! -d "$shared/golden" ] || golden=$(cd "$shared/golden" && pwd)
cp -r datasets "$tmp" && cd "$tmp" || exit 1

doc_tokens 48 > doc.jsonl
cut -d , -f 1-12 doc.jsonl | sed 's/$/]}/' > start.jsonl
common='"vocab_size":320,"hidden_size":48,"num_hidden_layers":4,
"num_attention_heads":4,"num_key_value_heads":2,"head_dim":16,"moe_intermediate_size":40,
"intermediate_size":56,"num_experts":6,"num_experts_per_tok":2,"max_position_embeddings":256,
"lambda_balance":0'
# told NAME STATUS: what a program of Python said in all
told()
{
	grep "^ok \|^BAD " all > said
	[ "$2" = 0 ] || cat err
	while read -r word rest; do
		[ "$word" = ok ]
		result "$1: $rest" $?
	done < said
	result "$1: the program ends well" "$2"
}
# kind NAME MODEL_TYPE KEYS: a model of ours after a few steps, exported, in transformers
kind()
{
	case $3 in *chronos_format*) format= ;; *) format='"chronos_format":2,' ;; esac
	echo "{$format$common,$3}" > "$1.json"
	chr-pretrain -q -c "$1.json" -o "$1" -n 3 -b 2 --seq 48 -l 3e-3 --warmup 1 doc.jsonl \
		> log.jsonl || return 1
	ok "$1: exported" chr-convert -q --to hf -o "$1.hf" "$1"
	ok "$1: as $2" grep -q "\"model_type\": \"$2\"" "$1.hf/config.json"
	chr-score -q -m "$1" --dump "$1.st" doc.jsonl > /dev/null
	chr-generate -q -m "$1" --temperature 0 -n 16 start.jsonl > greedy.jsonl
	"$py" "$top/tests/hf.py" "$1.hf" doc.jsonl "$1.st" greedy.jsonl > all 2> err
	told "$1" $?
	chr-score -q -m "$1.hf" doc.jsonl | head -1 > a
	chr-score -q -m "$1" doc.jsonl | head -1 > b
	ok "$1: and we read it as before" cmp a b
}
kind ours chronos '"num_shared_experts":1,"kv_latent_dim":24,"rope_dim":8,
	"sliding_window_size":10,"lookahead_steps":2'
kind qwen qwen3_moe '"num_shared_experts":0,"use_hybrid_attention":false,"lookahead_steps":1,
	"tie_word_embeddings":false,"mlp_layer_types":["dense","sparse","sparse","sparse"]'
kind mixed chronos '"num_shared_experts":2,"kv_latent_dim":24,"rope_dim":12,
	"sliding_window_size":7,"lookahead_steps":0,"norm_topk_prob":false,
	"mlp_layer_types":["sparse","dense","sparse","sparse"],
	"layer_types":["full_attention","mla_attention","sliding_attention","mla_attention"]'
kind stretched chronos '"num_shared_experts":1,"kv_latent_dim":24,"rope_dim":8,
	"rope_scaling":{"type":"yarn","factor":4,"original_max_position_embeddings":32}'
kind former chronos '"chronos_format":1,"num_shared_experts":1,"kv_latent_dim":24,"rope_dim":8'
status "positions that are not exported" 65 sh -c 'echo "{'"$(echo "$common" | tr -d '\n' | sed 's/"/\\"/g')"',
	\"chronos_format\":2,\"num_shared_experts\":1,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,
	\"low_freq_factor\":1,\"high_freq_factor\":4,\"original_max_position_embeddings\":64}}" > l.json &&
	chr-pretrain -q -c l.json -o l -n 1 -b 1 --seq 48 doc.jsonl > /dev/null &&
	chr-convert -q --to hf -o l.hf l'
# Some experts are missing: the reference's logits, as tests/golden.c asks them of us
for g in tiny-gqa tiny-hybrid; do
	if [ ! -d "${golden:-}/$g" ]; then
		skip "$g: missing experts" "no $shared/golden"
		continue
	fi
	chr-convert -q --to hf -o $g "$golden/$g" > log.jsonl
	"$py" "$top/tests/hf-experts.py" "$golden/$g" $g > all 2> err
	told $g $?
done
done_testing
