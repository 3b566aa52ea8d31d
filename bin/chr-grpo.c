/*
 * chr-grpo: trains a model on what its own completions are worth (group-relative policy
 * optimisation).
 */
#include "base/err.h"
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
	struct err e = {0};
	int first, rc;

	err_init(argv[0]);
	grpo_defaults();
	first = opt_parse(argc, argv, grpo_opts, &prog);
	rc = train_run(grpo_stage(), argc, argv, grpo_opts, argc - first, argv + first, &e);
	if (rc < 0)
		err_exit(&e);
	err_close_stdout();
	return rc;
}
