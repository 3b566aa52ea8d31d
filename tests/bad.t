#!/bin/sh
# Steps that must not be taken: a loss that is not finite, for real (an infinite weight, a learning
# rate too high), and a loss that jumps. The records are named and dumped; such steps can be
# skipped.
. "$(dirname "$0")/lib.sh"
command -v chr-pretrain > /dev/null || skip_all "chr-pretrain is not built"
cd "$tmp" || exit 1

# Token 250 is in the 17th and 18th document only, and its embedding becomes infinite.
rare config.json 'i == 17 || i == 18'
run="chr-pretrain -q -j 1 -b 1 --seq 32 --no-shuffle --epochs 1"
$run -c config.json -n 1 -o model docs.jsonl > start.log || exit 1
infinite model

sums()
{
	(cd "$1" && sha256sum model.safetensors optimizer.safetensors train_state.json)
}
stops()		# NAME STATUS PATTERN COMMAND...: with one line on stderr that says this
{
	name=$1 want=$2 pattern=$3
	shift 3
	"$@" > out.log 2> why
	is "$name: $want" $? "$want"
	ok "and says why" sh -c '[ $(wc -l < why) = 1 ] && grep -q -e "$1" why' sh "$pattern"
}

stops "an infinite weight stops the run" 65 \
	"step 17, micro-batch 1 of 1: the loss is not finite (-*nan); records docs.jsonl:17$" \
	$run -m model -o one --dump-bad bad.jsonl docs.jsonl
is "after sixteen steps" "$(wc -l < out.log)" 16
is "the batch is dumped" "$(wc -l < bad.jsonl)" 1
is "as the record that it is" "$(grep -o '"tokens":\[[^]]*\]' bad.jsonl)" \
	"$(sed -n 17p docs.jsonl | grep -o '"tokens":\[[^]]*\]')"
ok "and named" grep \
	-q '"type":"bad_batch","step":17,"micro_batch":1,"row":0,"source":"docs.jsonl:17"' bad.jsonl
is "of which all but the first is to be predicted" "$(grep -o '"mask":.*' bad.jsonl | tr -cd 01)" \
	"0$(printf %031d 0 | tr 0 1)"
status "chr-score refuses what is not finite" 65 sh -c 'chr-score -q -m model bad.jsonl > score.log 2> score.err'
ok "and says where" grep -q 'bad.jsonl:1: .*not finite' score.err
stops "of a pipe, the line" 65 "records <stdin>:17$" sh -c 'cat docs.jsonl | "$@"' sh $run \
	-m model -o piped
stops "in a step of micro-batches, those of the bad one" 65 \
	"step 6, micro-batch 2 of 3: .*; records docs.jsonl:17$" \
	$run -m model -o three --accum 3 docs.jsonl
stops "in a batch, all of it" 65 \
	"step 2, .*; records docs.jsonl:14, docs.jsonl:15, docs.jsonl:16, docs.jsonl:17 and 9 more$" \
	$run -m model -o batch -b 13 --dump-bad batch.jsonl docs.jsonl
is "and the dump has all of them" "$(wc -l < batch.jsonl)" 13
stops "a dump that cannot be written" 73 "nowhere/bad.jsonl: No such file" $run -m model -o no \
	--dump-bad nowhere/bad.jsonl docs.jsonl
stops "a full disk" 74 "/dev/full: " $run -m model -o no2 --dump-bad /dev/full docs.jsonl

# Skipping
stops "--skip-nonfinite 1, two in a row" 65 \
	"step 18, " sh -c '"$@" 2> both; s=$?; tail -1 both >&2; exit $s' sh \
	$run -m model -o skip1 --skip-nonfinite 1 docs.jsonl
ok "the first was skipped" grep -q "step 17, .*; skipped, 1 in a row" both
status "--skip-nonfinite 2" 0 sh -c '"$@" > skip.log 2> both' sh $run -m model -o skip \
	--skip-nonfinite 2 --dump-bad two.jsonl docs.jsonl
is "every step has a record" "$(wc -l < skip.log)" 40
is "without a loss for those two" "$(grep -c '"loss":null' skip.log)" 2
is "counted" "$(sed -n 's/.*"skipped":\([0-9]*\).*/\1/p' skip.log | uniq -c | tr -s ' \n' ' ')" \
	" 16 0 1 1 23 2 "
is "both dumped" "$(grep -o '"source":"[^"]*"' two.jsonl | tr '\n' ' ')" \
	'"source":"docs.jsonl:17" "source":"docs.jsonl:18" '
is "nothing else became infinite" "$(chr-ls --check skip/optimizer.safetensors |
	grep -c '"bad":0')" 1
for n in 17 18 30; do
	$run -m model -o pieces$n --skip-nonfinite 2 --stop-after $n docs.jsonl > noise 2>&1
	$run -m model -o pieces$n --skip-nonfinite 2 --resume docs.jsonl > noise 2>&1
	is "stopped after step $n and resumed: the same bytes" \
		"$(sums pieces$n | sed 's/pieces[0-9]*//')" "$(sums skip)"
done
stops "a learning rate that is too high" 65 "not finite.*; records docs.jsonl:" $run \
	-c config.json -l 100 --clip 0 --warmup 1 \
	--weight-decay 10 --epochs 20 -o high docs.jsonl

# A jump: thirty times the same document, then another
{ for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 \
	30; do sed -n 1p docs.jsonl; done
	sed -n 2,9p docs.jsonl; } > jump.jsonl
status "nobody minds" 0 $run -c config.json -l 2e-2 -o jump0 jump.jsonl
stops "--max-spike" 65 "step 31: the loss is .*--max-spike); records jump.jsonl:31$" $run \
	-c config.json -l 2e-2 -o jump --max-spike 2 \
	--dump-bad jumped.jsonl --save-every 10 jump.jsonl
ok "dumped" grep -q '"source":"jump.jsonl:31"' jumped.jsonl
stops "resumed it stops there again" 65 "step 31: " $run -c config.json -l 2e-2 -o jump \
	--max-spike 2 --resume jump.jsonl
status "without the limit it goes on" 0 $run -c config.json -l 2e-2 -o jump --resume jump.jsonl

# Every stage knows which record a row is of: each says its own line number
chr-tokenize -q --train -v 288 -o tokenizer.json "$top/datasets/pretrain.jsonl" || exit 1
chr-pretrain -q -c config.json --set vocab_size=288 -t tokenizer.json -n 1 -b 1 --seq 32 -o base \
	"$top/datasets/pretrain.jsonl" > noise
marks
names_own chr-sft chat.jsonl chr-sft -m base -b 3
names_own chr-dpo prefs.jsonl chr-dpo -m base -b 3
names_own "chr-grpo, in the second step of a rollout" prefs.jsonl chr-grpo -m base -b 3 -G 2 \
	--new 4 --reward toy --iterations 2
done_testing
