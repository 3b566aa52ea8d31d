/*
 * mem: planned memory. A program adds up what it will hold before it starts, prints the plan,
 * compares it with the limit, and then takes it in a few large pieces; nothing on a training or
 * decode step calls malloc.
 */
#ifndef CHR_MEM_H
#define CHR_MEM_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"

#define MEM_ITEMS 64

struct mem_plan {
	int n;
	struct { char name[40]; int64_t bytes; } item[MEM_ITEMS];
};

/* adds to an item of that name */
void mem_plan_add(struct mem_plan *p, const char *name, int64_t bytes);
int64_t mem_plan_total(const struct mem_plan *p);
/* a small table for people */
void mem_plan_print(const struct mem_plan *p, FILE *f);
/* {"type":"mem_plan","total":..,"items":{..}} */
json_t *mem_plan_json(const struct mem_plan *p);

/* EX_OSERR naming plan, limit and `hint` (the flag that would help) when the plan is above
 * limit; limit 0 = none. */
int mem_plan_check(const struct mem_plan *p, int64_t limit, const char *hint, struct err *e)
    CHR_MUST_CHECK;

int64_t mem_peak_rss(void);				/* VmHWM in bytes */

/* For a plan: what the process holds now (what it has freed goes back to the system first), and
 * what it will take beside the items of the plan: code not yet touched, file headers and
 * records, and for each thread its stack and kernel buffers. Measured with tests/plan.t on 1 to
 * 16 threads. The first part is never quite the same twice, so a plan for another run
 * (--dry-run, a hint) adds MEM_JITTER. */
#define MEM_BESIDE ((int64_t)640 << 10)
#define MEM_THREAD ((int64_t)224 << 10)
#define MEM_JITTER ((int64_t)384 << 10)
int64_t mem_program(int threads);
static inline int64_t mem_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t mem_align64(int64_t n) { return (n + 63) & ~(int64_t)63; }

/* Cuts arrays out of one allocation, each at a multiple of 64 bytes. base NULL: only counts. */
struct carve { char *base; int64_t used; };
void *mem_carve(struct carve *c, int64_t n, size_t size);

void *mem_alloc(size_t bytes);				/* zeroed, 64-byte aligned; dies with
							   EX_OSERR */
void mem_free(void *p);

#endif
