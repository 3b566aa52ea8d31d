/*
 * teacher_topk: a teacher in a file. For each token that is to be learned, chr-score writes the
 * K most likely and their log-probs, and what all the others come to at the temperature of the
 * distillation; chr-distill reads these records instead of texts. What is lost is how the others
 * differ among themselves: the divergence is that of K + 1 classes.
 *
 * Record:
 * {"type":"topk","vocab":V,"temperature":T,"tokens":[..],"topk":[[..],..],"topk_logprob":[[..],..],
 * "topk_rest":[..]}. The lists are as long as "tokens". topk[i] are the candidates for token i +
 * 1, most likely first, and empty where that is not to be learned; topk_logprob are ln p, at
 * temperature 1; topk_rest is ln sum exp(ln p / T) over all ids that are not in the list, null
 * without a list.
 */
#ifndef CHR_TEACHER_TOPK_H
#define CHR_TEACHER_TOPK_H

#include <jansson.h>
#include <stdint.h>

#include "stages/distill.h"
#include "base/real.h"
#include "train/train.h"

#define TEACHER_TOPK_MAX 1024

/* --- writing --- */

/* Of n rows of logits (n, V) the K best, best first (of equals the lower id): id (n, K), logp
 * (n, K), rest (n). Rows without a target are passed over. */
void teacher_topk_choose(const real *logits, const int32_t *target, int64_t n, int V, int K,
    double temperature, uint32_t *id,
    real *logp, real *rest);

json_t *teacher_topk_record(int V, double temperature);		/* without tokens yet */
/* Adds a token, and its K candidates for the next; K 0: none. */
void teacher_topk_add(json_t *rec, uint32_t token, int K, const uint32_t *id, const real *logp,
    double rest);

/* --- reading --- */

/* The records as a source, and as a teacher of its batches, in rows of at most T. Of longer
 * lists the first K count. One at a time: the source stays as it is until the next call. */
const struct source *teacher_topk_source(int K, double temperature, int T);
extern const struct teacher teacher_topk_teacher;

#endif
