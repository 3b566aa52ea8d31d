#!/bin/sh
# What every program owes its users, from one loop: help, version, mistakes, bad input, a full disk,
# a manual page.
. "$(dirname "$0")/lib.sh"
world "$tmp/w"
cd "$tmp/w" || exit 1

# How to run each: program, the input its operand names, and the options that it cannot do without.
table="
chr-tokenize	in.jsonl	-t tokenizer.json --jsonl
chr-pretrain	in.jsonl	-c config.json -t tokenizer.json -n 1 -o out -b 2 --seq 32
chr-sft		chat.jsonl	-m model -n 1 -o out -b 2 --seq 64
chr-dpo		prefs.jsonl	-m model -n 1 -o out -b 1 --seq 128
chr-orpo	prefs.jsonl	-m model -n 1 -o out -b 1 --seq 128
chr-grpo	prompts.jsonl	-m model -n 1 -o out -b 1 -G 2 --seq 96 --new 4 --reward toy
chr-distill	in.jsonl	-m model --teacher packed -n 1 -o out -b 2 --seq 64
chr-merge	adapter	-m model -o out
chr-convert	model	-o out
chr-score	in.jsonl	-m model
chr-ls		model/model.safetensors
chr-actlog	in.jsonl	-m model
chr-cluster	act.jsonl
chr-intent	act.jsonl	-m model -n 3
chr-foresee	in.jsonl	-m model -n 200 --epochs 1
chr-pack	manifest.json	-m model -o out
chr-generate	in.jsonl	-m model -n 2
chr-diff	in.jsonl	model packed
chr-bench	act.jsonl	replay --budget 50%
chr-fit		runs.jsonl	--learn
"
head -5 datasets/chat.jsonl > chat.jsonl
head -4 datasets/prefs.jsonl > prefs.jsonl
head -4 datasets/prompts.jsonl > prompts.jsonl
cat log.jsonl log.jsonl log.jsonl > runs.jsonl
chr-sft -q -m model -o adapter -n 1 -b 2 --seq 64 --lora-rank 2 chat.jsonl > /dev/null || exit 1
printf '\037\213 this only begins like gzip' > garbage.gz
printf 'neither { nor ] \001\n' > garbage

# clean NAME STATUS COMMAND...: an error is one status and one line on stderr that begins with the
# program; stdout may only have what came before bad data
clean()
{
	name=$1
	want=$2
	shift 2
	rm -rf out
	"$@" > stdout 2> stderr < /dev/null
	got=$?
	{ echo "status $got, want $want: $*"; cat stderr; } > "$tmp/log"
	[ $got = "$want" ] && { [ $want = 65 ] || [ ! -s stdout ]; } &&
		[ "$(wc -l < stderr)" = 1 ] && grep -q "^${1##*/}: ." stderr
	result "$name" $?
}

help_options()
{
	"$1" --help |
		sed -n 's/^  -\(.\), --\([a-z0-9-]*\).*/\2 \1/p;
			s/^      --\([a-z0-9-]*\).*/\1/p' | sort
}

man_options()
{
	sed -n 's/^\.It Fl \(.\) , Fl -\([a-z0-9-]*\).*/\2 \1/p;
		s/^\.It Fl -\([a-z0-9-]*\).*/\1/p' "$1" | sort
}

has_sections()
{
	for s in NAME SYNOPSIS DESCRIPTION OPTIONS "EXIT STATUS" EXAMPLES "SEE ALSO" BUGS; do
		grep -qx "\.Sh $s" "$1" || { echo "no section $s"; return 1; }
	done
	[ "$(grep -c '^\.Bd -literal' "$1")" -ge 3 ] || { echo \
		"fewer than three examples"; return 1; }
}

full()
{
	rm -rf out
	status "$1: a full disk under stdout" 74 sh -c 'exec "$@" > /dev/full < /dev/null' sh "$@"
}

check_help()
{
	status "$1 --help" 0 sh \
		-c '"$1" --help 2> stderr | grep -q "^usage: $1 " && [ ! -s stderr ]' sh "$1"
	status "$1 -V" 0 sh \
		-c '"$1" -V 2> stderr | head -1 | grep -qE "^$1 [0-9.]+$" && [ ! -s stderr ]' sh \
		"$1"
	status "$1 --help to a full disk" 74 sh -c '"$1" --help > /dev/full' sh "$1"
}

check_page()
{
	page=$top/man/$1.1
	ok "$1 has a manual page with its sections" has_sections "$page"
	is "$1: the page lists the options of --help" "$(man_options "$page")" \
		"$(help_options "$1")"
	if command -v mandoc > /dev/null; then
		status "$1: mandoc is content" 0 mandoc -T lint -W warning "$page"
	else
		skip "$1: mandoc is content" "no mandoc"
	fi
}

# spoil INPUT: truncated, garbage and garbage.gz in its place; of a directory, of its weights
spoil()
{
	rm -rf bad
	mkdir bad
	for b in truncated garbage garbage.gz; do
		if [ -d "$1" ]; then
			cp -r "$1" bad/$b
			weights=$(cd "$1" && echo ./*model.safetensors)
			to=bad/$b/$weights from=$1/$weights
		else
			to=bad/$b from=$1
		fi
		case $b in
		truncated) head -c $(($(wc -c < "$from") - 9)) "$from" > "$to" ;;
		*) cp $b "$to" ;;
		esac
	done
}

# number PROGRAM: an option that takes a number
number()
{
	"$1" --help |
		sed -n 's/^  -., \(--[a-z0-9-]*\) N .*/\1/p;
			s/^      \(--[a-z0-9-]*\) N .*/\1/p' | head -1
}

for p in "$top"/bin/chr-*.c; do
	p=$(basename "$p" .c)
	line=$(printf '%s\n' "$table" | grep "^$p	") ||
		{ result "$p is in the table of this test" 1; continue; }
	# shellcheck disable=SC2086
	set -- $line
	prog=$1
	input=$2
	shift 2
	check_help "$prog"
	check_page "$prog"
	clean "$prog: unknown option" 64 "$prog" --no-such-option
	n=$(number "$prog")
	if [ -n "$n" ]; then
		clean "$prog: option without its argument" 64 "$prog" "$@" "$n"
		clean "$prog: $n 4x" 64 "$prog" "$@" "$n" 4x "$input"
	fi
	clean "$prog: missing input" 66 "$prog" "$@" nonexistent
	spoil "$input"
	for bad in truncated garbage garbage.gz; do
		clean "$prog: $bad input" 65 "$prog" -q "$@" bad/$bad
	done
	if "$prog" --help | grep -q -- --skip-bad; then
		rm -rf out
		{ echo '{'; cat "$input"; } > almost
		# shellcheck disable=SC2016
		status "$prog: --skip-bad of a pipe" 0 sh \
			-c 'cat almost | "$@" -q --skip-bad 2> stderr' sh "$prog" "$@"
		ok "$prog: and says how many" grep -q ': 1 bad records passed over$' stderr
	fi
	rm -rf out
	status "$prog: good input" 0 "$prog" -q "$@" "$input"
	full "$prog" -q "$@" "$input"
done
done_testing
