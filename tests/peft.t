#!/bin/sh
# Adapters to and from PEFT: what it makes is merged here, and what is trained here it loads, of
# every published family and of models of ours, to the same logits. Skipped where torch,
# transformers and PEFT are not (make check-hf has them).
. "$(dirname "$0")/lib.sh"
py=${PYTHON:-python3}
"$py" -c 'import torch, transformers, peft' 2> /dev/null || skip_all "no torch and PEFT here"
export HF_HOME="$tmp/cache" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
[ -d "$shared/golden/families" ] && families=$(cd "$shared/golden/families" && pwd)
mkdir "$tmp/own" "$tmp/work" && cd "$tmp/own" || exit 1

doc_tokens 48 > doc.jsonl
# own NAME KEYS: a model of ours after a few steps, and as transformers has it
own()
{
	echo '{"chronos_format":2,"vocab_size":320,"hidden_size":48,"num_hidden_layers":3,
		"num_attention_heads":4,"num_key_value_heads":2,"head_dim":16,"num_experts":6,
		"moe_intermediate_size":40,"intermediate_size":56,"num_experts_per_tok":2,
		"lambda_balance":0,'"$2}" > "$1.json"
	chr-pretrain -q -c "$1.json" -o "$1" -n 3 -b 2 --seq 48 -l 3e-3 --warmup 1 doc.jsonl \
		> log.jsonl && chr-convert -q --to hf -o "$1.hf" "$1" > log.jsonl
}
own ours '"num_shared_experts":1,"kv_latent_dim":24,"rope_dim":8,"lookahead_steps":2,
	"tie_word_embeddings":false'
own qwen '"num_shared_experts":0,"use_hybrid_attention":false,"tie_word_embeddings":false,
	"mlp_layer_types":["dense","sparse","sparse"]'
# shellcheck disable=SC2086
"$py" "$top/tests/peft-matrix.py" "${families:-none}" . "$tmp/work" "$bld" ${CHR_FAMILIES:-} \
	> ../all 2> ../err
rc=$?
[ $rc = 0 ] || cat ../err
while read -r word rest; do
	[ "$word" = ok ]
	result "$rest" $?
done < ../all
result "PEFT's program ends well" $rc
[ -n "${families:-}" ] || skip "published families" "no $shared/golden/families"
done_testing
