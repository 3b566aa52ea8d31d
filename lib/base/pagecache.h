/*
 * pagecache: how much of a model's files lies in the kernel's page cache, and making it none or
 * all.
 */
#ifndef CHR_PAGECACHE_H
#define CHR_PAGECACHE_H

#include "base/err.h"

/* Files of a directory whose names end in suffix. */
/* warns of those that cannot be */
void pagecache_drop(const char *dir, const char *suffix);
/* reads them; EX_NOINPUT, EX_IOERR */
int pagecache_fill(const char *dir, const char *suffix, struct err *e) CHR_MUST_CHECK;
/* of their bytes, 0 to 1; 0 when there are none */
double pagecache_share(const char *dir, const char *suffix);

#endif
