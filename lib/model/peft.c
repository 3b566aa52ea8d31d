#define PCRE2_CODE_UNIT_WIDTH 8
#include "model/peft.h"

#include <math.h>
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arch/homes.h"
#include "base/file.h"
#include "base/jsonfile.h"
#include "base/mem.h"
#include "model/lora.h"

/* What cannot change the sum, whatever it says: where the adapter is from, which modules it was
 * made for (its tensors say that), how its training began (init_lora_weights says whether that
 * matters). */
static const char *const harmless[] = { "auto_mapping", "base_model_name_or_path", "revision",
	"inference_mode", "lora_dropout", "lora_dtype", "lorap_lr_ratio", "target_modules",
	"exclude_modules", "layers_to_transform", "layers_pattern", "task_type", "peft_version",
	"eva_config", "loftq_config", "corda_config", "lora_ga_config", "megatron_core",
	"qalora_group_size", "ensure_weight_tying", "runtime_config",
	/* and these are looked at apart */
	"r", "lora_alpha", "peft_type", "bias", "init_lora_weights", "use_rslora",
	"rank_pattern", "alpha_pattern", "target_parameters", "modules_to_save" };

/* Known to be more than the sum when they are on. All others that are on are not known at all. */
static const char *const variant[] = { "use_dora", "use_qalora", "use_bdlora",
	"fan_in_fan_out", "layer_replication",
	"lora_bias", "trainable_token_indices", "alora_invocation_tokens",
	"megatron_config", "arrow_config", "velora_config", "monteclora_config", "kasa_config" };

/* Beginnings that leave the weights of the model as they are. The others (pissa, olora, corda,
 * lora_ga, loftq, ...) take from W what they put into B A: the sum with the original W would
 * have it twice. */
static const char *const beginning[] = { "gaussian", "eva", "orthogonal", "mica" };

#define IN(list, s) is_in(list, sizeof list / sizeof *list, s)

static bool is_in(const char *const *list, size_t n, const char *s)
{
	for (size_t i = 0; i < n; i++)
		if (strcmp(list[i], s) == 0)
			return true;
	return false;
}

static bool is_off(const json_t *v)
{
	return json_is_null(v) || json_is_false(v) ||
	    (json_is_object(v) && json_object_size(v) == 0) ||
	    (json_is_array(v) && json_array_size(v) == 0);
}

/* The value in a message: short. */
static int refuse(const char *name, const char *key, const json_t *v, const char *why,
    struct err *e)
{
	char *text = json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY);

	err_set(e, EX_DATAERR, "%s: \"%.60s\" is %.60s%s: %s", name, key, text ? text : "?",
	    text && strlen(text) > 60 ? "..." : "", why);
	free(text);
	return -1;
}

static int check_key(const char *name, const char *key, const json_t *v, struct err *e)
{
	if (IN(harmless, key) || is_off(v))
		return 0;
	if (IN(variant, key))
		return refuse(name, key, v, json_is_true(v) || json_is_object(v) ||
		    json_is_array(v) ? "a kind of adapter that cannot be merged here" :
		    "neither true nor false", e);
	return refuse(name, key, v, "not known here, and it may change what the adapter does", e);
}

static int check_words(const json_t *o, const char *name, struct err *e)
{
	const json_t *type = json_object_get(o, "peft_type"), *bias = json_object_get(o, "bias"),
	    *init = json_object_get(o, "init_lora_weights");
	const char *s = json_string_value(type);

	if (type && !(s && strcmp(s, "LORA") == 0))
		return refuse(name, "peft_type", type, "not LORA", e);
	s = json_string_value(bias);
	if (bias && !json_is_null(bias) && !(s && strcmp(s, "none") == 0))
		return refuse(name, "bias", bias, "biases cannot be merged here", e);
	s = json_string_value(init);
	if (s && !IN(beginning, s))
		return refuse(name, "init_lora_weights", init, "such an adapter goes with changed "
		    "weights of the model: have PEFT convert it to an ordinary one", e);
	if (init && !s && !json_is_boolean(init) && !json_is_null(init))
		return refuse(name, "init_lora_weights", init, "neither true nor false nor a "
		    "name", e);
	init = json_object_get(o, "use_rslora");
	if (init && !json_is_boolean(init) && !json_is_null(init))
		return refuse(name, "use_rslora", init, "neither true nor false", e);
	return 0;
}

/* --- patterns --- */

enum { RULES = 4096, PATTERN = 1024, STEPS = 100000 };

/* As PEFT does it: the end of a module's name, from one of its dots on or whole. */
static int compile(struct peft_rule *r, const char *name, const char *key, const char *pattern,
    struct err *e)
{
	char text[PATTERN + 32];
	int error;
	PCRE2_SIZE at;

	if (strlen(pattern) > PATTERN)
		return err_set(e, EX_DATAERR, "%s: \"%s\" has a pattern of %zu bytes, at most %d "
		    "are read", name, key, strlen(pattern), PATTERN);
	snprintf(text, sizeof text, "^(?:.*\\.)?(?:%s)$", pattern);
	r->code = pcre2_compile((PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED,
	    PCRE2_NEVER_BACKSLASH_C | PCRE2_NEVER_UTF, &error, &at, NULL);
	return r->code ? 0 : err_set(e, EX_DATAERR, "%s: \"%s\" has a pattern that is none: %.60s",
	    name, key, pattern);
}

static int value(const json_t *o, const char *pattern, bool whole, double *x, const char *name,
    struct err *e)
{
	int64_t n = 0;

	if (!whole)
		return jsonfile_number(o, pattern, x, name, e);
	if (jsonfile_int(o, pattern, 1, LORA_MAX_RANK, &n, name, e) < 0)
		return -1;
	*x = (double)n;
	return 0;
}

/* rank_pattern or alpha_pattern (whole: integers) of o. */
static int read_rules(const json_t *o, const char *key, bool whole, const char *name,
    struct peft_rule **rules, int *n, struct err *e)
{
	json_t *list = json_object_get(o, key), *v;
	const char *pattern;

	if (!list || json_is_null(list))
		return 0;
	if (!json_is_object(list))
		return refuse(name, key, list, "not an object", e);
	if (json_object_size(list) > RULES)
		return err_set(e, EX_DATAERR, "%s: \"%s\" has %zu patterns, at most %d are read",
		    name, key, json_object_size(list), RULES);
	*rules = mem_alloc((json_object_size(list) + 1) * sizeof **rules);
	json_object_foreach(list, pattern, v) {
		struct peft_rule *r = &(*rules)[*n];

		if (compile(r, name, key, pattern, e) < 0)
			return -1;
		++*n;
		if (value(list, pattern, whole, &r->value, name, e) < 0)
			return -1;
		if (r->value == 0)
			return err_set(e, EX_DATAERR, "%s: \"%s\" is 0 for %.60s: the adapter "
			    "would change nothing", name, key, pattern);
	}
	return 0;
}

/* *x becomes the value of the first rule that fits the module. */
static int apply(const struct peft_rule *rules, int n, const char *module, double *x,
    struct err *e)
{
	pcre2_match_context *limits = pcre2_match_context_create(NULL);
	int hit = PCRE2_ERROR_NOMATCH;

	if (!limits)
		return err_set(e, EX_OSERR, "out of memory");
	pcre2_set_match_limit(limits, STEPS);
	for (int i = 0; i < n && hit == PCRE2_ERROR_NOMATCH; i++) {
		pcre2_match_data *m = pcre2_match_data_create(1, NULL);

		hit = m ? pcre2_match(rules[i].code, (PCRE2_SPTR)module, strlen(module), 0, 0, m,
		    limits) : PCRE2_ERROR_NOMEMORY;
		pcre2_match_data_free(m);
		if (hit >= 0)
			*x = rules[i].value;
	}
	pcre2_match_context_free(limits);
	return hit >= 0 || hit == PCRE2_ERROR_NOMATCH ? 0 : err_set(e, EX_DATAERR,
	    "adapter_config.json: a pattern takes too long to be compared with %s", module);
}

int peft_shape(const struct peft *p, const char *module, int *rank, double *factor,
    struct err *e)
{
	double r = p->rank, alpha = p->alpha;

	if (apply(p->ranks, p->nranks, module, &r, e) < 0 ||
	    apply(p->alphas, p->nalphas, module, &alpha, e) < 0)
		return -1;
	*rank = (int)r;
	*factor = alpha / (p->rslora ? sqrt(r) : r);
	return 0;
}

/* --- names --- */

/* target_parameters or modules_to_save of o: *list, NULL: none. */
static int read_names(const json_t *o, const char *key, const char *name, json_t **list,
    struct err *e)
{
	json_t *v = json_object_get(o, key), *s;
	size_t i;

	if (!v || is_off(v))
		return 0;
	json_array_foreach(v, i, s)
		if (!json_is_string(s))
			return refuse(name, key, v, "not all are names", e);
	if (!json_is_array(v) || json_array_size(v) > RULES)
		return refuse(name, key, v, json_is_array(v) ? "too many" : "not a list of names",
		    e);
	*list = json_incref(v);
	return 0;
}

bool peft_targets(const struct peft *p, const char *parameter)
{
	size_t i;
	json_t *s;

	json_array_foreach(p->parameters, i, s)
		if (homes_ends(parameter, json_string_value(s)))
			return true;
	return false;
}

/* As PEFT does it: the end of a module's name, wherever that begins. */
static bool ends(const char *module, const char *wanted)
{
	size_t n = strlen(module), k = strlen(wanted);

	return n >= k && strcmp(module + n - k, wanted) == 0;
}

bool peft_keeps(const struct peft *p, const char *tensor)
{
	char module[PATTERN];
	char *dot;
	size_t i;
	json_t *s;

	snprintf(module, sizeof module, "%s", tensor);
	while ((dot = strrchr(module, '.'))) {
		*dot = '\0';
		json_array_foreach(p->whole, i, s)
			if (ends(module, json_string_value(s)))
				return true;
	}
	return false;
}

void peft_free(struct peft *p)
{
	for (int i = 0; i < p->nranks; i++)
		pcre2_code_free(p->ranks[i].code);
	for (int i = 0; i < p->nalphas; i++)
		pcre2_code_free(p->alphas[i].code);
	mem_free(p->ranks);
	mem_free(p->alphas);
	json_decref(p->parameters);
	json_decref(p->whole);
	*p = (struct peft){ 0 };
}

int peft_parse(struct peft *p, const json_t *o, const char *name, struct err *e)
{
	const char *key;
	int64_t rank;
	json_t *v;

	*p = (struct peft){ .rslora = json_is_true(json_object_get(o, "use_rslora")) };
	if (!json_is_object(o))
		return err_set(e, EX_DATAERR, "%s: not a JSON object", name);
	if (check_words(o, name, e) < 0)
		return -1;
	json_object_foreach((json_t *)(uintptr_t)o, key, v)
		if (check_key(name, key, v, e) < 0)
			return -1;
	if (jsonfile_int(o, "r", 1, LORA_MAX_RANK, &rank, name, e) < 0 ||
	    jsonfile_number(o, "lora_alpha", &p->alpha, name, e) < 0)
		return -1;
	if (p->alpha == 0)
		return err_set(e, EX_DATAERR, "%s: \"lora_alpha\" is 0: the adapter would change "
		    "nothing", name);
	p->rank = (int)rank;
	if (read_rules(o, "rank_pattern", true, name, &p->ranks, &p->nranks, e) == 0 &&
	    read_rules(o, "alpha_pattern", false, name, &p->alphas, &p->nalphas, e) == 0 &&
	    read_names(o, "target_parameters", name, &p->parameters, e) == 0 &&
	    read_names(o, "modules_to_save", name, &p->whole, e) == 0)
		return 0;
	peft_free(p);
	return -1;
}

int peft_load(struct peft *p, const char *dir, struct err *e)
{
	char *path = file_join(dir, "adapter_config.json");
	json_t *o = jsonfile_load(path, e);
	int rc = o ? peft_parse(p, o, path, e) : -1;

	json_decref(o);
	free(path);
	return rc;
}
