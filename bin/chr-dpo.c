/*
 * chr-dpo: trains a model to prefer one completion to another, against a frozen reference
 * (direct preference optimisation).
 */
#include "train/chat.h"
#include "stages/loss_pref.h"
#include "base/opt.h"
#include "stages/prefs.h"
#include "train/train.h"

static int kind;			/* enum dpo_kind */
static struct dpo_opt dpo = { .beta = 0.1 };

static double dpo_loss(const struct stage_in *in)
{
	const struct batch *b = &in->mb->b;
	struct pref *pair = in->mb->extra;
	int n = (int)in->mb->own.units;

	if (prefs_ref == NULL)
		loss_pref_reference(in->ref, b, pair, n, in->logp);
	return loss_dpo(in->m, b, pair, n, in->units, &dpo, in->coef, in->logp, in->sum,
	    in->weight);
}

static json_t *settings(void)
{
	static const char *const name[] = { "sigmoid", "ipo", "hinge" };

	return json_pack("{s:s, s:f, s:f, s:f}", "loss", name[kind], "beta", dpo.beta,
	    "label-smoothing", dpo.smoothing,
	    "rpo-alpha", dpo.rpo_alpha);
}

static const struct opt opts[] = {
	{ .kind = OPT_TABLE, .value = (void *)train_opts },
	{ .kind = OPT_TABLE, .value = (void *)prefs_opts },
	{ .kind = OPT_GROUP, .help = "Loss" },
	{ 0, "loss", OPT_CHOICE, &kind, 0, 0, "sigmoid|ipo|hinge", "of the log-ratio" },
	{ 0, "beta", OPT_FLOAT, &dpo.beta, 1e-6, 1e3, "X",
	    "how closely the policy stays with the reference" },
	{ 0, "label-smoothing", OPT_FLOAT, &dpo.smoothing, 0, 0.5, "X",
	    "chance that a label is wrong; --loss sigmoid only" },
	{ 0, "rpo-alpha", OPT_FLOAT, &dpo.rpo_alpha, 0, 1e3, "X",
	    "weight of the chosen completions' likelihood" },
	{ 0, "precompute-ref", OPT_STR, &prefs_ref, 0, 0, "FILE",
	    "read the reference's log-probs from FILE; if it is not there, compute them first and "
	    "write it" },
	{ .kind = OPT_END }
};

static const struct stage *ready(void)
{
	static struct stage stage = { .name = "dpo", .source = &prefs_source, .loss = dpo_loss,
	    .metrics = loss_dpo_metrics, .units = prefs_pairs, .group = 2, .settings = settings,
	    .no_noise = true,
	    .prepare = prefs_prepare };

	dpo.kind = (enum dpo_kind)kind;
	if (dpo.smoothing > 0 && dpo.kind != DPO_SIGMOID)
		opt_usage("--label-smoothing goes with --loss sigmoid only");
	stage.needs_ref = prefs_ref == NULL;
	return &stage;
}

int main(int argc, char **argv)
{
	static const struct opt_prog prog = {
		.name = "chr-dpo", .operands = "[options] -m DIR -o DIR [FILE...]",
		.purpose = "train a model on preference pairs, against the model it started as",
		.notes = "FILE is JSONL with \"chosen\", \"rejected\" and \"prompt\"; -b counts "
		    "pairs. Step records go to stdout.\n"
		    "Exit status 75: stopped early with a checkpoint, run again with --resume.",
		.reads_stdin = true,
	};

	train_flags.lr = 5e-6;
	train_flags.batch = 2;
	train_flags.anchor = 0.1;
	chat_flags.truncate = CHAT_DROP;	/* a comparison of halves is not one */
	return train_main(argc, argv, opts, &prog, ready);
}
