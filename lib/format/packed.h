/*
 * packed: the experts of a packed directory where they lie in its .ctsr files, for those who read
 * all of them once (the engine has store.h).
 *
 *	struct packed p;
 *	struct stored s;
 *	if (packed_open(&p, &md, &manifest, &e) < 0 || packed_find(&p, param, &s, &e) < 0)
 *		...
 *	packed_close(&p);
 */
#ifndef CHR_PACKED_H
#define CHR_PACKED_H

#include "base/err.h"
#include "format/manifest.h"
#include "format/modeldir.h"
#include "format/stored.h"

struct packed {
	const struct modeldir *md;
	const struct manifest *m;
	struct st_file **ctsr;		/* (nclusters) opened when first needed */
};

int packed_open(struct packed *p, const struct modeldir *md, const struct manifest *m,
    struct err *e) CHR_MUST_CHECK;
void packed_close(struct packed *p);
/* EX_DATAERR: it is not where the manifest says. */
int packed_find(struct packed *p, const struct param *pa, struct stored *s, struct err *e)
    CHR_MUST_CHECK;
/* Reads all of an expert. EX_DATAERR: its CRC-32 is not that of the manifest. */
int packed_check(struct packed *p, int layer, int expert, struct err *e) CHR_MUST_CHECK;

#endif
