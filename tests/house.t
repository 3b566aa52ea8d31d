#!/bin/sh
# Folders of lib/ stand on each other in one order (scripts/includes).
. "$(dirname "$0")/lib.sh"
refused() { ! scripts/includes "$tmp" && scripts/includes "$tmp" |
	grep -q 'lib/base/err.h:.*decode/decode.h'; }

ok "every include goes to its own folder or to one before it" scripts/includes
ok "every line is within 100 columns" scripts/columns
mkdir -p "$tmp/wide/lib" "$tmp/wide/man"
cp -r bin tests scripts Makefile INSTALL NEWS "$tmp/wide"
printf '/*%100s*/\n' x > "$tmp/wide/lib/x.c"
is "a planted wider one is named" "$(scripts/columns "$tmp/wide")" "lib/x.c:1: 104 columns"
cp -r lib "$tmp"
echo '#include "decode/decode.h"' >> "$tmp/lib/base/err.h"
ok "a planted include upward is refused, with the names of both files" refused
ok "only files of lib/backend see through the types of device memory" scripts/seam
echo 'static float peek(const dev_real *x) { return x->of_device; }' >> "$tmp/lib/decode/decode.c"
mkdir "$tmp/bin"
seam_refused() { ! scripts/seam "$tmp" > "$tmp/seam" && grep -q '^lib/decode/decode.c:.*of_device' \
	"$tmp/seam"; }
ok "a planted look is refused, with its line" seam_refused
# The compiler refuses what the script cannot see: a number in the place of device memory, a read of
# it.
printf '#include "backend/backend.h"\nreal peek(const dev_real *x);
	real peek(const dev_real *x) { return *x; }\n' > "$tmp/read.c"
printf '#include "backend/backend.h"\nvoid f(const struct backend *be, real *x);
	void f(const struct backend *be, real *x)\n{ be->scale(be, x, 2, 1); }\n' > "$tmp/pass.c"
sed 's/(const struct backend \*be, real/(const struct backend *be, dev_real/g' \
	"$tmp/pass.c" > "$tmp/right.c"
status "what is right compiles" 0 ${CC:-cc} -std=c11 -Ilib -Werror -c -o "$tmp/o" "$tmp/right.c"
status "a read of device memory does not compile" 1 ${CC:-cc} -std=c11 -Ilib -c -o "$tmp/o" \
	"$tmp/read.c"
status "host memory given to a row does not compile" 1 ${CC:-cc} -std=c11 -Ilib -Werror -c \
	-o "$tmp/o" "$tmp/pass.c"
done_testing
