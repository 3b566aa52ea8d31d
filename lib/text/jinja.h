/*
 * jinja: renders chat templates: the part of Jinja that published templates use, as transformers
 * runs them (blocks trimmed, a sandbox in which nothing can be changed, its own tojson,
 * raise_exception, strftime_now and the `generation` tag). A template is a stranger's program,
 * so its steps, its memory and its output are bounded.
 *
 *	struct jinja *t = jinja_open(source, strlen(source), "chat_template.jinja", &e);
 *	struct jinja_text out;
 *	if (jinja_render(t, own, given, &out, &e) == 0)
 *		... out.text, and out.from tells of each byte where it comes from ...
 *	jinja_text_free(&out);
 *	jinja_close(t);
 *
 * Where a byte comes from decides whether it may become a special token: what a user or a tool
 * says never does.
 */
#ifndef CHR_JINJA_H
#define CHR_JINJA_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum {
	JINJA_DATA = 0,		/* from the values given */
	JINJA_OWN = 1,		/* from the template itself, or from a value of its tokenizer */
	JINJA_ASSISTANT = 2,	/* from a message whose role is assistant */
	JINJA_FROM = 3,		/* mask of the three */
	JINJA_LEARN = 4		/* added to any of them inside {% generation %} */
};

struct jinja_text {
	char *text;		/* NUL-terminated */
	uint8_t *from;		/* (len) */
	size_t len;
};

struct jinja;

/* NULL: EX_DATAERR with name, line and what is wrong. The source is copied. */
struct jinja *jinja_open(const char *source, size_t len, const char *name, struct err *e)
    CHR_MUST_CHECK;
void jinja_close(struct jinja *t);

/* own, given: objects whose keys are the template's variables (either may be NULL); strings of
 * the first count as the template's own. EX_DATAERR: the template raised an error, or a bound
 * was reached. */
int jinja_render(const struct jinja *t, const json_t *own, const json_t *given,
    struct jinja_text *out, struct err *e) CHR_MUST_CHECK;
void jinja_text_free(struct jinja_text *t);

/* A template may end with a condition that is the only place where it asks for
 * add_generation_prompt. What that end would write with other values can then be told with one
 * rendering: for each of n objects of variables, which go before those given, the text is in
 * tail[i] (n of them; freed by the caller when 0 is returned). 1, and nothing rendered: this
 * template has no such end, or its end writes something in either case. */
int jinja_render_tails(const struct jinja *t, const json_t *own, const json_t *given,
    struct jinja_text *out, int n, json_t *const again[], struct jinja_text *tail, struct err *e)
    CHR_MUST_CHECK;
/* Is this word anywhere in the template? */
int jinja_mentions(const struct jinja *t, const char *word);

/* Does the template mark what is to be learned ({% generation %})? */
int jinja_marks(const struct jinja *t);

#endif
