#include "model/lora_target.h"

#include <string.h>

#include "arch/arch.h"
#include "arch/homes.h"

static bool is_kind(const char *word, const struct param *p)
{
	const unsigned traits = param_class[p->kind].traits;

	if (strcmp(word, "all-linear") == 0)
		return p->kind != P_HEAD;
	if (strcmp(word, "attention") == 0)
		return p->kind >= P_Q && p->kind < P_SINKS;
	if (strcmp(word, "router") == 0)
		return p->kind == P_GATE;
	if (strcmp(word, "experts") == 0)
		return traits & PARAM_ROUTED;
	if (strcmp(word, "shared_experts") == 0)
		return traits & PARAM_SHARED;
	return strcmp(word, "mlp") == 0 && traits & PARAM_FFN &&
	    !(traits & (PARAM_ROUTED | PARAM_SHARED));
}

/* Has it a name that ends so? As a module: without ".weight". */
static bool is_named(const char *word, const struct config *c, const struct param *p)
{
	struct home h[HOMES];

	for (int n = homes_of(c, p, h); n-- > 0;) {
		const size_t end = strlen(h[n].name), tail = strlen(".weight");

		if (homes_ends(h[n].name, word))
			return true;
		if (end > tail && strcmp(h[n].name + end - tail, ".weight") == 0)
			h[n].name[end - tail] = '\0';
		if (homes_ends(h[n].name, word))
			return true;
	}
	return false;
}

static int none(const char *word, bool other, const struct config *c, struct err *e)
{
	if (homes_ends("lm_head.weight", word) || homes_ends("lm_head", word))
		return err_set(e, EX_USAGE, "%s: of this model the head is the embedding "
		    "(tie_word_embeddings), it cannot have an adapter", word);
	if (other)
		return err_set(e, EX_USAGE, "%s: cannot have an adapter, it is not a matrix that "
		    "multiplies", word);
	return err_set(e, EX_USAGE, "no matrix of %s is called \"%s\" (chr-ls lists them)",
	    c->arch->model_type, word);
}

static int add(bool *hit, const struct config *c, const struct params *ps, const char *word,
    struct err *e)
{
	bool any = false, other = false;

	if (strpbrk(word, "*?["))
		return params_match(ps, 1, &word, hit, e);
	for (int i = 0; i < ps->n; i++) {
		const struct param *p = &ps->p[i];
		bool named = is_named(word, c, p);

		if (!param_is(p, PARAM_ADAPTS))
			other |= named;
		else if (named || is_kind(word, p))
			hit[i] = any = true;
	}
	return any ? 0 : none(word, other, c, e);
}

int lora_target(bool *hit, const struct config *c, const struct params *ps, int n,
    const char *const target[], struct err *e)
{
	for (int i = 0; i < n; i++)
		if (add(hit, c, ps, target[i], e) < 0)
			return -1;
	return 0;
}
