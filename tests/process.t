#!/bin/sh
# What a program finds when it starts: streams that are closed, limits, places that cannot be
# written, outputs that are inputs.
. "$(dirname "$0")/lib.sh"
[ -x "$bld/chr-pack" ] || skip_all "the programs are not built"
world "$tmp/w"
cd "$tmp/w" || exit 1

# says NAME STATUS PATTERN COMMAND...
says()
{
	says_name=$1 says_want=$2 says_pattern=$3
	shift 3
	timeout 20 "$@" > out 2> "$tmp/log"
	says_got=$?
	[ "$says_got" = "$says_want" ] && grep -q "$says_pattern" "$tmp/log"
	says_rc=$?
	[ "$says_rc" = 0 ] || echo "status $says_got, want $says_want and '$says_pattern': $*" \
		>> "$tmp/log"
	result "$says_name" "$says_rc"
}

for command in "chr-generate -q -m model -n 1" "chr-score -q -m model" "chr-actlog -q -m model" \
	"chr-cluster -q" \
	"chr-pack -q -m model -o no" "chr-tokenize -q -t tokenizer.json" "chr-ls" \
	"chr-sft -q -m model -o no -n 1 --seq 32"; do
	says "closed standard input: $command" 74 "<stdin>: Bad file descriptor" sh \
		-c "exec $command <&-"
done
ok "it is not needed where files are given" sh \
	-c "exec chr-score -q -m model in.jsonl <&- > /dev/null"
for command in "chr-ls model" "chr-score -q -m model in.jsonl" "chr-cluster -q act.jsonl" \
	"chr-generate -q -m model -p x -n 1"; do
	says "closed standard output: $command" 74 \
		"standard output: Bad file descriptor\|write error" sh -c "exec $command >&-"
done
cp in.jsonl kept.jsonl
status "closed standard error: messages go nowhere" 66 sh \
	-c 'exec chr-tokenize -q --train -v 300 -o tok.json none.jsonl 2>&-'
ok "and not into a file" [ ! -s tok.json ]

# A limit on file size is a disk that is full.
says "a checkpoint above ulimit -f" 74 "File too large" \
	sh -c 'ulimit -f 40; exec chr-pretrain -q -c config.json -t tokenizer.json -n 1 -b 1 --seq 16 -o small in.jsonl'
is "nothing half written stays" "$(find small -name '*.tmp' 2> /dev/null)" ""
says "a packed model above it" 74 "File too large" sh \
	-c 'ulimit -f 20; exec chr-pack -q -m model -o above manifest.json'
ok "nothing of it stays" [ ! -e above ]
says "a tokenizer above it" 74 "tok.json: File too large" \
	sh -c 'ulimit -f 4; exec chr-tokenize -q --train -v 320 -o tok.json in.jsonl'
says "output above it" 74 "File too large" sh -c 'ulimit -f 1; chr-ls model model > big'

# Places that cannot be written; root may write anywhere but there.
for command in "chr-pack -q -m model -o /proc/no manifest.json" \
	"chr-merge -m model -o /proc/no adapter" \
	"chr-pretrain -q -c config.json -t tokenizer.json -n 1 -b 1 --seq 16 -o /proc/no in.jsonl" \
	"chr-tokenize -q --train -v 300 -o /proc/no in.jsonl" \
	"chr-score -q -m model --dump /proc/no in.jsonl" \
	"chr-generate -q -m model -p x -n 1 --stats /proc/no"; do
	case $command in chr-merge*)
		chr-sft -q -m model -o adapter -n 1 -b 1 --seq 32 \
			--lora-rank 2 datasets/chat.jsonl > noise ;;
	esac
	says "cannot be created: $command" 73 "/proc/no" $command
done
says "a directory in the way" 73 "model: Is a directory" chr-generate -q -m model -p x -n 1 \
	--stats model
says "a file in the way" 73 "config.json" chr-pack -q -m model -o config.json manifest.json

# What is written must not be what is read.
for command in "chr-tokenize -q --train -v 300 -o in.jsonl in.jsonl" \
	"chr-tokenize -q -t tokenizer.json -o in.jsonl in.jsonl" \
	"chr-tokenize -q -t tokenizer.json -o tokenizer.json in.jsonl" \
	"chr-score -q -m model --dump in.jsonl in.jsonl" \
	"chr-generate -q -m model --stats in.jsonl in.jsonl" \
	"chr-generate -q -m model --stats ./in.jsonl in.jsonl" \
	"chr-sft -q -m model -o no --dump-bad in.jsonl in.jsonl" \
	"chr-sft -q -m model -o no --grad-dump in.jsonl in.jsonl" \
	"chr-sft -q -m model -o no --dump-bad in.jsonl --eval in.jsonl datasets/chat.jsonl"; do
	says "an output that is an input: $command" 64 "is also" $command
	ok "which stays" cmp in.jsonl kept.jsonl
done
ln in.jsonl other.jsonl
says "by another name" 64 "is also read" chr-score -q -m model --dump other.jsonl in.jsonl
for command in "chr-tokenize -q --jsonl -t tokenizer.json in.jsonl >> in.jsonl" \
	"chr-tokenize -q --jsonl -t tokenizer.json < in.jsonl >> in.jsonl" \
	"chr-score -q -m model in.jsonl >> in.jsonl" \
	"chr-sft -q -m model -o no -n 1 --seq 32 in.jsonl >> in.jsonl"; do
	says "output appended to the input: $command" 64 "is also where the output goes" sh \
		-c "$command"
	ok "which stays" cmp in.jsonl kept.jsonl
done
done_testing
