/*
 * cpu_recur: inner loops of the rows conv and delta, a part of cpu_template.h. Lanes run along
 * channels, or along the columns of a state, which know nothing of each other; no product is
 * contracted, so every instruction set gives the same bytes, and so does every way of cutting
 * rows or columns.
 */

/* c (<= CPU_CONV_W) channels of n rows. */
INLINE TARGET void conv_piece(const int c, const struct conv_piece *p, int n)
{
	for (int t = 0; t < n; t++) {
		real s[CPU_CONV_W] = { 0 };

		for (int j = 0; j < p->L; j++) {
			int at = t + j - (p->L - 1);	/* below 0: before the first of the rows */
			const real *x = at < 0 ? p->past + (int64_t)(t + j) * p->ldp
			    : p->x + at * p->ldx;

			for (int i = 0; i < c; i++)
				s[i] += p->w[j * CPU_CONV_W + i] * x[i];
		}
		for (int i = 0; p->bias && i < c; i++)
			s[i] += p->bias[i];
		if (p->silu)
			for (int i = 0; i < c; i++)
				s[i] = s[i] / (1 + kexp(-s[i]));
		memcpy(p->y + t * p->ldy, s, (size_t)c * sizeof *s);
	}
}

static TARGET void conv(const struct conv_piece *p, int c, int n)
{
	if (c == CPU_CONV_W)
		conv_piece(CPU_CONV_W, p, n);
	else
		conv_piece(c, p, n);
}

#define DELTA_V 4	/* vectors of columns done together */

/* Macros, so that no vector crosses a call: vector j of row i of the state, the last of which
 * may be in part. */
#define PART(j) (!full && (j) == v - 1)
#define GET(p, j) (PART(j) ? V_LOADN((p) + (j) * VL, last) : V_LOAD((p) + (j) * VL))
#define PUT(p, j, x) (PART(j) ? V_STOREN((p) + (j) * VL, last, x) : V_STORE((p) + (j) * VL, x))

/* Of row i + u: += k S; S = d S + k delta and += q S. */
#define SUM_ROW(u) do { \
	for (int j = 0; j < v; j++) \
		a[u][j] += GET(s + (int64_t)(i + (u)) * p->dv, j) * V_SET1(k[i + (u)]); \
} while (0)
#define TURN_ROW(u) do { \
	real *row = s + (int64_t)(i + (u)) * p->dv; \
	for (int j = 0; j < v; j++) { \
		V y = GET(row, j) * decay + d[j] * V_SET1(k[i + (u)]); \
		a[u][j] += y * V_SET1(q[i + (u)]); \
		PUT(row, j, y); \
	} \
} while (0)

/* One token on v vectors of columns; s points at the first column of the state, x at the token's
 * values of them. Rows of the state are summed in two chains, even and odd. */
INLINE TARGET void delta_token(const int v, const bool full, int last, const struct delta_piece *p,
    int t, real *s, const real *x, real *o)
{
	const real *k = p->k + (int64_t)t * p->dk, *q = p->q + (int64_t)t * p->dk;
	V a[2][DELTA_V], d[DELTA_V], decay = V_SET1(p->decay[t]), beta = V_SET1(p->beta[t]);
	int i;

	for (int j = 0; j < v; j++)
		a[0][j] = a[1][j] = V_ZERO;
	for (i = 0; i + 2 <= p->dk; i += 2) {
		SUM_ROW(0);
		SUM_ROW(1);
	}
	if (i < p->dk)
		SUM_ROW(0);
	for (int j = 0; j < v; j++) {
		d[j] = (GET(x, j) - decay * (a[0][j] + a[1][j])) * beta;
		a[0][j] = a[1][j] = V_ZERO;
	}
	for (i = 0; i + 2 <= p->dk; i += 2) {
		TURN_ROW(0);
		TURN_ROW(1);
	}
	if (i < p->dk)
		TURN_ROW(0);
	for (int j = 0; j < v; j++)
		PUT(o, j, a[0][j] + a[1][j]);
}

INLINE TARGET void delta_cols(const int v, const bool full, int last, const struct delta_piece *p,
    int c)
{
	for (int t = 0; t < p->n; t++)
		delta_token(v, full, last, p, t, p->s + c, p->v + t * p->ldv + c,
		    p->o + t * p->ldo + c);
}

static TARGET void delta(const struct delta_piece *p)
{
	int c = 0;

	for (; c + DELTA_V * VL <= p->dv; c += DELTA_V * VL)
		delta_cols(DELTA_V, true, VL, p, c);
	for (; c < p->dv; c += VL)
		if (c + VL <= p->dv)
			delta_cols(1, true, VL, p, c);
		else
			delta_cols(1, false, p->dv - c, p, c);
}
