#include "train/train.h"

int train_main(int argc, char **argv, const struct opt *opts, const struct opt_prog *prog,
    const struct stage *(*ready)(void))
{
	const struct stage *s;
	struct err e = {0};
	int first, rc;

	err_init(argv[0]);
	first = opt_parse(argc, argv, opts, prog);
	s = ready();
	rc = train_run(s, argc, argv, opts, argc - first, argv + first, &e);
	if (s->why != NULL && s->why->status != 0)
		err_exit(s->why);
	if (rc < 0)
		err_exit(&e);
	err_close_stdout();
	return rc;
}
