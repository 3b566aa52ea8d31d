#!/bin/sh
# chr-convert --to hf of every published family: as published, in another type, trained here, from a
# GGUF file, packed and unpacked; transformers computes what we do. Skipped where torch and
# transformers are not (make check-hf has them).
. "$(dirname "$0")/lib.sh"
py=${PYTHON:-python3}
families=$shared/golden/families
[ -d "$families" ] || skip_all "no $families"
"$py" -c 'import torch, transformers' 2> /dev/null || skip_all "no torch and transformers here"
export HF_HOME="$tmp/cache" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
families=$(cd "$families" && pwd)
cd "$tmp" || exit 1
chr-tokenize -q --train -v 320 -o tokenizer.json "$top/datasets/pretrain.jsonl"
n=0

# tokens FAMILY: the first row of its golden text
tokens()
{
	of=$families/$1/expected.safetensors
	at=$(chr-ls -q --all "$of" | sed -n 's/.*"name":"tokens".*"offset":\([0-9]*\).*/\1/p')
	od -An -v -t d4 -j "$at" -N 160 "$of" | tr -s ' \n' ',' |
		sed 's/^,/{"tokens":[/; s/,$/]}/'
}
# export_of FAMILY KIND MODEL [OPTION...]: in a folder of its own, with what we compute of it
export_of()
{
	name=$1${2:+, $2}
	model=$3
	n=$((n + 1))
	mkdir $n
	tokens "$1" > $n/tokens.jsonl
	cut -d , -f 1-12 $n/tokens.jsonl | sed 's/$/]}/' > start.jsonl
	shift 3
	ok "$name: exported" chr-convert -q --to hf -o $n/out "$@" "$model"
	chr-score -q -m $n/out --dump $n/dump.st $n/tokens.jsonl > "$tmp/noise"
	chr-generate -q -m $n/out --temperature 0 -n 24 start.jsonl > $n/greedy.jsonl
	echo "$tmp/$n $name" >> asked
}
# what_they_say: a line of TAP for each that transformers finds
what_they_say()
{
	"$py" "$top/tests/hf-families.py" < asked > said 2> err
	rc=$?
	[ $rc = 0 ] || tail -n 5 err
	grep '^ok \|^BAD ' said > lines
	while read -r word rest; do
		[ "$word" = ok ]
		result "$rest" $?
	done < lines
	result "transformers' program ends well" $rc
}

for d in "$families"/*/; do
	f=$(basename "$d")
	# What is published has files beside its weights.
	cp -r "$d" source && chmod -R u+w source && rm source/expected.safetensors
	cp tokenizer.json source
	echo '{"tokenizer_class":"PreTrainedTokenizerFast"}' > source/tokenizer_config.json
	export_of "$f" "" source
	export_of "$f" bf16 source --dtype bf16
	mv source $((n - 1))
done
for f in mixtral gpt_oss-mxfp4 deepseek_v3-fp8 qwen3_5_moe; do
	export_of "$f" "f16" "$families/$f" --dtype f16
done
train="-q -t tokenizer.json -n 1 -b 1 --seq 32 $top/datasets/pretrain.jsonl"
for f in deepseek_v2 deepseek_v3 deepseek_v3-fp8 deepseek_v3-mtp dots1 ernie4_5_moe glm4_moe \
	glm4_moe_lite gpt_oss gpt_oss-mxfp4 granitemoe hunyuan_v1_moe llama minimax_m2 mixtral \
	olmoe qwen2 qwen2_moe qwen3 qwen3_moe qwen3_moe-bf16-shards; do
	# shellcheck disable=SC2086
	chr-pretrain -m "$families/$f" -o "trained-$f" $train > log
	export_of "$f" "trained" "trained-$f"
done
for f in qwen3_moe mixtral; do
	# shellcheck disable=SC2086
	chr-pretrain -m "$families/$f" -o "ahead-$f" --set lookahead_steps=2 $train > log
	export_of "$f" "with a lookahead head" "ahead-$f"
done
for f in llama mixtral qwen2 qwen3 qwen2_moe qwen3_moe olmoe deepseek_v2 deepseek_v3 glm4_moe \
	glm4_moe_lite gpt_oss qwen3_next qwen3_5_moe_text; do
	perl "$top/tests/gguf.pl" "$families/$f" m.gguf tok=tokenizer.json
	export_of "$f" "from GGUF" m.gguf
done
for f in deepseek_v3-fp8 deepseek_v3-mtp gpt_oss gpt_oss-mxfp4 lfm2_moe qwen3_5_moe qwen3_moe \
	qwen3_next; do
	chr-pack -q --layout layer -m "$families/$f" -o packed > log
	chr-pack -q --unpack -m packed -o unpacked > log
	export_of "$f" "unpacked" unpacked
	rm -r packed unpacked
done
# Positions stretched, as a published config says it today and before.
for keys in '"rope_parameters":{"rope_type":"yarn","rope_theta":10000.0,"factor":4.0,
	"original_max_position_embeddings":16}' '"rope_theta":10000.0,"rope_scaling":{"type":"yarn",
	"factor":4.0,"original_max_position_embeddings":16}'; do
	rm -rf source && cp -r "$families/qwen3_moe" source && chmod -R u+w source
	perl -MJSON::PP -0 -e 'my ($o, $new) = map { decode_json($_) } <STDIN>, "{$ARGV[0]}";
		delete @$o{qw(rope_parameters rope_scaling rope_theta)};
		print encode_json({ %$o, %$new })' "$keys" < source/config.json > stretched.json &&
		mv stretched.json source/config.json
	rm -rf stretched
	# shellcheck disable=SC2086
	chr-pretrain -m source -o stretched $train > log
	export_of qwen3_moe "stretched" source
	export_of qwen3_moe "stretched, bf16" source --dtype bf16
	export_of qwen3_moe "stretched, trained" stretched
done
what_they_say
done_testing
