#include "experts/actlog.h"

#include <stdlib.h>
#include <string.h>

#include "arch/config.h"
#include "format/manifest.h"

#define MAX_TOP_K 1024		/* duplicates are found by comparing all pairs */

static bool in_range(const json_t *j, int64_t lo, int64_t hi)
{
	return json_is_integer(j) && json_integer_value(j) >= lo && json_integer_value(j) <= hi;
}

static bool is_type(const json_t *o, const char *type)
{
	const char *s = json_string_value(json_object_get(o, "type"));

	return s && strcmp(s, type) == 0;
}

int actlog_parse_model(const json_t *o, struct actlog_model *m, const char **why)
{
	const json_t *layers = json_object_get(o, "layers"), *experts = json_object_get(o,
	    "experts");
	const json_t *k = json_object_get(o, "top_k"), *bytes = json_object_get(o, "expert_bytes");
	const char *fp = json_string_value(json_object_get(o, "fingerprint"));

	*m = (struct actlog_model){0};
	*why = "not a model record ({\"type\":\"model\",...} comes first)";
	if (!is_type(o, "model"))
		return -1;
	*why = "\"layers\", \"experts\" or \"top_k\" of the model record is missing or out of "
	    "range";
	if (!in_range(layers, 1, CFG_MAX_LAYERS)
	    || !in_range(experts, 1, MANIFEST_MAX / json_integer_value(layers))
	    || !in_range(k, 1, json_integer_value(experts)) || json_integer_value(k) > MAX_TOP_K)
		return -1;
	*why = "\"expert_bytes\" of the model record is out of range";
	if (bytes && !in_range(bytes, 1, INT64_MAX / 4))
		return -1;
	*why = "\"fingerprint\" of the model record is not a hex string";
	if (fp && (strlen(fp) >= sizeof m->fingerprint || strspn(fp, "0123456789abcdef") !=
	    strlen(fp)))
		return -1;
	m->layers = (int)json_integer_value(layers);
	m->experts = (int)json_integer_value(experts);
	m->top_k = (int)json_integer_value(k);
	m->expert_bytes = json_integer_value(bytes);
	if (fp)
		memcpy(m->fingerprint, fp, strlen(fp) + 1);
	return 0;
}

static int parse_layer(const json_t *list, const struct actlog_model *m, int *n, int *id,
    const char **why)
{
	*n = (int)json_array_size(list);
	*why = "a layer has neither 0 nor top_k experts";
	if (!json_is_array(list) || (*n != 0 && *n != m->top_k))
		return -1;
	for (int i = 0; i < *n; i++) {
		const json_t *j = json_array_get(list, (size_t)i);

		*why = "expert id out of range";
		if (!in_range(j, 0, m->experts - 1))
			return -1;
		id[i] = (int)json_integer_value(j);
		*why = "an expert is twice in a layer";
		for (int k = 0; k < i; k++)
			if (id[k] == id[i])
				return -1;
	}
	return 0;
}

int actlog_parse(const json_t *o, const struct actlog_model *m, struct act *a, const char **why)
{
	const json_t *seq = json_object_get(o, "seq"), *pos = json_object_get(o, "pos");
	const json_t *token = json_object_get(o, "token"), *layers = json_object_get(o, "layers");

	*why = "not an activation record (\"type\":\"act\")";
	if (!is_type(o, "act"))
		return -1;
	*why = "\"seq\", \"pos\" or \"token\" is missing or out of range";
	if (!in_range(seq, 0, INT64_MAX - 1) || !in_range(pos, 0, INT64_MAX - 1)
	    || (token && !in_range(token, 0, UINT32_MAX)))
		return -1;
	*why = "\"layers\" is not a list of one list per layer";
	if (!json_is_array(layers) || json_array_size(layers) != (size_t)m->layers)
		return -1;
	a->seq = json_integer_value(seq);
	a->pos = json_integer_value(pos);
	a->token = token ? json_integer_value(token) : -1;
	a->answer = json_is_true(json_object_get(o, "gen")) ||
	    json_is_true(json_object_get(o, "answer"));
	for (int l = 0; l < m->layers; l++)
		if (parse_layer(json_array_get(layers, (size_t)l), m, &a->n[l], a->id + (int64_t)l *
		    m->top_k, why) < 0)
			return -1;
	return 0;
}

int actlog_open(struct actlog *a, struct jsonl *in, struct err *e)
{
	json_t *o = jsonl_next(in, e);
	const char *why;
	int rc;

	*a = (struct actlog){ .in = in };
	if (!o)
		return e->status ? -1 : err_set(e, EX_DATAERR,
		    "no activation records: the input is empty");
	rc = actlog_parse_model(o, &a->model, &why);
	json_decref(o);
	if (rc < 0)	/* fatal even when bad records are skipped: nothing can be checked
			   without it */
		return err_set(e, EX_DATAERR, "%s:%lld: %s", jsonl_name(in),
		    (long long)jsonl_lineno(in), why);
	a->act.seq = -1;
	a->act.n = calloc((size_t)a->model.layers, sizeof *a->act.n);
	a->act.id = calloc((size_t)a->model.layers * a->model.top_k, sizeof *a->act.id);
	if (a->act.n && a->act.id)
		return 0;
	actlog_close(a);
	return err_set(e, EX_OSERR, "out of memory");
}

static bool same_model(const json_t *o, const struct actlog_model *m)
{
	struct actlog_model x;
	const char *why;

	return actlog_parse_model(o, &x, &why) == 0 && x.layers == m->layers &&
	    x.experts == m->experts
	    && x.top_k == m->top_k && x.expert_bytes == m->expert_bytes &&
	    strcmp(x.fingerprint, m->fingerprint) == 0;
}

/* Does the record follow the one before it, seq (-1: none) and pos? NULL, or why not. */
static const char *disorder(const struct act *act, int64_t seq, int64_t pos)
{
	if (act->seq < seq)
		return "\"seq\" goes back";
	if (act->seq != seq)
		return act->pos == 0 ? NULL : "a sequence that does not begin with \"pos\" 0";
	if (act->pos == pos + 1)
		return NULL;
	return act->pos == pos ? "\"pos\" as in the record before"
	    : act->pos < pos ? "\"pos\" goes back" : "\"pos\" leaves some out";
}

int actlog_next(struct actlog *a, struct err *e)
{
	int64_t seq = a->act.seq, pos = a->act.pos;
	bool gap = false;		/* what came before was bad */
	const char *why;
	json_t *o;
	int rc;

	while ((o = jsonl_next(a->in, e))) {
		if (is_type(o, "model") && same_model(o, &a->model)) {
			json_decref(o);
			seq = -1;
			continue;
		}
		if (is_type(o, "model")) {
			why = "a model record that differs from the first";
			rc = -1;
		} else {
			rc = actlog_parse(o, &a->model, &a->act, &why);
		}
		json_decref(o);
		if (rc == 0 && (why = disorder(&a->act, seq, pos)) == NULL) {
			a->act.first = a->act.seq != seq;
			a->act.next = !a->act.first && !gap;
			return 1;
		}
		gap = true;
		if (rc == 0) {		/* where it is passed over, others may follow it */
			pos = a->act.pos > pos || a->act.seq != seq ? a->act.pos : pos;
			seq = a->act.seq;
		}
		if (jsonl_bad(a->in, e, "%s", why) < 0)
			return -1;
	}
	return e->status ? -1 : 0;
}

void actlog_close(struct actlog *a)
{
	free(a->act.n);
	free(a->act.id);
	*a = (struct actlog){0};
}

json_t *actlog_model_json(const struct actlog_model *m)
{
	json_t *o = json_pack("{s:s, s:i, s:i, s:i}", "type", "model", "layers", m->layers,
	    "experts", m->experts, "top_k",
	    m->top_k);

	if (m->expert_bytes)
		json_object_set_new(o, "expert_bytes", json_integer(m->expert_bytes));
	if (m->fingerprint[0])
		json_object_set_new(o, "fingerprint", json_string(m->fingerprint));
	return o;
}
