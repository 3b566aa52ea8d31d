#!/bin/sh
# chr-grpo: rewards rise, resuming is exact (also in the middle of iterations), rewards that fail
# stop the run, routing.
. "$(dirname "$0")/lib.sh"
world "$tmp/w"
cd "$tmp/w" || exit 1
head -12 datasets/prompts.jsonl > prompts.jsonl
tail -4 datasets/prompts.jsonl > held.jsonl

run="chr-grpo -q -m model -b 2 -G 4 --seq 96 --new 12 -l 2e-3"
grpo()
{
	$run "$@"
}
values()	# FILE KEY [TYPE]: one a line
{
	grep "\"type\":\"${3:-step}\"" "$1" | sed -n 's/.*"'"$2"'":\([^,}]*\).*/\1/p'
}
same()		# NAME A B
{
	is "$1" "$(cd "$2" && sha256sum model.safetensors optimizer.safetensors train_state.json)" \
		"$(cd "$3" && sha256sum model.safetensors optimizer.safetensors train_state.json)"
}
zero()		# FILE KEY: in every record
{
	[ -n "$(values "$1" "$2")" ] && [ "$(values "$1" "$2" | sort -u)" = 0.0 ]
}

# Learning
status "30 steps towards common words" 0 sh -c '"$@" > toy.log' sh $run -b 3 -G 6 -n 30 -l 5e-3 \
	--reward toy -o toy \
	prompts.jsonl
ok "raise the reward" awk \
	'NR <= 5 { a += $1 } NR > 25 { b += $1 } END { print a / 5, b / 5;
	exit !(b / 5 > a / 5 + 0.1) }' <<-END
	$(values toy.log reward)
END
ok "with routing as it was in sampling" zero toy.log router_disagreement
ok "and away from the start" awk 'END { exit !($1 > 0.001) }' <<-END
	$(values toy.log kl)
END
ok "from which the first step did not stray" test "$(values toy.log kl | head -1)" = 0.0

# The same for a seed, however it is cut up
grpo -n 6 --reward toy -o one prompts.jsonl > one.log
grpo -n 6 --reward toy -o two -j 1 --parallel 3 prompts.jsonl > two.log
same "the same bytes on one thread, three at a time" one two
status "4 of 6 steps: 75" 75 grpo -n 6 --reward toy -o cut --stop-after 4 prompts.jsonl
status "--resume" 0 grpo -n 6 --reward toy -o cut --resume prompts.jsonl
same "4 + 2 = 6" one cut
cat prompts.jsonl | grpo -n 3 --reward toy -o pipe > pipe.log
is "prompts from a pipe" "$(values pipe.log step | wc -l)" 3
grpo -n 8 --iterations 2 --reward toy -o twice prompts.jsonl > twice.log
grpo -n 8 --iterations 2 --reward toy -o twice2 --stop-after 3 \
	--save-every 1 prompts.jsonl > twice2.log
is "stopped in the middle of a rollout: 75" $? 75
is "after its last step" "$(ls -d twice2/checkpoint-* | tr '\n' ' ')" \
	"twice2/checkpoint-2 twice2/checkpoint-4 "
grpo -n 8 --iterations 2 --reward toy -o twice2 --resume prompts.jsonl > /dev/null
same "resumes exactly" twice twice2
ok "the second step on a rollout has its rewards" test \
	"$(values twice.log reward | sed -n 1p)" = "$(values twice.log reward | sed -n 2p)"
grpo -n 1 --set lambda_balance=0 --reward toy -o big prompts.jsonl > big.log
grpo -n 1 --set lambda_balance=0 --accum 2 -b 1 --reward toy -o small prompts.jsonl > small.log
is "two micro-batches are one of two" "$(values small.log reward) $(values small.log grad_norm |
	cut -c 1-6)" \
	"$(values big.log reward) $(values big.log grad_norm | cut -c 1-6)"
grpo --epochs 1 -b 5 --iterations 2 --reward toy -o all prompts.jsonl > all.log
is "all prompts, each rollout twice" "$(values all.log step | tail -1)" 6
head -3 prompts.jsonl | grpo -b 1 --accum 2 --iterations 2 --reward toy -o left > left.log
is "what is left over makes steps of its own" "$(values left.log completion_tokens | wc -l)" 4

# Routing without replay, once weights have moved; LoRA; no reference
grpo -n 8 --iterations 4 -l 2e-2 --no-replay-routing --reward toy -o own prompts.jsonl > own.log
ok "without replay, experts differ from those of sampling" awk \
	'{ s += $1 } END { exit !(s > 0) }' <<-END
	$(values own.log router_disagreement)
END
grpo -n 8 --iterations 4 -l 2e-2 --reward toy -o replay prompts.jsonl > replay.log
ok "with it they do not" zero replay.log router_disagreement
ok "though the router would have it" awk '{ s += $1 } END { exit !(s > 0) }' <<-END
	$(values replay.log router_moved)
END
status "an adapter, no reference" 0 sh -c '"$@" > lora.log' sh $run -n 2 --lora-rank 2 --beta 0 \
	--anchor-lambda 0 \
	--reward toy --length-norm dapo --mask-overlong -o lora prompts.jsonl
is "no KL then" "$(values lora.log kl)" ""

# Rewards
status "several, weighted" 0 sh -c '"$@" > several.log' sh $run -n 2 --reward toy \
	--reward 'while read -r l; do echo 2; done' \
	--reward-weight 1 --reward-weight=-0.5 -o several prompts.jsonl
ok "are summed" awk -v a="$(values several.log reward1 | head -1)" \
	-v b="$(values several.log reward | head -1)" \
	'BEGIN { exit !(a - 1 - b < 1e-6 && b - a + 1 < 1e-6) }' < /dev/null
cat > judge <<-'END'
	echo start >> started
	while read -r line; do
		printf '%s\n' "$line" >> seen
		echo '{"reward":1}'
	done
END
grpo -n 2 --reward 'sh judge' --log-samples 3 --eval held.jsonl -o judged prompts.jsonl > judged.log
is "a command is started once" "$(wc -l < started)" 1
is "sees every completion" "$(wc -l < seen)" 32
ok "with its record" grep -q '"tokens":\[[0-9,]*\],"record":{"prompt":.*"answer":"' seen
is "samples" "$(values judged.log advantage sample | tr '\n' ' ')" "0.0 0.0 0.0 0.0 0.0 0.0 "
is "groups alike teach nothing" "$(values judged.log flat_groups | head -1)" 1.0
is "held-out prompts are judged" "$(values judged.log reward eval)" 1.0
grpo -n 2 --reward lm:packed -o lm prompts.jsonl > lm.log
ok "lm: log-probabilities" awk '{ exit !($1 < -1 && $1 > -20) }' <<-END
	$(values lm.log reward)
END
grpo -n 1 --reward lm:model -o lm2 prompts.jsonl > lm2.log
is "lm: packed or plain, the same" "$(values lm2.log reward)" "$(values lm.log reward | head -1)"

refuses()	# NAME STATUS PATTERN COMMAND...
{
	name=$1 want=$2 pattern=$3
	shift 3
	rm -rf no
	"$@" > "$tmp/log" 2>&1
	got=$?
	[ $got = "$want" ] && grep -q -e "$pattern" "$tmp/log"
	result "$name: $want" $?
}
refuses "a reward that ends" 69 "ended with status 3 after 2 answers" grpo -n 1 \
	--reward 'read -r l; echo 1; read -r l; echo 1; exit 3' -o no prompts.jsonl
refuses "a reward that babbles" 65 "answer 1 is neither" grpo -n 1 \
	--reward 'while read -r l; do echo "fine"; done' -o no \
	prompts.jsonl
refuses "a reward that is silent" 69 "no answer for 0.3 seconds" grpo -n 1 \
	--reward cat\ \>\ /dev/null --reward-timeout 0.3 -o no \
	prompts.jsonl
echo '{"prompt":"how many?"}' > unanswered.jsonl
refuses "nothing to compare with" 65 'unanswered.jsonl:1: no number under "answer"' grpo -n 1 \
	--reward number -o no \
	unanswered.jsonl
refuses "no prompt" 65 'in.jsonl:1: missing "prompt"' grpo -n 1 --reward toy -o no in.jsonl
refuses "no reward" 64 "--reward" grpo -n 1 -o no prompts.jsonl
refuses "weights without rewards" 64 "2 --reward-weight for 1" grpo --reward toy --reward-weight 1 \
	--reward-weight 2 -o no \
	prompts.jsonl
refuses "no room for a prompt" 64 "leaves nothing" grpo --reward toy --new 96 -o no prompts.jsonl
refuses "resuming with another reward" 64 "reward" grpo -n 6 --reward number -o one \
	--resume prompts.jsonl
refuses "a plan above --ram" 71 "ram" grpo --ram 1M --reward toy -o no prompts.jsonl
status "--dry-run starts no reward" 0 sh -c '"$@" > plan' sh $run --dry-run --reward 'touch begun' \
	-o no prompts.jsonl
ok "and prints the plan" grep -q '"decoding":[0-9]*,"rollouts":[0-9]*' plan
ok "but does nothing" test ! -e begun -a ! -e no
done_testing
