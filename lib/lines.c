#include "lines.h"

#include <stdlib.h>
#include <string.h>

#include "err.h"

static void *resize(void *p, size_t n, size_t size)
{
	if ((p = realloc(p, n * size)) == NULL)
		err_die(EX_OSERR, "out of memory for a block of lines");
	return p;
}

void lines_reserve(struct lines *b, size_t n)
{
	if (n < b->cap)
		return;
	b->cap = n + n / 8 + 4096;
	b->text = resize(b->text, b->cap, 1);
}

void lines_mark(struct lines *b, size_t at, size_t len, int64_t place)
{
	if (b->count == b->room) {
		b->room = 2 * b->room + 64;
		b->line = resize(b->line, (size_t)b->room, sizeof *b->line);
	}
	b->text[at + len] = '\0';
	b->line[b->count++] = (struct line){ at, len, place };
}

void lines_add(struct lines *b, const char *s, size_t len, int64_t place)
{
	size_t at = b->n;

	lines_reserve(b, at + len + 1);
	memcpy(b->text + at, s, len);
	b->n += len + 1;
	lines_mark(b, at, len, place);
}

void lines_clear(struct lines *b)
{
	b->n = 0;
	b->count = 0;
}

void lines_free(struct lines *b)
{
	free(b->text);
	free(b->line);
	*b = (struct lines){0};
}
