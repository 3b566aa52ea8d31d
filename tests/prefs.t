#!/bin/sh
# Preferences through chr-dpo and chr-orpo: all ways to write a pair are the same pair, the losses
# begin where they must, reference log-probs from a file change nothing, resuming is exact.
. "$(dirname "$0")/lib.sh"
command -v chr-dpo > /dev/null || skip_all "chr-dpo is not built"
world "$tmp/w"
cd "$tmp/w" || exit 1

head -n 24 datasets/prefs.jsonl > pairs.jsonl
tail -n 9 datasets/prefs.jsonl > held.jsonl
dpo()
{
	chr-dpo -q -m model --seq 128 -l 3e-3 "$@"
}
orpo()
{
	chr-orpo -q -m model --seq 128 -l 3e-3 --fallback-mask-prob 0 "$@"
}
values()	# FILE KEY: one a line
{
	sed -n 's/.*"'"$2"'":\([^,}]*\).*/\1/p' "$1"
}
moments()	# DIR: what training did, without the command line that the weights' file has
{
	sha256sum < "$1/optimizer.safetensors"
}
sums()		# DIR
{
	(cd "$1" && sha256sum model.safetensors optimizer.safetensors train_state.json)
}
grad()		# NAME: of the pair on stdin
{
	cat > "$1.jsonl"
	dpo -b 1 --grad-dump "$1.grad" "$1.jsonl"
	sha256sum < "$1.grad"
}
refuses()	# NAME STATUS PATTERN COMMAND...
{
	name=$1 want=$2 pattern=$3
	shift 3
	status "$name: $want" "$want" "$@"
	cp "$tmp/log" why
	ok "and says why" grep -q -e "$pattern" why
}

# One pair, written in many ways
u='"role":"user","content":"is it?"'
w='"role":"assistant","content":"yes"'
l='"role":"assistant","content":"no"'
one=$(echo '{"prompt":"is it?","chosen":"yes","rejected":"no"}' | grad strings)
is "question" "$(echo '{"question":"is it?","chosen":"yes","rejected":"no"}' | grad question)" \
	"$one"
is "turns" "$(echo '{"prompt":[{'"$u"'}],"chosen":[{'"$w"'}],"rejected":[{'"$l"'}]}' |
	grad turns)" "$one"
is "a turn" "$(echo '{"prompt":[{'"$u"'}],"chosen":{'"$w"'},"rejected":{'"$l"'}}' | grad turn)" \
	"$one"
is "whole conversations" "$(echo '{"chosen":[{'"$u"'},{'"$w"'}],"rejected":[{'"$u"'},{'"$l"'}]}' |
	grad whole)" "$one"
is "whole conversations beside a prompt" \
	"$(echo '{"prompt":"is it?","chosen":[{'"$u"'},{'"$w"'}],"rejected":[{'"$u"'},{'"$l"'}]}' | grad both)" "$one"
is "messages up to the last of the user" \
	"$(echo '{"messages":[{'"$u"'},{'"$w"'}],"chosen":"yes","rejected":"no"}' |
	grad messages)" "$one"
is "from and value" "$(echo '{"conversations":[{"from":"human","value":"is it?"}],
	"chosen":{"from":"gpt","value":"yes"},"rejected":{"from":"gpt","value":"no"}}' |
		tr -d '\n' | grad values)" "$one"
ok "the other way round is not the same" test \
	"$(echo '{"prompt":"is it?","chosen":"no","rejected":"yes"}' | grad turned)" != "$one"
ok "a system turn counts" test \
	"$(echo '{"system":"be brief","prompt":"is it?","chosen":"yes","rejected":"no"}' |
	grad system)" != "$one"

# What a step is
status "chr-dpo learns the pairs" 0 sh \
	-c 'chr-dpo -q -m model --seq 128 -l 3e-3 -b 4 --epochs 6 -o dpo \
	--eval held.jsonl pairs.jsonl > dpo.log'
is "it begins at ln 2" "$(values dpo.log base | head -n 1)" 0.693147181
is "with neither side preferred" "$(values dpo.log accuracy | head -n 1)" 0.5
grep -v '"eval"' dpo.log | tail -n 6 > last.log
ok "and ends above" awk 'BEGIN { exit !('"$(values last.log accuracy | tail -n 1)"' > 0.7) }'
ok "the chosen gained on the rejected" awk \
	'BEGIN { exit !('"$(values last.log margin | sort -g | head -n 1)"' > 0) }'
dpo -b 4 --set lambda_balance=0 -n 3 -o big pairs.jsonl > big.log
dpo -b 1 --accum 4 --set lambda_balance=0 -n 3 -o small pairs.jsonl > small.log
is "four micro-batches are one of four" "$(values small.log base | cut -c 1-6)" \
	"$(values big.log base | cut -c 1-6)"
orpo -b 1 --eval held.jsonl -n 1 -l 0 -o apart pairs.jsonl | tail -n 1 > apart.log
orpo -b 9 --eval held.jsonl -n 1 -l 0 -o packed2 pairs.jsonl | tail -n 1 > together.log
is "pairs side by side do not see each other" "$(values apart.log base | cut -c 1-8)" \
	"$(values together.log base | cut -c 1-8)"
for v in "--loss ipo" "--loss hinge" "--label-smoothing 0.1" "--rpo-alpha 1" "--beta 0.5"; do
	# shellcheck disable=SC2086
	status "chr-dpo $v" 0 dpo -n 2 $v -o "v$v" pairs.jsonl
done
status "chr-orpo" 0 sh \
	-c 'chr-orpo -q -m model --seq 128 -l 3e-3 -b 4 --epochs 6 -o orpo pairs.jsonl > orpo.log'
ok "makes the chosen likely" awk 'BEGIN { exit !('"$(values orpo.log nll |
	tail -n 1)"' < '"$(values orpo.log nll | head -n 1)"') }'

# The reference from a file
dpo -b 3 -n 8 -o live --eval held.jsonl pairs.jsonl > /dev/null
status "--precompute-ref" 0 dpo -b 3 -n 8 --precompute-ref ref.safetensors -o cached \
	--eval held.jsonl pairs.jsonl
is "changes nothing" "$(moments cached)" "$(moments live)"
before=$(sha256sum < ref.safetensors)
dpo -b 3 -n 8 --precompute-ref ref.safetensors -o cached2 --eval held.jsonl pairs.jsonl > /dev/null
is "nor when the file is there" "$(moments cached2)" "$(moments live)"
is "and it stays" "$(sha256sum < ref.safetensors)" "$before"
status "then a pipe will do" 0 sh \
	-c 'cat pairs.jsonl | chr-dpo -q -m model --seq 128 -n 2 --precompute-ref ref.safetensors -o piped'
refuses "a pipe before it is there" 64 "pipe" sh \
	-c 'cat pairs.jsonl | chr-dpo -q -m model --seq 128 --precompute-ref none -o no'
refuses "pairs that it lacks" 65 "lacks" dpo --precompute-ref ref.safetensors \
	-o no datasets/prefs.jsonl
for at in 3 4000000; do
	# a bit of a log-prob, which comes last, and one of a key
	perl -e 'local $/; $_ = <STDIN>; $at = $ARGV[0] > length($_) ? 8 + unpack("Q<", $_) + 1 : length($_) - $ARGV[0];
		substr($_, $at, 1) ^= "\1"; print' $at < ref.safetensors > flipped.safetensors
	refuses "a flipped bit" 65 "flipped.safetensors: is corrupt" dpo \
		--precompute-ref flipped.safetensors -o no pairs.jsonl
done
refuses "another model" 65 "another model" chr-dpo -q -m dpo --seq 128 \
	--precompute-ref ref.safetensors -o no pairs.jsonl
refuses "no such thing" 65 "reference" dpo --precompute-ref model/model.safetensors \
	-o no pairs.jsonl
ok "none of them wrote a model" test ! -e no

# Stopping and going on
dpo -b 2 -n 10 -o whole pairs.jsonl > /dev/null
is "stopped" "$(dpo -b 2 -n 10 --stop-after 4 -o parts pairs.jsonl > /dev/null; echo $?)" 75
status "and resumed" 0 dpo -b 2 -n 10 --resume -o parts pairs.jsonl
is "is the same" "$(sums parts)" "$(sums whole)"
orpo -j 1 -b 2 -n 6 -o threads1 pairs.jsonl > /dev/null
orpo -j 2 -b 2 -n 6 -o threads2 pairs.jsonl > /dev/null
is "for any number of threads" "$(sums threads1)" "$(sums threads2)"
refuses "resuming with another beta" 64 "beta is 0.5, but was 0.1" dpo -b 2 -n 10 --beta 0.5 \
	--resume -o parts pairs.jsonl

# Too long, and wrong
status "a short --seq leaves pairs out" 0 sh \
	-c 'chr-dpo -m model --seq 72 -n 1 -o no1 pairs.jsonl 2> why > drop.log'
ok "and counts them" grep -q '0 pairs cut to --seq, [1-9][0-9]* left out as too long' why
status "or cuts them" 0 sh \
	-c 'chr-dpo -m model --seq 72 --truncate keep-end -n 1 -o no2 pairs.jsonl 2> why > cut.log'
ok "and counts those" grep -q '[1-9][0-9]* pairs cut to --seq, 0 left out' why
refuses "nothing fits" 65 "no pairs" chr-dpo -q -m model --seq 4 -o no pairs.jsonl
refuses "dropout" 64 "dropout" dpo --dropout 0.1 -o no pairs.jsonl
refuses "smoothing of ipo" 64 "sigmoid" dpo --loss ipo --label-smoothing 0.1 -o no pairs.jsonl
refuses "no start" 64 "-m DIR" chr-dpo -q -c config.json -t tokenizer.json -o no pairs.jsonl
bad()		# NAME PATTERN RECORD
{
	{ head -n 1 pairs.jsonl; echo "$3"; } > bad.jsonl
	refuses "$1" 65 "bad.jsonl:2: .*$2" dpo -n 1 -o no bad.jsonl
}
bad "no rejected" 'missing "rejected"' '{"prompt":"a","chosen":"b"}'
bad "chosen is null" '"chosen" is neither' '{"prompt":"a","chosen":null,"rejected":"b"}'
bad "no turns" '"rejected" is neither' '{"prompt":"a","chosen":"b","rejected":[]}'
bad "a list of strings" 'role' '{"prompt":"a","chosen":["b"],"rejected":["c"]}'
bad "the user has the last word" 'says nothing' '{"chosen":[{'"$u"'}],"rejected":[{'"$u"'}]}'
status "--skip-bad" 0 dpo -b 1 -n 1 --skip-bad -o skipped bad.jsonl
done_testing
