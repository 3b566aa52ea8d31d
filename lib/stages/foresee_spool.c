#include "stages/foresee_spool.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"

int64_t foresee_spool_bytes(const struct config *c, int64_t tokens, int chunk)
{
	return tokens * c->num_sparse * c->num_experts_per_tok * (int64_t)sizeof(int32_t) +
	    tokens * 2 * (int64_t)sizeof(bool) + (int64_t)chunk * c->hidden_size *
	    (int64_t)sizeof(real);
}

int64_t foresee_spool_disk(const struct config *c, int64_t tokens)
{
	return tokens * c->num_sparse * c->hidden_size * (int64_t)sizeof(real);
}

/* A file without a name in dir, or -1. */
static int nameless(const char *dir)
{
	char *path;
	int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

	if (fd >= 0)
		return fd;
	path = file_join(dir, ".foresee.XXXXXX");
	if ((fd = mkostemp(path, O_CLOEXEC)) >= 0)
		unlink(path);
	free(path);
	return fd;
}

int foresee_spool_open(struct foresee_spool *s, const char *dir, const struct config *c,
    int64_t tokens, int chunk, struct err *e)
{
	int why;

	*s = (struct foresee_spool){ .cfg = c, .chunk = chunk, .most = tokens,
	    .fd = nameless(dir) };
	if (s->fd < 0)
		return err_set(e, EX_CANTCREAT, "%s: no file for activations:", dir);
	why = posix_fallocate(s->fd, 0, foresee_spool_disk(c, tokens));
	if (why != 0 && why != EOPNOTSUPP && why != EINVAL) {
		close(s->fd);
		errno = why;
		return err_set(e, EX_IOERR, "%s: no room for %lld bytes of activations (--tokens, "
		    "--spool):", dir, (long long)foresee_spool_disk(c, tokens));
	}
	s->ids = mem_alloc((size_t)(tokens * c->num_sparse * c->num_experts_per_tok) *
	    sizeof *s->ids);
	s->first = mem_alloc((size_t)tokens * sizeof *s->first);
	s->held = mem_alloc((size_t)tokens * sizeof *s->held);
	s->turn = mem_alloc((size_t)chunk * (size_t)c->hidden_size * sizeof *s->turn);
	return 0;
}

void foresee_spool_close(struct foresee_spool *s)
{
	if (s->turn)
		close(s->fd);
	mem_free(s->ids);
	mem_free(s->first);
	mem_free(s->held);
	mem_free(s->turn);
	*s = (struct foresee_spool){ 0 };
}

/* Where token t of layer i is in the file. */
static off_t place(const struct foresee_spool *s, int i, int64_t t)
{
	return (off_t)(((int64_t)i * s->most + t) * s->cfg->hidden_size * (int64_t)sizeof(real));
}

int foresee_spool_add(struct foresee_spool *s, const real *inputs, const int32_t *topk, int n,
    bool first, bool held, struct err *e)
{
	int Ls = s->cfg->num_sparse, K = s->cfg->num_experts_per_tok;
	size_t D = (size_t)s->cfg->hidden_size;

	for (int i = 0; i < Ls; i++) {
		for (int t = 0; t < n; t++) {
			size_t from = (size_t)t * (size_t)Ls + (size_t)i;

			memcpy(s->turn + (size_t)t * D, inputs + from * D, D * sizeof *s->turn);
			memcpy(s->ids + ((int64_t)i * s->most + s->n + t) * K,
			    topk + from * (size_t)K, (size_t)K * sizeof *topk);
		}
		if (file_write_at(s->fd, s->turn, (size_t)n * D * sizeof *s->turn,
		    place(s, i, s->n), "write of activations failed", e) < 0)
			return -1;
	}
	for (int t = 0; t < n; t++) {
		s->first[s->n + t] = first && t == 0;
		s->held[s->n + t] = held;
	}
	s->n += n;
	return 0;
}

int foresee_spool_layer(const struct foresee_spool *s, int i, real *x, struct err *e)
{
	return file_read_at(s->fd, x, (size_t)s->n * (size_t)s->cfg->hidden_size * sizeof *x,
	    place(s, i, 0), "read of activations failed", e);
}
