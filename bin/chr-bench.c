/* chr-bench: measures what a machine and a model do together, and plans for machines that are
 * not there. Capsules out. */
#include <stdlib.h>
#include <string.h>

#include "measure/bench.h"

static const struct opt_prog prog = { "chr-bench",
    "[options] decode|prefill|load -m DIR [FILE...]\n"
	"       chr-bench [options] train -c CONFIG|-m DIR [FILE...]\n"
	"       chr-bench [options] kernel\n"
	"       chr-bench [options] replay [FILE...]\n"
	"       chr-bench [options] drive FILE\n"
	"       chr-bench [options] table [FILE...]",
	"measure a machine and a model, and plan for others",
	"decode, prefill and load run a model on prompts, or on random tokens; train takes steps "
	    "on documents, or on random tokens;\n"
	"kernel measures memory and arithmetic; replay reads\n"
	"activation records of chr-actlog; drive reads a large file, such as a .ctsr; table shows "
	    "records of earlier runs.", false };

int main(int argc, char **argv)
{
	const char *work;
	char **files;
	int first, n, status;

	err_init(argv[0]);
	first = opt_parse(argc, argv, bench_opts, &prog);
	if (first == argc)
		opt_usage("no workload: decode, prefill, load, train, kernel, replay, drive or "
		    "table");
	bench_begin(argc, argv, &prog, CHR_COMMIT);
	work = argv[first];
	files = argv + first + 1;
	n = argc - first - 1;
	if (strcmp(work, "decode") == 0 || strcmp(work, "prefill") == 0 || strcmp(work, "load") ==
	    0)
		bench_model(work, n, files);
	else if (strcmp(work, "train") == 0)
		bench_train(n, files);
	else if (strcmp(work, "replay") == 0)
		bench_replay(n, files);
	else if (strcmp(work, "table") == 0)
		bench_table(n, files);
	else if (strcmp(work, "kernel") == 0 && n == 0)
		bench_kernel();
	else if (strcmp(work, "drive") == 0 && n == 1)
		bench_drive(files[0]);
	else
		opt_usage(strcmp(work, "drive") == 0 ? "drive takes one file"
		    : strcmp(work, "kernel") == 0 ? "kernel takes no file"
		    : "no workload \"%s\"", work);
	status = bench_end();
	err_close_stdout();
	return status;
}
