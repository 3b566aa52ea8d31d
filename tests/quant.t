#!/bin/sh
# Models in blocks of 8 and 4 bits, from chr-pack to text: streamed equals resident, how far it is
# from the floats is small and reported, and what cannot be is refused.
. "$(dirname "$0")/lib.sh"

cat > "$tmp/config.json" << 'END'
{"chronos_format":2,"vocab_size":300,"hidden_size":64,"num_hidden_layers":3,"num_attention_heads":4,"num_key_value_heads":2,
 "head_dim":16,"kv_latent_dim":16,"rope_dim":8,"sliding_window_size":32,"moe_intermediate_size":48,"num_experts":8,
 "num_experts_per_tok":2,"num_shared_experts":1,"lookahead_steps":1,"max_position_embeddings":512}
END
head -n 60 datasets/pretrain.jsonl > "$tmp/text.jsonl"
chr-tokenize -q --train -v 300 -o "$tmp/tokenizer.json" "$tmp/text.jsonl"
chr-pretrain -q -c "$tmp/config.json" -t "$tmp/tokenizer.json" -o "$tmp/m" -n 40 -b 4 --seq 64 \
	-l 5e-3 "$tmp/text.jsonl" > /dev/null
head -n 8 datasets/heldout.jsonl > "$tmp/held.jsonl"
chr-actlog -q -m "$tmp/m" "$tmp/held.jsonl" | chr-cluster -q > "$tmp/manifest.json"

pack() { out=$1; shift; chr-pack -q -m "$tmp/m" -o "$tmp/$out" "$@" \
	"$tmp/manifest.json" > "$tmp/$out.jsonl"; }
text() { chr-generate -q --raw --temperature 0 -n 40 -p "The fox" "$@" 2> "$tmp/err"; }
field() { sed -n "s/.*\"$1\":\([-0-9.e+]*\).*/\1/p" "$2" | head -n 1; }
below() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a != "" && a + 0 < b + 0) }'; }
smaller() { [ "$(field bytes "$tmp/$1.jsonl")" \
	-lt $(($(field bytes "$tmp/f32.jsonl") * $2 / 100)) ]; }

pack f32
for t in q8:0.002:33 q4:0.2:16 q4a:0.2:19; do
	q=${t%%:*} rest=${t#*:}
	kl=${rest%:*} percent=${rest#*:}
	ok "pack $q" pack "$q" --quant "$q" --quant-dense "$q"
	ok "$q: smaller than $percent % of the floats" smaller "$q" "$percent"
	chr-diff -q "$tmp/m" "$tmp/$q" "$tmp/held.jsonl" > "$tmp/diff.jsonl"
	ok "$q: KL to the floats $(field kl "$tmp/diff.jsonl") below $kl" below \
		"$(field kl "$tmp/diff.jsonl")" "$kl"
	ok "$q: relative error reported" below 0.0005 "$(field relative_error "$tmp/$q.jsonl")"
	text -m "$tmp/$q" > "$tmp/resident"
	chr-generate -q -m "$tmp/$q" --ram 1 -p a 2> "$tmp/err"
	least=$(sed -n 's/.*use --ram \([0-9]*\)M.*/\1/p' "$tmp/err")
	text -m "$tmp/$q" --ram "${least}M" --chunk 3 -j 1 --predict all > "$tmp/streamed"
	ok "$q: text is the same from disk" cmp "$tmp/resident" "$tmp/streamed"
	ok "$q: chr-ls finds it whole" chr-ls -q --check "$tmp/$q"
done
ok "larger matrices by name" pack mixed --quant q4 --quant-for '*.experts.*.down_proj.weight=q8'
ok "... are as asked" grep -q '"dtype":"Q4","down_dtype":"Q8"' "$tmp/mixed.jsonl"
ok "... and reported by type" perl \
	-ne 'exit !(/"F32":{"tensors":\d+,"bytes":\d+},"Q8":{"tensors":24,"bytes":(\d+),"converted":24,"relative_error":([0-9.]+)},"Q4":{"tensors":48,"bytes":(\d+),"converted":48,"relative_error":([0-9.]+)}},"relative_error":([0-9.]+)/ && $2 < 0.01 && $2 < $5 && $5 < $4 && /"bytes":@{[$1 + $3]},/)' "$tmp/mixed.jsonl"

# Each kind of matrix in a type of its own
kinds()
{
	pack "$1" --quant-for "*.experts.*.gate_proj.weight=$2" \
		--quant-for "*.experts.*.up_proj.weight=$3" \
		--quant-for "*.experts.*.down_proj.weight=$4"
	text -m "$tmp/$1" > "$tmp/resident" &&
		text -m "$tmp/$1" --ram "${least}M" --chunk 3 -j 1 \
			--predict all > "$tmp/streamed" &&
		cmp "$tmp/resident" "$tmp/streamed" && chr-ls -q --check "$tmp/$1" &&
			chr-diff -q "$tmp/m" "$tmp/$1" "$tmp/held.jsonl" > "$tmp/diff.jsonl"
	below "$(field kl "$tmp/diff.jsonl")" 0.2
}
least=40
ok "gate, up, down in q8, q4a, q4" kinds kinds1 q8 q4a q4
ok "gate, up, down in q4, q8, q8" kinds kinds2 q4 q8 q8
ok "gate, up, down in bf16, f16, f32" kinds kinds3 bf16 f16 f32
ok "... what rounding lost is reported" perl \
	-ne 'exit !(/"F16":{"tensors":24,"bytes":\d+,"converted":24,"relative_error":([0-9.e-]+)}/ && $1 > 1e-5 && $1 < 1e-3)' "$tmp/kinds3.jsonl"
ok "routers keep their floats" sh -c "chr-ls -q '$tmp/q8' | grep 'mlp.gate.weight' | grep -qv U8"
status "a router by name" 64 chr-pack -q -m "$tmp/m" -o "$tmp/x" \
	--quant-for model.layers.0.mlp.gate.weight=q8 "$tmp/manifest.json"
status "nothing but routers by a pattern" 64 chr-pack -q -m "$tmp/m" -o "$tmp/x" \
	--quant-for '*.mlp.gate.weight=q8' "$tmp/manifest.json"
says() { message=$1; shift; chr-pack -q -m "$tmp/m" -o "$tmp/x" "$@" "$tmp/manifest.json" 2>&1 |
	grep -qF "$message"; }
ok "... which names one" says "mlp.gate.weight is never quantised" \
	--quant-for '*.mlp.gate.weight=q8'
status "a pattern that matches nothing" 64 chr-pack -q -m "$tmp/m" -o "$tmp/x" \
	--quant-for '*.expert.*=q8' "$tmp/manifest.json"
status "no such type" 64 chr-pack -q -m "$tmp/m" -o "$tmp/x" --quant-for '*=q7' "$tmp/manifest.json"
status "floats and blocks in one expert" 65 chr-pack -q -m "$tmp/m" -o "$tmp/x" \
	--quant-for '*.experts.*.up_proj.weight=q8' "$tmp/manifest.json"
status "the same of a shared expert" 65 chr-pack -q -m "$tmp/m" -o "$tmp/x" \
	--quant-for '*.shared_experts.*.down_proj.weight=q8' "$tmp/manifest.json"
status "one expert unlike the others" 65 chr-pack -q -m "$tmp/m" -o "$tmp/x" --quant q8 \
	--quant-for '*.layers.0.mlp.experts.0.*=q4' "$tmp/manifest.json"
ok "... and how to say it for all" says "'*.experts.*.gate_proj.weight=Q" --quant q8 \
	--quant-for '*.layers.0.mlp.experts.0.*=q4'
status "what was quantised is not given back" 65 chr-pack -q --unpack -m "$tmp/q8" -o "$tmp/x"
status "training does not start from a packed model" 65 chr-sft -q -m "$tmp/q8" \
	-o "$tmp/x" datasets/chat.jsonl
cp -r "$tmp/q8" "$tmp/cut"
perl -0pi -e 's/("quant\.model\.layers\.0\.self_attn\.o_proj\.weight":"Q8) (\d)/$1 9/' \
	"$tmp/cut/model.safetensors"
status "metadata of another shape" 65 chr-generate -q -m "$tmp/cut" -p a
done_testing
