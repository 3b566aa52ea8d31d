/*
 * chr-grpo: trains a model on what its own completions are worth (group-relative policy
 * optimisation).
 */
#include "stages/grpo.h"
#include "base/opt.h"

int main(int argc, char **argv)
{
	static const struct opt_prog prog = {
		.name = "chr-grpo", .operands = "[options] -m DIR -o DIR --reward CMD [FILE...]",
		.purpose = "train a model on what its own completions are worth",
		.notes = "FILE is JSONL with prompt, question, or messages; -b counts prompts. CMD "
		    "reads a line\n"
		    "{\"prompt\":..,\"completion\":..,\"tokens\":[..],\"record\":{..}} for each "
		    "completion and answers with a line that is a\n"
		    "number or {\"reward\":x}. Step records go to stdout. Exit status 75: stopped "
		    "early with a checkpoint, run again\n"
		    "with --resume.",
		.reads_stdin = true,
	};

	grpo_defaults();
	return train_main(argc, argv, grpo_opts, &prog, grpo_stage);
}
