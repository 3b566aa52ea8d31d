/* What past runs say: how the peaks that were measured compare with the plans. */
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/jsonfile.h"
#include "measure/fit.h"
#include "base/json.h"

struct past {			/* runs of a stage */
	double *ratio;
	int n, cap;
	json_int_t step, plan, peak;	/* of the run being read; plan 0: none */
};

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void end_run(struct past *p)
{
	if (p->plan == 0)
		return;
	if (p->n == p->cap &&
	    (p->ratio = realloc(p->ratio, (size_t)(p->cap = 2 * p->cap + 8) * sizeof *p->ratio)) ==
	    NULL)
		err_die(EX_OSERR, "out of memory");
	p->ratio[p->n++] = (double)p->peak / (double)p->plan;
	p->plan = 0;
}

/* A run ends where steps begin again or its plan is another. */
static void see_step(struct past *past, const json_t *rec)
{
	const char *type = json_string_value(json_object_get(rec, "type"));
	const char *stage = json_string_value(json_object_get(rec, "stage"));
	json_int_t plan = json_integer_value(json_object_get(rec, "mem_plan"));
	json_int_t peak = json_integer_value(json_object_get(rec, "mem_peak"));
	json_int_t step = json_integer_value(json_object_get(rec, "step"));

	if (type == NULL || strcmp(type, "step") != 0 || stage == NULL || plan <= 0 || peak <= 0)
		return;
	for (int i = 0; i < FIT_STAGES; i++)
		if (strcmp(stage, fit_stage_name[i]) == 0) {
			struct past *p = &past[i];

			if (p->plan != plan || step <= p->step)
				end_run(p);
			p->peak = p->plan == 0 || peak > p->peak ? peak : p->peak;
			p->plan = plan;
			p->step = step;
		}
}

/* Takes the ratios. NULL: too few runs. */
static json_t *stage_factor(struct past *p, const char *stage)
{
	json_t *r = NULL;

	end_run(p);
	if (p->n > 0 && p->n < FIT_RUNS)
		err_warn("%s: %d runs, a factor needs %d", stage, p->n, FIT_RUNS);
	if (p->n >= FIT_RUNS) {
		qsort(p->ratio, (size_t)p->n, sizeof *p->ratio, compare);
		r = json_object();
		json_set_num(r, "ratio", (p->ratio[(p->n - 1) / 2] + p->ratio[p->n / 2]) / 2);
		json_set_num(r, "least", p->ratio[0]);
		json_set_num(r, "most", p->ratio[p->n - 1]);
		json_set_int(r, "runs", p->n);
	}
	free(p->ratio);
	return r;
}

json_t *fit_learn(int n, char *const logs[], struct err *e)
{
	struct past past[FIT_STAGES] = { { 0 } };
	struct jsonl *in = jsonl_open(n, logs, false, e);
	json_t *stages = json_object(), *rec, *r;

	while (in != NULL && (rec = jsonl_next(in, e)) != NULL) {
		see_step(past, rec);
		json_decref(rec);
	}
	jsonl_close(in);
	for (int i = 0; i < FIT_STAGES; i++)
		if ((r = stage_factor(&past[i], fit_stage_name[i])) != NULL)
			json_object_set_new(stages, fit_stage_name[i], r);
	if (e->status == 0 && json_object_size(stages) == 0)
		err_set(e, EX_DATAERR, "no stage has %d runs with mem_plan and mem_peak in their "
		    "step records", FIT_RUNS);
	if (e->status == 0)
		return json_pack("{s:s, s:o}", "type", "calibration", "stages", stages);
	json_decref(stages);
	return NULL;
}

int fit_calibration(const char *file, const char *stage, double *factor, struct err *e)
{
	json_t *o = jsonfile_input(file, e), *r;
	int rc = 0;

	if (o == NULL)
		return -1;
	if (!json_is_object(json_object_get(o, "stages"))) {
		json_decref(o);
		return err_set(e, EX_DATAERR, "%s: not a calibration of chr-fit -l", file);
	}
	*factor = 1;
	if ((r = json_object_get(json_object_get(o, "stages"), stage)) != NULL) {
		*factor = json_number_value(json_object_get(r, "ratio"));
		if (!(*factor >= 0.1 && *factor <= 10))
			rc = err_set(e, EX_DATAERR, "%s: %s: a ratio of %g is none to go by", file,
			    stage, *factor);
	}
	json_decref(o);
	return rc;
}
