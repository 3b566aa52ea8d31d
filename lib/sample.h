/*
 * sample: from logits to the next token. Order: repetition penalty (Keskar et al. 2019, sign-aware), temperature,
 * top-k, top-p, min-p (arXiv:2407.01082), draw. Temperature 0 is greedy (ties: lowest id).
 */
#ifndef CHR_SAMPLE_H
#define CHR_SAMPLE_H

#include <stdint.h>

struct sample_opt {
	double temperature, top_p, min_p, repetition_penalty;
	int top_k;		/* 0: all */
	uint64_t seed;
};

struct sampler;			/* scratch for one vocabulary */
struct sampler *sampler_new(int V);
void sampler_free(struct sampler *s);

/* logits (V) are left as they are. seen: ids that occurred so far (for the penalty). counter: number of this draw,
 * stream: the prompt's own number, so that draws do not depend on batching. */
uint32_t sample(struct sampler *s, const struct sample_opt *o, const float *logits, const uint32_t *seen, int nseen,
    uint64_t stream, uint64_t counter);

#endif
