/*
 * ckpt: a run's state on disk. A checkpoint is a whole model directory, OUT/checkpoint-STEP,
 * with optimizer.safetensors and train_state.json beside the model. It is written under another
 * name, synced, and renamed, so whatever has the name of a checkpoint is whole; killing the
 * program at any moment leaves the one before as it was.
 *
 *	ckpt_lock(out, &fd, &e);
 *	ckpt_clean(out, &e);				(what a killed run left half done)
 *	if (ckpt_newest(out, &dir, &e) == 0 && dir != NULL)
 *		ckpt_load(dir, &m, &opt, &state, &e);
 *	ckpt_save(out, step, &c, &e);
 *	ckpt_publish(out, step, &e);			(at the end: the checkpoint's files
 *							become those of OUT)
 *
 * Of several ranks (comm.h) rank 0 writes; all call ckpt_save(), because each has a part of the
 * moments, and perhaps of the experts, and all read. What is written does not tell how many
 * there were.
 *
 * optimizer.safetensors holds m.NAME and v.NAME per parameter that is not frozen, F32, and
 * master.NAME of all when the weights are written as BF16 or are those of an adapter. The
 * checkpoint of an adapter has the files of adapter_save.h (F32) in place of a model.
 */
#ifndef CHR_CKPT_H
#define CHR_CKPT_H

#include <jansson.h>
#include <stdbool.h>

#include "model/lora.h"
#include "model/model.h"
#include "model/optim.h"
#include "text/tok.h"

struct weights {		/* what is trained: the parameters of a model, or those of an
				   adapter on it (lora.h) */
	const struct params *par;
	const struct backend *be;
	dev_real *w, *g;	/* (par->total) */
};

struct ckpt {
	struct weights w;
	const struct config *cfg;	/* that of the model with the keys it was read with,
					   which are written back */
	const struct lora *adapter;	/* whose weights these are; NULL: a model's */
	const char *base;	/* where the adapter's model is from */
	struct optim *opt;
	const struct tok *tok;	/* NULL: no tokenizer files */
	enum dtype dtype;	/* of model.safetensors: DT_F32 or DT_BF16 */
	int64_t shard_size;	/* a larger model is written in shards; 0: never */
	json_t *metadata, *state;
};

/* Held while reading or writing: n tensors that are written, the largest of `largest` elements. */
int64_t ckpt_bytes(int n, int64_t largest, const struct backend *be);

int ckpt_save(const char *out, int64_t step, const struct ckpt *c, struct err *e) CHR_MUST_CHECK;
int ckpt_publish(const char *out, int64_t step, struct err *e) CHR_MUST_CHECK;
int64_t ckpt_step(const char *name);	/* of "checkpoint-STEP"; -1: another name */
bool ckpt_exists(const char *out, int64_t step);
/* Removes all checkpoints but the newest `keep` and that of step `spare` (-1: none). */
int ckpt_prune(const char *out, int keep, int64_t spare, struct err *e) CHR_MUST_CHECK;
/* One run at a time: *fd is to be closed at the end, -1 when there is no such directory yet. */
int ckpt_lock(const char *out, int *fd, struct err *e) CHR_MUST_CHECK;
int ckpt_clean(const char *out, struct err *e) CHR_MUST_CHECK;
/* every checkpoint, and the resume state of OUT itself */
int ckpt_remove_all(const char *out, struct err *e) CHR_MUST_CHECK;

/* malloc'ed name of the newest checkpoint (OUT itself when its state is newer), or NULL in *dir
 * when there is none. */
int ckpt_newest(const char *out, char **dir, struct err *e) CHR_MUST_CHECK;
bool ckpt_occupied(const char *out);			/* holds a model or checkpoints */

/* train_state.json */
int ckpt_state(const char *dir, json_t **state, struct err *e) CHR_MUST_CHECK;
/* Weights and moments, exact. */
int ckpt_load(const char *dir, const struct weights *w, struct optim *o, struct err *e)
    CHR_MUST_CHECK;

/* Any model directory, any float type. A lookahead head that its config does not ask for, and m
 * has, begins random. */
int ckpt_load_weights(const char *dir, struct model *m, struct err *e) CHR_MUST_CHECK;
/* w->g of what is not frozen, which optim_collect() has made whole, F32, by parameter name. All
 * ranks call it. */
int ckpt_put_gradients(const char *path, const struct weights *w, struct optim *opt,
    struct err *e) CHR_MUST_CHECK;

#endif
