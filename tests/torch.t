#!/bin/sh
# Gradients of chr-pretrain against those of PyTorch's autograd: through scripts/bench-torch.py, and
# of published families through transformers. Skipped where these are not.
. "$(dirname "$0")/lib.sh"
command -v chr-pretrain > /dev/null || skip_all "chr-pretrain is not built"
py=${PYTHON:-python3}
"$py" -c 'import torch' 2> /dev/null || skip_all "no torch here"
cd "$tmp" || exit 1

cat > config.json <<-END
	{"chronos_format": 2, "vocab_size": 300, "hidden_size": 48, "num_hidden_layers": 3,
	"num_attention_heads": 4,
	"num_key_value_heads": 2, "head_dim": 16, "moe_intermediate_size": 40, "num_experts": 6,
	"num_experts_per_tok": 2,
	"num_shared_experts": 0, "use_hybrid_attention": false, "max_position_embeddings": 128,
	"lookahead_steps": 0,
	"lambda_balance": 0, "lambda_temporal": 0, "lambda_router_locality": 0}
END
doc_tokens 100 > doc.jsonl
train="chr-pretrain -q -b 1 --seq 100 --no-shuffle"
$train -c config.json -n 1 -o model doc.jsonl > /dev/null || exit 1
$train -m model --grad-dump f32.safetensors doc.jsonl > /dev/null
$train -m model --compute bf16 --grad-dump bf16.safetensors doc.jsonl > /dev/null
check()
{
	"$py" "$top/scripts/bench-torch.py" --check "$1" --tokens doc.jsonl model
}
status "gradients are PyTorch's" 0 check f32.safetensors
status "of bf16 they are not, to a thousandth" 1 check bf16.safetensors
status "the benchmark runs" 0 sh -c '"$0" "$1" --batch 1 --seq 16 --steps 1 model > bench.json' \
	"$py" "$top/scripts/bench-torch.py"
ok "and gives a rate" grep -q '"tok_per_s": [0-9]' bench.json

# Published families, of which transformers is the authority.
if families=$("$py" "$top/tests/torch-families.py" make 2> make.log); then
	for f in $families; do
		$train -m "$f" --set lambda_balance=0 --set lambda_temporal=0 \
			--set lambda_router_locality=0 --fallback-mask-prob 0 \
			--grad-dump "$f.safetensors" doc.jsonl > /dev/null
	done
	sed 's/,10,/,11,/' doc.jsonl > other.jsonl
	"$py" "$top/tests/torch-families.py" check doc.jsonl $families > same 2> check.log
	"$py" "$top/tests/torch-families.py" check other.jsonl gpt_oss > other 2>> check.log
	for f in $families; do
		ok "$f: gradients are those of transformers" \
			grep -q "\"family\": \"$f\".*\"worst\": [0-9.]*e-0[5-9]" same
	done
	status "of other tokens they are not" 1 grep -q 'e-0[5-9]' other
	sed 's/^/# /' same
else
	skip "gradients of published families" "no transformers here"
fi
done_testing
