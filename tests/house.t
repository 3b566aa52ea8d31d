#!/bin/sh
# Folders of lib/ stand on each other in one order (scripts/includes).
. "$(dirname "$0")/lib.sh"
refused() { ! scripts/includes "$tmp" && scripts/includes "$tmp" | grep -q 'lib/base/err.h:.*decode/decode.h'; }

ok "every include goes to its own folder or to one before it" scripts/includes
cp -r lib "$tmp"
echo '#include "decode/decode.h"' >> "$tmp/lib/base/err.h"
ok "a planted include upward is refused, with the names of both files" refused
done_testing
