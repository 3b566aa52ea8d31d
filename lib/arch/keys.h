/*
 * keys: reading the keys of one config.json, for the files of families. Every failure names the
 * file, or the --set that brought the value, and the key.
 */
#ifndef CHR_KEYS_H
#define CHR_KEYS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

struct arch;
struct config;

struct keys {
	const char *name;		/* of the file, in messages */
	const json_t *whole;		/* as in the file, with the values of --set */
	const json_t *raw;		/* the object of it that has the keys */
	const json_t *o;		/* the same in the spelling of struct key */
	int nsets;
	const char *const *sets;	/* of the command line */
	const struct arch *arch;
	struct err *e;
};

/* KEY_SAME: an integer, or a list of one and the same */
enum key_kind { KEY_INT, KEY_SAME, KEY_ID, KEY_REAL, KEY_BOOL };

#define KEY_REQUIRED (-1e300)		/* a fallback: the key must be there */

/* A plain value of struct config, and the range that keeps every product of two of them inside
 * int64_t. */
struct key {
	const char *key;
	enum key_kind kind;
	size_t at;
	double fallback, lo, hi;
};

/* Fails with EX_DATAERR, or EX_USAGE where a --set is to blame. */
int keys_bad(const struct keys *k, const char *key, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
const json_t *keys_get(const struct keys *k, const char *key);	/* NULL: absent or null */
int keys_bool(const struct keys *k, const char *key, bool fallback, bool *out);
int keys_int(const struct keys *k, const char *key, const json_t *v, double lo, double hi,
    int *out);
int keys_real(const struct keys *k, const char *key, const json_t *v, double lo, double hi,
    double *out);
/* An integer, or a list of one and the same; absent: *out stays as it is. */
int keys_same(const struct keys *k, const char *key, double lo, double hi, int *out);
int keys_read(const struct keys *k, const struct key *f, double fallback, struct config *c);
/* A list of n names, one a layer; out[i] is the index of entry i in names. *found: the key was
 * there. */
int keys_list(const struct keys *k, const char *key, int n, const char *const *names, int nnames,
    int *out,
    bool *found);

#endif
