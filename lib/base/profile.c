#include "base/profile.h"

#include <stdbool.h>
#include <time.h>

#include "base/json.h"
#include "base/progress.h"

static const char *const part_name[PROFILE_PARTS] = {
	[PROFILE_DATA] = "data", [PROFILE_EMBED] = "embedding", [PROFILE_PROJECT] =
	    "attention projections",
	[PROFILE_PROJECT_BACK] = "attention projections, backward", [PROFILE_ATTN] = "attention",
	[PROFILE_ATTN_BACK] = "attention, backward", [PROFILE_NORM] = "norms and rotations",
	    [PROFILE_ROUTER] = "router",
	[PROFILE_SORT] = "to and from experts", [PROFILE_EXPERTS] = "experts",
	    [PROFILE_EXPERTS_BACK] = "experts, backward",
	[PROFILE_DENSE] = "shared and dense", [PROFILE_DENSE_BACK] = "shared and dense, backward",
	[PROFILE_LOOK] = "lookahead", [PROFILE_HEAD] = "head", [PROFILE_LOSS] = "losses",
	    [PROFILE_OPTIM] = "optimizer",
	[PROFILE_EXCHANGE] = "exchange with other ranks",
	[PROFILE_OTHER] = "other",
};

static double cpu_clock(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void profile_resume(struct profile *p, enum profile_part at)
{
	p->at = at;
	p->since = progress_clock();
	p->cpu_since = cpu_clock();
}

void profile_switch(struct profile *p, enum profile_part next)
{
	double now = progress_clock(), cpu = cpu_clock();

	p->seconds[p->at] += now - p->since;
	p->cpu[p->at] += cpu - p->cpu_since;
	p->since = now;
	p->cpu_since = cpu;
	p->at = next;
}

static void put_times(json_t *o, double seconds, double cpu, double flop)
{
	json_set_num(o, "seconds", seconds);
	json_set_num(o, "cpu_seconds", cpu);
	if (flop == 0)
		return;
	json_set_num(o, "gflop", flop * 1e-9);
	json_set_num(o, "gflops", seconds > 0 ? flop * 1e-9 / seconds : 0);
}

json_t *profile_json(const struct profile *p)
{
	double total = 0, cpu = 0, flop = 0;
	json_t *o = json_object(), *parts = json_array();
	bool done[PROFILE_PARTS] = { false };

	for (int i = 0; i < PROFILE_PARTS; i++) {
		total += p->seconds[i];
		cpu += p->cpu[i];
		flop += p->flop[i];
	}
	put_times(o, total, cpu, flop);
	for (int n = 0; n < PROFILE_PARTS; n++) {
		json_t *one = json_object();
		int best = -1;

		for (int i = 0; i < PROFILE_PARTS; i++)
			if (!done[i] && (best < 0 || p->seconds[i] > p->seconds[best]))
				best = i;
		done[best] = true;
		json_object_set_new(one, "part", json_string(part_name[best]));
		json_set_num(one, "share", total > 0 ? p->seconds[best] / total : 0);
		put_times(one, p->seconds[best], p->cpu[best], p->flop[best]);
		json_array_append_new(parts, one);
	}
	json_object_set_new(o, "parts", parts);
	return o;
}
