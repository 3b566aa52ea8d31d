#!/bin/sh
# Nothing foreign is misread: families, keys and tensors that nobody here knows are refused by every
# program that opens a model, in one line that names them; harmless tensors are passed over and said
# once.
. "$(dirname "$0")/lib.sh"
world "$tmp/w"
cd "$tmp/w" || exit 1
head -n 2 in.jsonl > two.jsonl
head -n 2 datasets/prefs.jsonl > prefs.jsonl

# tensor DIR NAME: adds a tensor of eight numbers to a copy of the model
tensor()
{
	rm -rf "$1"; cp -r model "$1"
	perl -MJSON::PP -e '
		my ($file, @names) = @ARGV;
		open my $f, "<:raw", $file or die; local $/; my $b = <$f>; close $f;
		my $n = unpack("Q<", $b); my $h = decode_json(substr($b, 8, $n));
			my $d = substr($b, 8 + $n);
		for (@names) {
			$h->{$_} = { dtype => "F32", shape => [8], data_offsets => [length($d),
				length($d) + 32] };
			$d .= pack("f<8", (9) x 8);
		}
		my $j = JSON::PP->new->canonical->encode($h); $j .= " " x (-length($j) % 8);
		open $f, ">:raw", $file or die; print $f pack("Q<", length $j), $j, $d;' \
			"$1/model.safetensors" $2
}

# key DIR KEY VALUE: a copy of the model whose config has it
key()
{
	rm -rf "$1"; cp -r model "$1"
	perl -MJSON::PP -0pi -e '
		BEGIN { $k = shift; $v = shift }
		my $c = decode_json($_); $c->{$k} = JSON::PP->new->allow_nonref->decode($v);
		$_ = JSON::PP->new->canonical->encode($c)' "$2" "$3" "$1/config.json"
}

# each NAME: runs every program on the model in m; each must end with 65 and a line with the word
# $word
programs='chr-ls m
chr-ls --check m
chr-score -q -m m two.jsonl
chr-generate -q -m m -n 2 -p word
chr-actlog -q -m m two.jsonl
chr-diff -q model m two.jsonl
chr-diff -q m model two.jsonl
chr-pack -q -m m -o out/pack manifest.json
chr-merge -q -m m -o out/merge adapter
chr-pretrain -q -m m -n 1 -b 1 --seq 16 -o out/pre two.jsonl
chr-sft -q -m m -n 1 -b 1 --seq 64 -o out/sft datasets/chat.jsonl
chr-dpo -q -m m -n 1 -b 1 --seq 128 -o out/dpo prefs.jsonl
chr-orpo -q -m m -n 1 -b 1 --seq 128 -o out/orpo prefs.jsonl
chr-grpo -q -m m -n 1 -b 1 --seq 96 --new 2 --reward toy -o out/grpo datasets/prompts.jsonl
chr-distill -q -m model --teacher m -n 1 -b 1 --seq 16 -o out/dis two.jsonl
chr-bench decode -m m'
mkdir out
if [ ! -d adapter ]; then
	chr-sft -q -m model -n 1 -b 1 --seq 64 --lora-rank 2 \
		-o adapter datasets/chat.jsonl > /dev/null 2>&1
fi
all_refuse()
{
	echo "$programs" > list
	[ -z "${2:-}" ] || echo "$2" >> list
	while read -r line; do
		want=65
		[ "$line" != "chr-ls --check m" ] || want=1
		# shellcheck disable=SC2086
		$line > got 2> why < /dev/null
		rc=$?
		if [ $rc != $want ] || ! cat got why | grep -q "$word"; then
			echo "$line: $rc"; cat why
			return 1
		fi
	done < list
	[ -z "$(ls out)" ]
}

fit='chr-fit -q -m m --stage generate'
key m model_type '"mixtral_of_nobody"'; word='mixtral_of_nobody.* is not supported'
ok "a family that nobody knows" all_refuse "$fit"
rm -rf m; cp -r model m
echo '{"vocab_size":320,"hidden_size":32,"num_hidden_layers":2,"num_attention_heads":4}' > m/config.json
word='neither model_type nor architectures'
ok "a directory that does not say whose it is" all_refuse "$fit"
cp model/config.json m
perl -0pi -e 's/"(model_type|architectures)":/"_$1":/g' m/config.json
ok "one of ours does so by its keys" chr-score -q -m m two.jsonl
key m scoring_func '"sigmoid"'; word='scoring_func: .*sigmoid.* is not supported'
ok "a key that changes the maths" all_refuse "$fit"
key m clip_qkv 8.0; word='clip_qkv: 8[.0]* is not supported'
ok "a number that is nobody's" all_refuse "$fit"
key m hidden_act '"gelu"'; word='hidden_act: .*gelu.* is not supported'
ok "a known key with a value that is not done" all_refuse "$fit"
key m quantization_config '{"quant_method": "gptq", "bits": 4}'; word='quant_method .*gptq.* is not supported'
ok "weights of another kind" all_refuse "$fit"
tensor m model.layers.0.mlp.gate.e_score_correction_bias; word=e_score_correction_bias
ok "a tensor too many" all_refuse "$fit"
tensor m model.layers.2.self_attn.q_proj.weight; word=model.layers.2.self_attn.q_proj.weight
ok "a layer too many, which is not of multi-token prediction" all_refuse

# A missing tensor: the name is changed to another of its length.
rm -rf m; cp -r model m
perl -0pi -e 's/model\.norm\.weight/model.nrom.weight/' m/model.safetensors
word='model.norm.weight.* is missing'
ok "a tensor that is missing" all_refuse

status "--ignore-key goes on without a key" 0 sh -e -c '
	rm -rf k; cp -r model k
	perl -0pi -e "s/\{/{\"clip_qkv\": 8.0, \"scoring_func\": \"sigmoid\",/" k/config.json
	chr-score -q --ignore-key clip_qkv --ignore-key scoring_func -m k two.jsonl | sed "s|,\"wall.*||; s|\"seconds.*||" > a
	chr-score -q -m model two.jsonl | sed "s|,\"wall.*||; s|\"seconds.*||" > b
	cmp a b
	chr-ls --ignore-key clip_qkv --ignore-key scoring_func k > /dev/null
	chr-fit --ignore-key clip_qkv --ignore-key scoring_func -q -m k --stage generate > /dev/null
	! chr-score -q --ignore-key clip_qkv -m k two.jsonl'
status "keys that change nothing need no option" 0 sh -e -c '
	rm -rf k; cp -r model k
	perl -0pi -e "s/\{/{\"use_cache\": true, \"transformers_version\": \"5.24.0\", \"initializer_range\": 0.02,
		\"attention_bias\": false, \"attention_dropout\": 0.0, \"_name_or_path\": \"x\", \"auto_map\": {\"a\": \"b\"},
		\"router_aux_loss_coef\": 0.001, \"output_router_logits\": false, \"some_new_thing\": null,/" k/config.json
	chr-score -q -m k two.jsonl | sed "s|,\"wall.*||; s|\"seconds.*||" > a
	chr-score -q -m model two.jsonl | sed "s|,\"wall.*||; s|\"seconds.*||" > b
	cmp a b'

harmless="model.layers.0.self_attn.rotary_emb.inv_freq mtp.layers.0.eh_proj.weight model.visual.blocks.0.norm1.bias
model.layers.2.eh_proj.weight model.layers.2.shared_head.norm.weight"
tensor m "$harmless"
ok "harmless tensors are passed over, and said once" sh -e -c '
	tokens() { sed "s/.*\(\"tokens\":[^]]*\).*/\1/"; }
	chr-generate -m m -n 4 -p "The fox" 2> why | tokens > a
	chr-generate -q -m model -n 4 -p "The fox" | tokens > b
	cmp a b
	[ "$(grep -c "5 tensors are not used" why)" = 1 ]
	chr-pack -q -m m -o p manifest.json > /dev/null
	chr-generate -q -m p -n 4 -p "The fox" 2>&1 | tokens > a
	cmp a b
	chr-sft -q -m m -n 1 -b 1 --seq 64 -o s datasets/chat.jsonl > /dev/null
	chr-ls --check s | grep "\"ok\":true"'

# Positions that the model was not made for.
sed 's/"max_position_embeddings": 1024/"max_position_embeddings": 24/' model/config.json \
	> short.json
rm -rf short; cp -r model short; cp short.json short/config.json
for c in "chr-score -q -m short" "chr-actlog -q -m short" "chr-diff -q model short" \
	"chr-diff -q short model"; do
	status "${c% *}: not beyond max_position_embeddings" 64 sh \
		-c "$c --seq 25 two.jsonl 2> why || {
		rc=\$?; grep -q '24 positions' why || rc=1; exit \$rc; }"
done
status "chr-actlog: not with what is generated either" 64 chr-actlog -q -m short --seq 20 \
	--generate 5 two.jsonl
# shellcheck disable=SC2016
ok "without --seq, sequences are as long as the model was made for" sh -e -c '
	chr-actlog -q -m short two.jsonl > a
	chr-actlog -q -m model --seq 24 two.jsonl | sed 1d > b
	sed 1d a | cmp - b
	chr-score -q -m short two.jsonl > /dev/null'

ok "a config of absurd size is refused at once" sh -c '
	echo "{\"num_hidden_layers\": 256, \"num_experts\": 4096, \"chronos_format\": 2}" > big.json
	mkdir big && cp big.json big/config.json && cp model/model.safetensors big
	for c in "chr-ls big" "chr-fit -q -c big.json --stage generate" "chr-fit -q -c big.json --stage pretrain"; do
		(ulimit -v 1000000; timeout 5 $c) > got 2> why
		[ $? = 65 ] && grep -q "3,*[0-9]* tensors\|[0-9]* tensors" why || { echo "$c";
			cat why; exit 1; }
	done'
done_testing
