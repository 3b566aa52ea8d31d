#!/bin/sh
# chr-ls: records, table, standard input, answers of --check.
. "$(dirname "$0")/lib.sh"
[ -x "$bld/chr-ls" ] || skip_all "chr-ls is not built"

# safetensors HEADER: the file's length field and header; data follows
safetensors()
{
	n=${#1}
	# shellcheck disable=SC2059
	printf "\\$(printf %03o $((n % 256)))\\$(printf %03o $((n / 256)))\\0\\0\\0\\0\\0\\0"
	printf %s "$1"
}
header='{"__metadata__":{"k":"v","chronos.ancestry":"[{\"program\":\"chr-x\",\"command\":[\"chr-x\",\"-n\"],\"parent\":null}]"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"__pad.0":{"dtype":"U8","shape":[1],"data_offsets":[8,9]},"b":{"dtype":"I16","shape":[],"data_offsets":[9,11]}}'
{ safetensors "$header"; printf 'abcdefgh\0ij'; } > "$tmp/a.safetensors"
{ safetensors "$header"; printf 'abcd\0\0\200\177\0ij'; } > "$tmp/inf.safetensors"
cd "$tmp" || exit 1

is "records" "$(chr-ls a.safetensors | cut -d, -f 1-2)" '{"type":"file","file":"a.safetensors"
{"type":"metadata","file":"a.safetensors"
{"type":"ancestry","n":1
{"type":"tensor","name":"a"
{"type":"tensor","name":"b"'
is "a tensor" "$(chr-ls a.safetensors | grep '"name":"a"')" \
	'{"type":"tensor","name":"a","dtype":"F32","shape":[2],"bytes":8,"offset":'$((8 + ${#header}))',"file":"a.safetensors"}'
is "--all lists padding" "$(chr-ls -a a.safetensors | grep -c __pad.0)" 1
is "standard input" "$(chr-ls < a.safetensors | sed 's/<stdin>/a.safetensors/')" \
	"$(chr-ls a.safetensors)"
# shellcheck disable=SC2002
is "standard input from a pipe" "$(cat a.safetensors | chr-ls - | grep -c '"type":"tensor"')" 2
ok "a table" sh -c "chr-ls -H a.safetensors | grep -q '^  a  *F32  *\[2\]  *8 B'"
ok "ancestry in the table" sh -c "chr-ls -H a.safetensors | grep -q 'made by: chr-x -n'"
status "--check of a good file" 0 chr-ls --check a.safetensors
status "--check of one that is not finite" 1 chr-ls --check a.safetensors inf.safetensors
is "and it says where" "$(chr-ls --check inf.safetensors | head -1)" \
	'{"type":"bad","file":"inf.safetensors","name":"a","nan":0,"inf":1,"first":1}'
head -c 300 a.safetensors > "cut"
status "--check of a truncated file" 1 chr-ls --check cut
status "listing a truncated file" 65 chr-ls cut
status "--check of a missing file" 66 chr-ls --check nonexistent
status "a directory without a model" 66 chr-ls .
cd "$top" || exit 1
if [ -d "$shared/golden/tiny-hybrid" ]; then
	status "a model directory" 0 chr-ls --check "$shared/golden/tiny-hybrid"
	ok "counts of a model" sh -c "chr-ls '$shared/golden/tiny-hybrid' | head -1 |
		grep -q '\"params\":100176,\"active_params\":44880,.*\"expert_bytes\":9216,'"
else
	skip "a model directory" "no golden cases here"
fi
done_testing
