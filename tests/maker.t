#!/bin/sh
# What the maker of a model says beside the weights: chat templates, generation_config.json; and
# what does not depend on where a record stands.
. "$(dirname "$0")/lib.sh"
[ -x "$bld/chr-generate" ] || skip_all "the programs are not built"
world "$tmp/w"
cd "$tmp/w" || exit 1

says()	{ [ "$(wc -l < "$tmp/said")" = 1 ] && grep -q -e "$1" "$tmp/said"; }
refuses()	# NAME PATTERN COMMAND...: status 65 and one line
{
	name=$1 pattern=$2
	shift 2
	status "$name" 65 "$@"
	grep -v '^status' "$tmp/log" > "$tmp/said"
	ok "$name: says so" says "$pattern"
}
fresh()		# m: a copy of the model
{
	rm -rf m && cp -r model m
}
template()	# VALUE: as chat_template of m
{
	fresh
	new=$1 awk '/"chat_template"/ {
			print "\"chat_template\":" ENVIRON["new"] (/,$/ ? "," : "")
			next
		} { print }' \
		model/tokenizer_config.json > m/tokenizer_config.json
}
shown()		# FILE: its conversation as m has it
{
	chr-tokenize -q --jsonl -t m "$1" | chr-tokenize -q -d -t m
}
learned()	# FILE: what of it is learned
{
	chr-tokenize -q --jsonl --mask -t m "$1" | sed 's/.*"tokens":\[\([^]]*\)\],"mask":\[\([^]]*\)\].*/\1 \2/' |
		awk '{ n = split($1, t, ","); split($2, m, ","); for (i = 1; i <= n; i++) if (m[i]) printf "%s ", t[i] }' |
		chr-tokenize -q -d --text -t m
}
echo '{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"x"}]}' > talk.jsonl
sed 's/^{/{"tools":[{"name":"f"}],/' talk.jsonl > tools.jsonl

# Chat templates
turns='{% for m in messages %}[{{ m.role }}]{{ m.content }};{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}'
want='[user]hi;[assistant]x;'
template "\"$turns\""
is "a text" "$(shown talk.jsonl)" "$want"
is "what is learned" "$(learned talk.jsonl)" x
is "chr-generate asks with it" \
	"$(echo '{"messages":[{"role":"user","content":"hi"}]}' | chr-generate -q -m m -n 3 --temperature 0 | grep -o '"tokens":[^]]*')" \
	"$(echo '{"text":"[user]hi;[assistant]"}' | chr-tokenize -q --jsonl -t m | chr-generate -q -m m -n 3 --temperature 0 | grep -o '"tokens":[^]]*')"
template "\"{% for m in messages %}[{{ m.role }}]{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}\""
is "what it marks is learned" "$(learned talk.jsonl)" hix
chr-sft -q -m m -o sft -n 1 -b 1 --seq 32 talk.jsonl > noise
ok "what is trained from it has it" grep -q endgeneration sft/tokenizer_config.json
template "[{\"name\":\"tool_use\",\"template\":\"with {{ tools[0].name }}\"},{\"name\":\"default\",\"template\":\"$turns\"}]"
is "of named ones the default" "$(shown talk.jsonl)" "$want"
is "with tools the one for tools" "$(echo '{"tools":[{"name":"f"}],"messages":[{"role":"user","content":"hi"}]}' > t.jsonl; shown t.jsonl)" "with f"
echo '{"tools":[{"name":"f","max":18446744073709551615}],"messages":[{"role":"user","content":"hi"}]}' > t.jsonl
is "also when it has numbers beyond 64 bits" "$(shown t.jsonl)" "with f"
template '"not this"'
printf '%s' "$turns" > m/chat_template.jinja
is "chat_template.jinja goes before it" "$(shown talk.jsonl)" "$want"
printf '\357\273\277%s' "$turns" > m/chat_template.jinja
is "without its mark" "$(shown talk.jsonl)" "$want"
printf '%s' "$turns" | iconv -t UTF-16 > m/chat_template.jinja
tokenize() { chr-tokenize -q --jsonl -t m "$@"; }
refuses "in UTF-16" 'm/chat_template.jinja: is text in UTF-16' tokenize talk.jsonl
printf 'caf\351' > m/chat_template.jinja
refuses "in Latin-1" 'm/chat_template.jinja: is no text in UTF-8' tokenize talk.jsonl
printf 'a\000b' > m/chat_template.jinja
refuses "with NUL bytes" 'm/chat_template.jinja: is no text in UTF-8' tokenize talk.jsonl
for bad in '"{{ raise_exception(\"no system\") }}";refuses: no system' \
	'"{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% set x = i %}{% endfor %}{% endfor %}{% endfor %}";more than' \
	'"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";nested' \
	'"{% set ns = namespace(x=\"ab\") %}{% for i in range(100) %}{% set ns.x = ns.x + ns.x %}{% endfor %}";needs more' \
	'"{% for m in messages %}";ends before' '"{{ a.b }}";undefined' \
	'[{"name":"tool_use","template":"t"}];named "default"' '5;neither'; do
	template "${bad%;*}"
	refuses "${bad%;*}" "talk.jsonl:1: m/tokenizer_config.json:.*${bad##*;}" tokenize talk.jsonl
	ok "texts do not need it" sh -c 'chr-tokenize -q --jsonl -t m in.jsonl > noise'
done
fresh
sed -n 's/.*"chat_template": *//p' m/tokenizer_config.json | sed 's/,$//' > ours.json
if python3 -c 'import jinja2' 2> noise; then
	is "ours, as jinja2 renders it" "$(python3 - <<-'END'
		import jinja2, json
		record = json.loads(open('tools.jsonl').readline())
		t = jinja2.Environment().from_string(json.load(open('ours.json')))
		print(t.render(messages=record['messages'], tools=record['tools']), end='')
		END
	)" "$(shown tools.jsonl)"
else
	skip "ours, as jinja2 renders it" "no jinja2"
fi

# generation_config.json
made()		# OPTIONS...: tokens that m makes
{
	echo '{"prompt":"The fox"}' | chr-generate -q -m m -n 6 "$@" | sed 's/.*"tokens":\[\([^]]*\)\].*/\1/'
}
said()		# CONTENT of generation_config.json
{
	printf '%s\n' "$1" > m/generation_config.json
}
greedy=$(made --temperature 0) seed1=$(made -s 1) seed2=$(made -s 2)
ok "seeds differ" [ "$seed1" != "$seed2" ]
said '{"do_sample":false,"temperature":0.7}'
is "do_sample false is greedy" "$(made -s 1) $(made -s 2)" "$greedy $greedy"
is "a flag goes before it" "$(made -s 1 --temperature 0.8 --top-p 0.9)" \
	"$(rm m/generation_config.json; made -s 1 --temperature 0.8 --top-p 0.9)"
said '{"temperature":0}'
is "a temperature" "$(made -s 1)" "$greedy"
said '{"top_k":1}'
is "the best one only" "$(made -s 1)" "$greedy"
# What was drawn up to the first token that is not the first one again; it becomes an end.
end=$(echo "$seed1" | awk -F, '{ for (i = 2; $i == $1; i++) continue; print $i }')
before=$(echo "$seed1" | awk -F, '{ s = $1; for (i = 2; $i == $1; i++) s = s "," $i; print s }')
for ends in "$end" "[$end]" "[300,$end]"; do
	said "{\"eos_token_id\":$ends}"
	is "an end: $ends" "$(made -s 1)" "$before"
done
for bad in '{"temperature":-1}' '{"temperature":"0.5"}' '{"top_p":2}' '{"top_k":-1}' '{"top_k":50.5}' \
	'{"eos_token_id":"</s>"}' '{"eos_token_id":[1.5]}' '{"eos_token_id":-1}' '{"do_sample":0}' '[]' \
	"{\"eos_token_id\":[$(seq -s, 0 40)]}"; do
	said "$bad"
	refuses "$bad" '^chr-generate: m/generation_config.json: ' chr-generate -q -m m -n 1 -p a
done
rm m/generation_config.json
for bad in '[1,"2"]' '[1,2.5]' '[1,-2]' '"x"' true; do
	sed 's/"eos_token_id": *[0-9]*/"eos_token_id":'"$bad"'/' model/config.json > m/config.json
	refuses "config.json: $bad" 'm/config.json: eos_token_id' chr-generate -q -m m -n 1 -p a
done
fresh
said '{"stop_strings":["is"],"num_beams":1}'
chr-generate -m m -n 1 -p a 2>&1 > noise | grep generation_config > unread
is "what is not read is said" "$(cat unread)" \
	"chr-generate: m/generation_config.json: stop_strings, which changes texts, is not read"

# The same record is the same wherever it stands
draw()
{
	chr-generate -q -m model -n 6 -s 5 "$@" | sed 's/,"timing":.*//'
}
printf '{"prompt":"The fox"}\n{"prompt":"A hen","id":2}\n' > two.jsonl
is "without the line before" "$(tail -n 1 two.jsonl | draw)" "$(draw two.jsonl | tail -n 1)"
is "in a batch" "$(draw -b 2 two.jsonl)" "$(draw -b 1 two.jsonl)"
for seed in '"7"' 5.5 true '[1]'; do
	echo "{\"prompt\":\"a\",\"seed\":$seed}" > bad.jsonl
	refuses "a seed $seed" 'bad.jsonl:1: "seed" is' chr-generate -q -m model -n 1 bad.jsonl
done
for prompt in 5 true '{"a":"b"}'; do
	echo "{\"prompt\":$prompt,\"text\":\"another\"}" > bad.jsonl
	refuses "a prompt $prompt" 'bad.jsonl:1: "prompt" is' chr-generate -q -m model -n 1 bad.jsonl
done
is "its own seed goes before -s" "$(echo '{"prompt":"a","seed":9}' | draw -s 1)" \
	"$(echo '{"prompt":"a","seed":9}' | draw -s 2)"

# A completion is scored given its prompt, all its tokens
chr-generate -q -m model -n 6 -s 5 two.jsonl > drawn.jsonl
is "chr-score: what was drawn" "$(chr-score -q -m model drawn.jsonl | head -n 1 | grep -o '"tokens":[0-9]*')" '"tokens":6'

# Weights that are no numbers
at=$(chr-ls model/model.safetensors | sed -n 's/.*"name":"model.layers.0.input_layernorm.weight".*"offset":\([0-9]*\).*/\1/p')
fresh
printf '\000\000\300\177' | dd of=m/model.safetensors bs=1 seek="$at" conv=notrunc 2> noise
for c in "chr-generate -m m -n 2 -p a" "chr-score -m m in.jsonl" "chr-score --topk 2 -m m in.jsonl" \
	"chr-actlog -m m in.jsonl" "chr-diff m model in.jsonl" "chr-diff model m in.jsonl" \
	"chr-bench decode -m m -n 2"; do
	# shellcheck disable=SC2086
	refuses "$c" 'not finite' sh -c '"$@" > noise' sh ${c%% *} -q ${c#* }
done
done_testing
