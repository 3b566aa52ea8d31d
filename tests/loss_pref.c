/* Losses on pairs: every variant against finite differences and against values worked out by
 * hand; a file of reference log-probs. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "stages/loss_pref.h"
#include "stages/refcache.h"
#include "tap.h"

static const struct pref pair = { .n = 1, .targets = { 3, 5 }, .ref = { -4.5, -9.25 } };

struct either {			/* a variant of one of the losses */
	const char *name;
	bool odds;
	struct dpo_opt dpo;
	struct orpo_opt orpo;
};

static struct pref_loss value(const struct either *v, const double logp[2])
{
	return v->odds ? orpo_pair(&v->orpo, &pair, logp, NULL, NULL) : dpo_pair(&v->dpo, &pair,
	    logp);
}

static void differences(const struct either *v, const double at[2])
{
	struct pref_loss l = value(v, at);
	double worst = 0;

	for (int s = 0; s < 2; s++) {
		double up[2] = { at[0], at[1] }, down[2] = { at[0], at[1] }, h = 1e-4 * fabs(at[s]),
		    d;

		up[s] += h;
		down[s] -= h;
		d = fabs((value(v, up).loss - value(v, down).loss) / (2 * h) - l.d[s]) /
		    fmax(fabs(l.d[s]), 1);
		worst = d > worst || isnan(d) ? d : worst;
	}
	ok(worst < 1e-7, "%s at %g, %g: derivatives", v->name, at[0], at[1]);
}

static void check_differences(void)
{
	static const struct either variant[] = {
		{ "sigmoid", false, { DPO_SIGMOID, 0.1, 0, 0 }, { 0, 0 } },
		{ "sigmoid, beta 2", false, { DPO_SIGMOID, 2, 0, 0 }, { 0, 0 } },
		{ "sigmoid, smoothed", false, { DPO_SIGMOID, 0.5, 0.2, 0 }, { 0, 0 } },
		{ "sigmoid, likelihood", false, { DPO_SIGMOID, 0.5, 0, 0.7 }, { 0, 0 } },
		{ "ipo", false, { DPO_IPO, 0.3, 0, 0 }, { 0, 0 } },
		{ "ipo, likelihood", false, { DPO_IPO, 0.3, 0, 1.5 }, { 0, 0 } },
		{ "hinge", false, { DPO_HINGE, 0.1, 0, 0 }, { 0, 0 } },
		{ "hinge, likelihood", false, { DPO_HINGE, 0.1, 0, 0.4 }, { 0, 0 } },
		{ "orpo", true, { 0 }, { 0.1, 1 } },
		{ "orpo, beta 0.1", true, { 0 }, { 1.5, 0.1 } },
	};
	static const double at[][2] = { { -4.25, -9 }, { -1, -30 }, { -25, -0.5 }, { -1e-3, -2 } };

	for (size_t i = 0; i < sizeof variant / sizeof *variant; i++)
		for (size_t j = 0; j < sizeof at / sizeof *at; j++)
			differences(&variant[i], at[j]);
}

static void check_values(void)
{
	const double same[2] = { -4.5, -9.25 }, apart[2] = { -2.5, -12.25 },
	    sure[2] = { -1e-9, -5 };
	struct dpo_opt o = { DPO_SIGMOID, 0.1, 0, 0 };
	struct orpo_opt r = { 0.1, 1 };
	struct pref_loss l;
	double nll, ratio;

	is_close(dpo_pair(&o, &pair, same).loss, log(2), 1e-15,
	    "policy and reference the same: ln 2");
	is_close(dpo_pair(&o, &pair, same).d[CHOSEN], -0.05, 1e-15, "and half of beta to go");
	is_close(dpo_pair(&o, &pair, apart).loss, log1p(exp(-0.5)), 1e-15,
	    "sigmoid of beta times 5");
	o.smoothing = 0.25;
	is_close(dpo_pair(&o, &pair, apart).loss, 0.75 * log1p(exp(-0.5)) + 0.25 * log1p(exp(0.5)),
	    1e-15, "one label in four wrong");
	o = (struct dpo_opt){ DPO_HINGE, 0.1, 0, 0 };
	is_close(dpo_pair(&o, &pair, apart).loss, 0.5, 1e-15, "hinge");
	o.beta = 0.2;
	is_close(dpo_pair(&o, &pair, apart).d[REJECTED], 0, 0, "a hinge that is closed");
	o.rpo_alpha = 1;
	is_close(dpo_pair(&o, &pair, apart).loss, 2.5 / 3, 1e-15, "leaves the likelihood");
	o = (struct dpo_opt){ DPO_IPO, 0.5, 0, 0 };
	is_close(dpo_pair(&o, &pair, apart).loss, pow(2.0 / 3 + 3.0 / 5 - 1, 2), 1e-15,
	    "ipo is of means");
	l = orpo_pair(&r, &pair, apart, &nll, &ratio);
	is_close(l.loss, nll + 0.1 * ratio, 1e-15, "orpo is likelihood and odds");
	is_close(nll, 2.5 / 3, 1e-15, "the one a mean");
	is_close(ratio, log1p((exp(2.5 / 3) - 1) / (exp(2.45) - 1)), 1e-14,
	    "the other their ratio");
	ok(isfinite(orpo_pair(&r, &pair, sure, NULL, NULL).loss) &&
	    isfinite(orpo_pair(&r, &pair, sure, NULL, NULL).d[0]),
	    "a completion that is certain is no infinity");
	for (int k = DPO_SIGMOID; k <= DPO_HINGE; k++) {
		const double far[2] = { -1e5, -1 };

		l = dpo_pair(&(struct dpo_opt){ (enum dpo_kind)k, 1, 0, 0 }, &pair, far);
		ok(isfinite(l.loss) && isfinite(l.d[0]) && l.d[0] < 0,
		    "far apart is finite, kind %d", k);
	}
}

static void check_cache(void)
{
	char path[] = "/tmp/refcache.XXXXXX";
	struct refcache *c = refcache_new(), *back;
	struct err e = { 0 };
	double logp[2];
	int fd = mkstemp(path);

	for (uint64_t k = 10; k > 0; k--)
		refcache_put(c, k << 60 | k, (double[]){ -(double)k / 3, -1 });
	refcache_put(c, (uint64_t)3 << 60 | 3, (double[]){ -1, -1 });
	refcache_sort(c);
	ok(refcache_entries(c) == 10, "the same pair twice is one entry");
	ok(refcache_save(c, path, "f00d", &e) == 0, "saved");
	ok((back = refcache_load(path, "f00d", &e)) != NULL && refcache_entries(back) == 10,
	    "and loaded");
	ok(back && refcache_get(back, (uint64_t)7 << 60 | 7, logp) && logp[0] == -7.0 / 3,
	    "to the last bit");
	ok(back && !refcache_get(back, 77, logp), "others are not there");
	refcache_free(back);
	ok(refcache_load(path, "beef", &e) == NULL && e.status == EX_DATAERR,
	    "not for another model");
	ok(truncate(path, 100) == 0 && refcache_load(path, "f00d", &e) == NULL &&
	    e.status == EX_DATAERR, "nor half of it");
	refcache_free(c);
	close(fd);
	unlink(path);
}

int main(int argc, char **argv)
{
	(void)argc;
	err_init(argv[0]);
	check_differences();
	check_values();
	check_cache();
	return tap_done();
}
