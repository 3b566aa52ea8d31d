/*
 * distill64: the loss of distillation in double precision, every divergence against central
 * differences through a whole model, from a teacher whose logits are there and from one known by
 * its best candidates only; those through the file that chr-score writes. And teachers in
 * blocks, batches without targets, teachers that fail.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "stages/teacher_live.h"
#include "train/loss.h"
#include "train/metric.h"
#include "base/pool.h"
#include "base/rng.h"
#include "tap.h"
#include "stages/teacher_topk.h"

#define V 23
#define NT 24
#define NB 4
#define R (NB * NT)

static struct model student, teacher;
static struct micro mb;
static real known[R * V];		/* the teacher's logits for the batch */
static char path[] = "/tmp/distillXXXXXX";

#define COMMON "\"chronos_format\": 2, \"model_type\": \"chronos\", \"vocab_size\": 23, " \
    "\"num_hidden_layers\": 2," \
	"\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 6, " \
	    "\"moe_intermediate_size\": 10," \
	"\"num_experts\": 5, \"num_experts_per_tok\": 2, \"kv_latent_dim\": 9, \"rope_dim\": 4," \
	"\"sliding_window_size\": 3, \"max_position_embeddings\": 64"

static void open_model(struct model *m, struct config *c, const char *json, uint64_t seed)
{
	struct model_opt o = { .max_b = NB, .max_t = NT, .train = true, .head_rows = 96 };
	json_t *j = json_loads(json, 0, NULL);
	struct err e = { 0 };

	if (!j || config_from_json(c, j, 0, NULL, &e) < 0 || model_open(m, c, &o, &backend_cpu, &e)
	    < 0)
		err_exit(&e);
	json_decref(j);
	model_init_weights(m, seed);
	for (int64_t i = 0; i < m->par.total; i++)	/* opinions, not only noise around even */
		m->w[i] = 3 * m->w[i] + 0.1 * rng_normal(1, seed, (uint64_t)i);
}

/* Documents as the teacher sees them, one of them longer than a row, in all more than it
 * evaluates at a time; every fourth token is not learned. */
static void write_records(int K, double temperature)
{
	static const int length[] = { 9, 12, 44, 6, 3, 3, 3, 3, 3, 3, 3, 3 };
	FILE *f = fopen(path, "w");
	struct err e = { 0 };

	for (int d = 0; d < 12; d++) {
		int n = length[d];
		json_t *rec = teacher_topk_record(V, temperature);

		for (int i = 0; i < n; i += NT) {
			uint32_t tok[NT], id[NT * V];
			int32_t target[NT], start[NT] = { 0 };
			struct batch b = { 1, n - i < NT ? n - i : NT, tok, target, start, NULL };
			real logits[NT * V], logp[NT * V], rest[NT];

			for (int j = 0; j < b.T; j++) {
				tok[j] = (uint32_t)rng_below(7, (uint64_t)d, (uint64_t)(i + j), V);
				target[j] = (i + j) % 4 == 2 || i + j == n - 1 ? -1 : 0;
			}
			model_forward(&teacher, &b, &(struct forward_opt){ 0 });
			model_logits(&teacher, logits);
			teacher_topk_choose(logits, target, b.T, V, K, temperature, id, logp, rest);
			for (int j = 0; j < b.T; j++)
				teacher_topk_add(rec, tok[j], target[j] < 0 ? 0 : K, id + j * K,
				    logp + j * K, rest[j]);
		}
		json_put(f, rec, &e);
		json_decref(rec);
	}
	fputs("{\"type\":\"total\",\"records\":12}\n", f);
	fclose(f);
}

/* One batch of what was written, with candidates in mb.extra. */
static void read_batch(int K, double temperature)
{
	static char *files[] = { path };
	const struct train_opt o = { .batch = NB, .seq = NT, .epochs = 1 };
	const struct source *s = teacher_topk_source(K, temperature, NT);
	struct err e = { 0 };
	void *src = s->open(&o, &student.cfg, NULL, 1, files, false, &e);

	free(mb.b.tok), free(mb.b.target), free(mb.b.doc_start), free(mb.extra);
	mb = (struct micro){ .b = { NB, NT, calloc(R, 4), calloc(R, 4), calloc(R, 4) },
	    .extra = calloc(NB, s->extra) };
	if (!src || s->next(src, &mb, NB, &e) != 1)
		err_exit(&e);
	mb.own.targets = loss_targets(&mb.b);
	s->close(src);
}

/* A few rows at a time. */
static int64_t known_rows(void *self, const struct micro *m, int64_t row, int64_t n,
    const real **logits, struct err *e)
{
	(void)self, (void)m, (void)e;
	*logits = known + row * V;
	return n < 4 ? n : 4;
}

static int64_t broken_rows(void *self, const struct micro *m, int64_t row, int64_t n,
    const real **logits, struct err *e)
{
	(void)self, (void)m, (void)n, (void)logits;
	return row == 0 ? known_rows(self, m, row, n, logits, e) : err_set(e, EX_IOERR,
	    "no teacher");
}

static double sum[METRIC_MAX], weight[METRIC_MAX];

static double loss(struct distill *d, bool grad)
{
	real coef[R], logp[R];
	struct stage_in in = { .m = &student, .mb = &mb, .targets = mb.own.targets, .coef = grad
	    ? coef : NULL, .logp = logp,
		.sum = sum, .weight = weight };
	double l;

	memset(sum, 0, sizeof(sum));
	memset(weight, 0, sizeof(weight));
	model_forward(&student, &mb.b, &(struct forward_opt){ 0 });
	l = distill_loss(d, &in);
	if (grad)
		model_backward(&student, &mb.b);
	return l;
}

static double direction(int64_t i) { return rng_normal(11, 4, (uint64_t)i); }

static void move(const real *from, double h)
{
	for (int64_t i = 0; i < student.par.total; i++)
		student.w[i] = from[i] + h * direction(i);
}

static void check_gradient(struct distill *d, const char *name)
{
	int64_t n = student.par.total;
	real *keep = malloc((size_t)n * sizeof(real));
	double h = 1e-6, got = 0, up, down, want;

	memcpy(keep, student.w, (size_t)n * sizeof(real));
	memset(student.g, 0, (size_t)n * sizeof(real));
	loss(d, true);
	for (int64_t i = 0; i < n; i++)
		got += student.g[i] * direction(i);
	move(keep, h);
	up = loss(d, false);
	move(keep, -h);
	down = loss(d, false);
	memcpy(student.w, keep, (size_t)n * sizeof(real));
	want = (up - down) / (2 * h);
	ok(fabs(got - want) < 1e-6 * (fabs(want) + 1), "%s against differences", name);
	printf("# got %.10g, want %.10g\n", got, want);
	free(keep);
}

static void open_loss(struct distill *d, struct teacher t)
{
	struct err e = { 0 };

	d->teacher = t;
	if (distill_open(d, &backend_cpu, V, &e) < 0)
		err_exit(&e);
}

/* Live, and by K candidates. The divergence of fewer classes is smaller, and that of all of them
 * is the live one's. */
static void test_kind(enum diverge_kind kind, const char *name, double alpha, double temperature)
{
	const struct distill_opt o = { kind, alpha, temperature };
	static const int Ks[] = { 2, 6, V };
	struct distill live = { .o = o };
	double kd, last = 0, kl;
	char text[100];

	snprintf(text, sizeof(text), "%s, alpha %g, temperature %g", name, alpha, temperature);
	open_loss(&live, (struct teacher){ .rows = known_rows });
	check_gradient(&live, text);
	kd = sum[1] / weight[1];
	kl = sum[2] / weight[2];
	for (int i = 0; i < 3; i++) {
		struct distill top = { .o = o };

		write_records(Ks[i], temperature);
		read_batch(Ks[i], temperature);
		open_loss(&top, teacher_topk_teacher);
		snprintf(text, sizeof(text), "%s, %d candidates, temperature %g", name, Ks[i],
		    temperature);
		check_gradient(&top, text);
		ok(sum[1] / weight[1] > last && sum[2] / weight[2] <= kl * (1 + 1e-4),
		    "%s: more than fewer", text);
		last = sum[1] / weight[1];
		distill_close(&top);
	}
	is_close(last, kd, 1e-4 * kd, "all candidates are the live teacher");
	distill_close(&live);
}

static void test_no_targets(void)
{
	struct distill d = { .o = { DIVERGE_FORWARD, 0.7, 4 } };
	int32_t keep[R];
	double l, worst = 0;

	memcpy(keep, mb.b.target, sizeof(keep));
	for (int r = 0; r < R; r++)
		mb.b.target[r] = -1;
	mb.own.targets = 0;
	open_loss(&d, (struct teacher){ .rows = NULL });
	memset(student.g, 0, (size_t)student.par.total * sizeof(real));
	l = loss(&d, true);
	for (int64_t i = 0; i < student.par.total; i++)
		worst = fmax(worst, fabs(student.g[i]));
	ok(l == 0 && worst == 0 && weight[0] == 0,
	    "a batch without targets is zero, and asks no teacher");
	distill_close(&d);
	memcpy(mb.b.target, keep, sizeof(keep));
	mb.own.targets = loss_targets(&mb.b);
}

static void test_failure(void)
{
	struct distill d = { .o = { DIVERGE_FORWARD, 0.7, 4 } };

	open_loss(&d, (struct teacher){ .rows = broken_rows });
	ok(isnan(loss(&d, true)) && d.e.status == EX_IOERR && strcmp(d.e.msg, "no teacher") == 0,
	    "a teacher that fails");
	distill_close(&d);
}

/* Blocks of any size give the logits that a plain forward pass gives. */
static void test_live(int rows)
{
	const struct engine_opt eo = { .max_seqs = TEACHER_LIVE_SEQS, .max_tokens = NT,
	    .max_rows = 7 };
	struct err e = { 0 };
	struct engine *en = engine_over(&teacher.cfg, &teacher.par, teacher.w, &eo, &backend_cpu,
	    &e);
	struct teacher_live *live = en ? teacher_live_over(en, rows, &e) : NULL;
	double worst = 0;

	if (!live)
		err_exit(&e);
	for (int again = 0; again < 2; again++)
		for (int64_t r = 0, n; r < R; r += n) {
			const real *logits;

			if ((n = teacher_live_rows(live, &mb, r, R - r, &logits, &e)) <= 0)
				err_exit(&e);
			for (int64_t i = 0; i < n * V; i++)
				if (mb.b.doc_start[r + i / V] >= 0)
					worst = fmax(worst, fabs(logits[i] - known[r * V + i]));
		}
	ok(worst < 1e-10, "teacher in blocks of %d rows", rows);
	teacher_live_close(live);
	engine_close(en);
}

static void test_choose(void)
{
	real z[8] = { 1, 3, 2, 3, -5, 3, 0, 2 }, logp[4], rest, all = 0, tail = 0;
	int32_t target = 0;
	uint32_t id[4];

	teacher_topk_choose(z, &target, 1, 8, 4, 2, id, logp, &rest);
	ok(id[0] == 1 && id[1] == 3 && id[2] == 5 && id[3] == 2,
	    "best first, of equals the lower id");
	for (int i = 0; i < 8; i++)
		all += exp(z[i]);
	for (int i = 0; i < 8; i++)
		tail += i == 1 || i == 3 || i == 5 || i == 2 ? 0 : exp((z[i] - log(all)) / 2);
	is_close(logp[3], 2 - log(all), 1e-12, "their log-probabilities");
	is_close(rest, log(tail), 1e-12, "and what is left at the temperature");
}

/* A bad record: why. */
static void refused(const char *record, const char *pattern)
{
	static char *files[] = { path };
	const struct train_opt o = { .batch = NB, .seq = NT, .epochs = 1 };
	struct err e = { 0 };
	FILE *f = fopen(path, "w");
	void *src;

	fprintf(f, "%s\n", record);
	fclose(f);
	src = teacher_topk_source(2, 4, NT)->open(&o, &student.cfg, NULL, 1, files, false, &e);
	ok(!src && e.status == EX_DATAERR && strstr(e.msg, pattern), "refused: %s", pattern);
	if (src)
		teacher_topk_source(2, 4, NT)->close(src);
	else if (!strstr(e.msg, pattern))
		printf("# %s\n", e.msg);
}

static void test_records(void)
{
#define HEAD "{\"type\":\"topk\",\"vocab\":23,\"temperature\":4,\"tokens\":[1,2],"
	refused("{\"text\":\"no candidates\"}", "missing \"topk\"");
	refused("{\"topk\":[],\"vocab\":24,\"temperature\":4}", "vocabulary of 24");
	refused("{\"topk\":[],\"vocab\":23,\"temperature\":1}", "made for --temperature 1");
	refused("{\"topk\":[],\"vocab\":23,\"temperature\":4,\"tokens\":[23]}", "not a token id");
	refused(HEAD "\"topk\":[[3,4]]}", "not as long as");
	refused(HEAD "\"topk\":[[3],[]],\"topk_logprob\":[[-1],[]],\"topk_rest\":[0,0]}",
	    "has 1 entries");
	refused(HEAD "\"topk\":[[3,4],[]],\"topk_logprob\":[[-1],[]],\"topk_rest\":[0,0]}",
	    "(\"topk_logprob\" 1)");
	refused(HEAD "\"topk\":[[3,23],[]],\"topk_logprob\":[[-1,-2],[]],\"topk_rest\":[0,0]}",
	    "token id below 23");
	refused(HEAD "\"topk\":[[3,4],[]],\"topk_logprob\":[[-1,7],[]],\"topk_rest\":[0,0]}",
	    "not a log-probability");
	refused(HEAD "\"topk\":[[],[]],\"topk_logprob\":[[],[]],\"topk_rest\":[0,0]}",
	    "no texts to train on");
}

int main(void)
{
	struct config cs, ct;

	err_init("distill64");
	opt_quiet = true;
	pool_init(2);
	close(mkstemp(path));
	open_model(&student, &cs, "{" COMMON ", \"hidden_size\": 16}", 5);
	open_model(&teacher, &ct, "{" COMMON ", \"hidden_size\": 24, \"lookahead_steps\": 0}", 8);
	write_records(6, 4);
	read_batch(6, 4);
	model_forward(&teacher, &mb.b, &(struct forward_opt){ 0 });
	model_logits(&teacher, known);
	test_live(4);
	test_live(10);
	test_live(1000);
	test_kind(DIVERGE_FORWARD, "forward KL", 0.7, 4);
	test_kind(DIVERGE_FORWARD, "forward KL", 1, 1);
	test_kind(DIVERGE_REVERSE, "reverse KL", 0.7, 2);
	test_kind(DIVERGE_JS, "Jensen-Shannon", 0.4, 0.5);
	test_no_targets();
	test_failure();
	test_choose();
	test_records();
	unlink(path);
	free(mb.b.tok), free(mb.b.target), free(mb.b.doc_start), free(mb.extra);
	model_close(&student);
	model_close(&teacher);
	config_free(&cs);
	config_free(&ct);
	return tap_done();
}
