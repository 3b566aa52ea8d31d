#!/bin/sh
# Distillation: a teacher in memory, on disk and in a file are the same teacher; texts and
# conversations; resuming; a student comes nearer to its teacher than one that reads the text alone;
# refusals.
. "$(dirname "$0")/lib.sh"
command -v chr-distill > /dev/null || skip_all "chr-distill is not built"
world "$tmp/w"
cd "$tmp/w" || exit 1

sed 's/"hidden_size": 32/"hidden_size": 16/; s/"num_experts": 8/"num_experts": 4/' config.json \
	> small.json
head -n 24 datasets/pretrain.jsonl > docs.jsonl
head -n 8 datasets/heldout.jsonl > held.jsonl
head -n 12 datasets/chat.jsonl > chat.jsonl
distill()
{
	chr-distill -q -c small.json -t tokenizer.json -l 3e-3 "$@"
}
values()	# FILE KEY: one a line
{
	sed -n 's/.*"'"$2"'":\([^,}]*\).*/\1/p' "$1"
}
moments()	# DIR: what training did, without the command line that the weights' file has
{
	sha256sum < "$1/optimizer.safetensors" || echo "no $1"
}
sums()		# DIR
{
	(cd "$1" && sha256sum model.safetensors optimizer.safetensors train_state.json) ||
		echo "no $1"
}
close_to()	# NAME A B: numbers, within a relative 1e-5
{
	echo "$2 and $3" > "$tmp/log"
	awk -v a="$2" -v b="$3" 'BEGIN { d = a - b; exit !(d * d <= 1e-10 * b * b && b > 0) }'
	result "$1" $?
}
refuses()	# NAME STATUS PATTERN COMMAND...
{
	name=$1 want=$2 pattern=$3
	shift 3
	status "$name: $want" "$want" "$@"
	cp "$tmp/log" why
	ok "and says why" grep -q -e "$pattern" why
}

# One teacher, wherever it is
distill --teacher model -b 2 --seq 64 -n 6 -o live docs.jsonl > live.log
distill --teacher packed -b 2 --seq 64 -n 6 -o disk docs.jsonl > disk.log
distill --teacher packed --teacher-ram 3M -j 1 -b 2 --seq 64 -n 6 -o tight docs.jsonl > tight.log
is "a packed teacher is the plain one" "$(moments disk)" "$(moments live)"
is "within any limit" "$(moments tight)" "$(moments live)"
chr-score -q -m model --topk 320 --seq 33 docs.jsonl > all.jsonl
distill --topk 320 -b 2 --seq 32 -n 3 --no-shuffle -o file all.jsonl > file.log
distill --teacher model -b 2 --seq 32 -n 3 --no-shuffle -o live32 docs.jsonl > live32.log
close_to "a file with all candidates: kd" "$(values file.log kd | head -n 1)" \
	"$(values live32.log kd | head -n 1)"
close_to "and kl" "$(values file.log kl | head -n 1)" "$(values live32.log kl | head -n 1)"
close_to "also of the third step" "$(values file.log kd | tail -n 1)" \
	"$(values live32.log kd | tail -n 1)"
chr-score -q -m model --topk 4 --seq 33 docs.jsonl > four.jsonl
cat four.jsonl | distill --topk 4 -b 2 --seq 32 -n 3 -o pipe > pipe.log
is "through a pipe" "$(values pipe.log ce | head -n 1)" "$(values file.log ce | head -n 1)"
ok "fewer candidates tell less" awk 'BEGIN { exit !('"$(values pipe.log kd |
	head -n 1)"' < '"$(values file.log kd | head -n 1)"') }'
gzip -k four.jsonl
distill --topk 4 -b 2 --seq 32 -n 3 --no-shuffle -o gz four.jsonl.gz > gz.log
is "compressed" "$(moments gz)" "$(moments pipe)"
distill --topk 2 -b 2 --seq 32 -n 3 -o two four.jsonl > two.log
ok "the first two of four" test "$(values two.log kd | wc -l)" = 3

# Texts and conversations
targets()	# FILE: of one evaluation
{
	distill --teacher model -b 4 --seq 512 -n 1 -l 0 --force -o count --eval "$1" docs.jsonl |
		values /dev/stdin targets
}
count()		# OPTION FILE: tokens that chr-score scores
{
	chr-score -q -m model "$1" | tail -n 1 | values /dev/stdin tokens
}
is "all of a text is learned" "$(targets held.jsonl)" "$(count held.jsonl)"
is "of a conversation what the assistant says" "$(targets chat.jsonl)" "$(count chat.jsonl)"
cat chat.jsonl held.jsonl > mixed.jsonl
is "in one file too" "$(targets mixed.jsonl)" "$(count mixed.jsonl)"
distill --teacher model -b 2 --seq 40 --no-shuffle --epochs 1 -o pieces docs.jsonl > pieces.log
is "long texts are cut, and nothing is left out" "$(values pieces.log tokens | tail -n 1)" \
	"$(chr-score -q -m model docs.jsonl | tail -n 1 | values /dev/stdin tokens)"
chr-sft -q -m model -b 4 --seq 128 -n 2 -l 1e-3 --fallback-mask-prob 0 -o sft chat.jsonl > sft.log
chr-distill -q -m model --teacher model --alpha 0 -b 4 --seq 128 -n 2 -l 1e-3 \
	--fallback-mask-prob 0 --anchor-lambda 0.01 \
	-o sft2 chat.jsonl > sft2.log
is "without the teacher's part it is chr-sft" "$(values sft2.log base)" "$(values sft.log base)"

# What a step is
chr-distill -q -m model --teacher model --fallback-mask-prob 0 --alpha 1 -n 1 -b 2 --seq 64 \
	-o self docs.jsonl > self.log
ok "a teacher has nothing to learn from itself" \
	awk 'BEGIN { x = '"$(values self.log base)"'; exit !(x < 1e-8 && x > -1e-8) }'
for kl in forward reverse js; do
	distill --teacher model --kl $kl -b 2 --seq 64 -n 2 -o "kl-$kl" docs.jsonl > $kl.log
	is "--kl $kl: base is made of its parts" \
		"$(awk 'BEGIN { printf "%.4f", 0.7 * '"$(values $kl.log kd |
		head -n 1)"' + 0.3 * '"$(values $kl.log ce | head -n 1)"' }')" \
		"$(awk 'BEGIN { printf "%.4f", '"$(values $kl.log base | head -n 1)"' }')"
done
ok "the divergences differ" test "$(cat forward.log reverse.log js.log | values /dev/stdin kd |
	sort -u | wc -l)" = 6
is "how far it is from the teacher does not depend on them" "$(values js.log kl | head -n 1)" \
	"$(values forward.log kl | head -n 1)"
distill --set lambda_balance=0 --fallback-mask-prob 0 --teacher model -b 4 --seq 64 -n 2 \
	-o big docs.jsonl > big.log
distill --set lambda_balance=0 --fallback-mask-prob 0 --teacher model -b 1 --accum 4 --seq 64 -n 2 \
	-o small docs.jsonl > small.log
ok "an evaluation has measures, and no perplexity" sh \
	-c 'chr-distill -q -c small.json -t tokenizer.json --teacher model -n 1 \
	-b 2 --seq 64 -o eval --eval held.jsonl docs.jsonl | tail -n 1 | grep "\"ce\":.*\"kd\":.*\"kl\":" | grep -v perplexity'

# Nearer than without
chr-pretrain -q -m model -n 60 -b 4 --seq 64 -l 1e-2 -o master docs.jsonl > /dev/null
distill --teacher master --alpha 0.9 --temperature 2 -n 60 -b 4 --seq 64 -o taught \
	--eval held.jsonl docs.jsonl > taught.log
distill --teacher master --alpha 0 -n 60 -b 4 --seq 64 -o alone \
	--eval held.jsonl docs.jsonl > alone.log
near=$(tail -n 1 taught.log | values /dev/stdin kl)
far=$(tail -n 1 alone.log | values /dev/stdin kl)
ok "a student comes nearer to its teacher than one that reads alone ($near, $far)" awk \
	'BEGIN { exit !('"$near < $far"') }'

# Stopping and going on
for mode in "--teacher model" "--topk 4"; do
	data=docs.jsonl
	[ "$mode" = "--topk 4" ] && data=four.jsonl
	rm -rf whole parts
	# shellcheck disable=SC2086
	{
		distill $mode -b 2 --seq 16 -n 9 -o whole $data > /dev/null
		distill $mode -b 2 --seq 16 -n 9 -o parts --stop-after 4 $data > /dev/null
		status "$mode: --resume" 0 distill $mode -b 2 --seq 16 -n 9 -o parts --resume $data
	}
	is "$mode: 9 = 4 + 5, in the middle of texts" "$(sums parts)" "$(sums whole)"
done
cat docs.jsonl | distill --teacher model -b 2 --seq 16 -n 9 -o stream > /dev/null
cat docs.jsonl | distill --teacher model -b 2 --seq 16 -n 9 -o stream2 --stop-after 4 > /dev/null
cat docs.jsonl | distill --teacher model -b 2 --seq 16 -n 9 -o stream2 --resume > /dev/null
is "from a pipe too" "$(sums stream2)" "$(sums stream)"

# Refusals
refuses "no teacher" 64 "who is the teacher" distill -n 1 -o no docs.jsonl
refuses "two of them" 64 "who is the teacher" distill --teacher model --topk 4 -n 1 -o no docs.jsonl
refuses "another vocabulary" 65 "vocab_size is 320, the student's is 330" distill \
	--set vocab_size=330 --teacher model -n 1 \
	-o no docs.jsonl
cp -r model stranger
sed 's/"ab"/"ab"/; s/"<|im_end|>"/"<|im_over|>"/g' tokenizer.json > stranger/tokenizer.json
sed 's/<|im_end|>/<|im_over|>/g' model/tokenizer_config.json > stranger/tokenizer_config.json
refuses "another tokenizer" 65 "tokenizer is another" distill --teacher stranger -n 1 \
	-o no docs.jsonl
refuses "too little for a packed teacher" 71 "use --teacher-ram" distill --teacher packed \
	--teacher-ram 500K --seq 64 -n 1 -o no docs.jsonl
refuses "a plain one cannot be limited" 71 "pack it with chr-pack" distill --teacher model \
	--teacher-ram 100K -n 1 -o no docs.jsonl
refuses "texts where candidates should be" 65 "chr-score --topk" distill --topk 4 -n 1 \
	-o no docs.jsonl
refuses "candidates for another temperature" 65 "made for --temperature 4" distill --topk 4 \
	--temperature 2 -n 1 -o no four.jsonl
bad()	# NAME PATTERN SED: the records so changed
{
	sed "$3" four.jsonl > bad.jsonl
	refuses "$1" 65 "bad.jsonl:1: .*$2" distill --topk 4 --seq 32 -n 1 -o no bad.jsonl
}
bad "a temperature in quotes" 'temperature" is not a number' 's/"temperature":[0-9.]*/"temperature":"4"/'
bad "no temperature" 'missing "temperature' 's/"temperature":[0-9.]*,//'
bad "one candidate without its list" 'not a list of lists' 's/"topk":\[\[[^]]*\]/"topk":[5/'
bad "a rest that is a text" 'topk_rest" holds' 's/"topk_rest":\[[^,]*/"topk_rest":["x"/'
refuses "more candidates than there are" 65 "has 4 entries" distill --topk 5 -n 1 -o no four.jsonl
refuses "sequences too long for the teacher" 64 "teacher's max_position_embeddings" \
	distill --set max_position_embeddings=4096 --seq 2048 --teacher model -n 1 -o no docs.jsonl
refuses "resuming with another divergence" 64 "kl is \"reverse\", but was \"forward\"" \
	distill --teacher model --kl reverse -b 2 --seq 64 -n 6 -o live --resume docs.jsonl
cp -r packed broken
for f in broken/*.ctsr; do
	size=$(wc -c < "$f")
	dd if=/dev/zero of="$f" bs=1 seek=$((size * 2 / 5)) count=$((size / 5)) conv=notrunc \
		2> /dev/null
done
refuses "a corrupt expert of the teacher" 65 "broken/.*expert" distill --teacher broken -n 2 -b 2 \
	--seq 64 -o no docs.jsonl
status "--dry-run" 0 sh \
	-c 'chr-distill -c small.json -t tokenizer.json --teacher packed --teacher-ram 4M --seq 64 --dry-run -o no docs.jsonl > plan'
ok "counts the teacher" awk \
	'match($0, /"teacher":[0-9]+/) { n = substr($0, RSTART + 10, RLENGTH - 10) } END { exit !(n + 0 > 3e6 && n + 0 < 12e6) }' plan
done_testing
