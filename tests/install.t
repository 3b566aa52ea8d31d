#!/bin/sh
# make install puts everything where it belongs, pkg-config finds it, and make uninstall takes it all away.
. "$(dirname "$0")/lib.sh"
prefix=$tmp/usr
pkg() { PKG_CONFIG_PATH=$prefix/lib/pkgconfig pkg-config "$@" chronos; }
all_there()
{
	for p in bin/chr-*.c; do
		[ -x "$prefix/bin/$(basename "$p" .c)" ] || { echo "no $p"; return 1; }
	done
	for m in man/*; do
		[ -f "$prefix/share/man/man${m##*.}/$(basename "$m")" ] || { echo "no $m"; return 1; }
	done
	for h in lib/*/*.h; do
		h=${h#lib/}
		[ -f "$prefix/include/chronos/$h" ] || { echo "no $h"; return 1; }
	done
}
# A program of somebody else that uses the library.
outside()
{
	cat > "$tmp/x.c" <<-END
		#include <stdio.h>
		#include <base/sha256.h>
		int main(void) { char hex[65]; sha256_hex("abc", 3, hex); return puts(hex) < 0; }
	END
	# shellcheck disable=SC2046
	${CC:-cc} -o "$tmp/x" "$tmp/x.c" $(pkg --cflags --libs) && "$tmp/x" | grep -q ^ba7816bf
}

ok "make install" make -s install PREFIX="$prefix"
ok "programs, pages and headers are there" all_there
is "version of the pkg-config file" "$(pkg --modversion)" "$(sed -n 's/^VERSION := //p' Makefile)"
if [ "$bld" = "$top/build" ]; then
	ok "a program links against what is installed" outside
else
	skip "a program links against what is installed" "built with a sanitizer"
fi
ok "make uninstall" make -s uninstall PREFIX="$prefix"
is "nothing stays" "$(find "$prefix" -type f)" ""
ok "DESTDIR" make -s install DESTDIR="$tmp/root" PREFIX=/opt/x
ok "DESTDIR is not in the pkg-config file" grep -qx prefix=/opt/x "$tmp/root/opt/x/lib/pkgconfig/chronos.pc"
done_testing
