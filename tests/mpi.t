#!/bin/sh
# Several ranks, under mpirun: n ranks with batch b are one rank with batch n*b; checkpoints do not
# tell how many there were; signals and deaths; records come out in their order.
. "$(dirname "$0")/lib.sh"

status "a launcher that MPI knows nothing of: no n silent copies" 69 \
	env SLURM_STEP_NUM_TASKS=2 chr-pretrain -q -c datasets/quickstart-config.json \
	-o "$tmp/none" datasets/pretrain.jsonl
status "of programs that run a model too" 69 env OMPI_COMM_WORLD_SIZE=2 SLURM_STEP_NUM_TASKS=3 \
	chr-score -m "$tmp/none"
have_ranks || { skip "all else" "no mpirun, or built without MPI"; done_testing; }
if [ -x "$bld/tests/comm" ]; then
	ok "sums, gathers and rows of four ranks" mpirun -n 4 "$bld/tests/comm"
	ok "of three" mpirun -n 3 "$bld/tests/comm"
fi
world "$tmp/w"
cd "$tmp/w" || exit 1

. "$top/tests/near.sh"

# same NAME COMMAND...: $ranks ranks with -b 4/$ranks and the options $more are one with -b 4
ranks=2
more=
same()
{
	same_name=$1
	shift
	rm -rf one two
	ok "$same_name: one rank" sh -c '"$@" -q -b 4 -o one > one.log' - "$@"
	ok "$same_name: $ranks ranks" sh -c 'n=$1; shift; mpirun -n $n "$@" > two.log' - $ranks \
		"$@" $more -q -b $((4 / ranks)) -o two
	ok "$same_name: the same losses" losses one.log two.log
	for f in one/*model*.safetensors one/optimizer.safetensors; do
		ok "$same_name: the same $(basename "$f" .safetensors)" near "$f" "two/${f#one/}"
	done
}

# The last micro-batch has rows for one of two ranks only.
head -9 datasets/pretrain.jsonl > few.jsonl
same pretrain chr-pretrain -c config.json -t tokenizer.json --set lambda_ahead=0.2 --seq 64 \
	--epochs 1 --accum 3 few.jsonl
same sft chr-sft -m model --seq 64 -n 3 --eval datasets/chat.jsonl --eval-batches 3 \
	--keep-best base --eval-every 2 \
	--freeze '*.mlp.gate.weight' datasets/chat.jsonl
same adapter chr-sft -m model --seq 64 -n 2 --lora-rank 2 datasets/chat.jsonl
same dpo chr-dpo -m model --seq 64 -n 3 --precompute-ref ref.safetensors datasets/prefs.jsonl
same orpo chr-orpo -m model --seq 64 -n 3 datasets/prefs.jsonl
same distill chr-distill -m model --teacher model --seq 64 -n 3 datasets/chat.jsonl
same grpo chr-grpo -m model --seq 64 --new 8 --epochs 1 -G 2 --iterations 2 --accum 7 \
	--scale-rewards batch --reward toy \
	datasets/prompts.jsonl

# Half of the experts on each rank; of four ranks, two pairs. The last micro-batch is of the first
# rank alone, whose rows the others' experts get all the same.
more="--expert-parallel 2"
same "divided experts" chr-pretrain -c config.json -t tokenizer.json --set lambda_ahead=0.2 \
	--seq 64 --epochs 1 --accum 3 few.jsonl
same "recomputed" chr-pretrain -c config.json -t tokenizer.json --seq 64 -n 2 --recompute \
	--fallback-mask-prob 0.3 few.jsonl
# Two experts for two ranks, of which one has far more than its share: its rows come in rounds.
same "uneven" chr-pretrain -c config.json -t tokenizer.json --set num_experts=2 \
	--set num_experts_per_tok=1 --seq 64 -n 2 few.jsonl
# Biases of experts are in every rank, which adds to those of its own experts.
cat > oss.json <<-END
	{"model_type": "gpt_oss", $(grep -o '"vocab_size": *[0-9]*' config.json), "hidden_size": 32,
	"intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
	"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 256,
	"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}
END
same "divided, with biases" chr-pretrain -c oss.json -t tokenizer.json --seq 64 -l 0.01 --epochs 1 \
	--accum 3 few.jsonl
same "divided sft" chr-sft -m model --seq 64 -n 3 --eval datasets/chat.jsonl --eval-batches 3 \
	--anchor-lambda 0.1 datasets/chat.jsonl
same "divided adapter" chr-sft -m model --seq 64 -n 2 --lora-rank 2 datasets/chat.jsonl
rm -f ref.safetensors
same "divided dpo" chr-dpo -m model --seq 64 -n 3 --freeze '*.experts.*' \
	--precompute-ref ref.safetensors datasets/prefs.jsonl
rm ref.safetensors
ok "pairs that divided experts judge" sh \
	-c "mpirun -n 2 chr-dpo -q -m model --seq 64 -n 3 -b 2 --expert-parallel 2 -o two --force \
	--freeze '*.experts.*' --precompute-ref ref.safetensors datasets/prefs.jsonl > two.log"
ok "to the same" losses one.log two.log
same "divided orpo" chr-orpo -m model --seq 64 -n 3 --dtype bf16 datasets/prefs.jsonl
same "divided distill" chr-distill -m model --teacher model --seq 64 -n 3 datasets/chat.jsonl
# Routers that are foreseen past a dense layer: gradients are complete later.
same "dense between" chr-pretrain -c config.json -t tokenizer.json --set num_hidden_layers=4 \
	--set intermediate_size=48 \
	--set 'mlp_layer_types=["sparse","dense","sparse","sparse"]' --set layer_types=null \
	--set lambda_ahead=0.2 --seq 64 -n 2 few.jsonl
ranks=4
same "two pairs" chr-pretrain -c config.json -t tokenizer.json --seq 64 -n 3 --accum 2 few.jsonl
half() { mpirun -n 2 chr-pretrain -q -c config.json -t tokenizer.json --seq 64 -b 2 \
	--expert-parallel 2 "$@"; }
item() { sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p"; }
experts=$(chr-ls two/model.safetensors | sed -n 's/.*\.experts\..*"bytes":\([0-9]*\).*/\1/p' |
	awk '{ n += $1 } END { print n }')
all=$(mpirun -n 2 chr-pretrain -q -c config.json -t tokenizer.json --seq 64 -b 2 --dry-run \
	few.jsonl | item weights)
is "half of the experts' weights are planned" "$(half --dry-run few.jsonl | item weights)" \
	"$((all - experts / 2))"
half --grad-dump half.safetensors --freeze '*.mlp.gate.weight' few.jsonl
chr-pretrain -q -c config.json -t tokenizer.json --seq 64 -b 4 --grad-dump all.safetensors \
	--freeze '*.mlp.gate.weight' few.jsonl
is "what is frozen is not dumped" "$(chr-ls all.safetensors | grep -c mlp.gate.weight)" 0
ok "gradients of all experts are dumped" near all.safetensors half.safetensors
half -n 4 -o whole2 few.jsonl > whole2.log
status "divided experts: a stop" 75 half -n 4 -o parts2 --stop-after 2 few.jsonl
cp -R parts2 other
ok "and on" half -n 4 -o parts2 --resume few.jsonl
for f in model optimizer; do
	ok "to the same $f, to the bit" sh \
		-c "[ \"\$1\" = 'largest difference 0' ]" \
		- "$(near whole2/$f.safetensors parts2/$f.safetensors)"
done
ok "and on by one rank with all" chr-pretrain -q -c config.json -t tokenizer.json --seq 64 -b 4 \
	-n 4 -o other --resume few.jsonl
ok "to the same" near whole2/model.safetensors other/model.safetensors
status "one rank has nobody to share with" 64 chr-pretrain -q -c config.json -t tokenizer.json \
	--expert-parallel 2 -o no few.jsonl
status "three experts each do not go" 64 mpirun -n 3 chr-pretrain -q -c config.json \
	-t tokenizer.json --expert-parallel 3 -o no few.jsonl
status "nor pairs of three" 64 mpirun -n 3 chr-pretrain -q -c config.json -t tokenizer.json \
	--expert-parallel 2 -o no few.jsonl
status "an adapter for divided experts" 64 mpirun -n 2 chr-sft -q -m model --expert-parallel 2 \
	--lora-rank 2 --lora-target '*.experts.*' \
	-o no datasets/chat.jsonl
status "some experts frozen" 64 mpirun -n 2 chr-sft -q -m model --expert-parallel 2 \
	--freeze '*.experts.1.*' -o no datasets/chat.jsonl
status "rollouts need all experts" 64 mpirun -n 2 chr-grpo -q -m model --expert-parallel 2 \
	--reward toy -o no datasets/prompts.jsonl

# An optimizer in two parts, a checkpoint in one.
train() { chr-pretrain -q -c config.json -t tokenizer.json --seq 32 -n 6 \
	"$@" datasets/pretrain.jsonl; }
two() { mpirun -n 2 chr-pretrain -q -c config.json -t tokenizer.json --seq 32 -b 2 -n 6 "$@"; }
moments() { "$@" --dry-run 2> /dev/null | sed -n 's/.*"optimizer":\([0-9]*\).*/\1/p'; }
is "each of two ranks plans half of the moments" "$((2 * $(moments two few.jsonl)))" \
	"$(moments train)"
two -o whole datasets/pretrain.jsonl > whole.log
status "two ranks stop" 75 two -o parts --stop-after 3 datasets/pretrain.jsonl
cp -R parts fewer
ok "and go on" two -o parts --resume datasets/pretrain.jsonl
for f in model optimizer; do
	ok "with the same $f, to the bit" sh \
		-c "[ \"\$1\" = 'largest difference 0' ]" \
		- "$(near whole/$f.safetensors parts/$f.safetensors)"
done
ok "what two ranks left, one goes on with" train -b 4 -o fewer --resume
ok "and comes to the same" near whole/model.safetensors fewer/model.safetensors
status "one rank stops" 75 train -b 4 -o more --stop-after 3
ok "what it left, two go on with" two -o more --resume datasets/pretrain.jsonl
ok "and come to the same" near whole/model.safetensors more/model.safetensors
status "another global batch is another run" 64 two -o more --resume -b 3 datasets/pretrain.jsonl
is "which one line says" "$(grep -c 'batch is 6, but was 4' "$tmp/log")" 1
ok "a pipe" sh \
	-c 'mpirun -n 2 chr-pretrain -q -c config.json -t tokenizer.json --seq 32 -b 2 -n 6 -o pipe2 \
	< datasets/pretrain.jsonl > pipe2.log'
ok "is read by one rank for all" sh \
	-c 'chr-pretrain -q -c config.json -t tokenizer.json --seq 32 -b 4 -n 6 -o pipe1 \
	datasets/pretrain.jsonl --no-shuffle > pipe1.log'
status "no such file" 66 two -o nowhere nosuch.jsonl
is "one rank says so" "$(grep -c nosuch.jsonl "$tmp/log")" 1

# Ranks divide the reading of files, and say of them what one says.
ok "two ranks with little of the data in memory" two -o little --data-ram 3K datasets/pretrain.jsonl
for f in model optimizer; do
	ok "have the same $f, to the bit" sh \
		-c "[ \"\$1\" = 'largest difference 0' ]" \
		- "$(near whole/$f.safetensors little/$f.safetensors)"
done
(cat datasets/pretrain.jsonl; echo '{"messages":[]}'; cat datasets/pretrain.jsonl; echo nonsense) \
	> bad.jsonl
train() { chr-pretrain -q -c config.json -t tokenizer.json --seq 32 -n 1 "$@" bad.jsonl; }
train -b 4 -o no 2> one.err
status "a bad record for two ranks" 65 two -n 1 -o no bad.jsonl
is "is told once, as by one" "$(grep "^chr-pretrain: " "$tmp/log")" "$(cat one.err)"
train -b 4 -o skip1 --skip-bad 2> one.err > one.log
two -n 1 -o skip2 --skip-bad bad.jsonl 2> two.err > two.log
is "those passed over are counted once, too" "$(grep "^chr-pretrain: bad.jsonl: 2 " two.err)" \
	"$(grep ": 2 " one.err)"
ok "and the others learned from" near skip1/model.safetensors skip2/model.safetensors
# reads FILE: what the second of two ranks reads to open it, its libraries and all
reads()
{
	# shellcheck disable=SC2016
	mpirun -n 2 sh \
		-c '"$@" > /dev/null; [ "$OMPI_COMM_WORLD_RANK" = 0 ] ||
			sed -n "s/rchar: //p" /proc/$$/io > rank1.io' - \
		chr-pretrain -q -c config.json -t tokenizer.json --seq 32 -b 2 -n 1 \
		--dry-run "$1" && cat rank1.io
}
for _ in 1 2 3 4 5; do cat datasets/pretrain.jsonl; done > five.jsonl
size=$(wc -c < five.jsonl)
if [ -r /proc/self/io ]; then
	few=$(reads few.jsonl) all=$(reads five.jsonl)
	ok "a rank reads its half of a file" [ $((all - few)) -gt $((size * 4 / 10)) \
		-a $((all - few)) -lt $((size * 6 / 10)) ]
else
	skip "a rank reads its half of a file" "no /proc/self/io"
fi

# A reward's command must not believe that it is one of the ranks.
cat > alone <<-'END'
	#!/bin/sh
	while read -r line; do echo "${OMPI_COMM_WORLD_SIZE:-0}"; done
END
chmod +x alone
ok "what a rank starts runs by itself" sh \
	-c "mpirun -n 2 chr-grpo -q -m model --seq 64 --new 4 -b 1 -n 1 -G 2 \
	--reward ./alone -o alone.out datasets/prompts.jsonl | grep -q '\"reward\":0.0,'"

# long NAME: starts two ranks that train without end; $ranks are their process ids, $job that of
# mpirun
long()
{
	two --epochs 1000 -n 0 --save-every 2 -o "$1" datasets/pretrain.jsonl \
		> "$1.log" 2> "$1.err" &
	sleep 0.2
	for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
		[ "$(grep -c '"step"' "$1.log")" -ge 3 ] && break
		sleep 0.5
	done
	job=$!
	ranks=$(ps -e -o pid= -o args= | awk -v out="-o $1 " \
		'/ chr-pretrain|^ *[0-9]+ chr-pretrain/ && index($0, out) &&
		!/mpirun/ { print $1 }')
}
long stop
kill -TERM "$(echo "$ranks" | tail -1)"
wait $job
is "a stop signal to one rank stops both, with a checkpoint" "$?" 75
is "of the last step" "$(cd stop && printf '%s\n' checkpoint-* | sort -V |
	tail -1)" "checkpoint-$(grep -c '"step"' stop.log)"
long dead
kill -KILL "$(echo "$ranks" | tail -1)"
wait $job
is "a rank that is killed ends the job" "$(($? > 0))" 1
ok "which mpirun tells" grep -q 'signal 9' dead.err
ok "checkpoints are whole" sh \
	-c 'for c in dead/checkpoint-*; do chr-ls -q --check "$c" > /dev/null || exit 1; done'
status "and the run goes on" 75 two -n 0 --epochs 1000 --save-every 2 -o dead --resume \
	--stop-after 1 datasets/pretrain.jsonl

# Records are dealt, results are in order.
both()
{
	both_name=$1
	shift
	"$@" 2> log | sed 's/,"timing.*//; s/,"seconds.*//' > one.jsonl
	mpirun -n 2 "$@" 2> log | sed 's/,"timing.*//; s/,"seconds.*//' > two.jsonl
	ok "$both_name: two ranks write what one does" sh \
		-c '[ -s one.jsonl ] && cmp one.jsonl two.jsonl'
}
both actlog chr-actlog -q -m model in.jsonl
both "actlog of a packed model" chr-actlog -q -m packed --generate 3 in.jsonl
both score chr-score -q -m model datasets/heldout.jsonl
both generate chr-generate -q -m model -n 6 -b 2 datasets/prompts.jsonl
ok "from a pipe, as text" sh \
	-c 'chr-generate -q -m model -n 6 --raw < datasets/prompts.jsonl > one.txt &&
	mpirun -n 2 chr-generate -q -m model -n 6 --raw < datasets/prompts.jsonl > two.txt &&
		[ -s one.txt ] && cmp one.txt two.txt'
(head -3 in.jsonl; echo nonsense; head -2 in.jsonl) > bad.jsonl
status "a bad record" 65 sh -c 'mpirun -n 2 chr-score -m model bad.jsonl > bad.out'
is "one line says which" "$(grep -c 'bad.jsonl:4' "$tmp/log")" 1
is "those before it are there" "$(wc -l < bad.out)" 3
status "one prompt needs one process" 64 mpirun -n 2 chr-generate -m model -p x
done_testing
