#!/bin/sh
# The plan against what the kernel says was the peak, within 3 %, checkpoints included: ten models
# from 20 to 300 MB, of every stage; and what --dry-run says is what the run plans.
. "$(dirname "$0")/lib.sh"
[ "$bld" = "$top/build" ] || skip_all "a sanitizer takes memory of its own"
world "$tmp/w"
cd "$tmp/w" || exit 1
head -60 datasets/chat.jsonl > chat.jsonl
head -40 datasets/prefs.jsonl > prefs.jsonl
head -20 datasets/prompts.jsonl > prompts.jsonl

# config NAME KEY=VALUE...: a model like that of the other tests, but for these
config()
{
	name=$1
	shift
	cp config.json "$name.json"
	for s in "$@"; do
		sed -i 's/"'"${s%%=*}"'": [^,}]*/"'"${s%%=*}"'": '"${s#*=}/" "$name.json"
	done
}
values()	# FILE KEY: one a line
{
	sed -n 's/.*"'"$2"'":\([0-9]*\).*/\1/p' "$1"
}
within()	# PLAN PEAK: 3 %, or 256 KiB of what is never the same twice
{
	echo "plan $1, peak $2"
	awk 'BEGIN { d = '"$1 - $2"'; d = d < 0 ? -d : d; exit !(d <= 0.03 * '"$2"' ||
		d <= 262144) }'
}
run=			# what starts a program
# plan NAME PROGRAM DATA OPTIONS...
plan()
{
	name=$1
	prog=$2
	data=$3
	shift 3
	rm -rf out
	$run "$prog" -q "$@" -o out --dry-run "$data" > dry ||
		{ result "$name: --dry-run" 1; return; }
	$run "$prog" -q "$@" -n 3 --save-every 1 -o out "$data" > all ||
		{ result "$name: run" 1; return; }
	grep '"type":"step"' all > log
	planned=$(values log mem_plan | tail -1)
	peak=$(values log mem_peak | tail -1)
	ok "$name: plan and peak" within "$planned" "$peak"
	ok "$name: --dry-run and plan" within "$(values dry total)" "$planned"
}

wide="hidden_size=128 moe_intermediate_size=128 num_experts=16 head_dim=32 rope_dim=8 kv_latent_dim=64 num_hidden_layers=4"
config deep num_hidden_layers=6 hidden_size=64
config many num_experts=32 num_experts_per_tok=4 num_hidden_layers=4 hidden_size=64
config words vocab_size=32000 hidden_size=64
# shellcheck disable=SC2086
config wide $wide
# shellcheck disable=SC2086
config large $wide hidden_size=256 moe_intermediate_size=256 num_hidden_layers=2
sed 's/"chronos_format"/"use_hybrid_attention": false, "chronos_format"/;
	s/"num_shared_experts": 1/"num_shared_experts": 0/' \
	deep.json > full.json

plan "many layers" chr-pretrain datasets/pretrain.jsonl -c deep.json -t tokenizer.json -b 4 \
	--seq 128
plan "many experts" chr-pretrain datasets/pretrain.jsonl -c many.json -t tokenizer.json -b 4 \
	--seq 128
plan "many words" chr-pretrain datasets/pretrain.jsonl -c words.json -t tokenizer.json -b 2 \
	--seq 128
plan "full attention, no shared expert, accumulation" chr-pretrain datasets/pretrain.jsonl \
	-c full.json -t tokenizer.json -b 4 \
	--accum 3 --seq 128
plan "wide" chr-pretrain datasets/pretrain.jsonl -c wide.json -t tokenizer.json -b 2 --seq 128
mv out base
plan "large, four threads" chr-pretrain datasets/pretrain.jsonl -c large.json -t tokenizer.json \
	-b 2 --seq 128 -j 4
mv out large
plan "chr-sft" chr-sft chat.jsonl -m base -b 2 --seq 128
plan "an adapter" chr-sft chat.jsonl -m base -b 2 --seq 128 --lora-rank 8
plan "chr-dpo" chr-dpo prefs.jsonl -m base -b 1 --seq 128
plan "chr-grpo" chr-grpo prompts.jsonl -m base -b 1 -G 4 --seq 128 --new 8 --reward toy
plan "chr-distill" chr-distill datasets/pretrain.jsonl -m base --teacher base -b 2 --seq 128

# The engine
p=$(chr-generate -q -m large --context 256 --dry-run < /dev/null |
	sed 's/.*"total":\([0-9]*\).*/\1/')
chr-generate -q -m large --context 256 -n 4 --stats stats in.jsonl > /dev/null
ok "chr-generate" within "$p" "$(values stats peak_rss | tail -1)"

# Of two ranks, each with its own share (rank 0 speaks).
run="mpirun -n 2"
if have_ranks; then
	plan "two ranks" chr-pretrain datasets/pretrain.jsonl -c large.json -t tokenizer.json -b 4 \
		--seq 128
	plan "divided experts" chr-pretrain datasets/pretrain.jsonl -c large.json \
		-t tokenizer.json -b 4 --seq 128 --expert-parallel 2
	plan "divided, dpo" chr-dpo prefs.jsonl -m model -b 4 --seq 128 --expert-parallel 2
else
	skip "ranks" "no MPI"
fi
done_testing
