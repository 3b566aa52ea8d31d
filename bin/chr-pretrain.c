/*
 * chr-pretrain: trains a model on documents to predict their next token.
 */
#include "train/loss.h"
#include "base/opt.h"
#include "train/train.h"

static double pretrain_loss(const struct stage_in *in)
{
	return loss_ce(in->m, &in->mb->b, in->targets, in->coef, in->logp);
}

static const struct stage *ready(void)
{
	static const struct stage stage = { .name = "pretrain", .source = &packed_source,
	    .loss = pretrain_loss };

	return &stage;
}

int main(int argc, char **argv)
{
	static const struct opt opts[] = {
		{ .kind = OPT_TABLE, .value = (void *)train_opts },
		{ .kind = OPT_GROUP, .help = "Upcycling" },
		{ 0, "upcycle", OPT_STR, &train_flags.upcycle, 0, 0, "DIR",
		    "begin with this dense model: each expert is a copy of its MLP" },
		{ 0, "upcycle-drop", OPT_FLOAT, &train_flags.upcycle_drop, 0, 1, "X",
		    "share of each expert that is drawn anew" },
		{ .kind = OPT_END }
	};
	static const struct opt_prog prog = {
		.name = "chr-pretrain",
		.operands = "[options] (-c FILE | -m DIR | --upcycle DIR) -o DIR [FILE...]",
		.purpose = "train a model on documents to predict their next token",
		.notes = "FILE is JSONL (text, messages, tokens; .gz too) or a token shard "
		    "(.safetensors). Step records go to\n"
		    "stdout. Exit status 75: stopped early with a checkpoint, run again with "
		    "--resume.",
		.reads_stdin = true,
	};

	train_flags.lr = 5e-4;
	train_flags.epochs = 2;
	train_flags.mask_prob = 0.08;
	return train_main(argc, argv, opts, &prog, ready);
}
