/*
 * bench: measurements as records that stand by themselves ("capsules", man chr-bench.1), and
 * what is made of them.
 *
 *	first = opt_parse(argc, argv, opts, &prog);		(opts includes bench_opts)
 *	bench_begin(argc, argv, &prog, commit);
 *	bench_model("decode", nfiles, files);			(or another workload: each puts
 *	its capsules)
 *	return bench_end();
 *
 * A run of a model is a process of its own (child.h), forked before anything was read; two
 * configurations take turns, AB BA; the ceilings of the machine are measured between the runs.
 * Functions end the program when something fails.
 */
#ifndef CHR_BENCH_H
#define CHR_BENCH_H

#include <jansson.h>

#include "decode/infer.h"
#include "base/opt.h"

struct bench_opt {
	const char *vs, *quality, *budgets, *drive, *blocks, *plot, *compare, *config;
	int64_t seed, cgroup, memory, ram_bw, expert_bytes, dense_bytes;
	int prompt, new, chunk, reps, batch, seq, steps, compute;
	struct opt_list sets;
	bool table, skip_bad, recompute, profile;
};

extern struct bench_opt bench;
extern struct opt bench_opts[];

void bench_begin(int argc, char **argv, const struct opt_prog *prog, const char *commit);
int bench_end(void);		/* --table, --plot, --compare of the capsules put; the exit
				   status */

/* Workloads. */
void bench_model(const char *workload, int n, char **files);	/* "decode", "prefill", "load" */
void bench_train(int n, char **files);		/* steps of training */
void bench_kernel(void);
void bench_replay(int n, char **files);		/* activation records through every policy */
void bench_drive(const char *path);		/* reads of a file */
void bench_table(int n, char **files);		/* capsules of earlier runs, to be shown */

/* A new capsule: workload, program, commit, command, date, machine. */
json_t *bench_capsule(const char *workload);
/* Median, least and most of an array of numbers (nulls are passed over), as an object; null when
 * there are none. */
json_t *bench_spread(const json_t *samples);
/* The numbers of a key of all samples, in the object `phase` of each, or in the sample itself
 * when that is NULL; their median; of a list. NaN when there are none. */
json_t *bench_column(const json_t *samples, const char *phase, const char *key);
double bench_median_of(const json_t *samples, const char *phase, const char *key);
double bench_median(const json_t *list);
double bench_most(const json_t *list);
/* Median, least and most of each key into all, and the median by itself into the capsule; a dot
 * becomes an underscore. */
void bench_put_keys(json_t *capsule, json_t *all, const json_t *samples, const char *phase,
    const char *const keys[]);
/* How the second fared beside the first, repetition by repetition, into r, which is returned. */
json_t *bench_versus(const json_t *first, const json_t *second, const char *phase, const char *key,
    json_t *r);
/* fn in a process of its own (child.h); ends this one when it fails. */
json_t *bench_child(json_t *(*fn)(void *), void *arg);
/* What a capsule is about, for tables and comparisons: "metric": name, whether more is better,
 * samples and their spread. Takes the reference to samples. */
void bench_metric(json_t *capsule, const char *name, bool more, json_t *samples);
/* Every option of a table that can change a result, by name, into o. */
void bench_config(json_t *o, const struct opt *opts);
/* Writes a capsule (unless only a table is wanted) and keeps it for bench_end(). Takes the
 * reference. */
void bench_put(json_t *capsule);

/* The options of a second configuration: those of the first, and `flags`, words between blanks,
 * on top. */
void bench_second(const char *flags);

/* One run, in a child: reads infer, bench and the prompts of files, and returns a sample. */
struct bench_run {
	const char *workload;
	int n;
	char **files;
};
json_t *bench_sample(void *run);

/* Of capsules: Markdown on f; a picture in a file; what got slower since those of a file, as
 * records on stdout, and how many did. */
void bench_markdown(const json_t *capsules, FILE *f);
void bench_columns(const json_t *capsules, FILE *f);	/* the same, set in columns */
int bench_draw(const json_t *capsules, const char *path, struct err *e) CHR_MUST_CHECK;
int bench_compare(const json_t *capsules, const char *old, int *slower, struct err *e)
    CHR_MUST_CHECK;

/* For these. "a.b" is the number b of object a, NaN when it is not there; words are "" then
 * (object may be NULL). */
double bench_number(const json_t *capsule, const char *path);
const char *bench_word(const json_t *capsule, const char *object, const char *key);
json_t *bench_group(const json_t *capsules);		/* by workload; the caller decrefs, as of */
json_t *bench_differing(const json_t *capsules);	/* the keys of their configurations that
							   are not the same in all */
/* as text */
void bench_setting(const json_t *capsule, const char *key, char *out, size_t size);

#endif
