#include "model/peft.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/jsonfile.h"
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
	"r", "lora_alpha", "peft_type", "bias", "init_lora_weights" };

/* Known to be more than the sum when they are on. All others that are on are not known at all. */
static const char *const variant[] = { "use_rslora", "use_dora", "use_qalora", "use_bdlora",
	"fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication",
	"lora_bias", "trainable_token_indices", "target_parameters", "alora_invocation_tokens",
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
	return 0;
}

int peft_parse(struct peft *p, const json_t *o, const char *name, struct err *e)
{
	const char *key;
	int64_t rank;
	json_t *v;

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
	return 0;
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
