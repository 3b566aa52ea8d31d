#include "base/mem.h"

#include <stdlib.h>
#include <string.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#define MEM_ALIGN 64

static double mib(int64_t bytes)
{
	return (double)bytes / (1 << 20);
}

void mem_plan_add(struct mem_plan *p, const char *name, int64_t bytes)
{
	int i;

	for (i = 0; i < p->n && strncmp(p->item[i].name, name, sizeof p->item[i].name - 1); i++)
		;
	if (i == MEM_ITEMS)
		err_die(EX_SOFTWARE, "memory plan has more than %d items", MEM_ITEMS);
	if (i == p->n) {
		p->n++;
		snprintf(p->item[i].name, sizeof p->item[i].name, "%s", name);
		p->item[i].bytes = 0;
	}
	p->item[i].bytes += bytes;
}

int64_t mem_plan_total(const struct mem_plan *p)
{
	int64_t total = 0;

	for (int i = 0; i < p->n; i++)
		total += p->item[i].bytes;
	return total;
}

void mem_plan_print(const struct mem_plan *p, FILE *f)
{
	for (int i = 0; i < p->n; i++)
		fprintf(f, "%-40s %12.1f MiB\n", p->item[i].name, mib(p->item[i].bytes));
	fprintf(f, "%-40s %12.1f MiB\n", "total", mib(mem_plan_total(p)));
}

json_t *mem_plan_json(const struct mem_plan *p)
{
	json_t *items = json_object();

	for (int i = 0; i < p->n; i++)
		json_object_set_new(items, p->item[i].name, json_integer(p->item[i].bytes));
	return json_pack("{s:s, s:I, s:o}", "type", "mem_plan", "total",
	    (json_int_t)mem_plan_total(p),
		"items", items);
}

int mem_plan_check(const struct mem_plan *p, int64_t limit, const char *hint, struct err *e)
{
	int64_t total = mem_plan_total(p);
	int big = 0;

	if (!limit || total <= limit)
		return 0;
	for (int i = 1; i < p->n; i++)
		if (p->item[i].bytes > p->item[big].bytes)
			big = i;
	return err_set(e, EX_OSERR, "needs %.1f MiB (%s %.1f MiB), limit is %.1f MiB; %s",
	    mib(total),
		p->item[big].name, mib(p->item[big].bytes), mib(limit), hint);
}

static int64_t from_status(const char *format)
{
	FILE *f = fopen("/proc/self/status", "r");
	char line[256];
	long long kib = 0;

	if (!f)
		return 0;
	while (fgets(line, sizeof line, f) && sscanf(line, format, &kib) != 1)
		;
	fclose(f);
	return (int64_t)kib * 1024;
}

int64_t mem_peak_rss(void)
{
	/* Not getrusage(): ru_maxrss starts with what the parent had before exec. */
	return from_status("VmHWM: %lld");
}

int64_t mem_program(int threads)
{
#ifdef __GLIBC__
	malloc_trim(0);		/* what was read and parsed, and freed since, is no part of what
				   is held */
#endif
	return from_status("VmRSS: %lld") + MEM_BESIDE + threads * MEM_THREAD;
}

void *mem_alloc(size_t bytes)
{
	size_t size = (bytes + MEM_ALIGN - 1) / MEM_ALIGN * MEM_ALIGN;
	void *p = size < bytes ? NULL : aligned_alloc(MEM_ALIGN, size ? size : MEM_ALIGN);

	if (!p)
		err_die(EX_OSERR, "out of memory (%zu bytes)", bytes);
	return memset(p, 0, size);
}

void mem_free(void *p)
{
	free(p);
}

void *mem_carve(struct carve *c, int64_t n, size_t size)
{
	void *p = c->base ? c->base + c->used : NULL;

	c->used += mem_align64(n * (int64_t)size);
	return p;
}
