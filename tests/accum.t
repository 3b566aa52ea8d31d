#!/bin/sh
# A step is the same whatever it is cut into: the same rows in one micro-batch or in several, on one
# rank or two, give the same loss, router terms and gradient, in every stage; and an evaluation the
# same values.
. "$(dirname "$0")/lib.sh"
command -v chr-pretrain > /dev/null || skip_all "chr-pretrain is not built"
world "$tmp/w"
cd "$tmp/w" || exit 1
head -8 datasets/pretrain.jsonl > docs.jsonl
printf '{"text":"%s"}\n' aaaaaaaaaaaa bbbbbbbbbbbbbbbbbbbbbb c c c c d \
	>> docs.jsonl	# documents of one token are no pairs
head -4 datasets/chat.jsonl > chat.jsonl
head -4 datasets/prefs.jsonl > prefs.jsonl
head -4 datasets/prompts.jsonl > prompts.jsonl
terms="--fallback-mask-prob 0 --dropout 0 --set lambda_balance=0.7 --set lambda_temporal=0.5 --set lambda_router_locality=0.3
	--set lambda_lookahead=0.4 --set lambda_lookahead_topk=0.2 --set lambda_lookahead_union=0.2 --set lambda_ahead=0.6"

# numbers FILE TYPE: of the first record of that type
numbers()
{
	grep -m 1 "\"type\":\"$2\"" "$1" | tr ',{}' '\n\n\n' |
		grep -E '^"(loss|base|balance|temporal|locality|lookahead|lookahead_topk|lookahead_union|anchor|ahead|grad_norm|load_entropy|overlap)":'
}

# alike NAME A B TYPE: the same numbers to 1e-5, at least eight of them
alike()
{
	numbers "$2" "$4" > a.txt
	numbers "$3" "$4" > b.txt
	ok "$1" sh -c 'paste -d: a.txt b.txt | awk -F: "
		{ d = \$2 - \$4; d = d < 0 ? -d : d; if (\$1 != \$3 ||
			d > 1e-5 * (\$2 < 0 ? -\$2 : \$2) + 1e-9) { print; bad = 1 } }
		END { exit bad || NR < 8 }"'
}

# split NAME COMMAND...: -b 4 against -b 2 and -b 1 with as much accumulation, and two ranks
split()
{
	name=$1
	shift
	for b in 4 2 1; do
		rm -rf out
		# shellcheck disable=SC2086
		"$@" -q -j 2 --no-shuffle $terms -b $b --accum $((4 / b)) \
			-o out > $b.log 2> err || cat err
	done
	alike "$name: two micro-batches" 4.log 2.log step
	alike "$name: four" 4.log 1.log step
	if have_ranks; then
		rm -rf out
		# shellcheck disable=SC2086
		mpirun -n 2 "$@" -q -j 1 --no-shuffle $terms -b 1 --accum 2 \
			-o out > ranks.log 2> err || cat err
		alike "$name: two on each of two ranks" 4.log ranks.log step
	else
		skip "$name: two on each of two ranks" "no mpirun, or built without MPI"
	fi
}

split pretrain chr-pretrain -m model --seq 64 -n 2 --anchor-lambda 0.2 docs.jsonl
split "pretrain, format 1" chr-pretrain -c config.json -t tokenizer.json --set chronos_format=1 \
	--seq 64 -n 2 docs.jsonl
split recomputed chr-pretrain -m model --seq 64 -n 2 --recompute --anchor-lambda 0.2 docs.jsonl
split sft chr-sft -m model --seq 64 -n 2 --truncate keep-start --anchor-lambda 0.2 chat.jsonl
split dpo chr-dpo -m model --seq 96 -n 1 --truncate keep-start --rpo-alpha 0.3 prefs.jsonl
split orpo chr-orpo -m model --seq 96 -n 1 --truncate keep-start prefs.jsonl
split distill chr-distill -m model --teacher model --seq 64 -n 2 --truncate keep-start chat.jsonl
split grpo chr-grpo -m model --seq 96 --new 8 -G 2 -n 1 --scale-rewards batch \
	--reward toy prompts.jsonl

for b in 4 1; do
	rm -rf out
	chr-pretrain -q -m model --seq 64 -n 1 -b $b -l 0 --eval docs.jsonl \
		-o out docs.jsonl > $b.log
done
alike "an evaluation in batches of four or of one" 4.log 1.log eval
done_testing
