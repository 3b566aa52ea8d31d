#!/bin/sh
# The commands of README.md and chr.7 run as they stand there (but for fewer steps), and both name every program.
. "$(dirname "$0")/lib.sh"

for p in bin/chr-*.c; do
	p=$(basename "$p" .c)
	ok "README.md and chr.7 name $p" sh -c "grep -q '^| \`$p\`' README.md && grep -q '^\.It Xr $p 1' man/chr.7"
done
for f in $(sed -n '/^## Reading the source/,/^## /s/`/\n/gp' README.md | grep '^[a-z]*/[a-z0-9_.-]*$'); do
	ok "README.md: $f is there" test -e "$f"
done

mkdir "$tmp/readme" "$tmp/man" && ln -s "$top/datasets" "$tmp/readme" && ln -s "$top/datasets" "$tmp/man"
sed -n '/^The same by hand/,/^On data of your own/s/^    //p' README.md | sed '/^make/d; s/ -n 300 / -n 2 /' > "$tmp/readme/sh"
awk '/^\.Bd/ { on = 1; next } /^\.Ed/ { on = 0 } on && !/tail -f/ { gsub(/\\e/, "\\"); sub(/ -n 300 /, " -n 2 "); print }' man/chr.7 > "$tmp/man/sh"
for t in readme man; do
	ok "$t has commands" grep -q chr-generate "$tmp/$t/sh"
	if [ "$bld" != "$top/build" ]; then
		skip "the commands of $t run and generate" "with a sanitizer the programs exceed the budgets there"
		continue
	fi
	ok "the commands of $t run and generate" sh -c "cd '$tmp/$t' && sh -e ./sh > text < /dev/null && grep -q completion text"
done
done_testing
