#!/bin/sh
# The commands of README.md and chr.7 run as they stand there (but for fewer steps), and both name
# every program.
. "$(dirname "$0")/lib.sh"

for p in bin/chr-*.c; do
	p=$(basename "$p" .c)
	ok "README.md and chr.7 name $p" sh \
		-c "grep -q '^| \`$p\`' README.md && grep -q '^\.It Xr $p 1' man/chr.7"
done
ok "README.md has at most 120 lines" [ "$(wc -l < README.md)" -le 120 ]
# Files that are named in them, of which none may be missing.
named()
{
	sed 's/`/\n/g' README.md | grep -E '^(man|scripts|tests|datasets|lib|doc)/[A-Za-z0-9_./-]*$'
	sed -n 's/.*](\([^)]*\)).*/\1/p' README.md
	sed 's/`/\n/g' README.md | grep -E '^[A-Z]+(\.md)?$'
	tr ' ' '\n' < README.md |
		sed -n 's|^\(scripts/[a-z-]*\)$|\1|p; s|^`*\(man/[a-z0-9.-]*[157]\).*|\1|p'
	sed -n 's/^\.Pa \([a-z]*\/[a-z0-9_./-]*[a-z/]\)\( .*\)*$/\1/p' man/chr.7
}
for f in $(named | sort -u); do
	ok "$f, which is named there, is there" test -e "$f"
done
for d in lib/*/; do
	ok "chr.7 says what is in $d" grep -qx ".It Pa $d" man/chr.7
done
svg=$(sed -n 's/^!\[.*](\(.*\))$/\1/p' README.md)
ok "the picture has words for those who do not see it" grep -q '<desc>' "$svg"
ok "and colours for a dark page" grep -q 'prefers-color-scheme: dark' "$svg"
for h in "- command: " "- machine: " "- date: 20"; do
	is "RESULTS.md: each result has its $h" "$(grep -c "^$h" RESULTS.md)" \
		"$(grep -c '^### ' RESULTS.md)"
done
for c in $(sed -n '/^| `chr-/d; s/`/\n/gp' README.md RESULTS.md | grep -o '^chr-[a-z]*' |
	sort -u); do
	ok "$c, which a result names, is a program" test -e "bin/$c.c"
done

mkdir "$tmp/readme" "$tmp/man" && ln -s "$top/datasets" "$tmp/readme" &&
	ln -s "$top/datasets" "$tmp/man"
sed -n '/^The same by hand/,/^On data of your own/s/^    //p' README.md |
	sed '/^make/d; s/ -n 300 / -n 2 /' > "$tmp/readme/sh"
awk '/^\.Bd/ { on = 1; next } /^\.Ed/ { on = 0 } on &&
	!/tail -f/ { gsub(/\\e/, "\\"); sub(/ -n 300 /, " -n 2 "); print }' man/chr.7 > "$tmp/man/sh"
for t in readme man; do
	ok "$t has commands" grep -q chr-generate "$tmp/$t/sh"
	if [ "$bld" != "$top/build" ]; then
		skip "the commands of $t run and generate" \
			"with a sanitizer the programs exceed the budgets there"
		continue
	fi
	ok "the commands of $t run and generate" sh \
		-c "cd '$tmp/$t' && sh -e ./sh > text < /dev/null && grep -q completion text"
done
done_testing
