/*
 * infer_adapt: --adapter of the programs that run a model, and which of them a record asks for.
 *
 *	static struct opt opts[] = { ..., { .kind = OPT_TABLE, .value = infer_adapt_opts }, ... };
 *	...
 *	if ((number = infer_adapter(rec, &e)) < 0) ...		a bad record
 *	seq_adapt(seq, number);
 *
 * infer_open() loads them. Adapters have numbers from 1, in the order in which they were given; 0
 * is the model as it is.
 */
#ifndef CHR_INFER_ADAPT_H
#define CHR_INFER_ADAPT_H

#include <jansson.h>

#include "base/opt.h"
#include "decode/decode.h"

extern struct opt infer_adapt_opts[];

/* All that were given: *n of them. Ends the program where two have one name. */
const struct engine_adapter *infer_adapters(int *n);

/* What "adapter" of a record says: a name, or null for the model as it is. A record that does not
 * say gets the adapter where there is one, and the model as it is where there are several. -1,
 * EX_DATAERR: it says something else. */
int infer_adapter(const json_t *rec, struct err *e) CHR_MUST_CHECK;

/* The same of a text that is in no record: ends the program where there are several. what: the
 * option that it comes from. */
int infer_adapter_alone(const char *what);

/* Notes in a record which it was; nothing where none were given. */
void infer_adapter_put(json_t *rec, int number);

#endif
