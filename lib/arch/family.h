/*
 * family: what the files of families share: reading of the keys that most of them have.
 */
#ifndef CHR_FAMILY_H
#define CHR_FAMILY_H

#include "arch/config.h"
#include "arch/keys.h"

#define KEY_AT(x) offsetof(struct config, x)

/* Tables of plain values: sizes and ids of any model; of routed experts; of training, ours. End with a NULL key. */
extern const struct key family_keys[], family_moe_keys[], family_train_keys[];

/* Keys of our own models, which also models have that were published and trained here. */
extern const struct key chronos_keys[];
extern const char *const chronos_reads[];
extern const char *const chronos_attn_names[];		/* by enum attn_kind */
/* Everything that follows from them, blocks too. published: absent keys mean what they mean in transformers. */
int chronos_layers(struct config *c, const struct keys *k, bool published);

/* head_dim where it is absent, and whether heads divide. */
int family_heads(struct config *c, const struct keys *k);
/* decoder_sparse_step and mlp_only_layers. */
int family_sparse_step(struct config *c, const struct keys *k);
int family_sparse_done(struct config *c, const struct keys *k);	/* counts sparse layers and checks experts */
/* rope_scaling or rope_parameters as transformers understands them, into c->rope for heads of which `width` elements
 * turn. */
int family_rope(struct config *c, const struct keys *k, int width);
int family_ids(struct config *c, const struct keys *k);		/* token ids against the vocabulary */

#endif
