#!/bin/sh
# The training loop through chr-pretrain: resuming is exact, whatever stopped the run; checkpoints
# are whole; plans, refusals, evaluation.
. "$(dirname "$0")/lib.sh"
command -v chr-pretrain > /dev/null || skip_all "chr-pretrain is not built"
cd "$tmp" || exit 1

cat > config.json <<-END
	{"chronos_format": 2, "vocab_size": 288, "hidden_size": 16, "num_hidden_layers": 2,
	"num_attention_heads": 2,
	"num_key_value_heads": 1, "head_dim": 8, "moe_intermediate_size": 16, "num_experts": 4,
	"num_experts_per_tok": 2,
	"num_shared_experts": 1, "kv_latent_dim": 8, "rope_dim": 4, "sliding_window_size": 16,
	"max_position_embeddings": 64, "lookahead_steps": 2, "lambda_ahead": 0.2, "dropout": 0.1,
	"fallback_mask_prob": 0.2}
END
head -60 "$top/datasets/pretrain.jsonl" > docs.jsonl
head -9 "$top/datasets/heldout.jsonl" > heldout.jsonl
chr-tokenize -q --train -v 288 -o tokenizer.json docs.jsonl || exit 1

run="chr-pretrain -q -c config.json -t tokenizer.json -b 2 --seq 32"
pretrain()
{
	$run "$@"
}
sums()		# DIR: of the weights and of the whole resume state
{
	(cd "$1" && sha256sum model.safetensors optimizer.safetensors train_state.json)
}
same()		# NAME A B
{
	is "$1" "$(sums "$2")" "$(sums "$3")"
}
records()	# FILE TYPE: how many
{
	grep -c "\"type\":\"$2\"" "$1"
}
values()	# FILE KEY: one a line
{
	sed -n 's/.*"'"$2"'":\([^,}]*\).*/\1/p' "$1"
}
wait_for()	# FILE LINES PID: until the file has that many lines, while the process lives
{
	while [ "$(cat "$1" 2> /dev/null | wc -l)" -lt "$2" ] &&
		kill -0 "$3" 2> /dev/null; do sleep 0.02; done
}

# One go, and in pieces
status "20 steps" 0 sh -c '"$@" > one.log' sh chr-pretrain -q -c config.json -t tokenizer.json \
	-b 2 --seq 32 --accum 2 \
	-n 20 -o one docs.jsonl
is "a record per step" "$(records one.log step)" 20
is "the model directory" "$(ls one | tr '\n' ' ')" \
	"config.json model.safetensors optimizer.safetensors tokenizer.json tokenizer_config.json train_state.json "
status "10 of 20 steps: 75" 75 pretrain --accum 2 -n 20 --stop-after 10 -o two docs.jsonl
ok "leave a checkpoint" test -f two/checkpoint-10/train_state.json
status "--resume" 0 pretrain --accum 2 -n 20 -o two --resume docs.jsonl
same "20 = 10 + 10" one two
status "--resume of a finished run" 0 pretrain --accum 2 -n 20 -o two --resume docs.jsonl
same "changes nothing" one two
status "a third of the work on one thread" 0 pretrain -j 1 --accum 2 -n 20 -o threads docs.jsonl
same "same bytes for -j 1" one threads
status "-j 2" 0 pretrain -j 2 --accum 2 -n 20 --force -o threads docs.jsonl
same "same bytes for -j 2" one threads
status "BF16 weights, stopped" 75 pretrain --dtype bf16 -n 8 --stop-after 3 -o half docs.jsonl
pretrain --dtype bf16 -n 8 -o half --resume docs.jsonl > /dev/null
pretrain --dtype bf16 -n 8 -o whole docs.jsonl > /dev/null
same "BF16 weights resume exactly too" half whole


# Products of BF16 values
status "--compute bf16, stopped" 75 pretrain --compute bf16 -n 8 --stop-after 3 -o narrow docs.jsonl
pretrain --compute bf16 -n 8 -o narrow --resume docs.jsonl > /dev/null
pretrain -j 1 --compute bf16 -n 8 -o narrow1 docs.jsonl > /dev/null
same "--compute bf16 resumes exactly, on another number of threads" narrow1 narrow
pretrain -n 8 -o wide docs.jsonl > /dev/null
ok "and is not f32" test "$(sums narrow)" != "$(sums wide)"
status "--resume with another --compute" 64 pretrain -n 8 -o narrow --resume docs.jsonl

# Activations computed again
status "--recompute" 0 sh -c '"$@" > /dev/null' sh chr-pretrain -q -c config.json \
	-t tokenizer.json -b 2 --seq 32 --accum 2 \
	-n 20 --recompute -o again docs.jsonl
same "--recompute changes no byte" one again
plan()
{
	pretrain --set num_hidden_layers=8 --dry-run "$@" docs.jsonl |
		sed 's/.*"total":\([0-9]*\).*/\1/'
}
ok "and needs less memory" test "$(plan -b 8 --recompute)" -lt "$(plan -b 8)"

# A profile changes nothing, and its parts are the whole
status "--profile" 0 sh -c '"$@" > profile.log' sh chr-pretrain -q -c config.json \
	-t tokenizer.json -b 2 --seq 32 --accum 2 \
	-n 20 --profile -o profiled docs.jsonl
same "--profile changes no byte" one profiled
is "one profile" "$(records profile.log profile)" 1
ok "experts are a part of it" grep \
	-q '"part":"experts, backward","share":[0-9.e-]*,"seconds":[0-9.e-]*,"cpu_seconds":[0-9.e-]*,"gflop"' profile.log
is "shares add up to 1" "$(sed -n '/"type":"profile"/s/"share":/\n/gp' profile.log |
	sed -n '2,$s/[,}].*//p' |
	awk '{ s += $1 } END { printf "%.3f", s }')" 1.000

# From a pipe: starts and stops with it, resumes when it brings the same records again
cat docs.jsonl | pretrain -n 12 -o pipe > /dev/null
cat docs.jsonl | pretrain -n 12 -o pipe2 --stop-after 5 > /dev/null
is "a pipe, stopped: 75" $? 75
cat docs.jsonl | pretrain -n 12 -o pipe2 --resume > /dev/null
same "a pipe resumes exactly" pipe pipe2
mkfifo fifo
$run -n 1000 -o waiting < fifo > waiting.log 2>&1 &
pid=$!
{ head -5 docs.jsonl; wait_for waiting.log 3 $pid; sleep 0.5; kill \
	-TERM $pid; sleep 5; } > fifo 2> /dev/null &
feeder=$!
wait $pid
is "stopped while the pipe has no records: 75" $? 75
kill $feeder 2> /dev/null
ok "with a checkpoint" test -n "$(ls -d waiting/checkpoint-*)"

# Signals. The records go through a pipe that holds some hundred of them, so the run cannot end
# before it is read.
mkfifo steps
start()		# OPTIONS...: a run whose records come on descriptor 3
{
	$run -n 400 "$@" docs.jsonl > steps 2>> noise &
	pid=$!
	exec 3< steps
}
skip_lines()
{
	i=0
	while [ $i -lt "$1" ] && read -r _ <&3; do i=$((i + 1)); done
}
pretrain -n 400 -o calm docs.jsonl > calm.log
start -o term
skip_lines 5
kill -USR1 $pid
while [ -z "$(ls -d term/checkpoint-* 2> /dev/null)" ] && read -r _ <&3; do :; done
ok "SIGUSR1 makes a checkpoint" test -n "$(ls -d term/checkpoint-*)"
kill -TERM $pid
cat <&3 > rest
wait $pid
is "SIGTERM: 75" $? 75
pretrain -n 400 -o term --resume docs.jsonl > /dev/null
same "nothing is lost by a signal" calm term

for lines in 1 9 4 14 6; do
	start -o kill --save-every 1 --resume
	skip_lines $lines
	kill -KILL $pid
	wait $pid 2> /dev/null
done
exec 3<&-
pretrain -n 400 -o kill --resume docs.jsonl > kill.log
same "nothing is lost by kill -9" calm kill
is "no more than two checkpoints, no leftovers" "$(find kill -name "*checkpoint*" | wc -l)" 2
ok "the kills went on, not back" test "$(head -1 kill.log | values /dev/stdin step)" -gt 29

# What a step is
cat > one-batch.jsonl <<-END
	{"text":"the boat went round the long bend of the river"}
END
status "one batch, 120 times" 0 sh -c '"$@" > fit.log' sh chr-pretrain -q -c config.json \
	-t tokenizer.json -b 1 \
	--seq 64 -n 120 -l 2e-2 --dropout 0 --fallback-mask-prob 0 -o fit one-batch.jsonl
ok "is learned by heart" awk 'BEGIN { exit !('"$(values fit.log base | tail -1)"' < 0.2) }'
pretrain --epochs 1 --accum 3 -o left docs.jsonl > left.log
pretrain --epochs 1 -o left1 docs.jsonl > left1.log
is "leftover micro-batches make a step" "$(records left.log step)" \
	$((($(records left1.log step) + 2) / 3))
is "of all tokens" "$(values left.log tokens | tail -1)" "$(values left1.log tokens | tail -1)"
pretrain --set lambda_balance=0 --dropout 0 --fallback-mask-prob 0 -b 4 -n 3 \
	-o big docs.jsonl > big.log
pretrain --set lambda_balance=0 --dropout 0 --fallback-mask-prob 0 -b 1 --accum 4 -n 3 \
	-o small docs.jsonl > small.log
is "four micro-batches are one of four" "$(values small.log base | cut -c 1-6)" \
	"$(values big.log base | cut -c 1-6)"
status "a pipe without -n" 0 sh -c 'head -20 docs.jsonl | "$@"' sh chr-pretrain -q -c config.json \
	-t tokenizer.json \
	--seq 32 -o once
is "lookahead recall, baseline, load" \
	"$(tail -1 one.log | grep -o -e '"recall[12][_whole]*":0' -e '"repeat[12][_whole]*":0' \
	-e '"overlap":0' -e '"load_entropy":0' | wc -l)" 10

is "recall one layer ahead" \
	"$(tail -1 one.log | grep -o -e '"ahead":[1-9]' -e '"recall_gate[_whole]*":0' | wc -l)" 3
pretrain --set lambda_ahead=0 -n 2 -o unforeseen docs.jsonl > unforeseen.log
ok "is not looked at without its weight" sh \
	-c 'grep -q "\"ahead\":0.0," unforeseen.log && ! grep -q recall_gate unforeseen.log'
pretrain --set lambda_ahead=2 --seq 64 -l 1e-2 -n 60 --eval heldout.jsonl \
	-o foreseen docs.jsonl > foreseen.log
ok "rises when it weighs more" awk 'BEGIN { exit !('"$(values foreseen.log recall_gate |
	tail -1)"' > \
	'"$(values foreseen.log recall_gate | head -1)"') }'

# Evaluation, gradients, plan
pretrain -n 6 --eval heldout.jsonl --eval-every 2 -o eval docs.jsonl > eval.log
is "an evaluation every two steps" "$(values eval.log step | tr '\n' ' ')" "1 2 2 3 4 4 5 6 6 "
is "that learns" \
	"$(values eval.log perplexity | awk 'NR > 1 &&
		$1 >= last { bad = 1 } { last = $1 } END { print bad + 0 }')" 0
pretrain -n 6 -o blind docs.jsonl > /dev/null
same "that changes nothing" eval blind
# The best model is kept, and the run ends when no better one comes (a learning rate that forgets)
best="--keep-best base --patience 2 --eval heldout.jsonl --eval-every 2 -n 40 -l 0.3"
status "--keep-best, --patience" 0 sh -c '"$@" > best.log' sh $run $best -o best docs.jsonl
is "begins with the starting model" "$(head -1 best.log | cut -d, -f 1-3)" \
	'{"type":"eval","stage":"pretrain","step":0'
top_step=$(grep '"best":true' best.log | tail -1 | values /dev/stdin step)
is "ends two evaluations after the best" \
	"$(tail -1 best.log | values /dev/stdin step)" $((top_step + 4))
is "the best is the lowest" "$(grep '"eval"' best.log | values /dev/stdin base | sort -n |
	head -1)" \
	"$(grep '"best":true' best.log | tail -1 | values /dev/stdin base)"
is "the result is that of the best step" \
	"$(grep -o '"step": [0-9]*,' best/train_state.json | head -1)" "\"step\": $top_step,"
until pretrain $best -o best2 --resume --stop-after 3 docs.jsonl > best2.log; do :; done
same "in pieces too" best best2
same "with its last checkpoint" best/checkpoint-$((top_step + 4)) best2/checkpoint-$((top_step + 4))
status "--resume of it" 0 pretrain $best -o best --resume docs.jsonl
same "changes nothing" best best2
status "--grad-dump" 0 pretrain --grad-dump grad.safetensors docs.jsonl
is "has every parameter" "$(head -c 20000 grad.safetensors | grep -ao '"dtype"' | wc -l)" \
	"$(head -c 20000 blind/model.safetensors | grep -ao '"dtype"' | wc -l)"
status "--dry-run" 0 sh -c '"$@" > plan 2> /dev/null' sh chr-pretrain -c config.json \
	-t tokenizer.json --dry-run -o no docs.jsonl
ok "prints the plan" grep -q '^{"type":"mem_plan","total":[0-9]*,"items":{.*"optimizer"' plan
ok "and makes nothing" test ! -e no
plan=$(values plan total)
chr-pretrain -q -c config.json -t tokenizer.json --ram "$plan" -n 5 --save-every 1 \
	--eval heldout.jsonl -o planned docs.jsonl > planned.log
if [ "$bld" = "$top/build" ]; then
	ok "which a run keeps to" [ "$(values planned.log mem_bytes | sort -n | tail -1)" \
		-le "$plan" ]
else
	skip "which a run keeps to" "a sanitizer takes memory of its own"
fi
status "a plan above --ram: 71" 71 pretrain --ram 100K -o no docs.jsonl

# From a model on
status "-m with a router anchor" 0 sh -c '"$@" > anchor.log' sh chr-pretrain -q -m one --seq 32 \
	-b 2 -n 2 -o onward \
	--anchor-lambda 0.1 --dropout 0 --fallback-mask-prob 0 docs.jsonl
is "the anchor starts at nothing" "$(values anchor.log anchor | head -1)" 0.0
ok "and pulls" awk 'BEGIN { exit !('"$(values anchor.log anchor | tail -1)"' > 0) }'
is "two ancestors" "$(head -c 8000 onward/model.safetensors | grep -ao 'program' | wc -l)" 2

# Refusals
refuses()	# NAME STATUS PATTERN COMMAND...
{
	name=$1 want=$2 pattern=$3
	shift 3
	status "$name: $want" "$want" "$@"
	"$@" > why 2>&1
	ok "and says why" grep -q -e "$pattern" why
}
{ head -2 docs.jsonl; echo '{"no":[]}'; echo '{"text":'; sed -n 3,20p docs.jsonl; } > bad.jsonl
refuses "a bad record" 65 "bad.jsonl:3: " pretrain -n 1 -o no bad.jsonl
mkdir busy
status "--skip-bad" 0 pretrain -n 1 --skip-bad -o skipped bad.jsonl
refuses "a vocabulary that is too small" 65 "vocab_size" pretrain --set vocab_size=280 \
	-o no docs.jsonl
refuses "a model in the way" 73 "holds a model" pretrain -n 1 -o one docs.jsonl
refuses "resuming with another batch" 64 "batch is 4, but was 2" pretrain --accum 2 -b 4 -n 20 \
	-o two --resume docs.jsonl
refuses "resuming with another configuration" 64 "config.json" pretrain --set lambda_balance=1 \
	--accum 2 -n 20 -o two \
	--resume docs.jsonl
refuses "resuming with other data" 64 "documents is" pretrain --accum 2 -n 20 -o two \
	--resume heldout.jsonl
refuses "a measure there is not" 64 "nosuch" pretrain --keep-best nosuch --eval heldout.jsonl \
	-o no2 docs.jsonl
refuses "--keep-best without --eval" 64 "--eval" pretrain --keep-best loss -o no docs.jsonl
refuses "no configuration" 64 "-c FILE" chr-pretrain -q -o no docs.jsonl
refuses "nowhere to write" 64 "-o DIR" pretrain docs.jsonl
refuses "two runs in one directory" 73 "another" flock busy $run -n 1 -o busy docs.jsonl
refuses "a loss that is not finite" 65 "step [0-9]*" pretrain -l 100 --clip 0 --warmup 1 \
	--weight-decay 10 -n 400 --force \
	-o no docs.jsonl
done_testing
