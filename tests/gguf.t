#!/bin/sh
# Models in GGUF files (tests/gguf.pl writes them) through the programs: the numbers of the published
# directory that they are made from, to the last digit.
. "$(dirname "$0")/lib.sh"
families=$shared/golden/families
if [ ! -d "$families" ] || ! perl -MJSON::PP -e 1 2> /dev/null; then
	skip "models in GGUF files" "no $families, or no JSON::PP"
	done_testing
	exit
fi
families=$(cd "$families" && pwd)
mkdir -p "$tmp/w" && cd "$tmp/w" || exit 1
chr-tokenize -q --train -v 320 -o tokenizer.json "$top/datasets/pretrain.jsonl"
head -n 3 "$top/datasets/pretrain.jsonl" > in.jsonl

# same NAME FILE.. -- A B: the models A and B give the same scores
same()
{
	ok "$1" sh -e -c '
		numbers() { sed "s/,\"seconds.*//"; }
		chr-score -q -m "$1" -t tokenizer.json in.jsonl | numbers > a
		chr-score -q -m "$2" -t tokenizer.json in.jsonl | numbers > b
		test -s a && cmp a b' sh "$2" "$3"
}

# refused NAME STATUS TEXT COMMAND...: exits so, and says so
refused()
{
	name=$1
	want=$2
	text=$3
	shift 3
	"$@" > "$tmp/said" 2>&1
	got=$?
	ok "$name" sh -e -c 'cat "$3"; test "$1" = "$2"; grep -q -e "$4" "$3"' sh $got "$want" \
		"$tmp/said" "$text"
}

score() { chr-score -q -m "$1" -t tokenizer.json in.jsonl; }
make() { perl "$top/tests/gguf.pl" "$@" || exit 1; }

for f in llama mixtral qwen2 qwen3 qwen2_moe qwen3_moe olmoe deepseek_v2 deepseek_v3 glm4_moe \
	glm4_moe_lite gpt_oss qwen3_next qwen3_5_moe_text; do
	make "$families/$f" m.gguf
	same "$f" "$families/$f" m.gguf
done
for f in deepseek_v2 deepseek_v3; do
	make "$families/$f" m.gguf kv_b
	same "$f, kv_b as one tensor" "$families/$f" m.gguf
done
make "$families/mixtral" m.gguf fused
same "mixtral, gate and up in one tensor" "$families/mixtral" m.gguf
make "$families/qwen3_next" m.gguf old
same "qwen3_next, one projection" "$families/qwen3_next" m.gguf

# Files of a model
make "$families/qwen3_moe" s split=3
same "three files" "$families/qwen3_moe" s-00001-of-00003.gguf
mkdir d && cp s-*.gguf d
same "three files in a directory" "$families/qwen3_moe" d
cp m.gguf d
refused "a directory of two models" 64 "d: holds 2 models of GGUF: name the file of one" \
	score d
refused "the second of three" 66 "number 2 of 3 files of a model: name the first" \
	score s-00002-of-00003.gguf
rm s-00002-of-00003.gguf
status "the second is gone" 66 score s-00001-of-00003.gguf

# Llama 3's frequencies in a tensor: factor 8, low 1, high 4, of 256 positions
cp -r "$families/llama" l3 && chmod -R u+w l3
perl -MJSON::PP -e '
	my $o = decode_json(join "", <>);
	$o->{rope_parameters} = { rope_type => "llama3", rope_theta => 10000, factor => 8,
		low_freq_factor => 1, high_freq_factor => 4, original_max_position_embeddings => 256 };
	print encode_json($o)' "$families/llama/config.json" > l3/config.json
make l3 m.gguf llama3
same "frequencies of Llama 3" l3 m.gguf
make l3 m.gguf llama3 spoil
refused "frequencies of nobody" 65 "rope_freqs.weight are not those of Llama 3" \
	score m.gguf

# Converted, packed and streamed
for t in q8_0 q4_0; do
	make "$families/qwen3_moe" m.gguf $t tok=tokenizer.json
	ok "$t: converted" chr-convert -q m.gguf -o c --force
	same "$t: the same numbers" c m.gguf
	ok "$t: the same tokenizer" sh -e -c '
		chr-tokenize -q -t m.gguf in.jsonl > a
		chr-tokenize -q -t tokenizer.json in.jsonl > b
		chr-tokenize -q -t c in.jsonl > c.jsonl
		test -s a && cmp a b && cmp a c.jsonl'
	ok "$t: packed" chr-pack -q -m m.gguf --layout layer -o p --force
	ok "$t: streamed as resident" sh -e -c '
		numbers() { sed "s/,\"seconds.*//"; }
		chr-score -q -m m.gguf in.jsonl | numbers > a
		chr-score -q -m p --ram 64M in.jsonl | numbers > b
		test -s a && cmp a b'
done
ok "listed" sh -e -c 'chr-ls m.gguf | grep -q "\"dtype\":\"Q4_0\",\"shape\":\[8,"'
ok "a plan" chr-fit -q -m m.gguf
ok "trained further" chr-sft -q -m m.gguf -n 1 -b 1 --seq 32 -o trained \
	"$top/datasets/chat.jsonl"
ok "in the published layout" grep -q '"model_type": *"qwen3_moe"' trained/config.json

# Pieces with scores: the most likely pair first; bytes where there is none
ids()
{
	printf '%s' "$2" > text
	is "pieces: $1" "$(chr-tokenize -q -t m.gguf --text text | sed 's/.*"tokens":\(.*\)}/\1/')" "$3"
}
make "$families/llama" m.gguf spm
ids "a space before, and two merges" "ab" "[263]"
ids "the likelier pair" "aba" "[259,260,264]"
ids "no piece" "é" "[259,198,172]"
ids "a token of the user's" "b<|x|>" "[259,261,265]"
make "$families/llama" m.gguf spm=bare
ids "no space before" "ab" "[262]"

# Refused by name
make "$families/qwen3" m.gguf
perl -pe 'BEGIN { undef $/; binmode STDIN; binmode STDOUT } s/\x05\0{7}qwen3/\x05\0\0\0\0\0\0\0gemma/' \
	< m.gguf > g.gguf
refused "another architecture" 65 'architecture "gemma" is not supported; supported are llama' \
	score g.gguf
make "$families/qwen3" m.gguf extra=attn_logit_softcapping
refused "a key that nobody knows" 65 'qwen3.attn_logit_softcapping: is not supported' \
	score m.gguf
make "$families/qwen3_moe" m.gguf tok=tokenizer.json pre=nobody
refused "a pre-tokenizer that nobody knows" 65 'pre-tokenizer "nobody"' \
	chr-tokenize -q -t m.gguf in.jsonl
done_testing
