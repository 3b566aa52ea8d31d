#!/bin/sh
# Files of strangers: bytes that are something else, kinds of files that hang or never end, names
# that leave the directory, text that a terminal would act on.
. "$(dirname "$0")/lib.sh"
[ -x "$bld/chr-pack" ] || skip_all "the programs are not built"
world "$tmp/w"
cd "$tmp/w" || exit 1

# fresh: $m is a copy of the model
fresh()
{
	rm -rf m && cp -r "${1:-model}" m
}
# says NAME STATUS PATTERN COMMAND...: it ends within ten seconds, so, and its message has the
# pattern
says()
{
	says_name=$1 says_want=$2 says_pattern=$3
	shift 3
	timeout 10 "$@" > out 2> "$tmp/log"
	says_got=$?
	[ "$says_got" = "$says_want" ] && grep -q "$says_pattern" "$tmp/log"
	says_rc=$?
	[ "$says_rc" = 0 ] || echo "status $says_got, want $says_want and '$says_pattern': $*" \
		>> "$tmp/log"
	result "$says_name" "$says_rc"
}

printf 'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n' > lfs
printf '<!DOCTYPE html>\n<html><body>404</body></html>\n' > page
printf 'PK\003\004\024\000\000\000archive/data.pkl and more of a checkpoint' > zip
printf 'GGUF\003\000\000\000and more of a file for llama.cpp' > gguf
: > empty
for kind in "lfs Git LFS pointer" "page web page" "zip ZIP archive" "gguf GGUF" "empty empty"; do
	file=${kind%% *} what=${kind#* }
	for to in model.safetensors config.json tokenizer.json tokenizer_config.json; do
		fresh
		cp "$file" m/$to
		says "$file as $to" 65 "m/$to: is .*$what" chr-generate -q -m m -p x -n 1
	done
	if [ "$file" != empty ]; then
		cp "$file" data.jsonl.gz
		says "$file as records" 65 "data.jsonl.gz:1: is .*$what" chr-score -q \
			-m model data.jsonl.gz
		says "$file as training data" 65 "data.jsonl.gz:1: is .*$what" \
			chr-sft -q -m model -o none -n 1 --seq 32 data.jsonl.gz
	fi
	fresh packed
	cp "$file" m/cluster_manifest.json
	says "$file as manifest" 65 "cluster_manifest.json: is .*$what" chr-ls m
	fresh packed
	cp "$file" m/cluster_000.ctsr
	is "$file as experts" "$(chr-ls --check m | grep -c "cluster_000.ctsr: is .*$what")" 1
done
for kind in "lfs Git LFS pointer" "page web page" "gguf GGUF"; do
	file=${kind%% *} what=${kind#* }
	says "$file from standard input" 65 "<stdin>: is .*$what" sh -c "exec chr-ls < $file"
	# a GGUF file may be a model, so this one is looked into
	why="is .*$what"
	[ $file != gguf ] || why=".*tensors in a file of 40 bytes"
	says "$file as a model" 65 "$file: $why" chr-score -q -m $file in.jsonl
	says "$file as a configuration" 65 "$file: $why" chr-pretrain -q -c $file \
		-t tokenizer.json -o none in.jsonl
	fresh
	mkdir -p a && cp $file a/adapter_config.json
	says "$file as an adapter's configuration" 65 \
		"a/adapter_config.json: is .*$what" chr-merge -m m -o none a
done
says "a file of weights as a model" 65 "model.safetensors: is a safetensors file" chr-score -q \
	-m model/model.safetensors in.jsonl
says "standard input that never ends" 65 "header" sh -c "exec chr-ls < /dev/zero"
for file in pytorch_model.bin pytorch_model.bin.index.json model-00001-of-00002.safetensors \
	adapter_model.safetensors; do
	fresh
	mv m/model.safetensors m/$file
	says "only $file" 66 "m/model.safetensors: is not there; the directory has" chr-score -q \
		-m m in.jsonl
done
fresh
{ printf '\377\376'; sed 's/./&\n/g' config.json | tr '\n' '\0'; } > m/config.json
says "config.json in UTF-16" 65 "UTF-16" chr-ls m
fresh
{ printf '\357\273\277'; cat model/config.json; } > m/config.json
status "config.json with a byte order mark" 0 chr-ls m

fresh
size=$(wc -c < model/model.safetensors)
head -c $((size - 100)) model/model.safetensors > m/model.safetensors
says "weights cut short" 65 "describes a file of $size bytes, this one has $((size - 100))" chr-ls m
head -c 100 model/model.safetensors > m/model.safetensors
says "header cut short" 65 "longer than the file of 100: cut short" chr-ls m

chr-pretrain -q -c config.json -t tokenizer.json -n 1 -b 1 --seq 16 --shard-size 100K \
	-o shards datasets/pretrain.jsonl > noise
for name in '../model/x' '/etc/passwd' '..' 'a/b'; do
	fresh shards
	sed 's|"model-00002-of-[0-9]*.safetensors"|"'"$name"'"|' \
		shards/model.safetensors.index.json > m/model.safetensors.index.json
	says "a shard named $name" 65 "model.safetensors.index.json: .*$name" chr-ls m
done
fresh shards
rm m/model-00002-of-*.safetensors
says "a shard that is missing" 66 "m/model-00002-of-.*No such file" chr-ls m

# Links out of a directory that is copied.
echo secret > secret
for to in generation_config.json special_tokens_map.json added_tokens.json vocab.json merges.txt \
	chat_template.jinja \
	chat_template.json tokenizer_config.json tokenizer.json config.json intent.safetensors; do
	fresh
	[ ! -e m/$to ] || cp m/$to "original-$to"
	rm -f m/$to
	ln -s "$tmp/w/$([ -e "original-$to" ] && echo "original-$to" || echo secret)" m/$to
	says "chr-pack of a $to that leads out" 65 \
		"m/$to: is a symbolic link that leads out" chr-pack -q -m m -o no manifest.json
	ok "and nothing is there" [ ! -e no ]
done
fresh
ln -s /etc/passwd m/vocab.json
chr-sft -q -m model -o adapter -n 1 -b 1 --seq 32 --lora-rank 2 datasets/chat.jsonl > noise
says "chr-merge" 65 "m/vocab.json: is a symbolic link that leads out" chr-merge -m m -o no adapter
rm m/vocab.json && ln -s "$tmp/w/secret" m/chat_template.jinja
for how in "-m m" "-m model -t m" "-m model -t m/tokenizer.json"; do
	# shellcheck disable=SC2086
	says "chr-sft $how, a template" 65 \
		"m/chat_template.jinja: is a symbolic link that leads out" \
		chr-sft -q $how -o no -n 1 -b 1 --seq 32 datasets/chat.jsonl
done
rm m/chat_template.jinja
mv m/tokenizer_config.json original && ln -s "$tmp/w/original" m/tokenizer_config.json
says "chr-sft" 65 "m/tokenizer_config.json: is a symbolic link that leads out" \
	chr-sft -q -m m -o no -n 1 -b 1 --seq 32 datasets/chat.jsonl
ok "to read a model, links are followed" chr-score -q -m m in.jsonl
rm m/tokenizer_config.json && mv original m/tokenizer_config.json
ln -s nowhere m/vocab.json
says "a link to nowhere" 66 "m/vocab.json: No such file" chr-pack -q -m m -o no manifest.json
rm m/vocab.json && mkfifo m/vocab.json
says "a pipe" 66 "m/vocab.json: is a named pipe" chr-pack -q -m m -o no manifest.json
fresh
mv m/tokenizer.json m/t && ln -s t m/tokenizer.json
ok "a link within the directory is copied" chr-pack -q -m m -o inside manifest.json
ok "as the file" cmp inside/tokenizer.json model/tokenizer.json
is "and is no link" "$(find inside -type l | wc -l)" 0
mkdir -p hub/models--a--b/blobs hub/models--a--b/snapshots/0123
for file in model/*; do
	[ -f "$file" ] || continue
	cp "$file" "hub/models--a--b/blobs/$(sha256sum < "$file" | cut -c 1-64)"
	ln -s "../../blobs/$(sha256sum < "$file" | cut -c 1-64)" \
		"hub/models--a--b/snapshots/0123/${file#model/}"
done
ok "a snapshot of a Hugging Face cache is read" chr-score -q \
	-m hub/models--a--b/snapshots/0123 in.jsonl
ok "and packed" chr-pack -q -m hub/models--a--b/snapshots/0123 -o cached manifest.json
ok "with the files that its links lead to" cmp cached/tokenizer.json model/tokenizer.json
ln -s hub/models--a--b/snapshots/0123 linked
ok "through a link to the directory too" chr-pack -q -m linked -o cached2 manifest.json

# One bit of a tensor that is no expert, in a packed directory.
fresh packed
at=$(chr-ls m/model.safetensors | sed -n 's/.*"name":"model.norm.weight".*"offset":\([0-9]*\).*/\1/p')
ok "a good packed directory" chr-ls --check m
perl -e 'open(F, "+<", $ARGV[0]); seek(F, $ARGV[1], 0); read(F, $c, 1); seek(F, $ARGV[1], 0);
	print F chr(ord($c) ^ 1)' \
	m/model.safetensors "$at"
status "a flipped bit is found" 1 chr-ls --check m
is "and named" "$(chr-ls --check m | grep -c '"name":"model.norm.weight","error":"CRC differs')" 1
says "chr-pack --unpack refuses it" 65 "model.norm.weight is corrupt (CRC-32" chr-pack -q --unpack \
	-m m -o no
ok "and leaves nothing" [ ! -e no ]

for to in config.json tokenizer.json tokenizer_config.json; do
	fresh
	rm m/$to && mkfifo m/$to
	says "a pipe as $to" 66 "m/$to: is a named pipe" chr-score -q -m m in.jsonl
	rm m/$to && ln -s /dev/zero m/$to
	says "/dev/zero as $to" 66 "m/$to: is a device" chr-score -q -m m in.jsonl
	rm m/$to && mkdir m/$to
	says "a directory as $to" 66 "m/$to: is a directory" chr-score -q -m m in.jsonl
done
for text in '[]' '{"bos_token": 5}' '{"eos_token": ["</s>"]}' '{"pad_token": {"content": 1}}' \
	'{"eos_token": true}'; do
	fresh
	echo "$text" > m/tokenizer_config.json
	says "tokenizer_config.json of $text" 65 \
		'not a JSON object\|_token" is .*, not a token' chr-score -q -m m in.jsonl
done
for text in '[]' '{"do_sample": "false"}' '{"do_sample": 0}' '{"temperature": "0.5"}' \
	'{"top_k": true}' '{"eos_token_id": "2"}'; do
	fresh
	echo "$text" > m/generation_config.json
	says "generation_config.json of $text" 65 "m/generation_config.json: " chr-generate -q \
		-m m -p x -n 1
done
for to in generation_config.json chat_template.jinja; do
	fresh
	rm -f m/$to && mkfifo m/$to
	says "a pipe as $to" 66 "m/$to: is a named pipe" chr-generate -q -m m -p x -n 1
	rm m/$to && ln -s /dev/zero m/$to
	says "/dev/zero as $to" 66 "m/$to: is a device" chr-generate -q -m m -p x -n 1
done
fresh
echo '{"bos_token": null, "eos_token": {"content": "<|im_end|>"}}' > m/tokenizer_config.json
ok "tokens that are null or objects" chr-score -q -m m in.jsonl
fresh packed
rm m/cluster_manifest.json && mkfifo m/cluster_manifest.json
says "a pipe as manifest" 66 "is a named pipe" chr-ls m
fresh shards
rm m/model.safetensors.index.json && mkfifo m/model.safetensors.index.json
says "a pipe as index" 66 "is a named pipe" chr-ls m
says "a device as what the user names" 65 "text" chr-pretrain -q -c /dev/zero -t tokenizer.json \
	-o no in.jsonl
says "and as a manifest" 65 "text" chr-pack -q -m model -o no /dev/zero
is "what the user names may be a pipe" \
	"$(chr-pretrain -q -n 1 -b 1 --seq 16 -t tokenizer.json -c /dev/stdin -o piped \
	datasets/pretrain.jsonl < config.json | grep -c '"type":"step"')" 1

# The first signal ends a wait for somebody at the other end of a pipe.
mkfifo pipe
for command in "chr-pack -q -m model -o no pipe" "chr-score -q -m model pipe" \
	"chr-actlog -q -m model pipe" \
	"chr-generate -q -m model --stats pipe -p x" "chr-sft -q -m model -o no pipe" \
	"chr-diff -q model model pipe"; do
	$command > noise 2>&1 &
	pid=$!
	sleep 0.7
	kill -TERM $pid 2> noise
	tenths=0		# a trainer writes a checkpoint first
	while kill -0 $pid 2> /dev/null && [ $((tenths += 1)) -lt 150 ]; do
		sleep 0.1
	done
	kill -KILL $pid 2> /dev/null
	wait $pid
	got=$?
	ok "one SIGTERM is enough: $command" [ $got != 137 ]
	is "and the status says so" $got 75
done

# What a terminal would act on: ESC, C1, a mark that turns text round.
bad=$(printf '\033]0;title\007\302\233\342\200\256')
# clean NAME COMMAND...: what it prints, on both, has none of these
clean()
{
	clean_name=$1
	shift
	timeout 10 "$@" > both 2>&1
	cp both "$tmp/log"
	LC_ALL=C grep -q "$(printf '[\033\007]\\|\302\233\\|\342\200\256')" both
	result "$clean_name" $(($? == 0))
	ok "and something: $clean_name" [ -s both ]
}
esc='\\u001b]0;title\\u0007\\u009b\\u202e'
fresh shards
sed 's|"model-00002-of-|"'"$esc"'&|; s|'"$esc"'"|"'"$esc"'|' shards/model.safetensors.index.json \
	> m/model.safetensors.index.json
clean "shard names" chr-ls m
fresh
sed 's/"model_type": *"[^"]*"/"model_type": "'"$esc"'"/' model/config.json > m/config.json
clean "model_type in the table" chr-ls -H m
fresh
printf '{"vocab_size": %s 3}' "$bad" > m/config.json
clean "near ..." chr-ls m
printf '{"type":"bench","bench":"decode","metric":{"name":"%s","samples":[1],"median":1,"least":1,"most":1},"config":{"%s":"%s"},"machine":{"cpu":"%s"},"commit":"%s","model":{"directory":"%s"}}\n' \
	"$esc" "$esc" "$esc" "$esc" "$esc" "$esc" | sed 's/\\\\u/\\u/g' > capsule
clean "records in the table of chr-bench" chr-bench table capsule
clean "a file name" chr-ls "no$bad"
clean "an option" chr-ls "--x$bad"
clean "a value" chr-score -n "$bad"
done_testing
