#!/bin/sh
# chr-convert --to gguf: what is written is read as the same model, to the bit where the formats
# agree; what llama.cpp cannot say is refused by name; a file is there whole or not at all.
. "$(dirname "$0")/lib.sh"
world "$tmp/w"
families=$(cd "$shared/golden/families" 2> /dev/null && pwd)
cd "$tmp/w" || exit 1

doc_tokens 48 > doc.jsonl
numbers() { chr-score -q -m "$1" doc.jsonl | sed 's/,"seconds.*//'; }
# same NAME A B: the models A and B give the same scores
same()
{
	numbers "$2" > a
	numbers "$3" > b
	ok "$1" sh -c 'test -s a && cmp a b'
}
# refused NAME TEXT COMMAND...: exits 65, says so, and writes nothing
refused()
{
	name=$1 text=$2
	shift 2
	"$@" > said 2>&1
	got=$?
	ok "$name" sh -c 'cat said; test "$1" = 65 && grep -q -e "$2" said && test ! -e no.gguf &&
		test ! -e no.gguf.partial' sh $got "$text"
}

# A model of ours that is a Qwen3-MoE
sed 's/"num_shared_experts": 1/"num_shared_experts": 0, "use_hybrid_attention": false/
	s/"hidden_size": 32/"hidden_size": 64/; s/"moe_intermediate_size": 16/"moe_intermediate_size": 32/' \
	config.json > plain.json
chr-pretrain -q -c plain.json -t tokenizer.json -n 2 -b 2 --seq 32 -o plain \
	datasets/pretrain.jsonl > log.jsonl
ok "a model of ours" sh -c 'chr-convert --to gguf -o m.gguf plain > rec 2> err'
ok "... as a qwen3moe" grep -q '"architecture":"qwen3moe"' rec
ok "... its lookahead head is left out, which is said" grep -q "lookahead head is left out" err
ok "... and in the record" grep -q '"left_out":2,' rec
same "the same scores" plain m.gguf
chr-tokenize -q -t plain in.jsonl > a
chr-tokenize -q -t m.gguf in.jsonl > b
ok "the same tokens" sh -c 'test -s a && cmp a b'
head -n 4 datasets/chat.jsonl > chat.jsonl
chr-tokenize -q -t plain chat.jsonl > a
chr-tokenize -q -t m.gguf chat.jsonl > b
ok "the same conversations" sh -c 'test -s a && cmp a b'
status "a file that is there" 73 chr-convert -q --to gguf -o m.gguf plain
ok "... is replaced with --force" chr-convert -q --to gguf -o m.gguf --force plain
status "itself" 73 chr-convert -q --to gguf -o m.gguf m.gguf
mkdir here
status "a directory is not" 73 chr-convert -q --to gguf --force -o here plain
status "blocks of a directory" 64 chr-convert -q --dtype q8_0 -o no plain
ok "--dry-run says" sh -c 'chr-convert -q --dry-run --to gguf --dtype q4_0 plain -o none > plan &&
	grep -q "\"type\":\"plan\".*\"changed\":[1-9]" plan'
ok "... and writes nothing" test ! -e none -a ! -e none.partial

# Floats
for t in f32 bf16 f16; do
	chr-convert -q --dtype $t -o $t plain
	chr-convert -q --to gguf -o $t.gguf $t 2> err
	chr-convert -q --to hf -o want $t --force 2> err
	chr-convert -q -o back $t.gguf --force
	tensors want | grep -v 'norm\.weight\|gate\.weight' > a
	tensors back | grep -v 'norm\.weight\|gate\.weight' > b
	ok "$t: every matrix is as it was" sh -c 'test "$(grep -c . a)" -gt 30 && cmp a b'
	same "$t: the same scores" $t $t.gguf
	chr-convert -q --to gguf --dtype $t -o asked.gguf --force plain > rec 2> err
	chr-convert -q -o want --force asked.gguf > rec
	tensors want | grep -v 'norm\.weight\|gate\.weight' > a
	tensors back | grep -v 'norm\.weight\|gate\.weight' > b
	ok "$t: or asked for" sh -c 'test -s a && cmp a b'
done

# Blocks
for t in q8=q8_0 q4=q4_0 q4a=q4_1; do
	ours=${t%=*} theirs=${t#*=}
	chr-pack -q -m plain --layout layer --quant "$ours" --quant-dense "$ours" -o p --force \
		> rec
	chr-convert -q --to gguf -o kept.gguf --force p > rec 2> err
	ok "$ours: a packed model" grep -q '"changed":0,' rec
	chr-convert -q -o back --force kept.gguf
	tensors back > b
	ok "$ours: they are $theirs" sh -c 'chr-ls kept.gguf |
		grep -q "ffn_down_exps.*\"dtype\":\"$1\"" ' sh "$(echo "$theirs" | tr a-z A-Z)"
	chr-convert -q --to gguf --dtype "$theirs" -o asked.gguf --force plain 2> err
	chr-convert -q -o want --force asked.gguf
	tensors want > a
	ok "$ours: asked for, they are the same" sh -c 'test -s a && cmp a b'
	chr-convert -q --to gguf --dtype f32 -o floats.gguf --force p 2> err
	chr-convert -q -o want --force floats.gguf
	ok "$ours: and what they say is what was packed" chr-diff -q want back \
		doc.jsonl
done
chr-pretrain -q -c plain.json --set moe_intermediate_size=24 -t tokenizer.json -n 1 -b 2 --seq 32 \
	-o narrow datasets/pretrain.jsonl > log.jsonl
ok "rows that are no whole blocks" sh -c 'chr-convert -q --to gguf --dtype q8_0 -o n.gguf narrow \
	> rec 2> err && grep -q "\"narrow\":2," rec &&
	grep -q "2 tensors have rows that are no multiple of 32.*down_proj" err'
ok "... stay floats" sh -c 'chr-ls n.gguf | grep -q "ffn_down_exps.*\"dtype\":\"F32\""'

# What llama.cpp cannot say
refused "latent attention" "layer 0: latent attention (mla_attention): architecture \"qwen3moe\"" \
	chr-convert -q --to gguf -o no.gguf model
variant()	# NAME SED...: a model with another config
{
	sed "$2" plain.json > v.json
	chr-pretrain -q -c v.json -t tokenizer.json -n 1 -b 1 --seq 32 -o "$1" \
		datasets/pretrain.jsonl > log.jsonl
}
variant slide 's/}$/, "layer_types": ["full_attention", "sliding_attention"]}/'
refused "a sliding window" "layer 1: sliding attention" chr-convert -q --to gguf -o no.gguf slide
variant shared 's/"num_shared_experts": 0/"num_shared_experts": 1/'
refused "shared experts" "layer 0: its shared experts" chr-convert -q --to gguf -o no.gguf shared
variant sum 's/}$/, "norm_topk_prob": false}/'
refused "weights as they are" "norm_topk_prob" chr-convert -q --to gguf -o no.gguf sum
variant dense 's/}$/, "mlp_layer_types": ["dense", "sparse"]}/'
refused "a dense layer" "layer 0: whether it has experts" chr-convert -q --to gguf -o no.gguf dense
refused "a packed model of ours" "layer 0: latent" chr-convert -q --to gguf -o no.gguf packed
cp -r plain other
sed 's/"use_regex": *true/"use_regex": false/' plain/tokenizer.json > other/tokenizer.json
refused "a text that is cut otherwise" "no pre-tokenizer of llama.cpp cuts" \
	chr-convert -q --to gguf -o no.gguf other

# A run that is cut
status "a full disk" 74 sh -c "trap '' XFSZ; ulimit -f 20
	exec chr-convert -q --to gguf -o cut.gguf plain"
ok "... leaves nothing" test ! -e cut.gguf -a ! -e cut.gguf.partial
head -c 100 m.gguf > cut.gguf.partial
ok "what a killed run left is replaced" chr-convert -q --to gguf -o cut.gguf plain
ok "... by the same file" sh -c 'test ! -e cut.gguf.partial && chr-diff -q cut.gguf m.gguf doc.jsonl'
rm cut.gguf
echo mine > cut.gguf.partial
status "what is something else is not" 73 chr-convert -q --to gguf -o cut.gguf plain
is "... and stays" "$(cat cut.gguf.partial)" mine
rm -f cut.gguf.partial

# Killed while the file is written, or just after: it is whole or not there
whole=0
for signal in TERM KILL TERM KILL TERM KILL; do
	chr-convert -q --to gguf --dtype q4_1 -o cut.gguf plain > rec 2> err &
	p=$!
	while kill -0 $p 2> err && [ ! -e cut.gguf.partial ]; do :; done
	kill -$signal $p 2> err
	wait $p 2> err
	got=$?
	[ ! -e cut.gguf ] || chr-diff -q cut.gguf asked.gguf doc.jsonl > rec || whole=1
	[ $signal = KILL ] || [ ! -e cut.gguf.partial ] || whole=1
	[ $got != 75 ] || [ ! -e cut.gguf ] || whole=1
	rm -f cut.gguf
done
is "killed: whole or not at all" $whole 0
rm -f cut.gguf.partial

# Pieces of SentencePiece, and published families
if [ ! "$families" ] || ! perl -MJSON::PP -e 1 2> /dev/null; then
	skip "published families" "no shared/golden/families, or no JSON::PP"
	done_testing
	exit
fi
refused "olmoe with groups of queries" "fewer heads of keys than of queries" \
	chr-convert -q --to gguf -o no.gguf "$families/olmoe"
for f in llama mixtral qwen2 qwen3 qwen2_moe qwen3_moe deepseek_v2 deepseek_v3 glm4_moe \
	glm4_moe_lite gpt_oss gpt_oss-mxfp4 qwen3_next qwen3_5_moe_text qwen3_moe-bf16-shards; do
	rm -rf f && cp -r "$families/$f" f && chmod -R u+w f && cp tokenizer.json f
	rm -f f/expected.safetensors
	ok "$f" chr-convert -q --to gguf -o f.gguf --force f
	same "$f: the same scores" f f.gguf
	case $f in *-*) continue ;; esac
	chr-convert -q -o back --force f.gguf
	tensors f > a
	tensors back > b
	case $f in qwen3_next | qwen3_5*)	# which have 1 + w, and -exp(x)
		for x in a b; do grep -v 'norm\.weight\|A_log' $x > $x.most && mv $x.most $x; done ;;
	esac
	ok "$f: every tensor" sh -c 'test -s a && cmp a b'
done
for f in dots1 ernie4_5_moe granitemoe hunyuan_v1_moe lfm2_moe minimax_m2; do
	refused "$f" "family \"$f\" is not written as GGUF" \
		chr-convert -q --to gguf -o no.gguf "$families/$f"
done
for how in spm spm=bare; do
	perl "$top/tests/gguf.pl" "$families/llama" pieces.gguf $how
	chr-convert -q -o pieces --force pieces.gguf
	chr-convert -q --to gguf -o again.gguf --force pieces
	printf 'aba \303\251 b<|x|> ab\n' > text
	chr-tokenize -q -t pieces.gguf --text text > a
	chr-tokenize -q -t again.gguf --text text > b
	ok "pieces with scores ($how)" sh -c 'test -s a && cmp a b'
done
done_testing
