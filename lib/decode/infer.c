#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "arch/arch.h"
#include "base/comm.h"
#include "base/file.h"
#include "format/modeldir.h"
#include "experts/oracle.h"
#include "experts/usage.h"
#include "decode/infer.h"
#include "decode/infer_adapt.h"
#include "base/human.h"
#include "base/json.h"
#include "base/pagecache.h"
#include "base/pool.h"
#include "text/record.h"
#include "text/turn.h"

struct infer infer = { .backend = "auto", .readers = 4,
    .predict = "gate,same,lookahead,previous,popularity,foresee", .waste = 0.03 };

struct opt infer_opts[] = {
	{ .kind = OPT_GROUP, .help = "model and memory" },
	{ 'm', "model", OPT_STR, &infer.model, 0, 0, "DIR",
	    "model directory, plain or packed, or a GGUF file" },
	{ .kind = OPT_TABLE, .value = arch_opts },
	{ 't', "tokenizer", OPT_STR, &infer.tokenizer, 0, 0, "FILE",
	    "tokenizer, when not that of the model" },
	{ 'j', "threads", OPT_INT, &infer.threads, 0, POOL_MAX, "N",
	    "compute threads; 0: one per CPU" },
	{ 'B', "backend", OPT_STR, &infer.backend, 0, 0, "NAME", "where to compute" },
	{ 0, "ram", OPT_BYTES, &infer.ram, 0, 0, "BYTES",
	    "limit on the memory of the process; 0: none" },
	{ 0, "force", OPT_FLAG, &infer.force, 0, 0, NULL,
	    "accept room for less than one token's experts" },
	{ 0, "kv-type", OPT_CHOICE, &infer.kv, 0, 0, "f32|bf16|q8",
	    "keys and values of past tokens: exact, or smaller and lossy" },
	{ 0, "dry-run", OPT_FLAG, &infer.dry_run, 0, 0, NULL, "print the memory plan and stop" },
	{ .kind = OPT_GROUP, .help = "reading experts (packed models)" },
	{ 0, "predict", OPT_STR, &infer.predict, 0, 0, "LIST",
	    "who says which experts to read ahead: gate, shared, same, lookahead, "
	    "previous, popularity, foresee, intent, oracle, control; all, none" },
	{ 0, "oracle", OPT_STR, &infer.oracle, 0, 0, "FILE",
	    "log of the same run (chr-actlog --generate), for --predict oracle" },
	{ 0, "waste", OPT_FLOAT, &infer.waste, 0, 1, "X",
	    "share of the bytes read that guesses may waste" },
	{ 0, "evict", OPT_CHOICE, &infer.evict, 0, 0, "auto|lru|lfru|cycle",
	    "which expert leaves for another" },
	{ 0, "heat", OPT_STR, &infer.heat, 0, 0, "FILE",
	    "read the experts first that a run before used most, as it left in FILE, and "
	    "leave there what this one uses" },
	{ 0, "pin", OPT_INT, &infer.pin, 0, 1 << 24, "N",
	    "the N warmest of --heat stay in memory" },
	{ 0, "io", OPT_CHOICE, &infer.io, 0, 0, "auto|uring|threads",
	    "how experts are read; auto: io_uring where there is one, threads with --buffered" },
	{ 0, "readers", OPT_INT, &infer.readers, 1, 64, "N", "threads, where they read" },
	{ 0, "buffered", OPT_FLAG, &infer.buffered, 0, 0, NULL, "read through the page cache" },
	{ 0, "cold", OPT_FLAG, &infer.cold, 0, 0, NULL,
	    "drop the expert files from the page cache first" },
	{ 0, "sim-ssd", OPT_STR, &infer.sim_ssd, 0, 0, "MS,BYTES",
	    "pretend each read takes MS milliseconds more, and the drive gives BYTES per second" },
	{ 0 }
};

/* "MS,BYTES" of --sim-ssd, or CHR_SIM_SSD_MS from the environment. */
static void parse_sim(struct store_opt *so)
{
	const char *text = infer.sim_ssd ? infer.sim_ssd : getenv("CHR_SIM_SSD_MS"), *why = NULL,
	    *comma;
	char ms[64];
	double latency = 0;
	int64_t bandwidth = 0;

	if (!text || !*text)
		return;
	comma = strchr(text, ',');
	snprintf(ms, sizeof(ms), "%.*s", comma ? (int)(comma - text) : (int)strlen(text), text);
	if (opt_float(ms, &latency, &why) < 0 || (comma && opt_bytes(comma + 1, &bandwidth, &why) <
	    0))
		opt_usage("%s '%s': %s", infer.sim_ssd ? "--sim-ssd" : "CHR_SIM_SSD_MS", text, why);
	if (latency < 0 || latency > 1e6)
		opt_usage("%s '%s': milliseconds must be 0 to 1000000", infer.sim_ssd ? "--sim-ssd"
		    : "CHR_SIM_SSD_MS", text);
	so->reader.sim.latency = latency / 1000;
	so->reader.sim.bandwidth = (double)bandwidth;
}

void infer_begin(bool tok)
{
	struct err e = { 0 };
	char *path;

	if (!infer.model)
		opt_usage("no model: give -m DIR");
	if (infer.buffered && infer.io == READER_URING && !opt_quiet)
		err_warn("--io uring with --buffered takes memory of the kernel that no plan "
		    "counts");
	if ((infer.be = backend_open(infer.backend, &e)) == NULL ||
	    modeldir_config(&infer.cfg, infer.model, 0, NULL, &e) < 0)
		err_exit(&e);
	path = tok_find(infer.model);
	if (tok || infer.tokenizer || path != NULL) {
		const char *from = infer.tokenizer ? infer.tokenizer : infer.model;

		if ((infer.tok = tok_load(from, &e)) == NULL ||
		    tok_fits(infer.tok, infer.cfg.vocab_size, from, &e) < 0)
			err_exit(&e);
	}
	free(path);
	pool_init(comm_threads(infer.threads));
}

static const enum cache_policy evict[] = { CACHE_AUTO, CACHE_LRU, CACHE_LFRU, CACHE_CYCLE };

static float *heat;			/* (layers, experts) of --heat */

static struct oracle *oracle;		/* of --oracle */

static void read_oracle(int sources)
{
	struct err e = { 0 };

	if (!(sources & SRC_BIT(SRC_ORACLE)) != !infer.oracle)
		opt_usage("--predict oracle and --oracle FILE go together");
	if (infer.oracle && (oracle = oracle_load(infer.oracle, &infer.cfg, &e)) == NULL)
		err_exit(&e);
}

static void warm_up(void)
{
	struct store *s = engine_store(infer.g);
	struct err e = { 0 };
	const char *of;

	if (infer.pin > 0 && !infer.heat)
		opt_usage("--pin needs --heat");
	if (!infer.heat || store_slots(s) == INT_MAX)
		return;
	heat = calloc((size_t)infer.cfg.num_hidden_layers * (size_t)infer.cfg.num_experts,
	    sizeof(*heat));
	if (!heat)
		err_die(EX_OSERR, "out of memory");
	if ((of = engine_fingerprint(infer.g, &e)) == NULL || usage_load(infer.heat, &infer.cfg, of,
	    heat, &e) < 0
	    || store_warm(s, heat, infer.pin, &e) < 0)
		err_exit(&e);
}

static void leave_heat(void)
{
	struct err e = { 0 };
	const char *of = engine_fingerprint(infer.g, &e);

	store_heat(engine_store(infer.g), heat);
	if (!of || (comm_rank() == 0 && usage_save(infer.heat, &infer.cfg, of, heat, &e) < 0))
		err_exit(&e);
	free(heat);
	heat = NULL;
}

void infer_open(int max_seqs, int max_tokens, int max_rows, int64_t other)
{
	struct engine_opt o = { .ram = infer.ram, .budget = infer.budget, .max_seqs = max_seqs,
	    .max_tokens = max_tokens, .max_rows = max_rows,
	    .other = other + (infer.heat ? usage_bytes(&infer.cfg) : 0) + (infer.dry_run
	    ? MEM_JITTER : 0), .on_miss = infer.on_miss, .route_bias = infer.route_bias,
	    .kv = (enum kv_type)infer.kv, .foreign = infer.force };
	struct mem_plan plan = { 0 };
	struct err e = { 0 };
	const char *why;
	int status = 0;

	if ((o.predict = source_list(infer.predict, &why)) < 0)
		opt_usage("--predict '%s': %s", infer.predict, why);
	read_oracle(o.predict);
	o.oracle = oracle;
	o.other += oracle_bytes(oracle);
	o.store = (struct store_opt){ .evict = evict[infer.evict], .waste = infer.waste,
	    .force = infer.force,
	    .reader = { .io = (enum reader_io)infer.io, .threads = infer.readers,
	    .buffered = infer.buffered } };
	parse_sim(&o.store);
	o.adapter = infer_adapters(&o.adapters);
	if (infer.cold)
		pagecache_drop(infer.model, ".ctsr");
	if (infer.dry_run)
		status = engine_plan(infer.model, &o, &plan, &e);
	else
		infer.g = engine_open(infer.model, &o, infer.be, &plan, &e);
	if (plan.n > 0 && (opt_verbose || e.status == EX_OSERR))
		mem_plan_print(&plan, stderr);
	if (infer.dry_run && status == 0) {
		json_t *r = mem_plan_json(&plan);

		if ((infer.pages ? human_put(r, &e) : json_put(stdout, r, &e)) < 0)
			err_exit(&e);
		json_decref(r);
		infer_close();
		err_close_stdout();
		exit(0);
	}
	if (e.status)
		err_exit(&e);
	warm_up();
}

int infer_seq(const char *dir, const struct config *c, int asked, int more)
{
	int most = c->max_position_embeddings - more;

	if (asked == 1)
		opt_usage("--seq 1: a sequence has 2 tokens at least");
	if (asked > most || most < 2)
		opt_usage("%s was made for %d positions: --seq %d%s is beyond that", dir,
		    c->max_position_embeddings, asked, more ? " with what is generated" : "");
	return asked ? asked : most < 512 ? most : 512;
}

void infer_close(void)
{
	if (heat)
		leave_heat();
	engine_close(infer.g);
	oracle_free(oracle);
	tok_free(infer.tok);
	config_free(&infer.cfg);
	pool_quit();
}

/* As documents were framed in training: begin-of-text in front and, of a whole one, end-of-text
 * behind. Of published models the tokenizer says whether there is one in front, and none is
 * behind. */
static void frame(struct tok *tok, struct ids *ids, int first, bool whole)
{
	bool own = infer.cfg.arch == &arch_chronos;
	int bos = own || tok_adds_bos(tok) ? tok_bos(tok) : -1, eos = own
	    ? tok_eos(tok) : -1;

	if (bos >= 0 && (ids->n == first || ids->v[first] != (uint32_t)bos)) {
		ids_push(ids, 0);
		memmove(ids->v + first + 1, ids->v + first,
		    sizeof(*ids->v) * (size_t)(ids->n - 1 - first));
		ids->v[first] = (uint32_t)bos;
	}
	if (whole && eos >= 0 && ids->v[ids->n - 1] != (uint32_t)eos)
		ids_push(ids, (uint32_t)eos);
}

/* What chr-generate wrote: its prompt, which is given, and the completion, of which every token
 * counts. */
static int completion_ids(struct tok *tok, const json_t *rec, struct ids *ids, struct ids *mask,
    struct err *e)
{
	const json_t *prompt = json_object_get(rec, "prompt"), *said = json_object_get(rec,
	    "completion");
	json_t *ask = json_pack("{s:O, s:O*, s:O*, s:O*}", json_is_array(prompt) ? "messages"
	    : "text", prompt, "system", json_object_get(rec, "system"), "tools",
	    json_object_get(rec, "tools"), "chat_template_kwargs", json_object_get(rec,
	    "chat_template_kwargs"));
	int first = ids->n, given, rc = infer_ids_by(tok, ask, true, ids, NULL, e);

	json_decref(ask);
	given = ids->n;
	if (rc == 0 && record_has_tokens(rec))
		rc = record_tokens(rec, infer.cfg.vocab_size, ids, e);
	else if (rc == 0)
		tok_encode(tok, json_string_value(said), json_string_length(said), false,
		    ids);
	for (int i = first; mask && i < ids->n; i++)
		ids_push(mask, i >= given);
	return rc;
}

int infer_ids_by(struct tok *tok, const json_t *rec, bool prompt, struct ids *ids,
    struct ids *mask, struct err *e)
{
	const json_t *asked = json_object_get(rec, "prompt");
	json_t *turns = NULL;
	int first = ids->n, rc;

	if (!prompt && tok && (json_is_string(asked) || json_is_array(asked)) &&
	    json_is_string(json_object_get(rec, "completion")))
		return completion_ids(tok, rec, ids, mask, e);
	if (mask && !record_has_tokens(rec) && record_no_mask(rec, e) < 0)
		return -1;
	if (!record_has_tokens(rec) && tok && record_turns(rec, &turns, e) < 0)
		return -1;
	if (turns) {
		struct tok_chat c = record_chat(rec, turns);

		c.generate = prompt;
		rc = tok_chat(tok, &c, ids, mask, e);
		json_decref(turns);
		return rc;
	}
	if (record_ids(rec, tok, infer.cfg.vocab_size, ids, e) < 0)
		return -1;
	if (!record_has_tokens(rec))
		frame(tok, ids, first, !prompt);
	else if (mask && turn_set(json_object_get(rec, "mask")))
		return record_mask(rec, ids->n - first, mask, e);
	for (int i = first; mask && i < ids->n; i++)
		ids_push(mask, 1);
	return 0;
}

int infer_ids(const json_t *rec, bool prompt, struct ids *ids, struct ids *mask, struct err *e)
{
	return infer_ids_by(infer.tok, rec, prompt, ids, mask, e);
}
