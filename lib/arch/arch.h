/*
 * arch: families of models. One file NAME.c per family turns its config.json into a struct config
 * with a block per layer, says how it calls its tensors, and lists the keys it reads and those it
 * may ignore. What is in no list is refused, because a key that is passed over in silence gives
 * other numbers than the model's.
 */
#ifndef CHR_ARCH_H
#define CHR_ARCH_H

#include <jansson.h>
#include <stdbool.h>

#include "arch/keys.h"
#include "arch/param.h"
#include "base/opt.h"

/* where a family means something else by an absent key; ends with NULL */
struct key_fallback {
	const char *key;
	double value;
};

struct key_alias {		/* a key of struct key in the family's spelling; ends with NULL */
	const char *key, *theirs;
};

/* A key that may be ignored with this value (JSON text), or any (NULL); one with several values has
 * an entry for each. */
struct key_off {
	const char *key, *value;
};

struct arch {
	const char *model_type;
	const char *also;			/* another that is the same maths; NULL: none */
	const char *const *architectures;	/* ends with NULL */
	const struct key *const *keys;		/* tables of plain values; ends with NULL */
	const struct key_fallback *fallbacks;	/* may be NULL, like all that follow */
	const struct key_alias *aliases;
	/* keys that read() looks at, besides; ends with NULL */
	const char *const *reads;
	const struct key_off *ignores;		/* ends with a NULL key */
	const struct param_name *names;
	/* the key of an object in which all of that is, in a config of more than a network of
	 * text; NULL: it is the config */
	const char *within;
	/* with `within`: the family of that network alone, as which it is written; else NULL */
	const struct arch *text;
	/* config_to_json() writes every key of chr-model(5) */
	bool ours;
	int (*read)(struct config *c, const struct keys *k);	/* after the plain values */
};

extern const struct arch arch_chronos, arch_qwen3_moe;

/* The family of a config, by model_type, else by architectures, else ours; NULL with EX_DATAERR
 * when it is none of these. */
const struct arch *arch_find(const json_t *o, const char *name, struct err *e) CHR_MUST_CHECK;
/* Does it say whose it is, by these or by a key that only ours have? A model with weights must. */
bool arch_named(const json_t *o);
/* of a key in this file */
const char *arch_spelling(const struct arch *a, const json_t *raw, const char *key);
bool arch_knows(const struct arch *a, const char *key);		/* does it read the key? */
/* Plain values of the tables. */
int arch_read_keys(struct config *c, const struct keys *k);
/* EX_DATAERR for the first key that is neither read nor may be ignored as it is. */
int arch_check_keys(const struct keys *k);
int arch_check_key(const struct keys *k, const char *key, const json_t *v, const char *shown);

/* A tensor that inference and training do without, whatever the family: why, or NULL. *layer: it is
 * of a layer beyond those of the config, and harmless only where that layer is one of multi-token
 * prediction (arch_mtp_mark). */
const char *arch_harmless(const struct config *c, const char *tensor, int *layer);
void arch_mtp_mark(int layer, char name[64]);	/* the tensor by which such a layer is known */

/* --ignore-key, of every program that opens models */
extern struct opt arch_opts[];

#endif
