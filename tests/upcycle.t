#!/bin/sh
# chr-pretrain --upcycle: a dense model becomes one with experts and computes the same at first.
. "$(dirname "$0")/lib.sh"
cp -r datasets "$tmp" && cd "$tmp" || exit 1

common='"vocab_size":320,"hidden_size":32,"intermediate_size":48,"num_hidden_layers":2,
"num_attention_heads":4,"num_key_value_heads":2,"head_dim":8,"max_position_embeddings":256,
"rms_norm_eps":1e-6'
echo "{\"model_type\":\"llama\",\"tie_word_embeddings\":true,\"mlp_bias\":false,$common}" > llama.json
echo "{\"model_type\":\"qwen3\",\"rope_theta\":5e5,$common}" > qwen3.json
echo "{\"model_type\":\"qwen2\",$common}" > qwen2.json
chr-tokenize -q --train -v 320 -o tokenizer.json datasets/pretrain.jsonl
head -20 datasets/pretrain.jsonl > in.jsonl
head -4 datasets/heldout.jsonl > held.jsonl
for f in llama qwen3 qwen2; do
	chr-pretrain -q -c $f.json -t tokenizer.json -o $f -n 6 -b 2 --seq 64 -l 3e-3 in.jsonl \
		> log.jsonl || exit 1
done
up() { chr-pretrain -q --upcycle "$@" -b 2 --seq 64 in.jsonl; }
nll() { chr-score -q -m "$1" held.jsonl | sed -n 's/.*"total".*"nll":\([0-9.]*\).*/\1/p'; }
near() { awk -v a="$1" -v b="$2" 'BEGIN { d = a - b; exit !(a && d * d < 1e-10) }'; }
above() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(b && a > b + 1e-4) }'; }

for f in llama:mixtral qwen3:qwen3_moe; do
	dense=${f%:*} sparse=${f#*:}
	ok "$dense" up "$dense" -o "$sparse" -n 1 -l 0 --weight-decay 0 --set num_experts=4
	ok "... is a $sparse" grep -q "\"model_type\": \"$sparse\"" "$sparse/config.json"
	ok "... with the loss of the dense one, $(nll "$dense") $(nll "$sparse")" \
		near "$(nll "$dense")" "$(nll "$sparse")"
	ok "... and its tokenizer" cmp "$dense/tokenizer.json" "$sparse/tokenizer.json"
	ok "... of which it says it came" grep -q "$(chr-ls -q "$dense" |
		sed -n 's/.*"fingerprint":"\([0-9a-f]*\)".*/\1/p')" "$sparse/model.safetensors"
	ok "... and which trains on" chr-pretrain -q -m "$sparse" -o "on.$sparse" -n 3 -b 2 \
		--seq 64 -l 3e-3 in.jsonl
	above "$(nll "$sparse")" "$(nll "on.$sparse")"
	result "... to a lower loss" $?
done
ok "a part drawn anew" up llama -o drawn -n 1 -l 0 --weight-decay 0 --set num_experts=4 \
	--upcycle-drop 0.5
ok "... costs at first, $(nll llama) $(nll drawn)" above "$(nll drawn)" "$(nll llama)"
ok "... and again is the same" up llama -o again -n 1 -l 0 --weight-decay 0 --set num_experts=4 \
	--upcycle-drop 0.5
is "... by its fingerprint" "$(chr-ls -q drawn | grep -o '"fingerprint":"[0-9a-f]*"' | head -1)" \
	"$(chr-ls -q again | grep -o '"fingerprint":"[0-9a-f]*"' | head -1)"
ok "a run that stops" sh -c 'chr-pretrain -q --upcycle llama -o whole -n 4 -b 2 --seq 64 \
	in.jsonl > whole.log && chr-pretrain -q --upcycle llama -o half -n 4 --stop-after 2 -b 2 \
	--seq 64 in.jsonl > half.log; [ $? = 75 ]'
ok "... goes on" chr-pretrain -q --upcycle llama -o half -n 4 -b 2 --seq 64 --resume in.jsonl
ok "... to the same bytes" cmp whole/model.safetensors half/model.safetensors
ok "with a lookahead head" up llama -o look -n 2 --set num_experts=4 --set lookahead_steps=2
status "qwen2 has biases" 65 up qwen2 -o no -n 1
up qwen2 -o no -n 1 2> said
ok "... said so" grep -q "a qwen2 cannot be upcycled" said
status "not to another width" 64 up llama -o no -n 1 --set intermediate_size=64
status "-c besides" 64 up llama -c llama.json -o no -n 1
status "a part of nothing" 64 chr-pretrain -q -c llama.json --upcycle-drop 0.5 -o no in.jsonl
ok "nothing was written" test ! -e no
done_testing
