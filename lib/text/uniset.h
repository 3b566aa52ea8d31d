/*
 * uniset: sets of characters, and what Unicode says of them. The version is our own (16.0, in
 * unitable.c) and not that of a library which happens to be installed: the ids of a text depend on
 * it, and are to be those that the engines of published tokenizers give.
 *
 *	struct uniset s = { 0 };
 *	if (uniset_property(&s, "L", 1)) {
 *		uniset_add(&s, '_', '_');
 *		uniset_order(&s);
 *		uniset_not(&s);		(all but letters and the underscore)
 *	}
 *	uniset_free(&s);
 */
#ifndef CHR_UNISET_H
#define CHR_UNISET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UNI_TOP 0x10ffff

struct unirange { uint32_t a, b; };	/* both are in it */

struct uniset {
	struct unirange *r;
	int n, cap;
};

void uniset_add(struct uniset *s, uint32_t a, uint32_t b);	/* in any order, also twice */
void uniset_add_ranges(struct uniset *s, const struct unirange *r, int n);
void uniset_add_set(struct uniset *s, const struct uniset *more);
/* Ranges in order that neither touch nor overlap: what the functions below need and leave. */
void uniset_order(struct uniset *s);
void uniset_not(struct uniset *s);
void uniset_and(struct uniset *s, const struct uniset *other);
bool uniset_has(const struct uniset *s, uint32_t c);
/* Adds the other cases of all that is in it (simple folding). */
void uniset_add_case(struct uniset *s);
void uniset_free(struct uniset *s);

/* Adds what has a property: a General_Category (L, Lu, Letter, ..), a script (Han), Any, Assigned,
 * ASCII, Alphabetic, White_Space, Lowercase, Uppercase. Case, spaces, '_' and '-' in the name do
 * not matter. false: not known. */
bool uniset_property(struct uniset *s, const char *name, size_t len);

/* Tables of scripts/unicode-tables; _n is the length. */
extern const char *const uni_category_name[], *const uni_script_name[];
extern const uint32_t uni_category[], uni_script[], uni_orbit[][4], uni_full_case[][10];
extern const struct unirange uni_alphabetic[], uni_lowercase[], uni_uppercase[], uni_numeric17[],
    uni_punctuation8[], uni_late[];
extern const int uni_category_names, uni_category_n, uni_script_names, uni_script_n,
    uni_alphabetic_n, uni_lowercase_n, uni_uppercase_n, uni_numeric17_n, uni_punctuation8_n,
    uni_late_n, uni_orbits, uni_full_cases;

/* The General_Category of c: two letters. */
const char *uni_category_of(uint32_t c);
/* Is c in ranges that are in order? */
bool uni_in(const struct unirange *r, int n, uint32_t c);
/* What becomes of c in full: out gets up to three characters, their number is returned. */
enum uni_case { UNI_UPPER, UNI_TITLE, UNI_LOWER };
int uni_full(uint32_t c, enum uni_case how, uint32_t out[3]);

#endif
