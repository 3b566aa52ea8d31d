/*
 * distill: the loss of a student that learns from a teacher's distributions as well as from the
 * text.
 *
 *	L = alpha * T^2 * D(teacher, student) + (1 - alpha) * -ln p(target)
 *
 * the mean over rows with a target, and only those: at each the student is held to what the
 * teacher thinks of the same next token. D is a divergence of the distributions at temperature T
 * (struct diverge_args); T^2 keeps its gradient as large as that of the other part (Hinton,
 * Vinyals, Dean 2015, arXiv:1503.02531). Reverse KL: Gu et al. 2023, arXiv:2306.08543;
 * Jensen-Shannon: Agarwal et al. 2023, arXiv:2306.13649.
 *
 *	struct distill d = { .o = { DIVERGE_FORWARD, 0.7, 4 }, .teacher = { .rows =
 *	    teacher_live_rows, .self = live } };
 *	distill_open(&d, be, vocab_size, &e);
 *	loss = distill_loss(&d, &stage_in);		NaN when the teacher failed: d.e says why
 */
#ifndef CHR_DISTILL_H
#define CHR_DISTILL_H

#include "backend/backend.h"
#include "base/err.h"
#include "train/train.h"

struct distill_opt {
	enum diverge_kind kind;
	double alpha, temperature;
};

/* Where the teacher's distributions come from: one of the two functions. Rows without a target
 * may hold anything. */
struct teacher {
	/* Logits (log-probs are logits too) of rows from `row` on, in host memory that is valid
	 * until the next call: *logits is (rows, V). Returns how many rows, 1..n, or -1. A batch
	 * is asked for in order, from row 0. */
	int64_t (*rows)(void *self, const struct micro *mb, int64_t row, int64_t n,
	    const real **logits, struct err *e);
	/* Of a teacher that is known in part: logits (n, V) from which softmax(logits /
	 * temperature) is the teacher's where it is known; elsewhere the student's, scaled to
	 * the mass that is left. The divergence is then that of what is known and one class for
	 * all the rest, and so is its gradient. */
	void (*complete)(void *self, const struct micro *mb, int64_t row, int64_t n, int V,
	    double temperature,
	    const real *student, real *logits);
	void *self;
};

struct distill {
	struct distill_opt o;
	struct teacher teacher;
	struct err e;			/* of the teacher */

	/* distill_open */
	const struct backend *be;
	int64_t cap;			/* rows below */
	dev_real *logits;		/* (cap, V) of the teacher, and */
	dev_real *dvalue;		/* (cap) a divergence, */
	dev_i32 *target;		/* (cap) on the device */
	real *value, *kl;		/* (cap) */
	real *student, *full;		/* (cap, V) for teacher.complete */
};

int64_t distill_bytes(const struct distill *d, int V);		/* what distill_open takes */
int distill_open(struct distill *d, const struct backend *be, int V, struct err *e) CHR_MUST_CHECK;
void distill_close(struct distill *d);

/* Base loss of a batch. A batch without targets gives 0 and asks the teacher nothing. */
double distill_loss(struct distill *d, const struct stage_in *in);

/* "ce" and "kd": the two parts, without alpha; "kl": KL(teacher || student) at temperature 1,
 * whatever is minimised. */
extern const char *const distill_metrics[];

#endif
