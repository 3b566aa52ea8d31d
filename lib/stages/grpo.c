#include "decode/generation.h"
#include "stages/grpo_int.h"

#include <stdlib.h>
#include <string.h>

#include "train/chat.h"
#include "base/json.h"
#include "train/metric.h"
#include "model/route_stats.h"

struct grpo_flags grpo_flags = {
	.group = 4, .max_new = 128, .iterations = 1, .timeout = 60, .chat = true, .replay = true,
	.loss = { .beta = 0.04, .epsilon = 0.2, .epsilon_high = -1 },
	.sample = { .temperature = 1, .top_p = 1, .repetition_penalty = 1 },
};
struct grpo_run grpo_run;
static char judge[GRPO_REWARDS][33];	/* fingerprints of the models that judge */

#define F grpo_flags
const struct opt grpo_opts[] = {
	{ .kind = OPT_TABLE, .value = (void *)train_opts },
	{ .kind = OPT_TABLE, .value = (void *)chat_opts },
	{ 0, "chat", OPT_FLAG, &F.chat, 0, 0, NULL,
	    "a prompt that is a text is what a user says; else it is continued" },
	{ .kind = OPT_GROUP, .help = "Rollouts" },
	{ 'G', "group", OPT_INT, &F.group, 2, 4096, "N", "completions of each prompt" },
	{ 0, "new", OPT_INT, &F.max_new, 1, 1 << 20, "N", "at most N tokens of a completion" },
	{ 0, "parallel", OPT_INT | OPT_TALKS, &F.parallel, 0, 65536, "N",
	    "completions sampled at a time; 0: all of a step" },
	{ 0, "temperature", OPT_FLOAT, &F.sample.temperature, 0.01, 100, "X",
	    "of sampling, and of the log-probs compared" },
	{ 0, "top-k", OPT_INT, &F.sample.top_k, 0, 1 << 30, "N",
	    "among the N most likely tokens; 0: all" },
	{ 0, "top-p", OPT_FLOAT, &F.sample.top_p, 0, 1, "X",
	    "among the fewest that have probability X together" },
	{ 0, "min-p", OPT_FLOAT, &F.sample.min_p, 0, 1, "X",
	    "among those at least X times as likely as the best" },
	{ 0, "repeat-penalty", OPT_FLOAT, &F.sample.repetition_penalty, 1e-3, 1e3, "X",
	    "make tokens that occurred less likely; 1: do not" },
	{ 0, "stop", OPT_LIST, &F.stop, 0, 0, "TEXT", "end a completion at TEXT" },
	{ 0, "replay-routing", OPT_FLAG, &F.replay, 0, 0, NULL,
	    "train on the experts that were used in sampling" },
	{ 0, "log-samples", OPT_INT | OPT_TALKS, &F.log_samples, 0, 1 << 20, "N",
	    "sample records of a logged step" },
	{ .kind = OPT_GROUP, .help = "Rewards" },
	{ 0, "reward", OPT_LIST, &F.reward, 0, 0, "CMD",
	    "command, or toy, number, lm:DIR; may be repeated" },
	{ 0, "reward-weight", OPT_LIST, &F.reward_weight, 0, 0, "X",
	    "of each --reward, in their order; none: all are 1" },
	{ 0, "reward-timeout", OPT_FLOAT | OPT_TALKS, &F.timeout, 0, 1e6, "SECONDS",
	    "of silence of a command that are an error; 0: none" },
	{ 0, "scale-rewards", OPT_CHOICE, &F.scale, 0, 0, "group|batch|none",
	    "divide advantages by the standard deviation of" },
	{ .kind = OPT_GROUP, .help = "Loss" },
	{ 0, "beta", OPT_FLOAT, &F.loss.beta, 0, 1e3, "X",
	    "weight of the KL to the starting model; 0: it is not needed" },
	{ 0, "epsilon", OPT_FLOAT, &F.loss.epsilon, 0, 1, "X", "how far a ratio may fall" },
	{ 0, "epsilon-high", OPT_FLOAT, &F.loss.epsilon_high, -1, 1e3, "X",
	    "how far it may rise; below 0: --epsilon" },
	{ 0, "iterations", OPT_INT, &F.iterations, 1, 1024, "N", "steps on each rollout" },
	{ 0, "length-norm", OPT_CHOICE, &F.loss.norm, 0, 0, "grpo|dr|dapo",
	    "by each length, by --new, by all tokens" },
	{ 0, "mask-overlong", OPT_FLAG, &F.mask_overlong, 0, 0, NULL,
	    "learn nothing from completions that did not end" },
	{ .kind = OPT_END }
};
#undef F

void grpo_defaults(void)
{
	train_flags.lr = 5e-6;
	train_flags.batch = 2;
	train_flags.anchor = 0.1;
	chat_flags.truncate = CHAT_DROP;	/* half a question has another answer */
}

/* --- loss --- */

enum { M_REWARD, M_SPREAD, M_FLAT, M_KL, M_CLIP, M_LENGTH, M_FINISHED, M_DISAGREE, M_MOVED,
    M_PART };
static const char *metrics[METRIC_MAX + 1] = {
	"reward", "reward_std", "flat_groups", "kl", "clip_fraction", "completion_tokens",
	    "finished", "router_disagreement",
	"router_moved",
};
static const char *const part_name[GRPO_REWARDS] = {
	"reward1", "reward2", "reward3", "reward4", "reward5", "reward6", "reward7"
};

static void count(const struct stage_in *in, int metric, double sum, double weight)
{
	in->sum[metric] += sum;
	in->weight[metric] += weight;
}

static void count_rewards(const struct stage_in *in, const struct grpo_slice *s)
{
	for (int i = 0; i < s->n; i++) {
		count(in, M_REWARD, s->reward[i], 1);
		count(in, M_LENGTH, s->c[i].n - s->c[i].nprompt, 1);
		count(in, M_FINISHED, s->c[i].stopped, 1);
		for (int k = 0; grpo_run.n > 1 && k < grpo_run.n; k++)
			count(in, M_PART + k, s->part[i * grpo_run.n + k], 1);
	}
	for (int g = 0; g < s->n / grpo_flags.group; g++) {
		count(in, M_SPREAD, s->spread[g], 1);
		count(in, M_FLAT, s->spread[g] == 0, 1);
	}
}

/* Of all (layer, token): where training used other experts than sampling did; where the router
 * would have. */
static void count_routing(const struct stage_in *in, const struct grpo_slice *s)
{
	const struct model *m = in->m;
	int K = m->cfg.num_experts_per_tok;
	int64_t R = (int64_t)in->mb->b.B * in->mb->b.T;

	for (int l = 0; l < m->cfg.num_sparse; l++) {
		m->be->get(m->be, s->used, m->topk + l * R * K,
		    (size_t)(R * K) * sizeof *s->used);
		for (int64_t r = 0; r < R; r++) {
			const int32_t *sampled = s->replay + (l * R + r) * K;

			if (in->mb->b.doc_start[r] >= 0)
				count(in, M_DISAGREE, !route_same_set(sampled, s->used + r * K, K),
				    1);
		}
	}
	count(in, M_MOVED, (double)m->moved, (double)m->replayed);
}

static double loss(const struct stage_in *in)
{
	struct grpo_slice *s;
	struct grpo_in g = { .o = &grpo_flags.loss, .b = &in->mb->b, .units = in->units,
	    .targets = in->targets,
	    .coef = in->coef, .logp = in->logp };
	struct grpo_sums sums;
	double value;

	memcpy(&s, in->mb->extra, sizeof s);
	if (grpo_flags.loss.beta > 0) {
		grpo_logp(in->ref, g.b, g.o->temperature, s->ref);
		g.ref = s->ref;
	}
	g.adv = s->adv;
	g.old = s->old;
	g.fresh = s->fresh;
	value = grpo_loss(in->m, &g, &sums);
	s->fresh = false;
	if (g.ref != NULL)
		count(in, M_KL, sums.kl, sums.tokens);
	count(in, M_CLIP, sums.clipped, sums.tokens);
	count_rewards(in, s);
	count_routing(in, s);
	return value;
}

/* Completions that count. */
static int64_t units(const struct micro *mb)
{
	int64_t n = 0;

	for (int i = 0; i < mb->b.B; i++) {
		bool any = false;

		for (int t = 0; t < mb->b.T; t++)
			any |= mb->b.target[(int64_t)i * mb->b.T + t] >= 0;
		n += any;
	}
	return n;
}

/* --- what a run holds --- */

static json_t *list_json(const struct opt_list *l)
{
	json_t *a = json_array();

	for (int i = 0; i < l->n; i++)
		json_array_append_new(a, json_string(l->v[i]));
	return a;
}

/* What each reward is, by its name or by what the model is that the name leads to. */
static json_t *reward_list(const struct opt_list *l)
{
	json_t *a = json_array();

	for (int i = 0; i < l->n; i++)
		json_array_append_new(a, json_string(judge[i][0] != '\0' ? judge[i] : l->v[i]));
	return a;
}

static json_t *settings(void)
{
	const struct grpo_flags *f = &grpo_flags;
	json_t *s = json_pack("{s:i, s:i, s:i, s:i, s:b, s:b, s:b}", "group", f->group, "new",
	    f->max_new, "iterations",
	    f->iterations, "scale-rewards", f->scale, "chat", f->chat, "replay-routing", f->replay,
	    "mask-overlong",
	    f->mask_overlong);
	json_t *more = json_pack("{s:f, s:f, s:f, s:i, s:f, s:i, s:f, s:f, s:f}", "beta",
	    f->loss.beta, "epsilon",
	    f->loss.epsilon, "epsilon-high", f->loss.epsilon_high, "length-norm", f->loss.norm,
	    "temperature",
	    f->sample.temperature, "top-k", f->sample.top_k, "top-p", f->sample.top_p, "min-p",
	    f->sample.min_p,
	    "repeat-penalty", f->sample.repetition_penalty);

	json_object_update(s, more);
	json_decref(more);
	json_object_set_new(s, "stop", list_json(&f->stop));
	json_object_set_new(s, "reward", reward_list(&f->reward));
	json_object_set_new(s, "reward-weight", list_json(&f->reward_weight));
	return s;
}

/* Texts end where the starting model says. */
static int rollout_options(const struct stage_env *v, struct rollout_opt *out, struct err *e)
{
	struct generation said;
	struct rollout_opt o = { .sample = grpo_flags.sample, .group = grpo_flags.group,
	    .max_new = grpo_flags.max_new,
	    .max_tokens = v->o->seq, .parallel = v->sequences * v->o->accum };

	if (grpo_flags.parallel > 0 && grpo_flags.parallel < o.parallel)
		o.parallel = grpo_flags.parallel;
	o.gen = (struct gentext_opt){ .tok = v->tok, .nstop = grpo_flags.stop.n,
	    .stop = grpo_flags.stop.v };
	if (v->o->model != NULL && generation_read(&said, v->o->model, e) < 0)
		return -1;
	generation_ends(v->o->model != NULL ? &said : NULL, v->cfg, v->tok, &o.gen);
	*out = o;
	return 0;
}

static struct reward_opt reward_options(const struct stage_env *v)
{
	return (struct reward_opt){ .timeout = grpo_flags.timeout, .tok = v->tok, .be = v->be,
	    .max_tokens = v->o->seq };
}

int grpo_plan(const struct stage_env *v, struct mem_plan *p, struct err *e)
{
	const struct reward_opt wo = reward_options(v);
	struct rollout_opt ro;
	struct params ps;

	if (rollout_options(v, &ro, e) < 0 || params_build(&ps, v->cfg, e) < 0)
		return -1;
	rollout_plan(p, v->cfg, &ps, &ro);
	params_free(&ps);
	mem_plan_add(p, "rollouts", grpo_source_bytes(v->cfg, v->o, v->o->accum, v->sequences) +
	    (v->o->eval != NULL ? grpo_source_bytes(v->cfg, v->o, 1, v->sequences) : 0));
	for (int i = 0; i < grpo_flags.reward.n; i++)
		if (reward_plan(grpo_flags.reward.v[i], &wo, p, e) < 0 ||
		    reward_fingerprint(grpo_flags.reward.v[i], judge[i], e) < 0)
			return -1;
	return 0;
}

static int open_run(const struct stage_env *v, struct err *e)
{
	const struct reward_opt wo = reward_options(v);
	struct rollout_opt ro;

	if (rollout_options(v, &ro, e) < 0)
		return -1;
	for (; grpo_run.n < grpo_flags.reward.n; grpo_run.n++)
		if ((grpo_run.reward[grpo_run.n] = reward_open(grpo_flags.reward.v[grpo_run.n], &wo,
		    e)) == NULL)
			return -1;
	grpo_run.rollout = rollout_open(v->m, &ro, v->be, e);
	return grpo_run.rollout != NULL ? 0 : -1;
}

static void close_run(void)
{
	for (int i = 0; i < grpo_run.n; i++)
		reward_close(grpo_run.reward[i]);
	rollout_close(grpo_run.rollout);
	grpo_run = (struct grpo_run){0};
}

const struct stage *grpo_stage(void)
{
	static struct stage stage = { .name = "grpo", .source = &grpo_source, .loss = loss,
	    .metrics = metrics, .units = units,
	    .settings = settings, .no_noise = true, .generates = true, .plan = grpo_plan,
	    .open = open_run, .close = close_run };
	struct grpo_flags *f = &grpo_flags;
	const char *why;

	if (f->reward.n == 0)
		opt_usage("what is a completion worth? --reward CMD");
	if (f->reward.n > GRPO_REWARDS)
		opt_usage("more than %d rewards", GRPO_REWARDS);
	if (f->reward_weight.n > 0 && f->reward_weight.n != f->reward.n)
		opt_usage("%d --reward-weight for %d --reward", f->reward_weight.n, f->reward.n);
	for (int i = 0; i < f->reward.n; i++) {
		grpo_run.weight[i] = 1;
		if (i < f->reward_weight.n && opt_float(f->reward_weight.v[i], &grpo_run.weight[i],
		    &why) < 0)
			opt_usage("--reward-weight '%s': %s", f->reward_weight.v[i], why);
		if (f->reward.n > 1)
			metrics[M_PART + i] = part_name[i];
	}
	if (f->loss.epsilon_high < 0)
		f->loss.epsilon_high = f->loss.epsilon;
	f->loss.temperature = f->sample.temperature;
	f->loss.max_new = f->max_new;
	stage.group = f->group;
	stage.needs_ref = f->loss.beta > 0;
	return &stage;
}
