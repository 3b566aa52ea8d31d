#!/bin/sh
# scripts/recipes/smollm2.mk: its graph, without a download; and all of it on a tiny model.
. "$(dirname "$0")/lib.sh"
recipe=scripts/recipes/smollm2.mk
out=$tmp/run

make -n -f $recipe OUT="$out" > "$tmp/plan" 2> "$tmp/log"
is "the stages, in an order that can be" \
	"$(sed -n 's/.*\(fetch smollm2\|chr-convert\|chr-sft\|chr-merge\|chr-pretrain\|chr-foresee\|chr-actlog\|chr-cluster\|chr-pack\).*/\1/p' \
	"$tmp/plan" | uniq | tr '\n' ' ')" \
	"fetch smollm2 chr-convert chr-sft chr-merge chr-pretrain chr-foresee chr-actlog chr-cluster chr-pack "
make -n -f $recipe OUT="$out" BASE=some/model.gguf > "$tmp/plan" 2>&1
ok "another dense model must be there" grep -q "No rule to make target .some/model.gguf" "$tmp/plan"
make -n -f $recipe OUT="$out" BASE=scripts/recipes/tiny.json DROP=0.5 STEPS=7 > "$tmp/plan" 2> "$tmp/log"
is "and takes the place of the download" "$(grep -c fetch "$tmp/plan")" 0
ok "steps and the part drawn anew" grep -q 'again .*--upcycle-drop 0.5 .*-n 7 ' "$tmp/plan"
status "no data" 2 make -n -f $recipe OUT="$out" DATA="$tmp"
if [ -d "$shared/data" ]; then
	make -n -f $recipe OUT="$out" DATA="$shared/data" moe > "$tmp/plan" 2> "$tmp/log"
	is "texts and conversations, as many tokens of each" \
		"$(grep -o '[a-z0-9-]*.train.jsonl:1' "$tmp/plan" | tr '\n' ' ')" \
		"pretrain-wikitext2.train.jsonl:1 pretrain-gsm8k.train.jsonl:1 pretrain-shakespeare.train.jsonl:1 sft-gsm8k.train.jsonl:1 "
else
	skip "texts and conversations, as many tokens of each" "no shared data"
fi
ok "help" sh -c "make -s -f $recipe help | grep -q DATA=DIR"
ok "the package is in the table of what can be fetched" grep -q '^smollm2-135m-instruct' \
	datasets/public.tsv

run() { make -s -f $recipe OUT="$out" SIZE=tiny J=2 "$@"; }
ok "a short run of it all, stopped after every step" run FLAGS='--stop-after 1'
for s in sft moe; do
	is "$s: its steps" "$(grep -c '"type":"step"' "$out/$s.jsonl")" 2
done
nll() { sed -n 's/.*"text":"pretrain".*"nll":\([0-9.]*\).*/\1/p' "$out/score/$1.jsonl"; }
ok "before its first step the new model is as good as the dense one: $(nll merged) $(nll start)" \
	awk -v a="$(nll merged)" -v b="$(nll start)" 'BEGIN { d = a - b; exit !(a && d * d < 1e-10) }'
slots() { for r; do sed -n '/"summary"/s/.*"slots":\([0-9]*\).*/\1/p' "$out/stream/$r.stats"; done; }
for q in q8 q4; do
	is "$q: records from all memory, half and three eighths of the experts'" \
		"$(cat "$out/stream/$q"-*.jsonl | grep -c '"completion":')" 24
	slots "$q-37.5" "$q-50" "$q-all" | awk '{ n[NR] = $1 }
		END { exit !(n[1] < n[2] && n[2] < n[3] && n[3] == 24) }'
	result "$q: the less memory, the fewer experts in it" $?
	ok "$q: less than a token's is refused" grep -q -- '--force to thrash' "$out/stream/$q.refused"
done
ok "heads go along, and what they named is counted" sh -c "[ -s '$out/packed/q4/foresee.safetensors' ] &&
	grep -q '\"foresee\":{\"slots\"' '$out/stream/q4-50.stats'"
ok "an answer" sh -c "[ \$(wc -l < '$out/chat.txt') -ge 1 ] && grep -q France '$out/chat.txt'"
is "nothing is left to do" "$(run -n all | grep -c chr-)" 0
ok "the report" sh -c "make -s -f $recipe OUT='$out' SIZE=tiny report > '$tmp/report'"
is "has all perplexities and runs" "$(grep -c '"type":"total"' "$tmp/report") $(grep -c '"run":' "$tmp/report")" "12 6"
sed 's/"completion":"/&x/' "$out/stream/q8-all.jsonl" > "$tmp/other"
cat "$tmp/other" > "$out/stream/q8-all.jsonl"
ok "another text than that from memory is an error" sh -c "! make -s -f $recipe OUT='$out' SIZE=tiny stream"
done_testing
