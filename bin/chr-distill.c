/*
 * chr-distill: trains a model, the student, on what another, the teacher, thinks of each next
 * token.
 */
#include "train/chat.h"
#include "stages/distill.h"
#include "base/err.h"
#include "stages/teacher_live.h"
#include "base/opt.h"
#include "stages/teacher_topk.h"
#include "train/train.h"

static struct {
	const char *teacher;
	int64_t ram;
	int topk, kl;
} o;

static struct distill distill = { .o = { .alpha = 0.7, .temperature = 4 } };
static struct teacher_live_opt where;
static struct teacher_live *live;
static char fingerprint[33];

static double loss(const struct stage_in *in)
{
	return distill_loss(&distill, in);
}

static int64_t targets(const struct micro *mb)
{
	return mb->own.targets;
}

static json_t *settings(void)
{
	static const char *const name[] = { "forward", "reverse", "js" };
	json_t *s = json_pack("{s:s, s:f, s:f}", "kl", name[o.kl], "alpha", distill.o.alpha,
	    "temperature",
	    distill.o.temperature);

	if (o.teacher != NULL)
		json_object_set_new(s, "teacher", json_string(fingerprint));
	else
		json_object_set_new(s, "topk", json_integer(o.topk));
	return s;
}

static int plan(const struct stage_env *v, struct mem_plan *p, struct err *e)
{
	where = (struct teacher_live_opt){ .dir = o.teacher, .ram = o.ram,
	    .budget = "--teacher-ram", .T = v->o->seq };
	return teacher_live_plan_stage(&where, &distill, v, fingerprint, p, e);
}

static int open_teacher(const struct stage_env *v, struct err *e)
{
	if (o.teacher != NULL && (live = teacher_live_open(&where, v->be, e)) == NULL)
		return -1;
	distill.teacher.self = live;
	return distill_open(&distill, v->be, v->cfg->vocab_size, e);
}

static void close_teacher(void)
{
	distill_close(&distill);
	teacher_live_close(live);
}

static const struct opt opts[] = {
	{ .kind = OPT_TABLE, .value = (void *)train_opts },
	{ .kind = OPT_TABLE, .value = (void *)chat_opts },
	{ .kind = OPT_GROUP, .help = "Teacher" },
	{ 0, "teacher", OPT_STR, &o.teacher, 0, 0, "DIR", "model directory, plain or packed" },
	{ 0, "teacher-ram", OPT_BYTES | OPT_TALKS, &o.ram, 0, 0, "BYTES",
	    "limit on what it takes when it is packed; 0: none" },
	{ 0, "topk", OPT_INT, &o.topk, 0, TEACHER_TOPK_MAX, "K",
	    "no --teacher: FILE is what it thinks, K candidates for each token, from chr-score "
	    "--topk" },
	{ .kind = OPT_GROUP, .help = "Loss" },
	{ 0, "kl", OPT_CHOICE, &o.kl, 0, 0, "forward|reverse|js",
	    "KL(teacher || student), KL(student || teacher), or Jensen-Shannon" },
	{ 0, "alpha", OPT_FLOAT, &distill.o.alpha, 0, 1, "X",
	    "weight of the teacher; that of the text is 1 - X" },
	{ 0, "temperature", OPT_FLOAT, &distill.o.temperature, 0.01, 1000, "X",
	    "of both distributions" },
	{ .kind = OPT_END }
};

static const struct stage *ready(void)
{
	static struct stage stage = { .name = "distill", .source = &chat_text_source, .loss = loss,
	    .metrics = distill_metrics, .units = targets, .settings = settings, .plan = plan,
	    .open = open_teacher,
	    .close = close_teacher, .why = &distill.e };

	if ((o.teacher != NULL) == (o.topk > 0))
		opt_usage("who is the teacher? --teacher DIR, or --topk K and its records");
	distill.o.kind = (enum diverge_kind)o.kl;
	distill.teacher = o.topk > 0 ? teacher_topk_teacher
	    : (struct teacher){ .rows = teacher_live_rows };
	if (o.topk > 0)
		stage.source = teacher_topk_source(o.topk, distill.o.temperature, train_flags.seq);
	return &stage;
}

int main(int argc, char **argv)
{
	static const struct opt_prog prog = {
		.name = "chr-distill", .operands = "[options] -m DIR -o DIR --teacher DIR "
		    "[FILE...]",
		.purpose = "train a model on what a teacher thinks of each next token",
		.notes = "FILE is JSONL with messages (what the assistant says is learned), text, "
		    "or tokens (.gz too). Step records\n"
		    "go to stdout. Exit status 75: stopped early with a checkpoint, run again with "
		    "--resume.",
		.reads_stdin = true,
	};

	train_flags.lr = 5e-5;
	train_flags.mask_prob = 0.02;
	train_flags.anchor = 0.05;
	return train_main(argc, argv, opts, &prog, ready);
}
