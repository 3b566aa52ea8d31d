#!/bin/sh
# chr-convert: what is there stays as it is, other types are asked for, a run that was cut goes on.
. "$(dirname "$0")/lib.sh"
families=$shared/golden/families
[ ! -d "$families" ] || families=$(cd "$families" && pwd)
world "$tmp/w"
cd "$tmp/w" || exit 1

text() { chr-generate -q --raw --temperature 0 -n 20 -p "The fox" "$@" 2> err; }

ok "converts" chr-convert -q model -o same
tensors model > a
tensors same > b
ok "every tensor is as it was" cmp a b
ok "there were some" test "$(grep -c . a)" -gt 50
ok "config.json too" cmp model/config.json same/config.json
ok "the tokenizer too" cmp model/tokenizer.json same/tokenizer.json
status "a directory that is there" 73 chr-convert -q model -o same
ok "... is replaced with --force" chr-convert -q model -o same --force
ok "in shards" chr-convert -q -o shards --shard-size 40K model
ok "... of which there are several" test "$(find shards -name 'model-0*' | grep -c .)" -gt 3
tensors shards > b
ok "... with the same tensors" cmp a b
text -m model > said
text -m shards > told
ok "... and the same text" cmp said told

ok "to bf16" chr-convert -q --dtype bf16 --shard-size 30K model -o half
ok "... every tensor is" sh -c 'chr-ls -q half/model-0*.safetensors |
	grep "type\":\"tensor" | grep -v "dtype\":\"BF16" > f32; [ ! -s f32 ] &&
	chr-ls -q half/model-0*.safetensors | grep -q BF16'
ok "... config.json says so" grep -q '"torch_dtype": *"bfloat16"' half/config.json
ok "... and nothing is wrong with it" chr-ls -q --check half
ok "back to f32" chr-convert -q --dtype f32 half -o full
ok "... and to bf16" chr-convert -q --dtype bf16 full -o half2
text -m half > said
text -m half2 > told
ok "... the same text" cmp said told

ok "--dry-run says" sh -c 'chr-convert -q --dry-run --dtype f16 model -o none > plan &&
	grep -q "\"type\":\"plan\".*\"changed\":[1-9]" plan'
ok "... and writes nothing" test ! -e none -a ! -e none.partial -a ! -e none.partial.job

# A run that is cut: by a limit on the size of files. What an earlier file of it would be is taken
# from a run that was not.
begin() { sh -c "trap '' XFSZ; ulimit -f 20; exec chr-convert -q --shard-size $1 model -o cut"; }
status "cut" 74 begin 40K
ok "... nothing is there" test ! -e cut -a -e cut.partial.job
cp shards/model-00002-* cut.partial
touch -d '2001-01-01' cut.partial/model-00002-*
ok "goes on" sh -c 'chr-convert -q --shard-size 40K model -o cut > rec &&
	grep -q "\"resumed\":true" rec'
ok "... with what was there" test -n "$(find cut -name 'model-0*' ! -newermt 2002-01-01)"
tensors cut > b
ok "... and all is as it was" cmp a b
ok "... nothing is left beside it" test ! -e cut.partial -a ! -e cut.partial.job
rm -rf cut
status "cut again" 74 begin 40K
cp shards/model-00002-* cut.partial
status "another command" 74 begin 41K
ok "... begins anew" test ! -e cut.partial/model-00002-of-*

ok "for others" sh -c 'chr-convert -q --to hf model -o hf > rec'
ok "... with a Python file" cmp hf/modeling_chronos.py "$top/share/modeling_chronos.py"
ok "... which config.json names" grep -q '"modeling_chronos.ChronosForCausalLM"' hf/config.json
ok "... which the record says" grep -q '"left_out":0,"python":true' rec
text -m model > said
text -m hf > told
ok "... and which we read" cmp said told
sed 's/"num_shared_experts": 1/"num_shared_experts": 0, "use_hybrid_attention": false/' \
	config.json > plain.json
chr-pretrain -q -c plain.json -t tokenizer.json -n 1 -b 2 --seq 32 -o plain datasets/pretrain.jsonl \
	> log.jsonl
chr-convert --to hf plain -o qwen > rec 2> err
ok "a Qwen3-MoE, and no Python" grep -q '"left_out":2,"python":false' rec
ok "... its lookahead head is left out, which is said" grep -q "lookahead head is left out" err
ok "... as config.json says" grep -q '"model_type": *"qwen3_moe"' qwen/config.json
text -m plain > said
text -m qwen > told
ok "... and which we read" cmp said told
# What is said to be there is there: vision is not, nor multi-token prediction.
if [ -d "$families" ]; then
	f=$families/qwen3_5_moe
	ok "a model with vision, as one of text" chr-convert -q --dtype f32 "$f" -o text
	ok "... as config.json says" sh -c '
		grep -q "\"model_type\": *\"qwen3_5_moe_text\"" text/config.json &&
		! grep -q "text_config\|vision" text/config.json'
	ok "... by its names" sh -c 'chr-ls -q --all text > names && ! grep -q language_model names'
	scores() { chr-score -q -m "$1" -t tokenizer.json in.jsonl | sed 's/,"seconds.*//'; }
	scores "$f" > said
	scores text > told
	ok "... the same scores" cmp said told
	ok "it stays where nothing is asked" sh -c 'chr-convert -q --to hf "$0" -o whole &&
		cmp "$0/config.json" whole/config.json && chr-ls -q --all whole | grep -q visual' "$f"
	ok "no layer is promised" sh -c 'chr-convert -q --dtype bf16 "$0" -o mtp &&
		grep -q "\"num_nextn_predict_layers\": *0" mtp/config.json' "$families/deepseek_v3-mtp"
	# In blocks of ours, a tensor each: as it is, and as its family is published
	f=$families/gpt_oss-mxfp4
	chr-pack -q --layout layer -m "$f" -o p > rec && chr-pack -q --unpack -m p -o u > rec
	scores "$f" > said
	ok "unpacked, as it is" chr-convert -q u -o again
	scores again > told
	ok "... the same scores" cmp said told
	ok "unpacked, for others" chr-convert -q --to hf u -o hf_u
	scores hf_u > told
	ok "... the same scores" cmp said told
	ok "... in its published layout" sh -c 'chr-ls -q --all hf_u > names &&
		grep -q "mlp.experts.gate_up_proj\".*\"F32\"" names'
else
	skip "vision, layers beyond, blocks" "no $shared/golden/families"
fi
status "a packed model" 65 chr-convert -q packed -o no
status "no model" 66 chr-convert -q nowhere -o no
status "two models" 64 chr-convert -q model same -o no
status "itself" 64 chr-convert -q --force model -o model
sed 's/"hidden_size"/"hidden_sizes"/' model/config.json > broken.json
mkdir other && cp model/model.safetensors other && cp broken.json other/config.json
status "an unknown key" 65 chr-convert -q other -o no
ok "nothing was written" test ! -e no
done_testing
