#include "train/best_eval.h"

#include <string.h>

static bool wanted_low(const char *metric)
{
	static const char *const low[] = { "loss", "base", "perplexity", "balance", "temporal",
	    "locality", "lookahead",
	    "lookahead_topk", "lookahead_union", "anchor", "nll", "odds_ratio", "ce", "kd", "kl",
	    "seconds" };

	for (size_t i = 0; i < sizeof low / sizeof *low; i++)
		if (strcmp(metric, low[i]) == 0)
			return true;
	return false;
}

void best_eval_open(struct best_eval *b, const char *spec)
{
	*b = (struct best_eval){ .metric = spec, .step = -1, .seen = -1 };
	if (spec == NULL)
		return;
	b->high = *spec == '+' || (*spec != '-' && !wanted_low(spec));
	b->metric += *spec == '+' || *spec == '-';
}

int best_eval_see(struct best_eval *b, const json_t *rec, int64_t step, struct err *e)
{
	const json_t *v = json_object_get(rec, b->metric);
	double x = json_number_value(v);

	if (v == NULL || json_is_string(v))
		return err_set(e, EX_USAGE, "--keep-best: evaluation records have no number \"%s\"",
		    b->metric);
	if (step <= b->seen)
		return step == b->step;
	b->seen = step;
	/* Not a number (null) is never the best, unless there is nothing else. */
	if (b->step >= 0 && (!json_is_number(v) || (b->high ? x <= b->value : x >= b->value))) {
		b->since++;
		return 0;
	}
	b->value = x;
	b->step = step;
	b->since = 0;
	return 1;
}

json_t *best_eval_state(const struct best_eval *b)
{
	if (b->metric == NULL)
		return json_null();
	return json_pack("{s:s, s:f, s:I, s:I, s:I}", "metric", b->metric, "value", b->value,
	    "step",
	    (json_int_t)b->step, "seen", (json_int_t)b->seen, "since", (json_int_t)b->since);
}

int best_eval_restore(struct best_eval *b, const json_t *state, struct err *e)
{
	json_int_t step, seen, since;
	double value;

	if (b->metric == NULL)
		return 0;
	if (json_unpack((json_t *)state, "{s:F, s:I, s:I, s:I}", "value", &value, "step", &step,
	    "seen", &seen, "since",
	    &since) < 0)
		return err_set(e, EX_DATAERR, "train_state.json: no best evaluation");
	b->value = value;
	b->step = step;
	b->seen = seen;
	b->since = since;
	return 0;
}
