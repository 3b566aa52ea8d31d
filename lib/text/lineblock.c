#include "text/lineblock.h"

#include <stdlib.h>
#include <string.h>

#include "base/err.h"

static void *resize(void *p, size_t n, size_t size)
{
	if ((p = realloc(p, n * size)) == NULL)
		err_die(EX_OSERR, "out of memory for a block of lines");
	return p;
}

void lineblock_reserve(struct lineblock *b, size_t n)
{
	if (n < b->cap)
		return;
	b->cap = n + n / 8 + 4096;
	b->text = resize(b->text, b->cap, 1);
}

void lineblock_mark(struct lineblock *b, size_t at, size_t len, int64_t place)
{
	if (b->count == b->room) {
		b->room = 2 * b->room + 64;
		b->line = resize(b->line, (size_t)b->room, sizeof *b->line);
	}
	b->text[at + len] = '\0';
	b->line[b->count++] = (struct line){ at, len, place };
}

void lineblock_add(struct lineblock *b, const char *s, size_t len, int64_t place)
{
	size_t at = b->n;

	lineblock_reserve(b, at + len + 1);
	memcpy(b->text + at, s, len);
	b->n += len + 1;
	lineblock_mark(b, at, len, place);
}

void lineblock_clear(struct lineblock *b)
{
	b->n = 0;
	b->count = 0;
}

void lineblock_free(struct lineblock *b)
{
	free(b->text);
	free(b->line);
	*b = (struct lineblock){0};
}
