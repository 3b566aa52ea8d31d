#!/bin/sh
# make install puts everything where it belongs, pkg-config finds it, and make uninstall takes it
# all away.
. "$(dirname "$0")/lib.sh"
prefix=$tmp/usr
pkg() { PKG_CONFIG_PATH=$prefix/lib/pkgconfig pkg-config "$@" chronos; }
all_there()
{
	for p in bin/chr-*.c; do
		[ -x "$prefix/bin/$(basename "$p" .c)" ] || { echo "no $p"; return 1; }
	done
	for m in man/*; do
		[ -f "$prefix/share/man/man${m##*.}/$(basename "$m")" ] ||
			{ echo "no $m"; return 1; }
	done
}
# Headers that stand in the page of the library, and those that they include: found by the compiler.
public() { sed -n 's/^\.In //p' man/libchronos.3; }
wanted()
{
	public | while read -r h; do
		${CC:-cc} -std=c11 -Ilib -MM "lib/$h" | tr ' \\' '\n\n' | sed -n 's|^lib/||p'
	done | sort -u
}
alone()
{
	echo "#include <$1>" > "$tmp/alone.c"
	# shellcheck disable=SC2046
	${CC:-cc} -std=c11 -Wall -Wextra -Wshadow -Werror $(pkg --cflags) \
		-fsyntax-only "$tmp/alone.c"
}
# The program in the page of the library, as somebody else would build and run it.
example()
{
	awk '/^\.Bd -literal/ { on = 1; next } /^\.Ed/ { on = 0 } on { gsub(/\\e/, "\\"); print }' \
		man/libchronos.3 > "$tmp/example.c"
	# shellcheck disable=SC2046
	${CC:-cc} -Wall -Wextra -Werror -o "$tmp/example" "$tmp/example.c" $(pkg --cflags --libs)
}
text() { (cd "$tmp/w" && "$tmp/example" "$1" "$2" "The fox"); }

ok "make install" make -s install PREFIX="$prefix"
ok "programs, pages and headers are there" all_there
is "version of the pkg-config file" "$(pkg --modversion)" "$(sed -n 's/^VERSION := //p' Makefile)"
is "the headers that the page of the library names, what they include, and no more" \
	"$(cd "$prefix/include/chronos" && find . -name '*.h' | sed 's|^\./||' | sort)" "$(wanted)"
is "none of them is internal" "$(find "$prefix/include" -name '*_int.h' -o -name '*_impl.h')" ""
is "make knows the same public headers as the page" \
	"$(sed -n '/^HEADERS :=/,/[^\\]$/p' Makefile | tr ' \t\\' '\n' | grep '/' | sort)" \
	"$(public | sort)"
for h in $(public); do
	ok "$h compiles alone" alone "$h"
done
if [ "$bld" = "$top/build" ]; then
	world "$tmp/w"
	ok "the program in libchronos(3) compiles and links" example
	status "and generates from a packed model" 0 text packed 64
	ok "some text" [ "$(text packed 64  | wc -c)" -gt 8 ]
	is "the same as from the plain one" "$(text packed 64)" "$(text model 0)"
	status "in too little memory: 71" 71 text packed 1
else
	skip "the program in libchronos(3)" "built with a sanitizer"
fi
ok "the page on vLLM" cmp share/doc/vllm.md "$prefix/share/doc/chronos/vllm.md"
ok "make uninstall" make -s uninstall PREFIX="$prefix"
is "nothing stays" "$(find "$prefix" -type f)" ""
forgotten()
{
	printf '#include <stddef.h>\n#include <text/tok.h>\nvoid f(void) { tok_load("x", NULL); }\n' \
		> "$tmp/forgotten.c"
	${CC:-cc} -std=c11 -Ilib -c -o "$tmp/forgotten.o" "$tmp/forgotten.c" 2>&1 | grep -q unused-result
}
ok "a result that is not looked at is a warning" forgotten
# Those that always fail, hand a status on, or clean up after another error.
is "every function that fills an error says so" "$(cat lib/*/*.h | sed '/^[ /]\*/d' | tr -d '\n' |
	tr ';' '\n' | grep -E '^ *(const |struct )*[a-z_]+ [*a-z_0-9]+\(.*struct err \*[a-z]+\) *$' |
	grep -v '^ *void\|^ *static' | grep -o '[a-z_0-9]*(' | sort -u | tr '\n' ' ')" \
	"badstep_report( comm_close( file_remove_tree( "
ok "DESTDIR" make -s install DESTDIR="$tmp/root" PREFIX=/opt/x
ok "DESTDIR is not in the pkg-config file" grep -qx prefix=/opt/x \
	"$tmp/root/opt/x/lib/pkgconfig/chronos.pc"
done_testing
