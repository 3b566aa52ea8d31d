/*
 * profile: where the time of a training step goes. The owner of a run says which part of a step
 * begins; the time until the next one is that part's. A NULL profile costs a comparison.
 *
 *	profile_resume(p, PROFILE_DATA);	the clock starts
 *	profile_begin(p, PROFILE_EXPERTS);	the part before this one ends here
 *	profile_flop(p, 2.0 * m * n * k);	work done for the part at hand
 *	record = profile_json(p);
 */
#ifndef CHR_PROFILE_H
#define CHR_PROFILE_H

#include <jansson.h>

enum profile_part {
	PROFILE_DATA, PROFILE_EMBED, PROFILE_PROJECT, PROFILE_PROJECT_BACK, PROFILE_ATTN,
	    PROFILE_ATTN_BACK,
	PROFILE_NORM, PROFILE_ROUTER, PROFILE_SORT, PROFILE_EXPERTS, PROFILE_EXPERTS_BACK,
	    PROFILE_DENSE,
	PROFILE_DENSE_BACK, PROFILE_LOOK, PROFILE_HEAD, PROFILE_LOSS, PROFILE_OPTIM,
	    PROFILE_EXCHANGE, PROFILE_OTHER, PROFILE_PARTS
};

struct profile {
	enum profile_part at;
	double since, cpu_since;
	double seconds[PROFILE_PARTS], cpu[PROFILE_PARTS], flop[PROFILE_PARTS];
};

/* what went before is nobody's time */
void profile_resume(struct profile *p, enum profile_part at);
void profile_switch(struct profile *p, enum profile_part next);

static inline void profile_begin(struct profile *p, enum profile_part next)
{
	if (p)
		profile_switch(p, next);
}

static inline void profile_flop(struct profile *p, double flop)
{
	if (p)
		p->flop[p->at] += flop;
}

/* {"seconds", "cpu_seconds", "gflop", "gflops", "parts": [{"part", "share", and these}]}, parts
 * by their time; gflop and gflops are left out where no products are. cpu_seconds are of all
 * threads. */
json_t *profile_json(const struct profile *p);

#endif
