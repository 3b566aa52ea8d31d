#!/bin/sh
# Every literal block under EXAMPLES of every program's page runs and exits 0, in order, in a small
# world per page.
. "$(dirname "$0")/lib.sh"
world "$tmp/w"

# blocks PAGE DIR: writes DIR/1, DIR/2, ... and undoes the escapes of mdoc
blocks()
{
	awk -v dir="$2" '
		/^\.Sh / { on = ($2 == "EXAMPLES") }
		on && /^\.Bd -literal/ { file = sprintf("%s/%02d", dir, ++n); next }
		/^\.Ed/ { file = "" }
		file {
			gsub(/\\\(aq/, "\047"); gsub(/\\&/, ""); gsub(/\\-/, "-"); gsub(/\\e/, "\\")
			sub(/^\$ /, "")
			print > file
		}' "$1"
}

for page in man/*.1; do
	name=$(basename "$page" .1)
	mkdir "$tmp/$name"
	blocks "$page" "$tmp/$name"
	cp -r -P "$tmp/w" "$tmp/$name/w"
	for block in "$tmp/$name"/[0-9]*; do
		status "$name, example $(basename "$block"): $(head -1 "$block" | cut -c 1-60)" 0 \
			sh -c 'cd "$1" && timeout 60 sh -e "$2" < /dev/null' sh "$tmp/$name/w" \
			"$block"
	done
done
done_testing
