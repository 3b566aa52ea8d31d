/*
 * homes: what the tensors are called that a parameter lies in: in the files that a family
 * publishes, in the memory of transformers, whose names PEFT takes for those of adapters, and here.
 * All of it is in the tables of names (struct param_name): the last entry of a kind is that of
 * transformers' memory, and routed experts without one are where param_also says.
 */
#ifndef CHR_HOMES_H
#define CHR_HOMES_H

#include "arch/config.h"
#include "arch/param.h"

enum { HOMES = 16 };

struct home {
	char name[sizeof ((struct param *)0)->name];
	unsigned how;		/* enum param_how */
};

/* Every one of p, those of files first; returns how many. */
int homes_of(const struct config *c, const struct param *p, struct home h[HOMES]);
/* The one in the memory of transformers, of a family that is not ours. */
void homes_memory(const struct config *c, const struct param *p, struct home *h);

/* Does name end with what is wanted, whole or from one of its dots on? So PEFT compares. */
bool homes_ends(const char *name, const char *wanted);

#endif
