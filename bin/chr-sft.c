/*
 * chr-sft: trains a model on conversations, to say what the assistant says in them.
 */
#include "train/chat.h"
#include "train/loss.h"
#include "base/opt.h"
#include "train/train.h"

static json_t *settings(void)
{
	return json_pack("{s:f}", "neftune", train_flags.neftune);
}

static double sft_loss(const struct stage_in *in)
{
	return loss_ce(in->m, &in->mb->b, in->targets, in->coef, in->logp);
}

static const struct stage *ready(void)
{
	static const struct stage stage = { .name = "sft", .source = &chat_source, .loss = sft_loss,
	    .settings = settings };

	return &stage;
}

int main(int argc, char **argv)
{
	static const struct opt opts[] = {
		{ .kind = OPT_TABLE, .value = (void *)train_opts },
		{ .kind = OPT_TABLE, .value = (void *)chat_opts },
		{ 0, "neftune", OPT_FLOAT, &train_flags.neftune, 0, 1e3, "ALPHA",
		    "noise on the embeddings in training; 0: none, 5 is usual" },
		{ .kind = OPT_END }
	};
	static const struct opt_prog prog = {
		.name = "chr-sft", .operands = "[options] -m DIR -o DIR [FILE...]",
		.purpose = "train a model on conversations",
		.notes = "FILE is JSONL with messages, conversations, or tokens and mask (.gz "
		    "too). Step records go to stdout. Exit\n"
		    "status 75: stopped early with a checkpoint, run again with --resume.",
		.reads_stdin = true,
	};

	train_flags.lr = 5e-5;
	train_flags.mask_prob = 0.04;
	train_flags.anchor = 0.01;
	return train_main(argc, argv, opts, &prog, ready);
}
