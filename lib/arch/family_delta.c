/* What families with layers of the gated delta rule share. */
#include "arch/family.h"

#include <limits.h>

int family_two_types(const struct config *c, const struct keys *k, const char *other, int *type,
    bool *found)
{
	const char *const names[] = { "full_attention", other };

	return keys_list(k, "layer_types", c->num_hidden_layers, names, 2, type, found);
}

/* layer_types, else all but every full_attention_interval-th. */
static int read_types(struct config *c, const struct keys *k)
{
	int type[CFG_MAX_LAYERS], every = 4;
	const json_t *v = keys_get(k, "full_attention_interval");
	bool found;

	if (family_two_types(c, k, "linear_attention", type, &found) < 0 ||
	    (!found && v && keys_int(k, "full_attention_interval", v, 1, INT_MAX, &every) < 0))
		return -1;
	for (int l = 0; l < c->num_hidden_layers; l++)
		if (found ? type[l] == 1 : (l + 1) % every != 0)
			c->block[l].attn = ATTN_DELTA;
	return 0;
}

static int read_heads(const struct keys *k, struct delta_heads *d, int *taps)
{
	const struct { const char *key; int lo, hi, *at; } sizes[] = {
		{ "linear_num_value_heads", 1, 4096, &d->H },
		{ "linear_num_key_heads", 1, 4096, &d->G },
		{ "linear_key_head_dim", 1, 8192, &d->dk },
		{ "linear_value_head_dim", 1, 8192, &d->dv },
		{ "linear_conv_kernel_dim", 2, 256, taps },
	};

	for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
		const json_t *v = keys_get(k, sizes[i].key);

		if (v && keys_int(k, sizes[i].key, v, sizes[i].lo, sizes[i].hi, sizes[i].at) < 0)
			return -1;
	}
	return d->H % d->G == 0 ? 0 : keys_bad(k, "linear_num_value_heads",
	    "%d is not a multiple of linear_num_key_heads %d", d->H, d->G);
}

static void set_block(struct block *b, const struct delta_heads *heads, int taps, bool bias)
{
	if (b->attn == ATTN_DELTA) {
		b->delta = *heads;
		b->taps = taps;
		return;
	}
	b->gated = true;
	b->qk_norm = QK_NORM_HEAD;
	b->qkv_bias = b->o_bias = bias;
}

int family_delta(struct config *c, const struct keys *k, bool grouped)
{
	struct delta_heads heads = { .H = 32, .G = 16, .dk = 128, .dv = 128, .grouped = grouped };
	int taps = 4, shared = 512;
	bool bias;

	if (family_partial(c, k, 0.25) < 0 || family_begin(c, k) < 0 || read_types(c, k) < 0 ||
	    read_heads(k, &heads, &taps) < 0 || keys_bool(k, "attention_bias", false, &bias) < 0 ||
	    family_count(k, "shared_expert_intermediate_size", 1, &shared) < 0)
		return -1;
	c->norm_plus_one = true;
	c->num_shared_experts = c->num_experts > 0;
	for (int l = 0; l < c->num_hidden_layers; l++) {
		struct block *b = &c->block[l];

		set_block(b, &heads, taps, bias);
		b->shared = b->sparse;
		b->shared_gate = b->sparse;
		b->shared_width = shared;
	}
	return 0;
}
