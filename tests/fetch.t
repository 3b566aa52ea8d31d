#!/bin/sh
# scripts/fetch without a network: a table of our own with file:// addresses.
. "$(dirname "$0")/lib.sh"
row() { printf '%s\tfile://%s\t%s\t%s\t%s\n' "$@"; }

printf 'One "day" the fox\tslept.\n\nThe end.\n<|endoftext|>\n\nA back\\slash.\n<|endoftext|>\n' \
	> "$tmp/a.txt"
sum=$(sha256sum "$tmp/a.txt" | cut -d ' ' -f 1)
size=$(($(wc -c < "$tmp/a.txt")))
{
	row tinystories-a "$tmp/a.txt" "$sum" $size ours
	row wrong "$tmp/a.txt" "$(echo "$sum" | tr 0-9a-f 1-9a-f0)" $size ours
	row unknown "$tmp/a.txt" - - ours
} > "$tmp/table"

ok "fetch takes a file with the right sum" scripts/fetch -t "$tmp/table" tinystories-a "$tmp/out"
printf '%s\n' '{"text":"One \"day\" the fox\tslept.\n\nThe end."}' \
	'{"text":"A back\\slash."}' > "$tmp/want"
ok "and writes one record per story" cmp "$tmp/want" "$tmp/out/tinystories-a.jsonl"
ok "a second time too" scripts/fetch -t "$tmp/table" tinystories-a "$tmp/out"
status "a wrong sum is refused" 65 scripts/fetch -t "$tmp/table" wrong "$tmp/out"
ok "and leaves nothing" sh -c "! ls '$tmp/out' | grep wrong"
status "an unknown sum is refused" 65 scripts/fetch -t "$tmp/table" unknown "$tmp/out"
ok "unless it is trusted" scripts/fetch -t "$tmp/table" --trust-first-download unknown "$tmp/out"
ok "which prints the sum" sh \
	-c "cd '$PWD' && scripts/fetch -t '$tmp/table' --trust-first-download unknown '$tmp/out' 2>&1 | grep -q $sum"
status "an unknown name is usage" 64 scripts/fetch nothing "$tmp/out"
# shellcheck disable=SC2016
ok "every row of datasets/public.tsv is whole" awk -F '\t' '
	!/^#/ && (NF != 5 || $2 !~ /^https:/ || ($3 != "-" && $3 !~ /^[0-9a-f]+$/) || ($3 != "-" &&
		length($3) != 64) || $4 !~ /^[0-9]+$/) { print; bad = 1 }
	END { exit bad }' datasets/public.tsv
done_testing
