/* The end of a template that alone asks for a prompt. */
#include <string.h>

#include "text/jinja_int.h"

static const char prompt[] = "add_generation_prompt", thinking[] = "enable_thinking";

static bool mentions(const struct node *n, const char *name)
{
	for (; n != NULL; n = n->next)
		if ((n->name != NULL && n->k != N_TEXT && jinja_str_is(n->name, name)) ||
		    mentions(n->a, name) || mentions(n->b, name) || mentions(n->c, name) ||
		    mentions(n->kids, name))
			return true;
	return false;
}

/* Only conditions and output, of values that nothing in a template sets: these, and tokens. */
static bool is_plain(const struct node *n)
{
	for (; n != NULL; n = n->next) {
		if (n->k < E_CONST && n->k != N_TEXT && n->k != N_OUT && n->k != N_IF)
			return false;
		if (n->k == E_CALL || (n->k == E_NAME && !jinja_str_is(n->name, prompt) &&
		    !jinja_str_is(n->name, thinking)))
			return false;
		if (!is_plain(n->a) || !is_plain(n->b) || !is_plain(n->c) || !is_plain(n->kids))
			return false;
	}
	return true;
}

/* Does a statement give the name a value? */
static bool sets(const struct node *n, const char *name)
{
	for (; n != NULL; n = n->next) {
		if ((n->k == N_SET || n->k == N_SETBLOCK || n->k == N_FOR) &&
		    mentions(n->kids, name))
			return true;
		if (n->k < E_CONST && (sets(n->b, name) || sets(n->c, name) ||
		    (n->k == N_IF && sets(n->kids, name))))
			return true;
	}
	return false;
}

struct node *jinja_tail(struct node *body)
{
	struct node *last = body;

	while (last != NULL && last->next != NULL)
		last = last->next;
	if (last == NULL || last->k != N_IF || !is_plain(last) || sets(body, thinking))
		return NULL;
	for (struct node *n = body; n != last; n = n->next) {
		struct node *next = n->next;
		bool elsewhere;

		n->next = NULL;
		elsewhere = mentions(n, prompt);
		n->next = next;
		if (elsewhere)
			return NULL;
	}
	return last;
}
