/*
 * lineblock: a block of lines, read by one thread to be taken by several.
 *
 *	struct lineblock b = {0};
 *	lineblock_add(&b, s, len, number);
 *	... lineblock_text(&b, i) is NUL-terminated, b.line[i].len bytes
 *	lineblock_clear(&b);		(the memory stays for the next block)
 *	lineblock_free(&b);
 */
#ifndef CHR_LINEBLOCK_H
#define CHR_LINEBLOCK_H

#include <stddef.h>
#include <stdint.h>

struct line {
	size_t at, len;			/* in the text, without the newline */
	int64_t place;			/* where it was found, as whoever reads counts */
};

struct lineblock {
	char *text;
	size_t n, cap;			/* bytes of it */
	struct line *line;
	int64_t count, room;
};

/* Memory for n bytes of text, and a NUL. Ends the program when there is none, as all of these. */
void lineblock_reserve(struct lineblock *b, size_t n);
/* of text that is there, and puts the NUL */
void lineblock_mark(struct lineblock *b, size_t at, size_t len, int64_t place);
void lineblock_add(struct lineblock *b, const char *s, size_t len, int64_t place);
void lineblock_clear(struct lineblock *b);
void lineblock_free(struct lineblock *b);

static inline const char *lineblock_text(const struct lineblock *b, int64_t i)
{
	return b->text + b->line[i].at;
}

#endif
