#include "stages/reward_int.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "format/modeldir.h"

/* --- toy --- */

static const char *const common[] = {
	"a", "about", "all", "and", "are", "as", "at", "be", "but", "by", "can", "do", "for",
	    "from", "good", "has", "have",
	"he", "how", "if", "in", "is", "it", "make", "more", "new", "not", "of", "on", "one", "or",
	    "she", "so", "that",
	"the", "they", "this", "time", "to", "was", "water", "we", "what", "when", "will", "with",
	    "work", "you",
};
#define TOY_WORDS 24

static bool is_common(const char *word, size_t len)
{
	for (size_t i = 0; i < sizeof common / sizeof *common; i++)
		if (strlen(common[i]) == len && strncasecmp(common[i], word, len) == 0)
			return true;
	return false;
}

double reward_toy(const char *text, size_t len)
{
	const char *last = NULL;
	size_t last_len = 0, n;
	double words = 0, known = 0, repeated = 0;

	for (size_t i = 0; i < len; i += n) {
		for (n = 0; i + n < len && isalpha((unsigned char)text[i + n]); n++)
			;
		if (n == 0) {
			n = 1;
			continue;
		}
		words++;
		known += is_common(text + i, n);
		repeated += last != NULL && last_len == n && strncasecmp(last, text + i, n) == 0;
		last = text + i;
		last_len = n;
	}
	if (words == 0)
		return -1;
	return fmin(words / TOY_WORDS, 1) + known / words - (words > 1 ? repeated / (words - 1)
	    : 0);
}

static int ask_toy(struct reward *r, const struct reward_item *it, double *x, struct err *e)
{
	(void)r;
	(void)e;
	*x = reward_toy(it->text, it->len);
	return 0;
}

/* --- number --- */

/* The number at s, commas between its digits left out. Its length, 0 when there is none. */
static size_t number_at(const char *s, size_t len, double *x)
{
	char buf[64];
	size_t n = 0, i = len > 0 && s[0] == '-';
	bool dot = false;

	if (i >= len || !isdigit((unsigned char)s[i]))
		return 0;
	if (i > 0)
		buf[n++] = '-';
	for (; i < len; i++) {
		bool more = i + 1 < len && isdigit((unsigned char)s[i + 1]);

		if (!isdigit((unsigned char)s[i]) &&
		    !(more && (s[i] == ',' || (s[i] == '.' && !dot))))
			break;
		dot |= s[i] == '.';
		if (s[i] != ',' && n < sizeof buf - 1)
			buf[n++] = s[i];
	}
	buf[n] = '\0';
	*x = strtod(buf, NULL);
	return i;
}

int reward_last_number(const char *text, size_t len, double *x)
{
	int found = -1;
	size_t n;

	for (size_t i = 0; i < len; i += n) {
		/* 7-3: no negative number */
		bool minus = text[i] == '-' && i > 0 && isalnum((unsigned char)text[i - 1]);

		n = minus ? 0 : number_at(text + i, len - i, x);
		if (n > 0)
			found = 0;
		else
			n = 1;
	}
	return found;
}

static int answer_of(const json_t *record, double *x, struct err *why)
{
	const json_t *v = json_object_get(record, "answer");

	if (json_is_number(v)) {
		*x = json_number_value(v);
		return 0;
	}
	if (json_is_string(v) && reward_last_number(json_string_value(v), json_string_length(v), x)
	    == 0)
		return 0;
	return err_set(why, EX_DATAERR, "no number under \"answer\" for the reward to compare "
	    "with");
}

static int ask_number(struct reward *r, const struct reward_item *it, double *x, struct err *e)
{
	double want, got;

	(void)r;
	if (answer_of(it->record, &want, e) < 0)
		return -1;
	*x = reward_last_number(it->text, it->len, &got) == 0 && fabs(got - want) <= 1e-9 * fmax(1,
	    fabs(want));
	return 0;
}

/* --- all --- */

static bool is_lm(const char *spec)
{
	return strncmp(spec, "lm:", 3) == 0;
}

int reward_fingerprint(const char *spec, char fingerprint[33], struct err *e)
{
	const char *print;
	struct modeldir md;

	fingerprint[0] = '\0';
	if (!is_lm(spec))
		return 0;
	if (modeldir_open(&md, spec + 3, 0, NULL, e) < 0)
		return -1;
	if ((print = modeldir_fingerprint(&md, e)) != NULL)
		memcpy(fingerprint, print, 33);
	modeldir_close(&md);
	return print != NULL ? 0 : -1;
}

int reward_check(const char *spec, const json_t *record, struct err *why)
{
	double x;

	return strcmp(spec, "number") == 0 ? answer_of(record, &x, why) : 0;
}

int reward_plan(const char *spec, const struct reward_opt *o, struct mem_plan *p, struct err *e)
{
	return is_lm(spec) ? reward_plan_lm(spec + 3, o, p, e) : 0;
}

struct reward *reward_open(const char *spec, const struct reward_opt *o, struct err *e)
{
	struct reward *r = calloc(1, sizeof *r);
	int rc = 0;

	if (r == NULL)
		rc = err_set(e, EX_OSERR, "out of memory");
	else if (strcmp(spec, "toy") == 0)
		r->ask = ask_toy;
	else if (strcmp(spec, "number") == 0)
		r->ask = ask_number;
	else if (is_lm(spec))
		rc = reward_open_lm(r, spec + 3, o, e);
	else
		rc = reward_open_command(r, spec, o->timeout, e);
	if (rc < 0) {
		reward_close(r);
		return NULL;
	}
	return r;
}

int reward_ask(struct reward *r, const struct reward_item *it, double *x, struct err *e)
{
	return r->ask(r, it, x, e);
}

int reward_poll(struct reward *r, struct err *e)
{
	return r->poll != NULL ? r->poll(r, 0, e) : 0;
}

int reward_wait(struct reward *r, struct err *e)
{
	return r->poll != NULL ? r->poll(r, 1, e) : 0;
}

void reward_close(struct reward *r)
{
	if (r != NULL && r->close != NULL)
		r->close(r);
	free(r);
}
