#!/bin/sh
# The backend trap (tests/trap/trap.c), whose memory cannot be read or written but in its rows:
# everything runs on it, to the same bytes as on cpu, so no host code touches memory of a device and
# no row gets memory of the host.
. "$(dirname "$0")/lib.sh"
[ -f "$bld/tests/trap.so" ] || skip_all "no trap.so: run it by make check"
export CHR_BACKEND_PATH="$bld/tests"
world "$tmp/w"
cd "$tmp/w" || exit 1

# Weights without the header, which names the command.
weights()
{
	for weights_f; do
		weights_n=$(od -A n -t u8 -N 8 "$weights_f")
		tail -c +$((weights_n + 9)) "$weights_f"
	done | cksum
}

# Fields that are of the clock or the process.
plain() { sed 's/,"timing":{[^}]*}//; s/"\(seconds\|[a-z_]*_s\)":[0-9.e+-]*,\{0,1\}//g'; }

# trains NAME COMMAND...: the same weights and moments from both
trains()
{
	trains_name=$1
	shift
	rm -rf on-cpu on-trap
	ok "$trains_name: on cpu" sh -c '"$@" -q -B cpu -o on-cpu > cpu.log' - "$@"
	ok "$trains_name: on trap" sh -c '"$@" -q -B trap -o on-trap > trap.log' - "$@"
	for trains_f in on-cpu/*model*.safetensors on-cpu/optimizer.safetensors; do
		is "$trains_name: $(basename "$trains_f")" \
			"$(weights "on-trap/${trains_f#on-cpu/}")" "$(weights "$trains_f")"
	done
}

# says NAME COMMAND...: the same records from both
says()
{
	says_name=$1
	shift
	ok "$says_name: on cpu" sh -c '"$@" -q -B cpu > cpu.out' - "$@"
	ok "$says_name: on trap" sh -c '"$@" -q -B trap > trap.out' - "$@"
	plain < cpu.out > cpu.plain
	plain < trap.out > trap.plain
	ok "$says_name: the same records" sh -c '[ -s cpu.plain ] && cmp cpu.plain trap.plain'
}

status "an instance that there is not" 69 chr-score -q -B trap:2 -m model in.jsonl
status "a backend without a row" 69 chr-score -q -B trap:lame -m model in.jsonl
ok "is told which" sh \
	-c "chr-score -q -B trap:lame -m model in.jsonl 2>&1 | grep -q 'backend trap has no operation attn_back'"
status "a backend that is nowhere" 69 chr-score -q -B nowhere -m model in.jsonl

new="-c config.json -t tokenizer.json --seq 32"
set -- --set layer_types='["mla_attention","sliding_attention"]' --set lambda_ahead=0.2
trains pretrain chr-pretrain $new "$@" -n 3 -b 2 --accum 2 --dropout 0.1 \
	--fallback-mask-prob 0.3 datasets/pretrain.jsonl
trains "bf16, again, format 1" chr-pretrain $new --set chronos_format=1 -n 2 -b 2 --compute bf16 \
	--recompute datasets/pretrain.jsonl
cat > oss.json <<-END
	{"model_type": "gpt_oss", $(grep -o '"vocab_size": *[0-9]*' config.json), "hidden_size": 32,
	"intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
	"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 256,
	"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}
END
sed 's/gpt_oss/granitemoe/; s/"sliding.*/"residual_multiplier": 0.5, "logits_scaling": 2}/' oss.json \
	> granite.json
sed 's/gpt_oss/olmoe/; s/local_//; s/"sliding.*/"clip_qkv": 0.5}/' oss.json > olmoe.json
for f in oss granite olmoe; do
	trains $f chr-pretrain -c $f.json -t tokenizer.json --seq 32 -n 2 -b 2 \
		datasets/pretrain.jsonl
	says "$f: score" chr-score -m on-cpu in.jsonl
	rm -rf $f-q8
	chr-pack -q -m on-cpu --quant q8 --layout layer -o $f-q8 > /dev/null
	says "$f: score of q8, streamed" chr-score -m $f-q8 --ram 64M in.jsonl
done
trains resume sh -c 'o=$(for a; do case $p in -o) echo "$a";; esac; p=$a; done)
	chr-pretrain -c config.json -t tokenizer.json --seq 32 -b 2 "$@" -n 4 --stop-after 2 datasets/pretrain.jsonl; rc=$?
	[ $rc = 75 ] || exit 1
	chr-pretrain -c config.json -t tokenizer.json --seq 32 -b 2 "$@" -n 4 --resume datasets/pretrain.jsonl' -
trains sft chr-sft -m model --seq 64 -n 2 -b 2 --anchor-lambda 0.1 --neftune 5 \
	--eval datasets/chat.jsonl --eval-every 1 --eval-batches 1 \
	datasets/chat.jsonl
trains adapter chr-sft -m model --seq 64 -n 2 -b 2 --lora-rank 2 datasets/chat.jsonl
trains dpo chr-dpo -m model --seq 64 -n 2 -b 2 datasets/prefs.jsonl
trains orpo chr-orpo -m model --seq 64 -n 2 -b 2 datasets/prefs.jsonl
trains grpo chr-grpo -m model --seq 64 --new 8 -n 2 -b 2 -G 2 --reward toy datasets/prompts.jsonl
trains distill chr-distill -m model --teacher model --seq 64 -n 2 -b 2 datasets/chat.jsonl

# Inference: whole, packed, in blocks; and with room for a third of the experts, so that the others
# come from the drive.
cat > big.json <<-END
	{"chronos_format": 2, "vocab_size": 320, "hidden_size": 96, "num_hidden_layers": 4,
	"num_attention_heads": 4,
	"num_key_value_heads": 2, "head_dim": 24, "moe_intermediate_size": 90, "num_experts": 16,
	"num_experts_per_tok": 2,
	"num_shared_experts": 1, "kv_latent_dim": 24, "rope_dim": 8, "sliding_window_size": 12,
	"max_position_embeddings": 1024, "lookahead_steps": 2}
END
head -3 datasets/prompts.jsonl > prompts.jsonl
chr-pretrain -q -c big.json -t tokenizer.json -n 2 -b 2 --seq 32 -l 1e-6 \
	-o big datasets/pretrain.jsonl > log.jsonl &&
	chr-actlog -q -m big in.jsonl > big.act && chr-cluster -q big.act > big.manifest &&
	chr-pack -q -m big -o packed16 big.manifest > log.jsonl &&
	chr-pack -q -m big -o packed8 --quant q8 --quant-dense q8 big.manifest > log.jsonl &&
	chr-intent -q -m packed16 -n 2 big.act > log.jsonl ||
		{ echo "Bail out! no models"; exit 1; }
room="--context 100 --chunk 32"
gen="chr-generate -n 12 --temperature 0 $room"
chr-generate -q -m packed16 $room --ram 1M prompts.jsonl > log.jsonl 2> refused
least=$(sed -n 's/.*use --ram \([0-9]*\)M.*/\1/p' refused)
least=$((${least:-20} + 1))

says generate $gen -m big prompts.jsonl
says "generate, several at once, a trace" $gen -b 3 --stats trace -m big prompts.jsonl
says "generate, caches of 8 bits" $gen -m big --kv-type q8 prompts.jsonl
says "generate, packed" $gen -m packed16 prompts.jsonl
says "generate, packed, from the drive" $gen -m packed16 --ram "${least}M" \
	--predict all prompts.jsonl
says "generate, by the prompt" $gen -m packed16 --ram "${least}M" \
	--predict intent,gate,control prompts.jsonl
says "generate, blocks" $gen -m packed8 prompts.jsonl
says "generate, blocks, from the drive" $gen -m packed8 --ram "${least}M" prompts.jsonl
chr-sft -q -m big --lora-rank 2 --lora-target '*proj*' --seq 64 -n 4 -b 2 -l 0.05 -o adapter \
	datasets/chat.jsonl > log.jsonl
says "generate, an adapter" $gen -m big --adapter adapter prompts.jsonl
says "generate, an adapter on blocks, from the drive" $gen -m packed8 --ram "${least}M" \
	--adapter adapter prompts.jsonl
# What they do depends on how fast the drive is.
status "generate, shared experts stand in" 0 $gen -q -B trap -m packed16 --ram "${least}M" \
	--on-miss shared --sim-ssd 2 prompts.jsonl
status "generate, routing prefers what is there" 0 $gen -q -B trap -m packed16 --ram "${least}M" \
	--route-bias 4 prompts.jsonl
says actlog chr-actlog -m model in.jsonl
says score chr-score -m model in.jsonl
says "score, the most likely tokens" chr-score --topk 4 -m packed8 in.jsonl
says diff sh -c 'chr-diff --tol 10 "$@" big packed8 in.jsonl' -
says "diff, token by token" sh -c 'chr-diff --with "--predict none" "$@" big packed16 in.jsonl' -

if have_ranks; then
	for more in "" "--expert-parallel 2"; do
		rm -rf on-cpu on-trap
		for be in cpu trap; do
			ok "two ranks $more: $be" sh -c 'be=$1; shift
				mpirun -n 2 chr-pretrain -q -B $be -o on-$be "$@" datasets/pretrain.jsonl > $be.log' - $be $new -n 3 -b 1 $more
		done
		is "two ranks $more: weights" \
			"$(weights on-trap/model.safetensors on-trap/optimizer.safetensors)" \
			"$(weights on-cpu/model.safetensors on-cpu/optimizer.safetensors)"
	done
else
	skip "two ranks" "no mpirun, or built without MPI"
fi

# What it is there to catch.
if [ -x "$bld/tests/trap" ]; then
	for what in read write row inside long get put file early; do
		"$bld/tests/trap" $what > log 2>&1
		is "planted: $what" "$?" 70
	done
	status "and without a plant all is well" 0 "$bld/tests/trap" none
fi
done_testing
