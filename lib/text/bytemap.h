/*
 * bytemap: hash tables of the tokenizer: byte strings to a number, and pairs of ids to a number.
 * Keys are copied; nothing is removed but all at once. They end the program when memory is out,
 * like mem_alloc().
 *
 *	bool fresh;
 *	uint32_t *n = bytemap_put(&m, word, len, &fresh);	(0 when fresh)
 *	++*n;
 */
#ifndef CHR_BYTEMAP_H
#define CHR_BYTEMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bytemap_slot {
	size_t off;		/* of the key in text */
	uint32_t hash, len;
	uint64_t value;
};

struct bytemap {
	struct bytemap_slot *slot;	/* (cap), open addressing; hash 0 is free */
	size_t cap, n;
	char *text;			/* all keys */
	size_t text_n, text_cap;
};

/* NULL: not there */
uint64_t *bytemap_get(const struct bytemap *m, const char *key, size_t len);
uint64_t *bytemap_put(struct bytemap *m, const char *key, size_t len, bool *fresh);
void bytemap_clear(struct bytemap *m);		/* forgets all keys, keeps the memory */
void bytemap_free(struct bytemap *m);

#define PAIR_KEY(a, b) ((uint64_t)(a) << 32 | (b))

struct pairmap {
	struct pairmap_slot { uint64_t key; uint32_t value; uint32_t used; } *slot;
	size_t cap, n;
};

static inline uint64_t pairmap_hash(uint64_t key)
{
	key *= 0x9e3779b97f4a7c15u;
	return key ^ key >> 32;
}

/* The value of key, or none. On the hot path of encoding, hence in the header. */
static inline uint32_t pairmap_get(const struct pairmap *m, uint64_t key, uint32_t none)
{
	if (!m->cap)
		return none;
	for (size_t i = pairmap_hash(key) & (m->cap - 1); m->slot[i].used;
	    i = (i + 1) & (m->cap - 1))
		if (m->slot[i].key == key)
			return m->slot[i].value;
	return none;
}

uint32_t *pairmap_put(struct pairmap *m, uint64_t key, bool *fresh);
void pairmap_free(struct pairmap *m);

/* realloc that ends the program with EX_OSERR. */
void *bytemap_grow(void *p, size_t n, size_t size);

#endif
