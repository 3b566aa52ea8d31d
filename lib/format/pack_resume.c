/*
 * The journal in the directory being written: a line for each file that is complete. Each line is
 * the CRC-32 of its text, a space, and the text, which is JSON; a line that is not whole ends it.
 * Nothing in it is trusted before the file was read and has the CRC-32 that it is said to have.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "base/crc.h"
#include "base/file.h"
#include "base/sha256.h"
#include "base/sig.h"
#include "format/fingerprint.h"
#include "format/pack_int.h"

#define ALIGN ((size_t)4096)

/* ---- which work it is ---- */

static void add_json(struct sha256 *s, const json_t *o)
{
	char *text = json_dumps(o, JSON_COMPACT | JSON_SORT_KEYS);

	if (text)
		sha256_update(s, text, strlen(text) + 1);
	free(text);
}

/* The order of experts; as JSON it would take more memory than the work. */
static void add_order(struct sha256 *s, const struct manifest *m)
{
	for (int k = 0; k < m->nclusters; k++)
		sha256_update(s, m->file[k], strlen(m->file[k]) + 1);
	for (int i = 0; i < m->layers * m->experts; i++) {
		int at[2] = { m->place[i].cluster, m->place[i].rank };

		sha256_update(s, at, sizeof at);
	}
}

int pack_job_text(const struct pack_job *j, char out[65], struct err *e)
{
	json_t *model = modeldir_state(j->p->md, e);
	uint8_t digest[32];
	struct sha256 s;

	if (!model)
		return -1;
	sha256_init(&s);
	add_json(&s, model);
	json_decref(model);
	add_json(&s, j->p->meta);
	if (j->p->manifest)
		add_order(&s, j->p->manifest);
	sha256_final(&s, digest);
	for (int i = 0; i < 32; i++)
		snprintf(out + 2 * i, 3, "%02x", digest[i]);
	return 0;
}

/* ---- reading a file back ---- */

static int cannot(const struct pack_file *f, struct err *e)
{
	return err_set(e, EX_IOERR, "cannot read back %s:", f->name);
}

/* Past the page cache, where the file system can. */
static int open_disk(const struct pack_job *j, const struct pack_file *f)
{
	char *path = file_join(j->dir, f->name);
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);

	if (fd < 0 && errno == EINVAL)
		fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0)
		posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	free(path);
	return fd;
}

/* Puts one text of 32 characters for another, wherever it stands. How often. */
static int replace(char *s, size_t n, const char *from, const char *to)
{
	int found = 0;

	if (strcmp(from, to) == 0)
		return 0;
	for (char *at = s; (at = memmem(at, n - (size_t)(at - s), from, 32)); at += 32, found++)
		memcpy(at, to, 32);
	return found;
}

/* The header of a file, its eight bytes of length included; *buf is the caller's to free. */
static int get_header(int fd, const struct pack_file *f, char **buf, size_t *n, struct err *e)
{
	unsigned char len[8];
	uint64_t size = 0;

	*buf = NULL;
	if (pread(fd, len, 8, 0) != 8)
		return cannot(f, e);
	for (int i = 0; i < 8; i++)
		size |= (uint64_t)len[i] << 8 * i;
	if (size > ST_MAX_HEADER)
		return err_set(e, EX_IOERR, "%s: reads back with another header", f->name);
	*n = (size_t)size + 8;
	if (!(*buf = malloc(*n)))
		return err_set(e, EX_OSERR, "out of memory");
	return pread(fd, *buf, *n, 0) == (ssize_t)*n ? 0 : cannot(f, e);
}

struct back {				/* a file on its way back */
	const struct pack_job *j;
	const struct pack_file *f;
	int part;			/* of the file: the first that is not all there */
	uint32_t crc, all;		/* of what there is of it; of all data */
	int64_t at;
};

/* The next n bytes of the file: each part has the CRC-32 it was written with. */
static int look(struct back *b, const char *p, size_t n, struct err *e)
{
	int64_t end = b->at + (int64_t)n;

	while (b->part < b->f->n) {
		const struct pack_part *pt = &b->j->part[b->f->first + b->part];
		int64_t to = pt->offset + (int64_t)pack_bytes(pt),
		    from = pt->offset > b->at ? pt->offset : b->at, stop = to < end ? to : end;

		if (from >= end)
			break;
		b->crc = crc_32_more(b->crc, p + (from - b->at), (size_t)(stop - from));
		if (to > end)
			break;
		if (b->crc != pt->crc)
			return err_set(e, EX_IOERR, "%s: %s reads back with CRC-32 %08x, written "
			    "with %08x", b->f->name, pt->pa->name, b->crc, pt->crc);
		b->part++;
		b->crc = 0;
	}
	b->at = end;
	return 0;
}

/* Data from byte `start` on; whole blocks are read. */
static int read_data(struct back *b, int fd, int64_t start, int64_t size, struct err *e)
{
	for (int64_t at = start / (int64_t)ALIGN * (int64_t)ALIGN; at < size;) {
		ssize_t got = pread(fd, b->j->buf, PACK_CHUNK, at);
		int64_t skip = at < start ? start - at : 0;

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= skip)
			return cannot(b->f, e);
		b->at = at + skip;
		b->all = crc_32_more(b->all, b->j->buf + skip, (size_t)(got - skip));
		if (look(b, b->j->buf + skip, (size_t)(got - skip), e) < 0)
			return -1;
		at += got;
		/* a direct read must go on at a block */
		if (at % (int64_t)ALIGN && at < size)
			return err_set(e, EX_IOERR, "%s: short read", b->f->name);
	}
	return b->part == b->f->n ? 0 : err_set(e, EX_IOERR, "%s: ends early", b->f->name);
}

/* Size and CRC-32 of a file as it is on the disk, with tokens in place of fingerprints. */
static int read_back(const struct pack_job *j, const struct pack_file *f, int64_t *size,
    uint32_t *crc, struct err *e)
{
	int fd = open_disk(j, f), plain, rc;
	char *path, *header = NULL;
	struct back b = { .j = j, .f = f };
	struct stat st;
	size_t n = 0;

	if (fd < 0 || fstat(fd, &st) < 0) {
		rc = cannot(f, e);
		if (fd >= 0)
			close(fd);
		return rc;
	}
	path = file_join(j->dir, f->name);
	plain = open(path, O_RDONLY | O_CLOEXEC);
	free(path);
	rc = plain < 0 ? cannot(f, e) : get_header(plain, f, &header, &n, e);
	if (plain >= 0)
		close(plain);
	if (rc == 0) {
		replace(header, n, j->model, PACK_TOKEN_MODEL);
		replace(header, n, j->self, PACK_TOKEN_SELF);
		b.all = crc_32_more(0, header, n);
		rc = read_data(&b, fd, (int64_t)n, st.st_size, e);
	}
	*size = st.st_size;
	*crc = b.all;
	free(header);
	close(fd);
	return rc;
}

/* ---- the journal ---- */

static int put_line(struct pack_job *j, json_t *o, struct err *e)
{
	char *text = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(17)), *line = NULL;
	int n = text ? asprintf(&line, "%08x %s\n", crc_32(text, strlen(text)), text) : -1, rc = 0;

	json_decref(o);
	if (n < 0)
		rc = err_set(e, EX_OSERR, "out of memory");
	else if (write(j->journal, line, (size_t)n) != n || fsync(j->journal) < 0)
		rc = err_set(e, EX_IOERR, "%s/%s:", j->dir, PACK_JOURNAL);
	if (n >= 0)
		free(line);
	free(text);
	return rc;
}

int pack_journal_add(struct pack_job *j, struct pack_file *f, struct err *e)
{
	json_t *parts;

	if (read_back(j, f, &f->bytes, &f->crc, e) < 0)
		return -1;
	parts = json_array();
	for (int i = 0; i < f->n; i++) {
		const struct pack_part *pt = &j->part[f->first + i];

		json_array_append_new(parts, json_pack("[I, I, I, f, f]", (json_int_t)pt->offset,
		    (json_int_t)pt->source, (json_int_t)pt->crc, pt->error, pt->square));
	}
	if (put_line(j, json_pack("{s:s, s:I, s:I, s:o}", "file", f->name, "bytes",
	    (json_int_t)f->bytes, "crc32", (json_int_t)f->crc, "parts", parts), e) < 0)
		return -1;
	f->done = true;
	return 0;
}

/* What a line says of a file, if that is so. */
static void take_file(struct pack_job *j, struct pack_file *f, const json_t *o)
{
	const json_t *parts = json_object_get(o, "parts"), *v;
	json_int_t offset, source, crc;
	int64_t size;
	uint32_t sum;
	struct err e;
	size_t i;

	if (f->done || json_array_size(parts) != (size_t)f->n)
		return;
	json_array_foreach(parts, i, v) {
		struct pack_part *pt = &j->part[f->first + (int)i];

		if (json_unpack((json_t *)(uintptr_t)v, "[I, I, I, F, F]", &offset, &source, &crc,
		    &pt->error, &pt->square) < 0 || offset < 0)
			return;
		pt->offset = offset;
		pt->source = (uint32_t)source;
		pt->crc = (uint32_t)crc;
	}
	f->bytes = json_integer_value(json_object_get(o, "bytes"));
	f->crc = (uint32_t)json_integer_value(json_object_get(o, "crc32"));
	f->done = read_back(j, f, &size, &sum, &e) == 0 && size == f->bytes && sum == f->crc;
	for (int k = 0; f->done && k < f->n; k++)
		j->done += j->part[f->first + k].stored;
}

static void take_print(char to[33], const json_t *v)
{
	const char *s = json_string_value(v);

	if (s && strlen(s) == 32 && strspn(s, "0123456789abcdef") == 32)
		memcpy(to, s, 33);
}

/* The text of the line at *at, NULL when it is not whole; *at is then the next line. */
static json_t *next_line(const char *text, size_t n, size_t *at)
{
	const char *line = text + *at, *end = memchr(line, '\n', n - *at);
	unsigned crc;
	json_t *o;

	if (!end || end - line < 10 || line[8] != ' ' || sscanf(line, "%8x", &crc) != 1 ||
	    crc != crc_32(line + 9, (size_t)(end - line) - 9) ||
	    !(o = json_loadb(line + 9, (size_t)(end - line) - 9, 0, NULL)))
		return NULL;
	*at = (size_t)(end - text) + 1;
	return o;
}

/* Fingerprints first: files are read with them. */
static void take_lines(struct pack_job *j, const char *text, size_t n, size_t *at, bool prints)
{
	json_t *o;

	for (; !sig_stop && (o = next_line(text, n, at)); json_decref(o)) {
		const char *name = json_string_value(json_object_get(o, "file"));

		if (prints) {
			take_print(j->model, json_object_get(o, "model"));
			take_print(j->self, json_object_get(o, "self"));
		}
		for (int k = 0; name && !prints && k < j->nfiles; k++)
			if (strcmp(j->file[k].name, name) == 0)
				take_file(j, &j->file[k], o);
		progress_at(&j->bar, (double)j->done / 1e6, NULL);
	}
}

/* ---- the directory ---- */

/* Removes what is not known to be complete. */
static int sweep(const struct pack_job *j, struct err *e)
{
	DIR *dir = opendir(j->dir);
	struct dirent *de;
	int rc = dir ? 0 : err_set(e, EX_CANTCREAT, "%s:", j->dir);

	while (rc == 0 && (de = readdir(dir))) {
		bool keep = strcmp(de->d_name, ".") == 0 || strcmp(de->d_name, "..") == 0 ||
		    strcmp(de->d_name, PACK_JOURNAL) == 0;

		for (int k = 0; !keep && k < j->nfiles; k++)
			keep = j->file[k].done && strcmp(j->file[k].name, de->d_name) == 0;
		if (!keep && unlinkat(dirfd(dir), de->d_name, 0) < 0)
			rc = err_set(e, EX_CANTCREAT, "%s/%s:", j->dir, de->d_name);
	}
	if (dir)
		closedir(dir);
	return rc;
}

/* Lines of an earlier run; the file then ends with the last that is whole. */
static int take_up(struct pack_job *j, const char *path, struct err *e)
{
	size_t n = 0, at = 0;
	char *text = NULL;
	int rc = 0;

	if (access(path, F_OK) < 0)
		return 0;
	if (file_get_regular(path, &text, &n, e) < 0)
		return -1;
	take_lines(j, text, n, &at, true);
	at = 0;
	take_lines(j, text, n, &at, false);
	if (sig_stop)
		rc = pack_stopped(e);
	else if (truncate(path, (off_t)at) < 0)
		rc = err_set(e, EX_CANTCREAT, "%s:", path);
	free(text);
	return rc;
}

int pack_journal_open(struct pack_job *j, int *found, struct err *e)
{
	char *path = file_join(j->dir, PACK_JOURNAL);
	int rc;

	*found = 0;
	if (posix_memalign((void **)&j->buf, ALIGN, PACK_CHUNK))
		err_die(EX_OSERR, "out of memory");
	rc = take_up(j, path, e) < 0 ? -1 : sweep(j, e);
	if (rc == 0)
		j->journal = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
	if (rc == 0 && j->journal < 0)
		rc = err_set(e, EX_CANTCREAT, "%s:", path);
	for (int k = 0; k < j->nfiles; k++)
		*found += j->file[k].done;
	free(j->buf);
	free(path);
	j->buf = NULL;
	return rc;
}

void pack_journal_close(struct pack_job *j)
{
	if (j->journal >= 0)
		close(j->journal);
	j->journal = -1;
}

/* ---- fingerprints ---- */

/* Of the model as it was read, or of what was written. */
static int print_of(const struct pack_job *j, bool read, char out[33], struct err *e)
{
	struct fingerprint_line *line = calloc((size_t)j->nparts + 1, sizeof *line);

	if (!line)
		return err_set(e, EX_OSERR, "out of memory");
	for (int i = 0; i < j->nparts; i++) {
		const struct pack_part *pt = &j->part[i];
		enum dtype t = read ? pt->was : pt->to;

		line[i] = (struct fingerprint_line){ .p = pt->pa,
		    .dtype = fingerprint_type(t),
		    .crc = read ? pt->source : pt->crc };
	}
	fingerprint_of(line, j->nparts, out);
	free(line);
	return 0;
}

/* Puts fingerprints where tokens stand in the header of a file. */
static int put_prints(const struct pack_job *j, const struct pack_file *f, struct err *e)
{
	char *path = file_join(j->dir, f->name), *header = NULL;
	int fd = open(path, O_RDWR | O_CLOEXEC), rc;
	size_t n;

	free(path);
	rc = fd < 0 ? cannot(f, e) : get_header(fd, f, &header, &n, e);
	if (rc == 0 && replace(header, n, PACK_TOKEN_MODEL, j->model) +
	    replace(header, n, PACK_TOKEN_SELF, j->self) > 0 &&
	    (pwrite(fd, header, n, 0) != (ssize_t)n || fsync(fd) < 0))
		rc = err_set(e, EX_IOERR, "cannot write %s:", f->name);
	free(header);
	if (fd >= 0)
		close(fd);
	return rc;
}

int pack_journal_prints(struct pack_job *j, struct err *e)
{
	bool model = strcmp(j->model, PACK_TOKEN_MODEL) == 0,
	    self = strcmp(j->self, PACK_TOKEN_SELF) == 0;
	int rc = 0;

	if (model && print_of(j, true, j->model, e) < 0)
		return -1;
	if (j->p->manifest)
		memcpy(j->self, j->model, sizeof j->self);
	else if (self && print_of(j, false, j->self, e) < 0)
		return -1;
	if ((model || self) && put_line(j, json_pack("{s:s, s:s}", "model", j->model, "self",
	    j->self), e) < 0)
		return -1;
	for (int k = 0; k < j->nfiles && rc == 0; k++)
		rc = put_prints(j, &j->file[k], e);
	return rc;
}
