#include "arch/homes.h"

#include <stdio.h>
#include <string.h>

#define WITHIN "model.language_model."		/* of a network that is a part of a model */

/* The entries of a list for the kind of p, after n others. */
static int add_listed(const struct param_name *list, const struct param *p, struct home *h, int n)
{
	for (; list && list->name; list++)
		if (list->kind == p->kind && n < HOMES / 2 - 1) {
			snprintf(h[n].name, sizeof h->name, list->name, p->layer, p->expert);
			h[n++].how = list->how;
		}
	return n;
}

/* The name that programs here give it (chr-ls), which no file may have. */
static int add_own(const struct param *p, struct home *h, int n)
{
	for (int i = 0; i < n; i++)
		if (strcmp(h[i].name, p->name) == 0)
			return n;
	snprintf(h[n].name, sizeof h->name, "%s", p->name);
	h[n++].how = 0;
	return n;
}

/* The network alone, out of a model that it is a part of, has names without that. */
static int add_alone(struct home *h, int n)
{
	for (int i = 0, end = n; i < end; i++)
		if (strncmp(h[i].name, WITHIN, strlen(WITHIN)) == 0) {
			snprintf(h[n].name, sizeof h->name, "model.%s",
			    h[i].name + strlen(WITHIN));
			h[n++].how = h[i].how;
		}
	return n;
}

int homes_of(const struct config *c, const struct param *p, struct home h[HOMES])
{
	int n = add_own(p, h, add_listed(c->names, p, h, 0));

	return add_alone(h, add_listed(param_also, p, h, n));
}

void homes_memory(const struct config *c, const struct param *p, struct home *h)
{
	struct home of[HOMES];
	int n = add_listed(c->names, p, of, 0);

	if (param_routed(p) && (n == 0 || !(of[n - 1].how & AT_STACKED)))
		n = add_listed(param_also, p, of, n);
	if (n == 0)
		n = add_own(p, of, n);
	*h = of[n - 1];
}

bool homes_ends(const char *name, const char *wanted)
{
	size_t n = strlen(name), k = strlen(wanted);

	return n >= k && strcmp(name + n - k, wanted) == 0 && (n == k || name[n - k - 1] == '.');
}
