#include "train/train_plan.h"

#include "model/adapter_save.h"
#include "model/lora.h"
#include "model/lora_target.h"
#include "model/model.h"
#include "model/optim.h"
#include "train/ckpt.h"

int train_plan_pick(bool **picked, const struct config *c, const struct params *ps,
    int lora_rank, const struct opt_list *target, const struct opt_list *freeze, struct err *e)
{
	static const char *const attention[] = { "attention" };

	*picked = NULL;
	if (lora_rank == 0 && freeze->n == 0)
		return 0;
	*picked = mem_alloc((size_t)ps->n * sizeof **picked);
	if (lora_rank == 0)
		return params_match(ps, freeze->n, freeze->v, *picked, e);
	return target->n > 0 ? lora_target(*picked, c, ps, target->n, target->v, e) :
	    lora_target(*picked, c, ps, 1, attention, e);
}

/* What route_loss() takes with format 1: the mean over layers, its gradient, its choices. */
static int64_t router_bytes(const struct config *c, int64_t rows)
{
	if (c->format != 1 || c->num_sparse == 0)
		return 0;
	return rows * (2 * c->num_experts * (int64_t)sizeof(real) + c->num_experts_per_tok *
	    (int64_t)sizeof(int32_t));
}

/* Tokens, targets and documents of every micro-batch; coefficients and log-probs of one. */
static int64_t batch_bytes(const struct train_plan_run *r, int64_t rows)
{
	return r->accum * (rows * (int64_t)(sizeof(uint32_t) + 3 * sizeof(int32_t)) + r->batch *
	    (int64_t)r->extra) +
	    2 * rows * (int64_t)sizeof(real) + router_bytes(r->cfg, rows);
}

/* What is written: parameters, or the two parts of each one's adapter. */
static int64_t checkpoint_bytes(const struct train_plan_run *r, const struct params *ps,
    const struct backend *be)
{
	int64_t largest = 0;
	int n = 0;

	for (int i = 0; i < ps->n; i++) {
		const struct param *x = &ps->p[i];
		int64_t size = r->lora_rank > 0 ? (int64_t)r->lora_rank * (x->rows > x->cols
		    ? x->rows : x->cols) : param_size(x);

		if (r->lora_rank > 0 && !r->picked[i])
			continue;
		n += r->lora_rank > 0 ? 2 : 1;
		largest = size > largest ? size : largest;
	}
	return ckpt_bytes(n, largest, be) + (r->lora_rank > 0 ? adapter_save_room(r->cfg, ps,
	    r->picked, r->lora_rank) * (int64_t)sizeof(float) : 0);
}

void train_plan_run(struct mem_plan *p, const struct train_plan_run *r, const struct params *ps,
    const struct backend *be)
{
	const struct model_opt train = { .max_b = r->batch * r->group, .max_t = r->seq,
	    .train = true, .recompute = r->recompute,
	    .divided = r->divided };
	const struct model_opt frozen = { .max_b = r->batch * r->group, .max_t = r->seq,
	    .divided = r->divided };

	model_plan(p, r->cfg, &train);
	if (r->ref)
		model_plan(p, r->cfg, &frozen);
	if (r->lora_rank > 0)
		lora_plan(p, ps, r->picked, r->lora_rank);
	else
		optim_plan(p, ps, r->picked);
	mem_plan_add(p, "checkpoint in transit", checkpoint_bytes(r, ps, be));
	mem_plan_add(p, "batches", batch_bytes(r, (int64_t)r->batch * r->group * r->seq));
}
