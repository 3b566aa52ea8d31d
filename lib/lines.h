/*
 * lines: a block of lines, read by one thread to be taken by several.
 *
 *	struct lines b = {0};
 *	lines_add(&b, s, len, number);
 *	... lines_text(&b, i) is NUL-terminated, b.line[i].len bytes
 *	lines_clear(&b);		(the memory stays for the next block)
 *	lines_free(&b);
 */
#ifndef CHR_LINES_H
#define CHR_LINES_H

#include <stddef.h>
#include <stdint.h>

struct line {
	size_t at, len;			/* in the text, without the newline */
	int64_t place;			/* where it was found, as whoever reads counts */
};

struct lines {
	char *text;
	size_t n, cap;			/* bytes of it */
	struct line *line;
	int64_t count, room;
};

/* Memory for n bytes of text, and a NUL. Ends the program when there is none, as all of these. */
void lines_reserve(struct lines *b, size_t n);
void lines_mark(struct lines *b, size_t at, size_t len, int64_t place);	/* of text that is there, and puts the NUL */
void lines_add(struct lines *b, const char *s, size_t len, int64_t place);
void lines_clear(struct lines *b);
void lines_free(struct lines *b);

static inline const char *lines_text(const struct lines *b, int64_t i)
{
	return b->text + b->line[i].at;
}

#endif
