/* backend: finds a table by name and checks that every row is there. */
#include "backend/backend.h"
#include "backend/blas/blas.h"
#include "base/isa.h"
#include "base/mem.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *missing_row(const struct backend *b)
{
#define ROW(type, row, args) if (b->row == NULL) return #row;
#include "backend/rows.h"
#undef ROW
	return NULL;
}

static const struct backend *checked(const struct backend *b, struct err *e)
{
	const char *row;

	if (b->size != sizeof *b)
		err_set(e, EX_UNAVAILABLE, "backend %s was built for another version", b->name);
	else if ((row = missing_row(b)) != NULL)
		err_set(e, EX_UNAVAILABLE, "backend %s has no operation %s", b->name, row);
	else
		return b;
	return NULL;
}

static const struct backend *open_cpu(struct err *e)
{
	const char *isa = getenv("CHR_ISA");

	if (isa && isa_force(isa) < 0) {
		err_set(e, EX_UNAVAILABLE, "CHR_ISA=%s: this machine has no such kernels", isa);
		return NULL;
	}
	return checked(&backend_cpu, e);
}

dev_real *backend_cpu_memory(real *host) { return host; }

/* ---- of a third party ---- */

static const struct backend *probe(void *object, const char *path, const char *device,
    struct err *e)
{
	const struct backend *b;
	backend_probe *f;
	void *symbol = dlsym(object, "chr_backend_probe");

	if (symbol == NULL) {
		err_set(e, EX_UNAVAILABLE, "%s: has no chr_backend_probe", path);
		return NULL;
	}
	memcpy(&f, &symbol, sizeof f);
	b = f(device, &backend_cpu, e);
	return b != NULL ? checked(b, e) : NULL;
}

/* Looks in one directory. false: nothing there. */
static bool look_in(const char *dir, int len, const char *name, const struct backend **b,
    struct err *e)
{
	int n = (int)strcspn(name, ":");
	char path[4096];
	void *object;
	FILE *f;

	if (snprintf(path, sizeof path, "%.*s/%.*s.so", len, dir, n, name) >= (int)sizeof path ||
	    (f = fopen(path, "r")) == NULL)
		return false;
	fclose(f);
	if ((object = dlopen(path, RTLD_NOW | RTLD_LOCAL)) == NULL)
		err_set(e, EX_UNAVAILABLE, "%s", dlerror());
	else
		*b = probe(object, path, name[n] == ':' ? name + n + 1 : "", e);
	return true;
}

const struct backend *backend_open(const char *name, struct err *e)
{
	const struct backend *b = NULL;
	const char *path = getenv("CHR_BACKEND_PATH");

	if (!name || strcmp(name, "auto") == 0 || strcmp(name, "cpu") == 0)
		return open_cpu(e);
	if (strcmp(name, "blas") == 0)
		return open_cpu(e) != NULL ? blas_open(e) : NULL;
	for (size_t n; path && *path && !strchr(name, '/'); path += n + (path[n] == ':')) {
		n = strcspn(path, ":");
		if (n > 0 && look_in(path, (int)n, name, &b, e))
			return b;
	}
	err_set(e, EX_UNAVAILABLE, "no backend named %s (there are: cpu, blas)", name);
	return NULL;
}

const struct backend *backend_open_training(const char *name, int width, struct err *e)
{
	const struct backend *cpu = backend_open(name, e), *other;
	struct err none = { 0 };

	if (cpu == NULL || (name && strcmp(name, "auto") != 0) || width < BACKEND_WIDE)
		return cpu;
	if ((other = blas_open(&none)) == NULL)
		return cpu;
	return blas_rate(other, BACKEND_WIDE) > BACKEND_WINS * blas_rate(cpu, BACKEND_WIDE) ? other
	    : cpu;
}

/* ---- copies for the host ---- */

void *backend_draft(const struct backend *be, void *dev, struct mirror *m, size_t n)
{
	if (be->host_reads)
		return dev;
	if (n > m->size) {
		mem_free(m->p);
		m->p = mem_alloc(n);
		m->size = n;
	}
	return m->p;
}

const void *backend_read(const struct backend *be, const void *dev, struct mirror *m, size_t n)
{
	if (be->host_reads)
		return dev;
	backend_draft(be, NULL, m, n);
	if (n > 0)
		be->get(be, m->p, dev, n);
	return m->p;
}

void backend_settle(const struct backend *be, void *dev, const void *draft, size_t n)
{
	if (!be->host_reads && n > 0)
		be->put(be, dev, draft, n);
}

void backend_fetch(const struct backend *be, void *draft, const void *dev, size_t n)
{
	if (!be->host_reads && n > 0)
		be->get(be, draft, dev, n);
}

void backend_mirror_free(struct mirror *m)
{
	mem_free(m->p);
	*m = (struct mirror){ 0 };
}
