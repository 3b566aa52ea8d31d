/*
 * router: how a router's scores become a choice of experts and their weights.
 */
#ifndef CHR_ROUTER_H
#define CHR_ROUTER_H

#include <stdbool.h>

struct router {
	bool sigmoid;		/* a score is sigmoid(logit); else the softmax of the logits */
	bool renormalised;	/* weights are divided by the sum of the chosen scores, */
	double floor;		/* or by this where that is less; */
	double more;		/* this is added to the sum before */
	/* experts lie in so many groups, and the choice is among those of the `kept` best; up to
	 * 1: among all. A group is as good as its best expert, or with sigmoid scores as its
	 * best two together */
	int groups, kept;
	double scale;		/* weights are multiplied by it */
};

/* Softmax, all experts, nothing multiplied. */
static inline bool router_plain(const struct router *r)
{
	return !r->sigmoid && r->groups <= 1 && r->scale == 1 && r->floor == 0;
}

#endif
