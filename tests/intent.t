#!/bin/sh
# chr-intent: from conversations and from text to a file in the model directory; packed models keep
# it; what is not of the model is refused.
. "$(dirname "$0")/lib.sh"
world "$tmp/w"
cd "$tmp/w" || exit 1

head -40 datasets/chat.jsonl | chr-actlog -q -m model --seq 1024 > chat.act
field() { tail -n 1 "$2" | sed -n "s/.*\"$1\":\([-0-9.e+]*\).*/\1/p"; }
marks() { grep -c '"answer":true' "$1"; }
ordered() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a != "" && b != "" && a + 0 <= b + 0) }'; }

# The answer is the last turn and nothing else: its text is what the assistant said.
printf '%s\n' \
	'{"messages":[{"role":"user","content":"a b"},{"role":"assistant","content":"no"},{"role":"user","content":"c"},
{"role":"assistant","content":"the fox"}]}' | tr -d '\n' | chr-actlog -q -m model > one.act
sed -n 's/.*"token":\([0-9]*\),"answer":true.*/\1/p' one.act | paste -s -d, |
	sed 's/.*/{"tokens":[&]}/' |
	chr-tokenize -q -d -t model > one.txt
ok "chr-actlog marks the last turn of the assistant" grep -q '^the fox' one.txt
is "... and no other" "$(grep -c 'no' one.txt)" 0
is "of a text it marks nothing" "$(marks act.jsonl)" 0
head -3 datasets/prompts.jsonl | chr-actlog -q -m model --generate 3 > gen.act
is "nor of prompts: what was generated has its own" "$(marks gen.act)" 0
ok "... mark" grep -q '"gen":true' gen.act

ok "trained on conversations" sh -c 'chr-intent -q -m model --holdout 0.25 -n 60 chat.act > log'
is "the last record is an evaluation" "$(tail -n 1 log | cut -d, -f 1,2)" \
	'{"type":"eval","stage":"intent"'
is "ten sequences were kept for it" "$(field sequences log)" 10
ok "it is no better than the oracle" ordered "$(field intent log)" "$(field oracle log)"
first=$(sed -n '1s/.*"kl":\([0-9.e-]*\).*/\1/p' log)
last=$(grep '"type":"step"' log | tail -n 1 | sed 's/.*"kl":\([0-9.e-]*\).*/\1/')
ok "the loss falls" ordered "$last" "$first"
cp model/intent.safetensors a
ok "again" sh \
	-c 'cp chat.act chat.plain; gzip < chat.act > chat.gz; cp chat.gz chat.act;
		chr-intent -q -m model --holdout 0.25 -n 60 chat.act > again'
tail -n 1 again > again.last
ok "the same seed gives the same bytes" cmp a model/intent.safetensors
# other FILE SEQ: the records, but what the answer of one sequence used is something else
other() { sed "/\"seq\":$2,.*\"answer\"/s/\"layers\":.*/\"layers\":[[6,7],[6,7]]}/" "$1"; }
tail -c 100000 a > a.w
other chat.plain 3 | chr-intent -q -m model --holdout 0.25 -n 60 > held.log
ok "nothing is learned from what is held" sh \
	-c 'tail -c 100000 model/intent.safetensors | cmp - a.w'
ok "... though it is measured" sh -c '! tail -n 1 held.log | cmp -s - again.last'
other chat.plain 2 | chr-intent -q -m model --holdout 0.25 -n 60 > /dev/null
ok "from another it is" sh -c '! tail -c 100000 model/intent.safetensors | cmp -s - a.w'
chr-intent -q -m model --holdout 0.25 -n 60 -s 1 chat.act > /dev/null
ok "another does not" sh -c '! cmp -s a model/intent.safetensors'
is "ancestry" "$(chr-ls model/intent.safetensors | grep '"type":"ancestry"' |
	grep -o '"program":"[a-z-]*"' | paste -s -d' ')" \
	'"program":"chr-pretrain" "program":"chr-intent"'
ok "nothing else changed in the model" chr-ls -q --check model

ok "packed, it comes along" sh \
	-c 'chr-pack -q -m model -o p2 manifest.json > /dev/null &&
		cmp model/intent.safetensors p2/intent.safetensors'
ok "and unpacked" sh \
	-c 'chr-pack -q --unpack -m p2 -o u2 > /dev/null &&
		cmp model/intent.safetensors u2/intent.safetensors'
chr-pack -q -m model -o half --dtype bf16 manifest.json > /dev/null
chr-pack -q --unpack -m half -o uhalf > /dev/null
ok "but not into a model of other weights" test ! -e uhalf/intent.safetensors
ok "a packed model is trained" chr-intent -q -m packed --holdout 0.25 -n 60 chat.act
ok "... the same" sh -c 'tail -c 100000 packed/intent.safetensors | cmp - a.w'

# Before a prompt the experts of its answer are asked for; that changes when they are read, and
# nothing else.
intended()	# FILE OPTIONS...
{
	file=$1
	shift
	chr-generate -q -n 12 --context 64 --chunk 32 -j 2 --stats "$file.stats" \
		"$@" datasets/openings.jsonl |
		sed 's/,"timing":{.*//' > "$file"
}
intended without -m packed --predict none
least=$(chr-generate -q -m packed --context 64 --chunk 32 -j 2 --ram 1M datasets/openings.jsonl \
	2>&1 > /dev/null |
	sed -n 's/.*use --ram \([0-9]*\)M.*/\1/p')
ok "generating with it" intended with -m packed --predict intent --waste 0.5 \
	--ram $((least + 1))M
ok "... says the same" cmp without with
ok "... and has guessed" sh -c '! tail -n 1 with.stats | grep -q "\"predicted\":0,"'

ok "texts, by the length of the prompt" sh \
	-c 'chr-intent -q -m model --holdout 0 --prompt-tokens 8 -n 2 act.jsonl > log'
ok "nothing kept, nothing measured" grep -q '"coverage":null' log
status "no sequence is long enough" 65 chr-intent -q -m model --prompt-tokens 100000 act.jsonl
zcat chat.gz > chat.act
status "records of another model" 65 sh \
	-c 'sed "s/\"fingerprint\":\"./&0/" chat.act | chr-intent -q -m model 2> err'
ok "... it says so" grep -q 'not of this model' err
status "records of another shape" 65 sh \
	-c 'sed "1s/\"experts\":8/\"experts\":9/" chat.act | chr-intent -q -m model'
status "records without tokens" 65 sh \
	-c 'sed "s/\"token\":[0-9]*,//" chat.act | chr-intent -q -m model'
status "a width that is no multiple of 8" 64 chr-intent -q -m model --width 20 chat.act
cp model/intent.safetensors before
(
	chr-intent -q -m model -n 1000000 chat.act > log2 2> err2 &
	pid=$!
	for _ in 1 2 3 4 5 6 7 8 9 10; do
		sleep 0.2
		[ ! -s log2 ] || break
	done
	kill -INT $pid
	wait $pid
	echo $? > status2
)
is "a signal stops it" "$(cat status2)" 75
ok "and nothing was written" cmp before model/intent.safetensors
done_testing
