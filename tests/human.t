#!/bin/sh
# What programs say on stdout: records in a pipe, pages and tables for people on a terminal; -H and
# --json force either.
. "$(dirname "$0")/lib.sh"
world "$tmp/w"
cd "$tmp/w" || exit 1
head -5 datasets/chat.jsonl > chat.jsonl
head -4 datasets/prefs.jsonl > prefs.jsonl
head -4 datasets/prompts.jsonl > prompts.jsonl
chr-sft -q -m model -o adapter -n 1 -b 2 --seq 64 --lora-rank 2 chat.jsonl > noise || exit 1

# How to run each, and the words that its page or table begins with.
table="
chr-score|tokens *logprob *nll *ppl|-m model in.jsonl
chr-diff|diff|model packed in.jsonl
chr-pack|pack|-m model -o out manifest.json
chr-cluster|cluster|act.jsonl
chr-fit|fit|-m model
chr-bench|replay|replay --budget 50% act.jsonl
chr-merge|merge|-m model -o out adapter
chr-convert|convert|-o out model
chr-intent|step *loss *kl|-m model -n 3 act.jsonl
chr-foresee|layer *loss *tokens|-m model -n 200 --epochs 1 in.jsonl
chr-ls|model$|model
chr-pretrain|step *loss *base *lr|-c config.json -t tokenizer.json -n 1 -o out -b 2 --seq 32 in.jsonl
chr-sft|step *loss *base *lr|-m model -n 1 -o out -b 2 --seq 64 chat.jsonl
chr-dpo|step *loss *base .*accuracy|-m model -n 1 -o out -b 1 --seq 128 prefs.jsonl
chr-orpo|step *loss *base|-m model -n 1 -o out -b 1 --seq 128 prefs.jsonl
chr-grpo|step *loss *base *reward|-m model -n 1 -o out -b 1 -G 2 --seq 96 --new 4 --reward toy prompts.jsonl
chr-distill|step *loss *base *ce|-m model --teacher packed -n 1 -o out -b 2 --seq 64 in.jsonl
"
have_script() { script -qec true /dev/null < /dev/null > noise 2>&1; }
# on_terminal COMMAND...: what is seen there, without the CR of each line
on_terminal() { script -qec "$*" /dev/null < /dev/null | tr -d '\r'; }
# kind FILE: what its first line is
kind() { if head -1 "$1" | grep -q '^{'; then echo records; else echo page; fi; }

echo "$table" | grep . > list
while IFS='|' read -r prog words args; do
	for how in pipe -H --json; do
		rm -rf out
		flag=$how
		[ $how != pipe ] || flag=
		# shellcheck disable=SC2086
		"$prog" -q $flag $args > "said.$how" 2> noise < /dev/null
	done
	is "$prog: records in a pipe" "$(kind said.pipe)" records
	is "$prog --json: the same" "$(kind said.--json)" records
	ok "$prog -H: a page or table" grep -q "^$words" said.-H
	is "$prog -H: nothing that is a record" "$(grep -c '^{' said.-H)" 0
	rm -rf out
	# shellcheck disable=SC2086
	status "$prog -H: a full disk under stdout" 74 \
		sh -c 'exec "$@" > /dev/full < /dev/null' sh "$prog" -q -H $args
	if have_script; then
		rm -rf out
		on_terminal "$prog" -q "$args" > said.tty
		ok "$prog on a terminal: as with -H" grep -q "^$words" said.tty
		rm -rf out
		on_terminal "$prog" -q --json "$args" > said.tty
		is "$prog --json on a terminal: records" "$(kind said.tty)" records
	else
		skip "$prog on a terminal: as with -H" "no script(1)"
		skip "$prog --json on a terminal: records" "no script(1)"
	fi
done < list

if have_ranks; then
	rm -rf out
	mpirun -n 1 chr-pretrain -q -c config.json -t tokenizer.json -n 1 -o out -b 2 --seq 32 \
		in.jsonl > said.mpi 2> noise < /dev/null
	is "under mpirun, which reads for us through terminals: records" "$(kind said.mpi)" records
else
	skip "under mpirun, which reads for us through terminals: records" "no MPI"
fi

# A table: as wide as its content, numbers right, text left.
printf '%s\n' '{"text":"The fox","id":"a"}' '{"text":"The fox and","id":"long name"}' \
	'{"text":"x","id":"\u001b[31m\u202e"}' > ids.jsonl
chr-score -q -H -m model ids.jsonl > said
is "carried fields are columns, and safe to see" "$(sed -n 's/^.*  //; 1,4p' said)" "id
a
long name
?[31m?"
is "numbers stand below each other" "$(awk 'NR <= 4 { print index($0, $2) + length($2) }' said |
	sort -u | wc -l)" 1
chr-ls -H model > said
is "chr-ls: types of tensors below each other" \
	"$(awk '/  F32  / { print index($0, "  F32  ") }' said | sort -u | wc -l)" 1
longest=$(chr-ls model | sed -n 's/.*"type":"tensor","name":"\([^"]*\)".*/\1/p' |
	awk '{ if (length($0) > n) n = length($0) } END { print n }')
is "and only as far off as the longest name" \
	"$(awk '/  F32  / { print index($0, "  F32  ") - 3; exit }' said)" "$longest"
is "chr-cluster: the manifest is not for people" \
	"$(chr-cluster -q -H act.jsonl | grep -c cluster_id)" 0
is "what --help says is forced is not in a model" \
	"$(rm -rf out; chr-pretrain -q -H -c config.json -t tokenizer.json -n 1 -b 2 --seq 32 -o \
	out \
	in.jsonl > noise; chr-ls out | grep -c human)" 0
done_testing
