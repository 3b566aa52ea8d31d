/*
 * micro: a micro-batch, what a source fills and a stage learns from.
 */
#ifndef CHR_MICRO_H
#define CHR_MICRO_H

#include <stdint.h>

#include "model/model.h"

struct tally {
	int64_t tokens;		/* rows that are not padding */
	int64_t targets;	/* rows with a target */
	int64_t units;		/* what the base loss is a mean over: stage->units, or targets */
};

struct micro {			/* a micro-batch: this rank's share of it */
	struct batch b;		/* arrays of batch * seq entries; b.B 0: there is none */
	struct tally own, all;	/* of this rank; of all ranks */
	const int32_t *replay;	/* as in struct forward_opt; NULL unless the source sets it */
	void *extra;		/* batch * source->extra bytes, for the stage's own use (which
				   rows belong together, rewards) */
};

#endif
