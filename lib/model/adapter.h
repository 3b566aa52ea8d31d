/*
 * adapter: the one reader of adapters on disk: adapter_config.json (peft.h) and the tensors of
 * adapter_model.safetensors beside it. It says which matrices W of a model become W + factor * B A,
 * and gives A (rank, columns) and B (rows, rank) of each. What is more than that sum is refused.
 *
 *	struct adapter a;
 *	if (adapter_open(&a, "adapter", &cfg, &ps, &e) < 0)
 *		err_exit(&e);
 *	for (int i = 0; i < a.n; i++) {
 *		const struct adapter_matrix *m = &a.matrix[i];
 *		const struct param *p = &ps.p[m->param];
 *
 *		adapter_read_a(&a, m, x, &e);			x (m->rank, p->cols)
 *		adapter_read_b(&a, m, y, &e);			y (p->rows, m->rank)
 *	}
 *	adapter_close(&a);
 *
 * A routed expert has three matrices, gate, up and down, each with an entry of its own, also where
 * one tensor of the file holds the parts of all experts: PEFT's target_parameters. For a parameter
 * (experts E, rows, columns) its A is (E r, columns), the r rows of each expert together, and B
 * (rows, E r), column k E + e being column k of expert e's. Gate and up are halves of the rows, and
 * share A. Matrices are listed in the order in which reading them is quickest: all that lie in one
 * tensor come one after the other.
 *
 * Names are those of published files or of the memory of transformers (homes.h).
 */
#ifndef CHR_ADAPTER_H
#define CHR_ADAPTER_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "arch/config.h"
#include "base/err.h"
#include "format/safetensors.h"
#include "format/stored.h"

#define ADAPTER_WEIGHTS "adapter_model.safetensors"
#define ADAPTER_CONFIG "adapter_config.json"
#define ADAPTER_PREFIX "base_model.model."	/* of the names of tensors */
/* In the metadata, with the value "blocks": in what gate and up of an expert share, the rows of A
 * of gate are above those of up, and B has zeros where a column is of the other. So each has half
 * the rank. */
#define ADAPTER_GATE_UP "chronos.gate_up"

/* Where A or B of a matrix lies: value (r, c) as in struct layout. */
struct adapter_part {
	const struct st_tensor *t;
	struct layout at;
};

struct adapter_matrix {
	int param;		/* which parameter of the model it is for */
	int rank;
	double factor;		/* of B A */
	struct adapter_part a, b;
};

/* A parameter that is in the file as a whole and takes the place of the model's, before anything is
 * added: modules_to_save, and the head that an adapter of PEFT is on. */
struct adapter_whole {
	int param;
	const struct st_tensor *t;
	bool own;		/* the head, as the model had it where PEFT made the adapter */
};

struct adapter_held {		/* a tensor as float32 */
	const struct st_tensor *t;
	float *x;
};

struct adapter {
	char *path;		/* of the tensors */
	const struct config *cfg;
	const struct params *model;
	int n;
	struct adapter_matrix *matrix;
	int nwhole;
	struct adapter_whole *whole;
	json_t *metadata;	/* of the file, an object of strings (prov.h) */
	/* bytes that reading takes until adapter_close(), for a plan */
	int64_t room;
	/* private */
	struct st_file *f;
	struct adapter_held held[2];
};

/* The adapter in dir, on the model of c and ps, which must stay there as long. EX_NOINPUT,
 * EX_DATAERR (a kind of adapter that peft.h refuses, a tensor that is for nothing in the model, of
 * another shape, or of no float type, a part without the other); then there is nothing to close. */
int adapter_open(struct adapter *a, const char *dir, const struct config *c,
    const struct params *ps, struct err *e) CHR_MUST_CHECK;
void adapter_close(struct adapter *a);

/* Values of the largest A or B; 1 when there are none. */
int64_t adapter_largest(const struct adapter *a);

/* For who can only add: EX_DATAERR when a parameter has to be replaced, other than by its own. */
int adapter_only_adds(const struct adapter *a, struct err *e) CHR_MUST_CHECK;

/* One part of m, a matrix of a, into dst of the size above. EX_DATAERR for a value that is not
 * finite, EX_IOERR, EX_OSERR. */
int adapter_read_a(struct adapter *a, const struct adapter_matrix *m, float *dst, struct err *e)
    CHR_MUST_CHECK;
int adapter_read_b(struct adapter *a, const struct adapter_matrix *m, float *dst, struct err *e)
    CHR_MUST_CHECK;
/* The values that w is to have, of the shape of its parameter. The same errors. */
int adapter_read_whole(struct adapter *a, const struct adapter_whole *w, float *dst, struct err *e)
    CHR_MUST_CHECK;

/* The fingerprint of the model that an adapter was trained on, as its metadata say (above); to be
 * freed. NULL: they do not. */
char *adapter_base(const json_t *metadata);
/* Is it the fingerprint of this model, or what this one was packed from? ancestry: the model's own
 * (prov.h); NULL: only the model itself will do. EX_DATAERR: no; the message names both and
 * --force. */
int adapter_fits(const char *dir, const char *base, const char *model, const char *fingerprint,
    const char *ancestry, struct err *e) CHR_MUST_CHECK;

#endif
