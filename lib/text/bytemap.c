#include "text/bytemap.h"

#include <stdlib.h>
#include <string.h>

#include "base/err.h"

void *bytemap_grow(void *p, size_t n, size_t size)
{
	void *q;

	if (__builtin_mul_overflow(n, size, &n) || !(q = realloc(p, n ? n : 1)))
		err_die(EX_OSERR, "out of memory for the tokenizer");
	return q;
}

/* Eight bytes at a time; never 0, which marks a free slot. */
static uint32_t hash_bytes(const char *s, size_t len)
{
	uint64_t h = len * 0x9e3779b97f4a7c15u, w;

	for (; len >= 8; s += 8, len -= 8) {
		memcpy(&w, s, 8);
		h = (h ^ w) * 0xff51afd7ed558ccdu;
		h ^= h >> 32;
	}
	if (len) {
		w = 0;
		memcpy(&w, s, len);
		h = (h ^ w) * 0xff51afd7ed558ccdu;
		h ^= h >> 32;
	}
	h *= 0xc4ceb9fe1a85ec53u;
	return (uint32_t)(h >> 32) | 1;
}

static struct bytemap_slot *find(const struct bytemap *m, const char *key, size_t len,
    uint32_t hash)
{
	struct bytemap_slot *s;

	for (size_t i = (hash >> 1) & (m->cap - 1);; i = (i + 1) & (m->cap - 1)) {
		s = &m->slot[i];
		if (!s->hash || (s->hash == hash && s->len == len && !memcmp(m->text + s->off, key,
		    len)))
			return s;
	}
}

uint64_t *bytemap_get(const struct bytemap *m, const char *key, size_t len)
{
	struct bytemap_slot *s;

	if (!m->n || len > UINT32_MAX)
		return NULL;
	s = find(m, key, len, hash_bytes(key, len));
	return s->hash ? &s->value : NULL;
}

static void rehash(struct bytemap *m)
{
	struct bytemap_slot *old = m->slot;
	size_t cap = m->cap;

	m->cap = cap ? 2 * cap : 1024;
	m->slot = bytemap_grow(NULL, m->cap, sizeof *m->slot);
	memset(m->slot, 0, m->cap * sizeof *m->slot);
	for (size_t i = 0; i < cap; i++) {
		if (!old[i].hash)
			continue;
		/* Keys are distinct: only a free slot is wanted. */
		size_t j = (old[i].hash >> 1) & (m->cap - 1);
		while (m->slot[j].hash)
			j = (j + 1) & (m->cap - 1);
		m->slot[j] = old[i];
	}
	free(old);
}

uint64_t *bytemap_put(struct bytemap *m, const char *key, size_t len, bool *fresh)
{
	uint32_t hash = hash_bytes(key, len);
	struct bytemap_slot *s;

	if (m->n >= m->cap / 2)
		rehash(m);
	s = find(m, key, len, hash);
	*fresh = !s->hash;
	if (*fresh) {
		if (m->text_cap - m->text_n < len || !m->text) {
			m->text_cap = 2 * (m->text_n + len) + 4096;
			m->text = bytemap_grow(m->text, m->text_cap, 1);
		}
		memcpy(m->text + m->text_n, key, len);
		*s = (struct bytemap_slot){ m->text_n, hash, (uint32_t)len, 0 };
		m->text_n += len;
		m->n++;
	}
	return &s->value;
}

void bytemap_clear(struct bytemap *m)
{
	if (m->cap)
		memset(m->slot, 0, m->cap * sizeof *m->slot);
	m->n = m->text_n = 0;
}

void bytemap_free(struct bytemap *m)
{
	free(m->slot);
	free(m->text);
	memset(m, 0, sizeof *m);
}

static void pairmap_rehash(struct pairmap *m)
{
	struct pairmap_slot *old = m->slot;
	size_t cap = m->cap;

	m->cap = cap ? 2 * cap : 1024;
	m->slot = bytemap_grow(NULL, m->cap, sizeof *m->slot);
	memset(m->slot, 0, m->cap * sizeof *m->slot);
	for (size_t i = 0; i < cap; i++) {
		size_t j = pairmap_hash(old[i].key) & (m->cap - 1);

		if (!old[i].used)
			continue;
		while (m->slot[j].used)
			j = (j + 1) & (m->cap - 1);
		m->slot[j] = old[i];
	}
	free(old);
}

uint32_t *pairmap_put(struct pairmap *m, uint64_t key, bool *fresh)
{
	size_t i;

	if (m->n >= m->cap / 2)
		pairmap_rehash(m);
	for (i = pairmap_hash(key) & (m->cap - 1); m->slot[i].used; i = (i + 1) & (m->cap - 1))
		if (m->slot[i].key == key)
			break;
	*fresh = !m->slot[i].used;
	if (*fresh) {
		m->slot[i] = (struct pairmap_slot){ key, 0, 1 };
		m->n++;
	}
	return &m->slot[i].value;
}

void pairmap_free(struct pairmap *m)
{
	free(m->slot);
	memset(m, 0, sizeof *m);
}
