/*
 * jsontext: JSON as the text that it is. What a program only carries on keeps the spelling of its
 * numbers (1.10, 1e5, integers beyond 64 bits), which json_t does not hold; and what is wrong with
 * a text is said in words for people.
 *
 *	struct jsontext out = {0};
 *	json_t *set = json_pack("{s:i}", "n", 3);
 *	jsontext_record(&out, line, len, set, false, NULL);	(the line with "n" set)
 *	jsontext_put(&out, stdout, &e);
 *	jsontext_free(&out);
 *
 * Text that goes out has no white space between values and its strings are escaped as json_dumps()
 * does it, so that only numbers differ from what json_dumps() writes.
 */
#ifndef CHR_JSONTEXT_H
#define CHR_JSONTEXT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "base/err.h"

struct jsontext {		/* a growing text */
	char *s;
	size_t n, cap;
};
void jsontext_add(struct jsontext *t, const char *s, size_t len);
void jsontext_free(struct jsontext *t);

enum jsontext_use {
	JSONTEXT_FILE,		/* a document of one's own: strings hold no NUL character */
	JSONTEXT_RECORD		/* a line of JSONL: strings may; lists and objects under "arguments"
				   and "tools" that hold numbers whose spelling would be lost come
				   as a string of their JSON */
};

/* The object or list in a text, NULL with a reason. Keys that come twice are refused. Numbers
 * beyond what int64_t holds become the nearest double, in a record also those that no double
 * holds, which nobody may want to read. *line (may be NULL): of a fault. */
json_t *jsontext_parse(const char *s, size_t len, enum jsontext_use use, int *line,
    struct err *why) CHR_MUST_CHECK;

/* Appends a valid text without white space. */
void jsontext_compact(struct jsontext *out, const char *s, size_t len);

/* The next element of a list at *s, which begins behind its bracket: true, and moves on. */
bool jsontext_element(const char **s, const char *end, const char **v, size_t *len);

/* Appends the object in a valid text with the members of `set` in it: those whose key it has in
 * the place of the old ones, the others behind; or all of them first. drop (NULL: none) ends with
 * NULL and names members of the text that are left out. */
void jsontext_record(struct jsontext *out, const char *line, size_t len, const json_t *set,
    bool first, const char *const drop[]);

/* As a line of f, flushed. 0, or -1 with EX_IOERR. */
int jsontext_put(struct jsontext *t, FILE *f, struct err *e) CHR_MUST_CHECK;

#endif
