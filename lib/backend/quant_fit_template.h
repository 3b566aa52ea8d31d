/*
 * The search of quant_fit for one instruction set. Set before: FIT (name of the function),
 * TARGET, VL (lanes), V_MIN and V_MAX. All else is C on vectors, rounded after each operation,
 * so that every instruction set gives the same.
 */
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define N(name) JOIN(FIT, name)
#define V N(vec)
#define I N(ints)
#define INLINE static inline __attribute__((always_inline)) TARGET

typedef float V __attribute__((vector_size(4 * VL)));
/* in memory */
typedef float N(floats) __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef int32_t I __attribute__((vector_size(4 * VL)));

INLINE V N(set)(float x) { return x - (V){ 0 }; }
INLINE V N(load)(const float *p) { return *(const N(floats) *)p; }
INLINE void N(store)(float *p, V x) { *(N(floats) *)p = x; }
INLINE V N(select)(I mask, V a, V b) { return (V)((mask & (I)a) | (~mask & (I)b)); }

/* To the nearest half, ties to even. Adding 0.5 leaves a subnormal half's last place as that of
 * the sum. */
INLINE V N(half)(V x)
{
	I sign = (I)x & INT32_MIN, mag = (I)x & INT32_MAX;
	V small = ((V)mag + 0.5f) - 0.5f;
	I r = (mag + 0xfff + (mag >> 13 & 1)) & ~0x1fff;

	r = (I)N(select)(mag < 0x38800000, small, (V)r);
	r = (I)N(select)(mag >= 0x477ff000, N(set)(INFINITY), (V)r);
	return (V)(r | sign);
}

struct N(state) {
	V d, m;			/* m counts from base */
	V error;
	V next_d, next_m;	/* fitted to the values that d and m gave */
};

struct N(block) {
	const float *x;		/* (QUANT_BLOCK, QUANT_PANEL), base taken off; one vector of each
				   row is looked at */
	V base, sum;
	float lo, hi;
	bool affine;
};

INLINE V N(round)(V x, V inv, float lo, float hi)
{
	const float magic = 12582912;	/* 1.5 * 2^23: a sum with it has no fraction */
	V q = V_MIN(V_MAX(x * inv, N(set)(lo)), N(set)(hi));

	return (q + magic) - magic;
}

INLINE V N(inverse)(V d)
{
	return N(select)(d == 0, N(set)(0), 1 / d);
}

/* Rounds all values with s->d and s->m: error, and the next d and m. */
INLINE void N(pass)(struct N(state) *s, const struct N(block) *b)
{
	V inv = N(inverse)(s->d), zero = N(set)(0), sq = zero, sqq = zero, sxq = zero, det;

	s->error = zero;
	for (int k = 0; k < QUANT_BLOCK; k++) {
		V x = N(load)(b->x + k * QUANT_PANEL), y = b->affine ? x - s->m : x,
		    q = N(round)(y, inv, b->lo, b->hi);
		V left = y - s->d * q;

		s->error += left * left;
		sqq += q * q;
		sxq += x * q;
		if (b->affine)
			sq += q;
	}
	s->next_m = s->m;
	if (!b->affine) {
		s->next_d = N(select)(sqq > 0, N(half)(sxq / sqq), s->d);
		return;
	}
	det = QUANT_BLOCK * sqq - sq * sq;
	s->next_d = N(select)(det > 0, N(half)((QUANT_BLOCK * sxq - sq * b->sum) / det), s->d);
	s->next_m = N(select)(det > 0, N(half)(b->base + (b->sum - s->next_d * sq) / QUANT_BLOCK) -
	    b->base, s->m);
}

INLINE void N(keep)(struct N(state) *best, const struct N(state) *s)
{
	I better = s->error < best->error;

	best->d = N(select)(better, s->d, best->d);
	best->m = N(select)(better, s->m, best->m);
	best->error = N(select)(better, s->error, best->error);
	best->next_d = N(select)(better, s->next_d, best->next_d);
	best->next_m = N(select)(better, s->next_m, best->next_m);
}

INLINE void N(try)(struct N(state) *best, const struct N(block) *b, V d, V m, int passes)
{
	struct N(state) s = { .d = d, .m = m };

	for (int i = 0; i < passes; i++) {
		N(pass)(&s, b);
		N(keep)(best, &s);
		s.d = s.next_d;
		s.m = s.next_m;
	}
}

/* The scale at which no value of the block is cut off; min counts from base. */
INLINE V N(span)(V min, V max, enum dtype t)
{
	V far = N(select)(-min > max, min, max);

	return t == DT_Q8 ? N(select)(far < 0, -far, far) / 127 : t == DT_Q4 ? far / -8 : max / 15;
}

/* The scales to begin with. min counts from base too. */
INLINE void N(search)(struct N(state) *best, const struct N(block) *b, V min, V max, enum dtype t)
{
	V zero = N(set)(0), far = N(select)(-min > max, min, max);

	if (t == DT_Q8)		/* what a finer search could gain is lost in the last bit */
		N(try)(best, b, N(half)(N(span)(min, max, t)), zero, 3);
	else if (t == DT_Q4)	/* the end of the range with one value more is on the side of the
				   largest */
		for (int i = -TRIES; i <= TRIES; i++)
			N(try)(best, b, N(half)(far / (-8 + 0.1f * (float)i)), zero, 3);
	else
		for (int i = 0; i <= TRIES; i++) {
			V cut = max * 0.02f * (float)i;

			for (int side = 0; side < (i ? 3 : 1); side++)
				N(try)(best, b, N(half)((max - cut) / 15),
				    N(half)(b->base + cut * 0.5f * (float)side) - b->base, 3);
		}
	N(try)(best, b, best->next_d, best->next_m, 3);
}

/* Lanes from r on. */
INLINE bool N(lanes)(struct quant_fit *f, enum dtype t, int r)
{
	float x[QUANT_BLOCK][QUANT_PANEL];
	struct N(block) b = { x[0], N(set)(0), N(set)(0), t == DT_Q8 ? -127 : t == DT_Q4 ? -8 : 0,
		t == DT_Q8 ? 127 : t == DT_Q4 ? 7 : 15, t == DT_Q4A };
	struct N(state) best = { .error = N(set)(INFINITY) };
	V min = N(load)(&f->x[0][r]), max = min, widest, inv;

	for (int k = 1; k < QUANT_BLOCK; k++) {
		min = V_MIN(N(load)(&f->x[k][r]), min);
		max = V_MAX(N(load)(&f->x[k][r]), max);
	}
	if (b.affine) {
		b.base = min;
		max = max - min;
		min = N(set)(0);
	}
	for (int k = 0; k < QUANT_BLOCK; k++) {
		V y = N(load)(&f->x[k][r]) - b.base;

		N(store)(x[k], y);
		b.sum += y;
	}
	/* Where the scale that spans the block is too large, smaller ones would cut off the
	 * ends. */
	widest = N(half)(N(span)(min, max, t));
	N(search)(&best, &b, min, max, t);
	inv = N(inverse)(best.d);
	for (int k = 0; k < QUANT_BLOCK; k++) {
		V q = N(round)(N(load)(x[k]) - best.m, inv, b.lo, b.hi);

		for (int i = 0; i < VL; i++)
			f->q[k][r + i] = (int8_t)q[i];
	}
	N(store)(&f->d[r], best.d);
	N(store)(&f->m[r], N(half)(best.m + b.base));
	for (int i = 0; i < VL; i++)
		if (!isfinite(best.error[i]) || !isfinite(best.d[i]) || !isfinite(f->m[r + i]) ||
		    !isfinite(widest[i]))
			return false;
	return true;
}

static TARGET int FIT(struct quant_fit *f, enum dtype t)
{
	bool good = true;

	/* A type at a time, so that each has loops of its own. */
	for (int r = 0; r < QUANT_PANEL; r += VL)
		good &= t == DT_Q8 ? N(lanes)(f, DT_Q8, r) : t == DT_Q4 ? N(lanes)(f, DT_Q4, r)
		    : N(lanes)(f, DT_Q4A, r);
	return good ? 0 : -1;
}

#undef JOIN_
#undef JOIN
#undef N
#undef V
#undef I
#undef INLINE
#undef FIT
#undef TARGET
#undef VL
#undef V_MIN
#undef V_MAX
