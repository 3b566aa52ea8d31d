/*
 * glu: how the inner row of an FFN comes of its two products, gate g and up u.
 *
 *	silu(g) * u			SwiGLU (Shazeer, arXiv:2002.05202); all of the struct is 0
 *	g' sigmoid(alpha g') (u' + 1)	g' = min(g, limit), u' = u within -limit and limit, as in
 *					gpt-oss
 */
#ifndef CHR_GLU_H
#define CHR_GLU_H

struct glu {
	double limit;		/* above 0: the second form */
	double alpha;
};

#endif
