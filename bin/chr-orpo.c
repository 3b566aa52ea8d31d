/*
 * chr-orpo: trains a model on preference pairs without a reference: likelihood of the chosen
 * completion plus the odds ratio of chosen to rejected.
 */
#include "train/chat.h"
#include "stages/loss_pref.h"
#include "base/opt.h"
#include "stages/prefs.h"
#include "train/train.h"

static struct orpo_opt orpo = { .lambda = 0.1, .beta = 1 };

static double orpo_loss(const struct stage_in *in)
{
	return loss_orpo(in->m, &in->mb->b, in->mb->extra, (int)in->mb->own.units, in->units, &orpo,
	    in->coef, in->logp,
	    in->sum, in->weight);
}

static json_t *settings(void)
{
	return json_pack("{s:f, s:f}", "lambda", orpo.lambda, "beta", orpo.beta);
}

static const struct opt opts[] = {
	{ .kind = OPT_TABLE, .value = (void *)train_opts },
	{ .kind = OPT_TABLE, .value = (void *)prefs_opts },
	{ .kind = OPT_GROUP, .help = "Loss" },
	{ 0, "lambda", OPT_FLOAT, &orpo.lambda, 0, 1e3, "X", "weight of the odds ratio" },
	{ 0, "beta", OPT_FLOAT, &orpo.beta, 1e-6, 1e3, "X",
	    "factor of the log-odds ratio inside the sigmoid" },
	{ .kind = OPT_END }
};

static const struct stage *ready(void)
{
	static const struct stage stage = { .name = "orpo", .source = &prefs_source,
	    .loss = orpo_loss,
	    .metrics = loss_orpo_metrics, .units = prefs_pairs, .group = 2, .settings = settings };

	return &stage;
}

int main(int argc, char **argv)
{
	static const struct opt_prog prog = {
		.name = "chr-orpo", .operands = "[options] -m DIR -o DIR [FILE...]",
		.purpose = "train a model on preference pairs by likelihood and odds ratio",
		.notes = "FILE is JSONL with \"chosen\", \"rejected\" and \"prompt\"; -b counts "
		    "pairs. Step records go to stdout.\n"
		    "Exit status 75: stopped early with a checkpoint, run again with --resume.",
		.reads_stdin = true,
	};

	train_flags.lr = 5e-6;
	train_flags.batch = 2;
	train_flags.anchor = 0.1;
	chat_flags.truncate = CHAT_DROP;	/* a comparison of halves is not one */
	train_flags.mask_prob = 0.02;
	return train_main(argc, argv, opts, &prog, ready);
}
