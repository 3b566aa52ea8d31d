/*
 * plain: text that came from elsewhere, as a terminal may see it. Escape sequences move the cursor,
 * set titles and hide lines; marks of direction show a name in another order than it has. Each such
 * character, and each byte that is no UTF-8, becomes '?'; all other text stays as it is.
 *
 * All messages of err.h pass through plain_text(); tables for people through plain_json().
 */
#ifndef CHR_PLAIN_H
#define CHR_PLAIN_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* The UTF-8 character at s, of which `left` bytes may be read: its length and its number, or 0. */
size_t plain_utf8(const char *s, size_t left, uint32_t *c);

/* In place; the text gets no longer. Tabs and newlines count too: a message is one line. Returns
 * the new length. */
size_t plain_text(char *s);

/* A text of many lines, plain where f is a terminal, and as it is where it is not. */
void plain_write(FILE *f, const char *s, size_t len);

json_t *plain_json(const json_t *o);	/* a copy in which all keys and strings are plain; new */

#endif
