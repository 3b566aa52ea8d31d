/*
 * decode_int: what the files of decode share: decode.c (opening, sequences, one pass),
 * decode_load.c (plan and weights), decode_attn.c (attention and caches), decode_recur.c (layers
 * with a state), decode_moe.c (experts), decode_adapt.c (adapters). Not installed.
 *
 * Letters as in config.h; N head width without rope (MLA); I = width of a dense MLP; R rows of a
 * pass, each one new token of some sequence. Index arrays are in host memory.
 */
#ifndef CHR_DECODE_INT_H
#define CHR_DECODE_INT_H

#include "decode/decode.h"
#include "decode/decode_adapt.h"
#include "experts/foresee.h"
#include "experts/intent.h"
#include "experts/oracle.h"
#include "format/manifest.h"
#include "format/modeldir.h"

#define HEAD_ROWS 16	/* rows of logits computed at a time */

struct weight {			/* a matrix that is always in memory */
	struct mat m;
	int param;		/* which parameter of the model: an adapter may be for it */
};

struct layer {
	int sparse;				/* index among sparse layers, -1: dense */
	const dev_real *in_norm, *post_norm;	/* (D) */
	struct weight q, k, v;			/* (H*d, D), (G*d, D), (G*d, D) */
	const dev_real *q_norm, *k_norm;		/* (d) */
	struct weight o;			/* (D, H*d) */
	struct weight q_nope, q_rope;		/* (H*N, D), (H*r, D) */
	const dev_real *q_nope_norm, *q_rope_norm;	/* (N), (r) */
	struct weight kv_down;			/* (C, D) */
	const dev_real *kv_down_norm;		/* (C) */
	const dev_real *k_nope_t;		/* (G, C, N): k_nope transposed per key head, to
						   absorb it into queries */
	const dev_real *k_rope, *mla_v;		/* (G*r, C), (G*d, C) */
	const dev_real *q_bias, *k_bias, *v_bias, *o_bias;	/* (H*d), (G*d), (G*d), (D) */
	struct weight qa, qb, kv_a;		/* (Q, D), (H*d, Q), (C + r, D) */
	const dev_real *qa_norm;		/* (Q) */
	struct weight in, ba, z, b, a;		/* of layers with a state: param.h */
	const dev_real *in_bias, *conv, *conv_bias;	/* (3D), (channels, taps), (channels) */
	const dev_real *log_a, *dt, *delta_norm;	/* (H), (H), (dv) */
	const dev_real *sinks;			/* (H), or NULL */
	const dev_real *gate, *logit_bias;	/* (E, D) router, (E) or NULL */
	const dev_real *router_bias;		/* (E), or NULL */
	/* (E, F), (E, F), (E, D) of all routed experts; NULL: they have none */
	const dev_real *gate_bias, *up_bias, *down_bias;
	const dev_real *shared_gate;		/* (D) */
	struct expert *ffn;			/* shared experts (S), or the one MLP of a dense
						   layer */
};

/* Caches of one layer of one sequence (kv.h); of a sliding layer rings. */
struct kv {
	dev_byte *a, *b;	/* keys (G heads of d) and values (likewise); MLA: latent (one of
				   C) and rotated keys (G of r). Of a layer with a state, that in a,
				   always in full precision (recur_bytes) */
	int slots;
};

struct seq {
	struct engine *g;
	bool used;
	int len;
	int adapter;		/* from 1; 0: none */
	struct kv *kv;		/* (L) */
	float *expect, *coming;	/* (Ls, E) margins the head gave at the last token, and at the
				   one being evaluated */
	float *same;		/* (Ls, E) its offset 0 at that one */
	int32_t *last;		/* (Ls, K) what the last token used */
	bool expects;		/* expect is filled */
	const struct oracle_seq *known;	/* what the log has of it, or NULL */
};

struct seg {			/* rows row0..row0+n-1 of a pass are the next tokens of one item */
	struct eval_item *it;
	int row0, n, done;	/* done: tokens of the item evaluated before this pass */
};

struct ffn_part {		/* rows row0..row0+n-1 of moe_x go through one FFN */
	struct expert x;
	int row0, n;
	int layer, expert;	/* -1: none of the routed ones */
	int param;		/* of its gate, before those of up and down; -1: no adapter is
				   asked for */
};

/* Arrays for max_rows rows, reused by every pass: those of the device, */
struct scratch {
	dev_real *h, *x;		/* (R, D) residual stream, normalised input */
	dev_real *qa;			/* (R, Q) */
	dev_real *q, *q2, *q_abs;	/* (R, H*max(d,N)), (R, H*r), (R, H*C) */
	dev_real *k, *k2;		/* (R, max(G*d, C)), (R, max(G*d, G*r)) */
	dev_real *mix, *apart, *z, *ab;	/* of layers with a state and of gated attention:
					   decode_recur.c */
	dev_real *ctx, *att;		/* (R, H*C), (R, H*d) */
	dev_real *router, *router_next;	/* (R, E) */
	dev_real *ahead;		/* (R, D) what the next router will see, nearly */
	dev_real *weight, *coef;	/* (R, K), (R, K+S) */
	dev_real *sums;			/* (R) of sigmoid scores */
	dev_real *moe_x, *moe_g, *moe_u;	/* (R*(K+S), D), (.., F), (.., F) */
	dev_byte *xq;			/* (R) quantised rows of what is being multiplied */
	dev_byte *moe_xq, *moe_hq;	/* (R*(K+S)) quantised rows of D and of F or I */
	dev_real *head_x, *logits;	/* (HEAD_ROWS, D), (HEAD_ROWS, V) */
	dev_real *look_h, *look;	/* (HEAD_ROWS, look_width), (HEAD_ROWS, rows) */
	dev_i32 *head_row;		/* (HEAD_ROWS) */
	dev_i32 *tok, *pos, *lo, *hi;	/* (R) */
	dev_i32 *zeros;			/* (R) of models with biases */
	dev_real *sgate;		/* (R) gates of shared experts */
	dev_i32 *ids, *slot, *rowidx;	/* (R, K), (R, K+S), (R*(K+S)) */
	dev_i32 *row_expert;		/* (R*(K+S)) whose biases a row of moe_x gets, -1: none; of
					   models with such biases */
};

/* and of the host. The first are those of the device as the host has them: the same memory where
 * it reads the device's, else pull() and push() copy them. */
struct tables {
	real *router, *router_next, *weight, *coef, *look, *sums;
	int32_t *tok, *pos, *lo, *hi, *ids, *slot, *rowidx, *row_expert;

	int32_t *count, *start, *order;	/* (E), (E+1), (R*K): slots sorted by expert */
	int32_t *wanted;		/* (E) */
	int32_t *exact;			/* (K) the router's own choice for a row */
	real *bias;			/* (Ls, E) of routers that have one, for the choice */
	int32_t *head_row;		/* (R) */
	const void **kcache, **vcache;	/* (R) on the device */
	struct predict_row *about;	/* (R) */
	struct seg *seg;		/* (max_seqs) */
	int *turn;			/* (max_seqs) items in the order in which they are taken */
	struct recur_seg *recur;	/* (max_seqs) */
	struct ffn_part *part;		/* (E + S) */
	struct gemm_job *job;		/* (2 * (E + S) + H) */
	struct qffn_job *qffn;		/* (E + S) for each adapter, and for none */
	struct qgemm_job *qgemm;	/* (E + S) */
};

/* The heads of chr-foresee, and arrays for max_seqs rows. */
struct foreseer {
	struct foresee *heads;		/* NULL: none */
	void *dev, *host;
	dev_real *w;			/* of the heads, on the device */
	dev_real *x, *hidden, *z;	/* (R, H, D), (R, W), (R, H, E) */
	dev_i32 *first;			/* (R) of zeros */
	real *said;			/* (R, H, E) */
	struct foreseen *of;		/* (R) of each sequence */
};

struct engine {
	struct modeldir md;
	const struct config *cfg;		/* of md, or of the model that this is an engine
						   over */
	const struct params *par;		/* likewise */
	const dev_real *flat;			/* its weights; NULL: read from md */
	struct manifest man;			/* packed directories */
	const struct backend *be;
	struct engine_opt opt;
	int64_t expert_bytes;
	struct layer layer[CFG_MAX_LAYERS];
	struct mat embed;			/* (V, D) */
	struct weight head;			/* (V, D) */
	const dev_real *norm;			/* (D) */
	const dev_real *look0, *look2;		/* (look_width, D), (rows, look_width) */
	int look_width;
	dev_real *w;				/* dense parameters, floats or blocks; over a
						   model only the transposed ones, */
	real *host;				/* and room to transpose the largest */
	dev_real *rope, *rope_mla;			/* (max_tokens, 2, d), (max_tokens, 2, r) */
	void *expert_mem;			/* plain directories: all experts, in the type of
						   the file */
	struct expert *experts;			/* (Ls * E) views of it */
	struct expert *ffn_views;		/* what layer.ffn points into */
	void *scratch_mem, *tables_mem;
	struct scratch s;
	struct tables t;
	void *kv_mem;
	struct seq *seqs;			/* (max_seqs) */
	struct adapts adapts;
	struct store *store;
	struct predict *predict;
	struct foreseer fore;
	struct intent *intent;			/* NULL: none */
	real *share;				/* (Ls, E) of intent, for one prompt */
	float *mix;				/* (Ls, E) and over as many prompts as there are
						   sequences; */
	int prompts;				/* so many so far */
	int *likely;				/* (Ls * E) order of share */
	int sparse[CFG_MAX_LAYERS];		/* real index of the i-th sparse layer */
	int rows;				/* R of the pass under way */
	int nseg;
	bool single;				/* this pass is one token each of sequences past
						   their prompts */
	double replaced;			/* sum over rows and layers */
	struct eval_stats *st;
	double read_time, speed;		/* seconds of an expert from the drive,
						   multiplications a second; 0: not measured */
};

/* decode.c */
void engine_settle(struct engine_opt *o);	/* what follows from other options */
int64_t scratch_bytes(const struct config *c, const struct params *ps, const struct engine_opt *o);
/* Of the layers of one sequence that have keys and values, or a state. */
int64_t kv_bytes(const struct engine *g, bool states);
int64_t seq_bytes(const struct config *c);	/* what a sequence holds besides */

/* decode_load.c */
int load_plan(struct engine *g, const char *dir, struct mem_plan *plan, struct err *e)
    CHR_MUST_CHECK;
int load_weights(struct engine *g, struct err *e) CHR_MUST_CHECK;
void load_plan_state(const struct engine *g, struct mem_plan *plan);	/* all but weights */
/* what the config says of them, and position tables */
int load_layers(struct engine *g, struct err *e) CHR_MUST_CHECK;
/* a dense parameter is at w */
void load_place(struct engine *g, const struct param *p, const void *w, enum dtype t);
/* where k_nope's element i goes */
int64_t load_knope_at(const struct config *c, const struct param *p, int64_t i);
/* where the view of an expert's matrix belongs */
struct mat *load_expert_mat(struct engine *g, const struct param *p);

/* n bytes of an array that both have, to the host and to the device. Part of one: any. */
static inline void pull(const struct engine *g, void *host, const void *dev, size_t n)
{
	backend_fetch(g->be, host, dev, n);
}

static inline void push(const struct engine *g, void *dev, const void *host, size_t n)
{
	backend_settle(g->be, dev, host, n);
}

/* y = x w^T of rows whose ends are ldy and ldx apart: w (out, in) */
static inline struct gemm_job product(dev_real *y, int64_t ldy, const dev_real *x, int64_t ldx,
    const dev_real *w, int rows, int out, int in)
{
	return (struct gemm_job){ .c = y, .ldc = ldy, .a = x, .lda = ldx, .b = w, .ldb = in,
	    .bt = DT_REAL, .m = rows, .n = out, .k = in };
}

/* decode.c: y = x W^T (+ y), floats or blocks, and what adapters add to it */
struct linear {
	dev_real *y;
	const dev_real *x;	/* (rows, w.m.cols); jobs of one call that share it follow each
				   other */
	struct weight w;
	real beta;		/* 0 or 1 */
};
#define LINEAR_JOBS 4
/* n <= LINEAR_JOBS, of all rows of the pass */
void linear(struct engine *g, const struct linear *l, int n);
/* of `rows` of them, `of` says which */
void linear_rows(struct engine *g, const struct linear *l, int n, const int32_t *of, int rows);
void embed_rows(struct engine *g);			/* h of the tokens of this pass */

int over_weights(struct engine *g, struct err *e) CHR_MUST_CHECK;

/* decode_attn.c */
int64_t kv_layout(const struct config *c, const struct engine_opt *o, int l, struct kv *kv,
    dev_byte *base);
void kv_copy(const struct engine *g, int l, struct kv *to, const struct kv *from, int len);
void attn_layer(struct engine *g, int l);
void attn_bias(struct engine *g, dev_real *y, const dev_real *bias, int w);	/* y(R, w) += */

/* decode_recur.c */
int64_t recur_bytes(const struct block *b, int width);	/* of a state; width D */
/* Widths of mix, apart, z and ab, in that order, that layer l needs. */
void recur_widths(const struct config *c, int l, int64_t w[4]);
void recur_layer(struct engine *g, int l);	/* att = Mix(x) */
/* Gated attention: q and the gate's factor (z) from the projection in mix; att *= z. */
void gate_split(struct engine *g);
void gate_close(struct engine *g);

/* decode_intent.c */
int64_t intend_bytes(const struct config *c);		/* besides intent_bytes */
int intend_open(struct engine *g, const char *dir, struct err *e) CHR_MUST_CHECK;
/* tok: a prompt that will be evaluated now */
void intend(struct engine *g, const uint32_t *tok, int n);

/* decode_foresee.c */
int64_t foresee_plan(const char *dir, const struct config *c, const struct engine_opt *o);
int foresee_open(struct engine *g, const char *dir, struct err *e) CHR_MUST_CHECK;
void foresee_close(struct engine *g);
void foresee_forget(struct engine *g, int seq);		/* what was said to this sequence */
void foresee_rows(struct engine *g, int l);		/* after the choice of layer l */
/* A prompt of n tokens begins; the next token of one. EX_DATAERR: not of this log. */
int oracle_begin(const struct engine *g, struct seq *s, const uint32_t *tok, int n, struct err *e)
    CHR_MUST_CHECK;
int oracle_check(const struct seq *s, uint32_t tok, struct err *e) CHR_MUST_CHECK;
void oracle_rows(struct engine *g, int l);

/* decode_bias.c: prefers experts in memory to the router's choice, by g->opt.route_bias; ids and
 * weights change. */
void bias_route(struct engine *g, int l);
/* (E) of layer l, for the choice; NULL: none */
const real *router_bias(const struct engine *g, int l);

/* decode_moe.c */
int ffn_layer(struct engine *g, int l, struct err *e) CHR_MUST_CHECK;
/* Row `at` of moe_x is row `row` of x, with the biases of an expert, -1: without. */
void ffn_place(struct engine *g, int at, int row, int expert);
/* Biases of experts: x, of n rows of width w from row0 of moe_x on, += those of table (E, w). */
void ffn_bias(struct engine *g, dev_real *x, const dev_real *table, int64_t row0, int64_t n, int w);
/* rows rowidx of s.x (and s.xq) */
void ffn_parts(struct engine *g, const struct ffn_part *p, int n);
void look_rows(struct engine *g);

static inline int look_mode(const struct engine *g)
{
	return g->cfg->lookahead_steps > 0 && !store_complete(g->store) ? g->opt.predict &
	    (SRC_BIT(SRC_LOOK) | SRC_BIT(SRC_SAME)) : 0;
}

#endif
