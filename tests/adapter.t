#!/bin/sh
# --adapter of the programs that run a model: the text of the merged model, by record, on packed
# models in blocks and streamed; and what a record or a command line may not say.
# shellcheck disable=SC2154
. "$(dirname "$0")/lib.sh"
world "$tmp/w"
cd "$tmp/w" || exit 1

# A model with enough experts that streaming matters: 4 layers of 16, about 100 KiB each.
cat > big.json <<END
{"chronos_format": 2, "vocab_size": 320, "hidden_size": 96, "num_hidden_layers": 4,
"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "moe_intermediate_size": 90,
"num_experts": 16, "num_experts_per_tok": 2, "num_shared_experts": 1, "kv_latent_dim": 24,
"rope_dim": 8, "sliding_window_size": 12, "max_position_embeddings": 1024, "lookahead_steps": 2}
END
rm -r model
chr-pretrain -q -c big.json -t tokenizer.json -n 3 -b 2 --seq 32 -o model \
	datasets/pretrain.jsonl > log.jsonl || { echo "Bail out! no model"; exit 1; }

# Three adapters that change what the model says, of different matrices and ranks; and one of
# another model.
sft() { chr-sft -q -m model --seq 64 -n 12 -b 2 -l 0.05 "$@" datasets/chat.jsonl > log.jsonl; }
sft --lora-rank 4 -o all --lora-target '*_proj.weight' --lora-target '*mlp.gate.weight' -s 1 &&
	sft --lora-rank 2 -o attention --lora-target '*self_attn.*_proj.weight' -s 2 &&
	sft --lora-rank 1 -o experts --lora-target '*experts*' -s 3 &&
	chr-pretrain -q -c big.json -t tokenizer.json -n 1 -b 1 --seq 32 -s 9 -o stranger \
		datasets/pretrain.jsonl > log.jsonl &&
	chr-sft -q -m stranger --lora-rank 2 --seq 64 -n 1 -b 1 -o foreign datasets/chat.jsonl \
		> log.jsonl &&
	for a in all attention experts; do
		chr-merge -q -m model -o "merged-$a" $a > log.jsonl
	done &&
	chr-pack -q -m model --layout layer --quant q8 --quant-dense q8 -o q8 > log.jsonl &&
	chr-pack -q -m model --layout layer --quant q4 -o q4 > log.jsonl ||
	{ echo "Bail out! no models"; exit 1; }
head -3 datasets/prompts.jsonl > prompts.jsonl

# gen OUT OPTIONS... FILE: completions, without what is not of the text
gen()
{
	gen_out=$1
	shift
	chr-generate -q -n 24 --temperature 0 "$@" > "$gen_out.all" &&
		sed 's/.*"completion"://; s/,"adapter":[^,]*//; s/,"timing":{.*//' "$gen_out.all" \
			> "$gen_out"
}

differ() { ! cmp -s "$1" "$2"; }

ok "the base" gen base -m model prompts.jsonl
for a in all attention experts; do
	ok "$a: merged" gen "want.$a" -m "merged-$a" prompts.jsonl
	ok "$a: beside the model" gen "got.$a" -m model --adapter $a prompts.jsonl
	ok "$a: the same text" cmp "want.$a" "got.$a"
	ok "$a: not that of the base" differ base "got.$a"
	ok "$a: the record says so" [ "$(grep -c "\"adapter\":\"$a\"" "got.$a.all")" = 3 ]
	for m in "merged-$a" "model --adapter ./$a/"; do
		# shellcheck disable=SC2086
		chr-score -q -m $m in.jsonl | sed 's/.*"nll":\([^,]*\),.*/\1/' > "score.${m%% *}"
	done
	ok "$a: chr-score agrees" sh -c 'paste score.merged-$1 score.model | awk "
		{ d = \$1 - \$2; bad += !(d < 1e-5 && d > -1e-5) } END { exit bad > 0 || NR != 6 }"' - $a
	ok "$a: chr-diff too" chr-diff --tol 1e-4 "merged-$a" model --with "--adapter $a" in.jsonl
done

# Records of all, in turn, and what each would be alone.
for a in '"all"' null '"experts"' '"attention"'; do
	sed "s/^{/{\"adapter\":$a,/" prompts.jsonl
done > mixed.jsonl
cat got.all base got.experts got.attention > mixed.want
set -- --adapter all --adapter attention --adapter experts
ok "records name theirs, one at a time" gen mixed.1 -m model "$@" mixed.jsonl
ok "each as with its adapter alone, null as the base" cmp mixed.want mixed.1
ok "twelve at a time" gen mixed.12 -m model -b 12 -j 2 --chunk 5 "$@" mixed.jsonl
ok "the same bytes" cmp mixed.want mixed.12
ok "records that name none" gen none -m model -b 3 "$@" prompts.jsonl
ok "get the base where there are several" cmp base none
ok "and say null" [ "$(grep -c '"adapter":null' none.all)" = 3 ]

for m in q8 q4; do
	chr-generate -q -m $m "$@" --context 300 --ram 1M prompts.jsonl > log 2> refused
	least=$(sed -n 's/.*use --ram \([0-9]*\)M.*/\1/p' refused)
	least=$((${least:-20} + 1))
	ok "$m: in memory" gen $m.want -m $m "$@" mixed.jsonl
	ok "$m: from the drive, four at a time" gen $m.got -m $m -b 4 --context 300 \
		--ram "${least}M" --stats $m.stats "$@" mixed.jsonl
	ok "$m: the same bytes" cmp $m.want $m.got
	[ $m = q4 ] || ok "$m: some experts were read more than once" [ \
		"$(tail -n 1 $m.stats | sed 's/.*"reads":\([0-9]*\).*/\1/')" -gt 64 ]
	ok "$m: the base" gen $m.base -m $m prompts.jsonl
	ok "$m: null is the base" sh -c 'sed -n 4,6p "$1" | cmp - "$2"' - $m.want $m.base
	ok "$m: the others are not" sh -c 'for i in 1,3 7,9 10,12; do
		! sed -n ${i}p "$1" | cmp -s - "$2" || exit 1; done' - $m.want $m.base
	ok "$m: what was held is in the summary" grep -q \
		'"adapters":\["all","attention","experts"\]' $m.stats
done
ok "adapters are in the plan" sh -c 'chr-generate -m q8 --adapter all --dry-run < /dev/null |
	grep -q "\"adapters\":[1-9]"'
ok "chr-actlog logs what they choose" sh -c 'chr-actlog -q -m model in.jsonl > a &&
	chr-actlog -q -m model --adapter all in.jsonl > b && chr-actlog -q -m merged-all in.jsonl > c &&
	! cmp -s a b && sed 1d b > b1 && sed 1d c | cmp b1 -'

# What is refused
bad() { echo '{"prompt":"a"}'; echo "{\"prompt\":\"a\",\"adapter\":$1}"; }
bad '"other"' > other.jsonl
bad 3 > three.jsonl
status "a name that none has" 65 chr-generate -q -m model --adapter all other.jsonl
cp "$tmp/log" said
ok "is said with file and line" grep -q '^chr-generate: other.jsonl:2: "adapter" is "other"' said
status "nor without adapters" 65 chr-generate -q -m model other.jsonl
status "no name" 65 chr-score -q -m model --adapter all three.jsonl
ok "but may be passed over" sh -c '[ "$(chr-generate -q -n 1 -m model --skip-bad --adapter all \
	other.jsonl | wc -l)" = 1 ]'
status "two of one name" 64 chr-generate -q -m model --adapter all --adapter all=experts \
	prompts.jsonl
status "several for one text" 64 chr-generate -q -m model "$@" -p a
status "one" 0 chr-generate -q -m model --adapter all -n 2 -p a
status "several for chr-diff" 64 chr-diff -q model model --with "--adapter all --adapter experts" \
	in.jsonl
status "an adapter that is not there" 66 chr-generate -q -m model --adapter nosuch prompts.jsonl
status "of another model" 65 chr-generate -q -m model --adapter foreign prompts.jsonl
cp "$tmp/log" said
ok "which is named, and how to go on" grep -q 'foreign: was trained on the model .*--force' said
status "with it" 0 chr-generate -q -m model --adapter foreign --force -n 2 prompts.jsonl
status "of the packed model's original" 0 chr-generate -q -m q8 --adapter all -n 2 prompts.jsonl
# A model without experts has another fingerprint when it is packed.
cat > dense.json <<END
{"model_type": "llama", "vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2,
"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 48,
"max_position_embeddings": 256}
END
ok "a model without experts, packed" sh -e -c '
	chr-pretrain -q -c dense.json -t tokenizer.json -n 1 -b 1 --seq 32 -o dense \
		datasets/pretrain.jsonl > log
	chr-sft -q -m dense --lora-rank 2 --seq 64 -n 1 -b 1 -o tune datasets/chat.jsonl > log
	chr-pack -q -m dense --layout layer --quant-dense q8 -o dense8 > log'
status "takes an adapter of its original" 0 chr-generate -q -m dense8 --adapter tune -n 2 \
	prompts.jsonl
status "but not of another" 65 chr-generate -q -m dense8 --adapter foreign -n 2 prompts.jsonl
status "a model in the place of an adapter" 66 chr-generate -q -m model --adapter model \
	prompts.jsonl
done_testing
