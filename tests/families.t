#!/bin/sh
# Published families through the programs: packed and streamed as resident, batch as single, and
# every trainer, or a refusal by each.
. "$(dirname "$0")/lib.sh"
families=$shared/golden/families
if [ ! -d "$families" ]; then
	skip "published families" "no $families"
	done_testing
	exit
fi
families=$(cd "$families" && pwd)
world "$tmp/w"
cd "$tmp/w" || exit 1
head -n 3 in.jsonl > three.jsonl
head -n 2 datasets/prefs.jsonl > prefs.jsonl
head -n 2 datasets/prompts.jsonl > sums.jsonl
head -n 2 datasets/chat.jsonl > chat.jsonl

for f in deepseek_v2 deepseek_v3 deepseek_v3-fp8 dots1 ernie4_5_moe glm4_moe glm4_moe_lite \
	gpt_oss gpt_oss-mxfp4 granitemoe \
	hunyuan_v1_moe lfm2_moe minimax_m2 mixtral olmoe qwen2_moe qwen3_5_moe qwen3_5_moe_text \
	qwen3_moe qwen3_next; do
	d=$families/$f
	# shellcheck disable=SC2016
	ok "$f: streamed as resident; q8 is near" sh -e -c '
		numbers() { sed "s/,\"seconds.*//"; }
		chr-score -q -m "$1" -t tokenizer.json three.jsonl | numbers > a
		chr-actlog -q -m "$1" -t tokenizer.json three.jsonl > act.jsonl
		chr-cluster -q act.jsonl > m.json
		rm -rf p && chr-pack -q -m "$1" -o p m.json > /dev/null
		chr-score -q -m p -t tokenizer.json --ram 64M three.jsonl | numbers > b
		cmp a b
		rm -rf q && chr-pack -q -m "$1" --quant q8 -o q m.json > /dev/null
		chr-diff -q "$1" q -t tokenizer.json three.jsonl > d || [ $? = 1 ]
		perl -ne "exit !(/\"kl\":([0-9.e-]+)/ && \$1 < 0.05)" d
		chr-pack -q -m p --unpack -o u > /dev/null
		chr-score -q -m u -t tokenizer.json three.jsonl | numbers > b
		cmp a b; rm -rf u' sh "$d"
done

for f in deepseek_v2 deepseek_v3 deepseek_v3-fp8 dots1 ernie4_5_moe glm4_moe glm4_moe_lite \
	gpt_oss gpt_oss-mxfp4 granitemoe \
	hunyuan_v1_moe llama minimax_m2 mixtral olmoe qwen2 qwen2_moe qwen3 qwen3_moe; do
	d=$families/$f
	# shellcheck disable=SC2016
	ok "$f: every trainer, full and with adapters" sh -e -c '
		rm -rf o; t="-q -m $1 -t tokenizer.json -n 1 -b 1"
		chr-pretrain $t --seq 32 -o o/p in.jsonl > /dev/null
		chr-sft $t --seq 64 -o o/s chat.jsonl > /dev/null
		chr-sft $t --seq 64 --lora-rank 2 -o o/l chat.jsonl > /dev/null
		chr-dpo $t --seq 128 -o o/d prefs.jsonl > /dev/null
		chr-orpo $t --seq 128 -o o/o prefs.jsonl > /dev/null
		chr-grpo $t --seq 96 --new 2 --reward toy -o o/g sums.jsonl > /dev/null
		chr-distill $t --seq 32 --teacher "$1" -o o/t in.jsonl > /dev/null
		chr-merge -q -m "$1" -o o/m o/l > /dev/null
		for m in p s d o g t m; do
			chr-score -q -m o/$m -t tokenizer.json three.jsonl > /dev/null
			[ "$(sed -n "s/.*\"model_type\": \"\(.*\)\".*/\1/p" o/$m/config.json)" = "$2" ]
			! grep -q quantization_config o/$m/config.json
		done' sh "$d" "${f%-*}"
done

# fuse DIR: experts of all layers stacked, gate and up of one together, as they are published
fuse()
{
	cp "$families/$1/config.json" "$2" && perl -MJSON::PP -e '
		my ($in, $out) = @ARGV; local $/;
		open my $f, "<:raw", $in or die; my $b = <$f>;
		my $n = unpack("Q<", $b); my $h = decode_json(substr($b, 8, $n));
		my (%e, $o, $d); $d = "";
		my $take = sub { my ($x, $y) = @{$_[0]{data_offsets}};
			substr($b, 8 + $n + $x, $y - $x) };
		for (sort keys %$h) {
			next if $_ eq "__metadata__";
			if (/(.*experts)\.(\d+)\.(gate|up|down)_proj/) { $e{$1}[$2]{$3} = $h->{$_}; next }
			$o->{$_} = $h->{$_}; my $at = length $d; $d .= $take->($h->{$_});
			$o->{$_}{data_offsets} = [$at, length $d];
		}
		for my $l (sort keys %e) {
			my @e = @{$e{$l}}; my ($F, $D) = @{$e[0]{gate}{shape}}; my $at = length $d;
			$d .= $take->($_->{gate}) . $take->($_->{up}) for @e;
			$o->{"$l.gate_up_proj"} = { dtype => "F32", shape => [scalar @e, 2 * $F, $D],
				data_offsets => [$at, length $d] };
			$at = length $d; $d .= $take->($_->{down}) for @e;
			$o->{"$l.down_proj"} = { dtype => "F32", shape => [scalar @e, $D, $F],
				data_offsets => [$at, length $d] };
		}
		my $j = encode_json($o); $j .= " " x (-length($j) % 8);
		open $f, ">:raw", $out or die; print $f pack("Q<", length $j), $j, $d;' \
		"$families/$1/model.safetensors" "$2/model.safetensors"
}

for f in qwen3_5_moe qwen3_next; do
	rm -rf fused; mkdir fused; fuse $f fused
	# shellcheck disable=SC2016
	ok "$f: fused experts, packed and converted too" sh -e -c '
		numbers() { sed "s/,\"seconds.*//"; }
		grep -q "experts.gate_up_proj" fused/model.safetensors
		chr-score -q -m "$1" -t tokenizer.json three.jsonl | numbers > a
		rm -rf p q && chr-pack -q -m fused --layout layer -o p > /dev/null
		chr-convert -q fused -o q > /dev/null
		for m in fused p q; do
			chr-score -q -m $m -t tokenizer.json three.jsonl | numbers > b
			cmp a b
		done' sh "$families/$f"
done

# A prompt in chunks and beside others, greedy: the same text; -B trap: states stay on the device.
for f in lfm2_moe qwen3_next qwen3_5_moe; do
	d=$families/$f
	# shellcheck disable=SC2016
	ok "$f: batch as single, chunks, plans, a device's memory" sh -e -c '
		d="-q -m $1 -t tokenizer.json"
		texts() { sed "s/,\"timing.*//"; }
		d="$d --temperature 0 -n 9"
		chr-generate $d three.jsonl | texts > a
		chr-generate $d --batch 3 --chunk 5 --threads 2 three.jsonl | texts > b
		cmp a b
		CHR_BACKEND_PATH=$2/tests chr-generate $d -B trap three.jsonl | texts > b
		cmp a b
		chr-generate $d --dry-run three.jsonl | grep -q "states of sequences"
		chr-fit -q --stage generate -m "$1" > /dev/null; chr-ls "$1" > /dev/null' sh "$d" "$bld"
	# shellcheck disable=SC2016
	for p in "chr-pretrain in.jsonl" "chr-sft chat.jsonl" "chr-dpo prefs.jsonl" \
		"chr-orpo prefs.jsonl" "chr-grpo --reward toy sums.jsonl" \
		"chr-distill --teacher $d in.jsonl"; do
		ok "$f: ${p%% *} refuses, by name and in one line" sh -c '
			${3%% *} -q -m "$1" -t tokenizer.json -n 1 -b 1 -o o/no ${3#* } 2> say
			[ $? = 69 ] && grep -q "$2.*not trained" say && [ "$(wc -l < say)" = 1 ]' \
			sh "$d" "$f" "$p"
	done
	status "$f: so does the plan of one" 69 chr-fit -q --stage sft -m "$d"
done

# A lookahead head and terms of the router, which published models do not have.
for f in deepseek_v3 ernie4_5_moe qwen3_moe gpt_oss; do
	d=$families/$f
	# shellcheck disable=SC2016
	ok "$f: a new lookahead head, terms of the router, and resumed" sh -e -c '
		rm -rf o; t="-q -m $1 -t tokenizer.json -n 3 -b 1 --seq 64 --set lookahead_steps=2"
		t="$t --set lambda_ahead=0.3 --set lambda_router_anchor=0.2"
		chr-sft $t -o o/a chat.jsonl > a
		chr-sft $t --stop-after 2 -o o/b chat.jsonl > b || [ $? = 75 ]
		chr-sft $t --resume -o o/b chat.jsonl >> b
		cmp o/a/model.safetensors o/b/model.safetensors
		for term in lookahead ahead anchor; do
			tail -n 1 a | grep -q "\"$term\":[0-9.e-]*[1-9]"
		done
		chr-ls -q o/a | grep -q lookahead_router.proj.2
		chr-score -q -m o/a -t tokenizer.json three.jsonl > /dev/null
		if chr-sft $t --lora-rank 2 -o o/l chat.jsonl > /dev/null 2> why; then exit 1; fi
		grep -q "lookahead_steps.*adapter" why' sh "$d"
done
done_testing
