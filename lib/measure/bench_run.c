/* One run of a model: opened, a prompt evaluated, tokens generated, and what that cost. In a
 * process of its own. */
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "measure/bench.h"
#include "decode/gentext.h"
#include "base/json.h"
#include "base/pagecache.h"
#include "base/progress.h"
#include "decode/report.h"
#include "base/rng.h"
#include "base/sha256.h"

struct prompts {
	int n, longest;
	struct ids *v;
};

struct counters {
	struct store_stats store;
	int64_t rchar, disk;
	long majflt;
};

struct phase {			/* all prompts, or all tokens generated; counters are sums of
				   differences */
	int64_t tokens;
	double wall, compute, stall, mass;
	struct counters c;
	struct eval_stats sum;		/* of predictors */
	json_t *token_s;
};

static struct {
	struct prompts prompts;
	struct seq *seq;
	struct sampler *sampler;
	float *logits;
	struct phase prefill, decode;
	struct sha256 sha;		/* of the tokens generated */
	double first;			/* time of the first token */
} s;

static void must(int failed, const struct err *e)
{
	if (failed)
		err_exit(e);
}

/* ---- prompts ---- */

static void add_prompt(struct ids *ids)
{
	struct prompts *p = &s.prompts;

	if ((p->v = realloc(p->v, sizeof *p->v * (size_t)(p->n + 1))) == NULL)
		err_die(EX_OSERR, "out of memory");
	if (ids->n > bench.prompt)
		ids->n = bench.prompt;
	if (ids->n > p->longest)
		p->longest = ids->n;
	p->v[p->n++] = *ids;
}

static void random_prompt(void)
{
	struct ids ids = { 0 };

	for (int i = 0; i < bench.prompt; i++)
		ids_push(&ids, (uint32_t)rng_below((uint64_t)bench.seed, 1, (uint64_t)i,
		    (uint64_t)infer.cfg.vocab_size));
	add_prompt(&ids);
}

static void read_prompts(int n, char **files)
{
	struct err e = { 0 };
	struct jsonl *in;
	json_t *rec;

	if (n == 0) {
		random_prompt();
		return;
	}
	must((in = jsonl_open(n, files, bench.skip_bad, &e)) == NULL, &e);
	while ((rec = jsonl_next(in, &e)) != NULL) {
		struct ids ids = { 0 };
		struct err why = { 0 };

		if (infer_ids(rec, true, &ids, NULL, &why) < 0 || ids.n == 0)
			must(jsonl_bad(in, &e, "%s", why.status ? why.msg : "no tokens") < 0, &e);
		else
			add_prompt(&ids);
		json_decref(rec);
	}
	must(e.status, &e);
	jsonl_close(in);
	if (s.prompts.n == 0)
		err_die(EX_DATAERR, "no prompts in the files given");
}

static void set_digest(json_t *o, const char *key, struct sha256 *sha)
{
	uint8_t d[32];
	char hex[17];

	sha256_final(sha, d);
	for (int i = 0; i < 8; i++)
		snprintf(hex + 2 * i, 3, "%02x", d[i]);
	json_set_str(o, key, hex);
}

static void put_prompts(json_t *r)
{
	struct sha256 sha;

	sha256_init(&sha);
	for (int i = 0; i < s.prompts.n; i++) {
		sha256_update(&sha, &s.prompts.v[i].n, sizeof(int));
		sha256_update(&sha, s.prompts.v[i].v, sizeof(uint32_t) * (size_t)s.prompts.v[i].n);
	}
	set_digest(r, "prompts_digest", &sha);
	json_set_int(r, "prompts", s.prompts.n);
}

/* ---- the state of the page cache ---- */

static void set_cache(json_t *r)
{
	const char *const kind[] = { ".ctsr", ".safetensors" };
	json_t *o = json_object();
	struct err e = { 0 };

	json_set_str(o, "state", infer.cold ? "cold" : "warm");
	for (int i = 0; i < 2; i++) {
		double share;

		if (infer.cold)
			pagecache_drop(infer.model, kind[i]);
		else if ((i == 1 || infer.buffered) && pagecache_share(infer.model, kind[i]) < 1)
			must(pagecache_fill(infer.model, kind[i], &e) < 0, &e);
		share = pagecache_share(infer.model, kind[i]);
		if (infer.cold && share > 0.01)
			err_die(EX_UNAVAILABLE, "%s: %.0f %% of the %s files stay in the page "
			    "cache: this cannot be measured cold",
			    infer.model, 100 * share, kind[i]);
		json_set_num(o, kind[i] + 1, share);
	}
	json_object_set_new(r, "cache", o);
}

/* ---- phases ---- */

static void count(struct counters *c)
{
	store_stats(engine_store(infer.g), &c->store);
	report_io(&c->rchar, &c->disk);
	c->majflt = report_majflt();
}

static void add_counts(struct counters *to, const struct counters *from,
    const struct counters *until)
{
	const struct store_stats *a = &from->store, *b = &until->store;

	to->store.hits += b->hits - a->hits;
	to->store.late += b->late - a->late;
	to->store.misses += b->misses - a->misses;
	to->store.read_bytes += b->read_bytes - a->read_bytes;
	to->store.reads += b->reads - a->reads;
	to->store.requests += b->requests - a->requests;
	to->store.predicted += b->predicted - a->predicted;
	to->store.predicted_used += b->predicted_used - a->predicted_used;
	to->store.wasted_bytes += b->wasted_bytes - a->wasted_bytes;
	to->rchar += until->rchar - from->rchar;
	to->disk += until->disk - from->disk;
	to->majflt += until->majflt - from->majflt;
}

static void add_eval(struct phase *p, const struct eval_stats *st, int tokens)
{
	p->tokens += tokens;
	p->wall += st->wall;
	p->compute += st->compute;
	p->stall += st->stall;
	p->mass += st->replaced_mass * tokens;
	report_sources(&p->sum, st);
}

static void eval(const uint32_t *tok, int n, struct phase *p)
{
	/* real is float here */
	struct eval_item it = { .s = s.seq, .tok = tok, .n = n, .logits = (real *)s.logits };
	struct eval_stats st;
	struct err e = { 0 };

	must(engine_eval(infer.g, &it, 1, &st, &e) < 0, &e);
	add_eval(p, &st, n);
	if (p->token_s)
		json_array_append_new(p->token_s, json_real(st.wall));
}

/* A prompt and `new` tokens after it; always the likeliest one, and nothing ends it sooner. */
static void run_prompt(const struct ids *ids, int new)
{
	const struct gentext_opt go = { 0 };
	const struct sample_opt so = { .top_p = 1, .repetition_penalty = 1 };
	struct counters begun, read, ended;
	struct gentext g;

	seq_reset(s.seq);
	gentext_start(&g, ids, &so, new + 1, 0);
	count(&begun);
	eval(g.ids.v, g.ids.n, &s.prefill);
	gentext_next(&g, &go, s.sampler, s.logits);
	if (s.first == 0)
		s.first = progress_clock();
	count(&read);
	for (int i = 0; i < new; i++) {
		eval(&g.ids.v[g.ids.n - 1], 1, &s.decode);
		gentext_next(&g, &go, s.sampler, s.logits);
	}
	count(&ended);
	add_counts(&s.prefill.c, &begun, &read);
	add_counts(&s.decode.c, &read, &ended);
	sha256_update(&s.sha, g.ids.v + g.nprompt,
	    sizeof(uint32_t) * (size_t)(g.ids.n - g.nprompt));
	gentext_free(&g);
}

static void begin_phases(void)
{
	json_decref(s.decode.token_s);
	s.prefill = (struct phase){ 0 };
	s.decode = (struct phase){ .token_s = json_array() };
	sha256_init(&s.sha);
}

static void run_prompts(int new)
{
	begin_phases();
	for (int i = 0; i < s.prompts.n; i++)
		run_prompt(&s.prompts.v[i], new);
}

/* ---- the sample ---- */

static void set_share(json_t *o, const char *key, double part, double whole)
{
	json_set_num(o, key, whole > 0 ? part / whole : NAN);
}

static json_t *phase_json(const struct phase *p)
{
	const struct store_stats *st = &p->c.store;
	double n = (double)p->tokens, demands = (double)(st->hits + st->late + st->misses);
	json_t *o = json_object();

	json_set_int(o, "tokens", p->tokens);
	json_set_num(o, "wall", p->wall);
	json_set_num(o, "compute", p->compute);
	json_set_num(o, "stall", p->stall);
	set_share(o, "tok_per_s", n, p->wall);
	set_share(o, "hit_rate", (double)st->hits, demands);
	set_share(o, "stall_share", p->stall, p->wall);
	set_share(o, "read_bytes_per_token", (double)st->read_bytes, n);
	set_share(o, "disk_bytes_per_token", (double)p->c.disk, n);
	set_share(o, "wasted_share", (double)st->wasted_bytes, (double)st->read_bytes);
	json_set_int(o, "hits", (int64_t)st->hits);
	json_set_int(o, "late", (int64_t)st->late);
	json_set_int(o, "misses", (int64_t)st->misses);
	json_set_int(o, "reads", (int64_t)st->reads);
	json_set_int(o, "requests", (int64_t)st->requests);
	json_set_int(o, "read_bytes", (int64_t)st->read_bytes);
	json_set_int(o, "wasted_bytes", (int64_t)st->wasted_bytes);
	json_set_int(o, "predicted", (int64_t)st->predicted);
	json_set_int(o, "predicted_used", (int64_t)st->predicted_used);
	json_set_int(o, "rchar", p->c.rchar);
	json_set_int(o, "disk_bytes", p->c.disk);
	json_set_int(o, "majflt", p->c.majflt);
	set_share(o, "replaced_mass", p->mass, n);
	report_recall(o, &p->sum);
	if (p->token_s)
		json_object_set(o, "token_s", p->token_s);
	return o;
}

static void put_engine(json_t *r, int experts)
{
	int64_t bytes, products;
	int slots = store_slots(engine_store(infer.g));

	engine_token_cost(infer.g, &bytes, &products);
	json_set_int(r, "experts", experts);
	json_set_int(r, "slots", slots < experts ? slots : experts);
	json_set_int(r, "expert_bytes", engine_expert_bytes(infer.g));
	json_object_set_new(r, "direct", json_boolean(slots < INT_MAX &&
	    store_direct(engine_store(infer.g))));
	json_set_int(r, "token_bytes", bytes);
	json_set_int(r, "token_products", products);
}

static void open_engine(int new)
{
	struct err e = { 0 };
	int V = infer.cfg.vocab_size;

	infer_open(1, s.prompts.longest + new + 1, bench.chunk,
	    (int64_t)V * 20 + ((int64_t)new + 64) * 64);
	must((s.seq = seq_new(infer.g, &e)) == NULL, &e);
	s.logits = malloc(sizeof *s.logits * (size_t)V);
	s.sampler = sampler_new(V);
	if (s.logits == NULL || s.sampler == NULL)
		err_die(EX_OSERR, "out of memory");
}

json_t *bench_sample(void *arg)
{
	const struct bench_run *run = arg;
	int new = strcmp(run->workload, "decode") == 0 ? bench.new : 0, experts;
	bool load = strcmp(run->workload, "load") == 0;
	int64_t rchar, disk, rchar_end, disk_end;
	double began;
	json_t *r = json_object();

	infer_begin(false);
	read_prompts(run->n, run->files);
	put_prompts(r);
	set_cache(r);
	report_io(&rchar, &disk);
	began = progress_clock();
	open_engine(new);
	json_set_num(r, "open_s", progress_clock() - began);
	experts = infer.cfg.num_sparse * infer.cfg.num_experts;
	/* What fits in memory is to be there, as it is after a while of use. */
	if (!infer.cold && !load && store_slots(engine_store(infer.g)) >= experts)
		run_prompts(new);
	run_prompts(new);
	json_set_num(r, "ttft_s", s.first - began);
	json_object_set_new(r, "prefill", phase_json(&s.prefill));
	if (new > 0)
		json_object_set_new(r, "decode", phase_json(&s.decode));
	put_engine(r, experts);
	set_digest(r, "tokens_digest", &s.sha);
	json_set_int(r, "peak_rss", mem_peak_rss());
	report_io(&rchar_end, &disk_end);
	json_set_int(r, "rchar", rchar_end - rchar);
	json_set_int(r, "disk_bytes", disk_end - disk);
	json_set_int(r, "majflt", report_majflt());
	return r;
}
