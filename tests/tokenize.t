#!/bin/sh
# chr-tokenize: what goes in comes out, in every form of input and output.
. "$(dirname "$0")/lib.sh"
data=$top/datasets
real=$(cd "$shared/data" 2> /dev/null && pwd)/tinyshakespeare.txt
cd "$tmp" || exit 1

ok "trains" chr-tokenize -q --train -v 700 -o t.json "$data/pretrain.jsonl"
chr-tokenize -q --train -v 700 -o u.json - < "$data/pretrain.jsonl"
ok "from a pipe the same" cmp t.json u.json
sort -R --random-source=/dev/zero "$data/pretrain.jsonl" > shuffled.jsonl
chr-tokenize -q --train -v 700 -o u.json shuffled.jsonl
ok "in another order the same" cmp t.json u.json
gzip -c "$data/pretrain.jsonl" > p.gz
chr-tokenize -q --train -v 700 -o u.json p.gz
ok "from gzip the same" cmp t.json u.json
mkdir dir
chr-tokenize -q --train -v 300 -o dir "$data/pretrain.jsonl"
ok "a directory gets both files" grep -q chat_template dir/tokenizer_config.json
ok "and is a tokenizer" sh -c 'echo hello | chr-tokenize -t dir | grep -q "\"tokens\":\["'
chr-tokenize --train -v 1000000 -o u.json "$data/prompts.jsonl" 2> said
ok "says when the text is too little" grep -q "no other pair is frequent enough" said
status "a vocabulary below the bytes" 64 chr-tokenize --train -v 264 -o u.json "$data/prompts.jsonl"
status "training without -o" 64 chr-tokenize --train "$data/prompts.jsonl"
status "no tokenizer" 64 chr-tokenize "$data/prompts.jsonl"
status "a missing second file is told at once" 66 sh \
	-c 'chr-tokenize -t t.json u.json missing > out; s=$?; [ ! -s out ] && exit $s'
status "a tokenizer that is none" 65 chr-tokenize -t "$data/prompts.jsonl" "$data/prompts.jsonl"
status "output that cannot be made" 73 chr-tokenize -q --train -v 300 -o /nonexistent/t.json \
	"$data/prompts.jsonl"

# there and back
head -c 300000 /dev/urandom > noise
ok "any bytes come back" sh \
	-c 'chr-tokenize -t t.json --text noise | chr-tokenize -t t.json -d | cmp - noise'
printf 'two\r\nlines, no newline at the end \377' > text
ok "a text comes back" sh \
	-c 'chr-tokenize -t t.json < text | chr-tokenize -t t.json -d | cmp - text'
ok "an empty text gives nothing" sh -c '[ -z "$(chr-tokenize -t t.json /dev/null)" ]'
printf '{"id":1,"text":"a b","x":{"y":[]}}\n{"text":"<|im_end|>"}\n' > r
is "records keep their fields" "$(chr-tokenize -t t.json r | head -1 |
	sed 's/"tokens":.*/"tokens"/')" '{"id":1,"text":"a b","x":{"y":[]},"tokens"'
is "special tokens in a text are text" "$(chr-tokenize -t t.json r | tail -1 |
	grep -c '"tokens":\[2\]')" 0
is "unless asked for" "$(chr-tokenize -t t.json --special r |
	tail -1)" '{"text":"<|im_end|>","tokens":[2]}'
is "records decode to lines" "$(chr-tokenize -t t.json r | chr-tokenize -t t.json -d --lines |
	tr '\n' '/')" 'a b/<|im_end|>/'
is "ids as text" "$(echo '1, 2
0' | chr-tokenize -t t.json -d)" '<|im_start|><|im_end|><|endoftext|>'
is "without special ones" "$(echo '1 2 0 3' | chr-tokenize -t t.json -d --skip-special)" '<think>'
status "an id outside the vocabulary" 65 sh -c 'echo 700 | chr-tokenize -t t.json -d'
status "an id that is no number" 65 sh -c 'echo 1 x | chr-tokenize -t t.json -d'
status "a record without tokens to decode" 65 sh -c 'echo "{}" | chr-tokenize -t t.json -d'
status "a token that is no id" 65 sh -c 'echo "{\"tokens\":[1,-1]}" | chr-tokenize -t t.json -d'
status "a record without text" 65 sh -c 'echo "{}" | chr-tokenize -t t.json'
printf '{"text":"a"}\n{}\nnot json\n{"text":"b"}\n' > bad.jsonl
ok "bad records are skipped when asked to" sh \
	-c '[ "$(chr-tokenize -t t.json --skip-bad bad.jsonl 2> said | wc -l)" = 2 ] &&
		grep -q ": 2 bad records passed over$" said'

# threads: records in their order, the first at once, and errors as with one
for j in 1 2 5; do
	chr-tokenize -q -t t.json --mask -j $j "$data/pretrain.jsonl" \
		"$data/chat.jsonl" text > threads.$j
	chr-tokenize -q -t t.json -j $j -o shard.$j.safetensors "$data/pretrain.jsonl" > noise
	(head -50 "$data/pretrain.jsonl"; echo '{}'; head -50 "$data/pretrain.jsonl"; echo no) \
		> bad2.jsonl
	chr-tokenize -t t.json -j $j bad2.jsonl > bad.$j 2>&1
	chr-tokenize -t t.json -j $j --skip-bad bad2.jsonl > skip.$j 2>&1
	[ $j = 1 ] && continue
	ok "$j threads: the same records" cmp threads.1 threads.$j
	ok "$j threads: the same shards" cmp shard.1.safetensors shard.$j.safetensors
	ok "$j threads: the same error after the same records" cmp bad.1 bad.$j
	ok "$j threads: the same records passed over" cmp skip.1 skip.$j
done
is "the first bad record is named" "$(tail -1 bad.2)" \
	"chr-tokenize: bad2.jsonl:51: no text in the record"
mkfifo ask answer
chr-tokenize -t t.json --jsonl -j 2 < ask > answer &
exec 4> ask 5< answer
printf '{"id":1,"text":"a"}\n{"id":2' >&4
is "the first record comes before the second is whole" "$(timeout 20 head -1 <&5 | cut -c 1-7)" \
	'{"id":1'
printf ',"text":"b"}\n' >&4
exec 4>&-
is "and the second in time" "$(cut -c 1-7 <&5)" '{"id":2'
exec 5<&-
wait

# conversations
printf '{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yo"}]}\n' \
	> chat.jsonl
is "a conversation is a template" "$(chr-tokenize -t t.json chat.jsonl |
	chr-tokenize -t t.json -d | tr '\n' '/')" \
	'<|im_start|>user/hi<|im_end|>/<|im_start|>assistant/yo<|im_end|>/'
is "or text" "$(chr-tokenize -t t.json --no-chat chat.jsonl | chr-tokenize -t t.json -d |
	tr '\n' '/')" 'hi/yo'
is "the mask is as long as the tokens" "$(chr-tokenize -t t.json --mask chat.jsonl |
	sed 's/.*"tokens":\[\(.*\)\],"mask":\[\(.*\)\]}/\1 \2/' |
		awk '{ print gsub(/,/, "", $1) == gsub(/,/, "", $2) }')" 1
ok "a whole dataset" sh \
	-c 'chr-tokenize -t t.json --mask "$1" > out && [ "$(wc -l < out)" = "$(wc -l < "$1")" ]' \
	sh "$data/chat.jsonl"

# shards
chr-tokenize -t t.json -o all.safetensors "$data/pretrain.jsonl" > all.log
ok "a shard" grep \
	-q '^{"type":"shard","file":"all.safetensors","documents":[0-9]*,"tokens":[0-9]*}$' all.log
chr-tokenize -t t.json -o part.safetensors --shard-size 16K "$data/pretrain.jsonl" > part.log
total()
{
	sed 's/.*"tokens":\([0-9]*\)}/\1/' "$1" | awk '{ n += $1 } END { print n }'
}
is "several shards hold the same" "$(total part.log)" "$(total all.log)"
ok "under names that follow" test -s part-00002.safetensors
is "as the records have tokens" "$(total all.log)" \
	"$(chr-tokenize -t t.json "$data/pretrain.jsonl" | sed 's/.*"tokens":\[\(.*\)\]}/\1/' |
	awk -F , '{ n += NF } END { print n }')"
ok "the digest of the tokenizer is inside" grep -q \
	-a "$(sha256sum t.json | cut -c 1-64)" all.safetensors
status "a shard that cannot be made" 73 chr-tokenize -t t.json -o /nonexistent/s.safetensors r

# real text, when there is some: speed is for people to look at, sameness is tested
if [ -r "$real" ]; then
	ok "a megabyte of Shakespeare comes back" sh \
		-c 'chr-tokenize -t t.json "$1" | chr-tokenize -t t.json -d | cmp - "$1"' sh "$real"
else
	skip "a megabyte of Shakespeare comes back" "no shared data"
fi
done_testing
