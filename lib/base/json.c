#include "base/json.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "base/file.h"
#include "base/jsontext.h"
#include "base/plain.h"
#include "base/sig.h"
#include "base/sniff.h"
#include "base/sniff.h"

#define JSONL_CHUNK ((size_t)64 << 10)

ssize_t (*jsonl_stdin)(ssize_t (*here)(void *, void *, size_t, struct err *), void *, void *,
    size_t, struct err *);

enum jsonl_format { JSONL_UNKNOWN, JSONL_PLAIN, JSONL_GZIP };

struct jsonl {
	int nfiles, next;		/* files, and the one to open next */
	char *const *files;
	const char *name;		/* of the open file */
	int fd;				/* -1: none open */
	bool skip_bad, warned, eof;
	int64_t lineno, skipped;
	int64_t at, behind;		/* bytes of the file, decoded, before the last line and
					   behind it */
	char *buf;			/* decoded text: [line, scan) has no newline, [scan, end)
					   not looked at */
	size_t cap, line, scan, end;
	size_t last, last_len;		/* the line that was returned */
	bool begun;			/* the mark at the beginning has been looked for */
	enum jsonl_format format;
	bool in_member;			/* between header and trailer of a gzip member */
	bool padded;			/* zeros came after a member */
	z_stream z;
	unsigned char raw[64 << 10];	/* compressed bytes */
};

static int jsonl_check(const char *path, struct err *e)
{
	struct stat st;

	if (!strcmp(path, "-"))
		return 0;
	if (stat(path, &st) || access(path, R_OK))
		return err_set(e, EX_NOINPUT, "%s:", path);
	if (S_ISDIR(st.st_mode)) {
		errno = EISDIR;
		return err_set(e, EX_NOINPUT, "%s:", path);
	}
	return 0;
}

struct jsonl *jsonl_open(int nfiles, char *const files[], bool skip_bad, struct err *e)
{
	static char *const standard_input[] = { "-" };
	struct jsonl *in;

	for (int i = 0; i < nfiles; i++)
		if (jsonl_check(files[i], e))
			return NULL;
	in = calloc(1, sizeof *in);
	if (in)
		in->buf = malloc(JSONL_CHUNK + 1);
	if (!in || !in->buf || inflateInit2(&in->z, 15 + 16) != Z_OK) {	/* 16: gzip, not zlib */
		if (in)
			free(in->buf);
		free(in);
		err_set(e, EX_OSERR, "out of memory");
		return NULL;
	}
	in->cap = JSONL_CHUNK;
	in->nfiles = nfiles ? nfiles : 1;
	in->files = nfiles ? files : standard_input;
	in->skip_bad = skip_bad;
	in->fd = -1;
	in->name = strcmp(in->files[0], "-") ? in->files[0] : "<stdin>";
	return in;
}

static void jsonl_shut(struct jsonl *in)
{
	if (in->fd > STDIN_FILENO)
		close(in->fd);
	in->fd = -1;
}

static int jsonl_open_next(struct jsonl *in, struct err *e)
{
	const char *path = in->files[in->next++];
	bool std = !strcmp(path, "-");

	in->name = std ? "<stdin>" : path;
	in->fd = std ? STDIN_FILENO : file_open(path, e);
	if (in->fd < 0)
		return -1;
	if (std && file_is_stdout(in->fd, in->name, e) < 0) {
		jsonl_shut(in);
		return -1;
	}
	in->lineno = in->at = in->behind = 0;
	in->line = in->scan = in->end = 0;
	in->format = JSONL_UNKNOWN;
	in->eof = in->in_member = in->padded = in->begun = false;
	inflateReset(&in->z);
	in->z.avail_in = 0;
	return 0;
}

static ssize_t jsonl_read_here(void *self, void *buf, size_t size, struct err *e)
{
	struct jsonl *in = self;

	return file_read(in->fd, buf, size, in->name, e);
}

static ssize_t jsonl_read(struct jsonl *in, void *buf, size_t size, struct err *e)
{
	if (jsonl_stdin != NULL && in->fd == STDIN_FILENO)
		return jsonl_stdin(jsonl_read_here, in, buf, size, e);
	return jsonl_read_here(in, buf, size, e);
}

/* Looks at the first two bytes, which are put where the format wants them. */
static int jsonl_sniff(struct jsonl *in, struct err *e)
{
	size_t have = 0;
	ssize_t n;

	do {
		n = jsonl_read(in, in->raw + have, sizeof in->raw - have, e);
		if (n < 0)
			return -1;
		have += (size_t)n;
	} while (n && have == 1 && in->raw[0] == 0x1f);
	if (have >= 2 && in->raw[0] == 0x1f && in->raw[1] == 0x8b) {
		in->format = JSONL_GZIP;
		in->z.next_in = in->raw;
		in->z.avail_in = (uInt)have;
		return 0;
	}
	in->format = JSONL_PLAIN;
	memcpy(in->buf, in->raw, have);
	in->end = have;
	in->eof = !n;
	return 0;
}

/* More compressed bytes: 0, also at the end, which sets in->eof, -1. */
static int jsonl_more_raw(struct jsonl *in, struct err *e)
{
	ssize_t n = jsonl_read(in, in->raw, sizeof in->raw, e);

	if (n < 0)
		return -1;
	if (!n && in->in_member)
		return err_set(e, EX_DATAERR, "%s: gzip data is truncated", in->name);
	in->eof = !n;
	in->z.next_in = in->raw;
	in->z.avail_in = (uInt)n;
	return 0;
}

/* Between members: zeros, with which tapes and disks fill up what is left of a block, are no
 * member. */
static int jsonl_skip_zeros(struct jsonl *in, struct err *e)
{
	while (in->z.avail_in && *in->z.next_in == 0) {
		in->z.next_in++;
		in->z.avail_in--;
		in->padded = true;
	}
	return in->padded && in->z.avail_in && *in->z.next_in != 0x1f ? err_set(e, EX_DATAERR,
	    "%s: something that is no gzip data follows it", in->name) : 0;
}

/* Decodes what has arrived, reading when there is nothing left to decode; adds to in->end or
 * sets in->eof. */
static int jsonl_inflate(struct jsonl *in, struct err *e)
{
	size_t before = in->end;
	int rc;

	while (in->end == before) {
		if (!in->z.avail_in && jsonl_more_raw(in, e))
			return -1;
		if (in->eof)
			return 0;
		if (!in->in_member && jsonl_skip_zeros(in, e))
			return -1;
		if (!in->z.avail_in)
			continue;
		in->in_member = true;
		in->z.next_out = (Bytef *)in->buf + in->end;
		in->z.avail_out = (uInt)(in->cap - in->end);
		rc = inflate(&in->z, Z_NO_FLUSH);
		in->end = in->cap - in->z.avail_out;
		if (rc == Z_STREAM_END) {	/* another member may follow */
			in->in_member = false;
			inflateReset(&in->z);
		} else if (rc != Z_OK && rc != Z_BUF_ERROR) {
			return err_set(e, rc == Z_MEM_ERROR ? EX_OSERR : EX_DATAERR,
			    "%s: gzip data is damaged: %s",
				in->name, in->z.msg ? in->z.msg : zError(rc));
		}
	}
	return 0;
}

/* Room for at least one more byte of the current line: moves it to the front, or grows the
 * buffer. */
static int jsonl_room(struct jsonl *in, struct err *e)
{
	char *p;

	if (in->line) {
		memmove(in->buf, in->buf + in->line, in->end - in->line);
		in->end -= in->line;
		in->scan -= in->line;
		in->line = 0;
	}
	if (in->end < in->cap)
		return 0;
	if (in->cap >= JSONL_MAX_LINE)
		return err_set(e, EX_DATAERR, "%s:%lld: line is longer than %zu MiB", in->name,
			(long long)in->lineno + 1, JSONL_MAX_LINE >> 20);
	p = realloc(in->buf, 2 * in->cap + 1);
	if (!p)
		return err_set(e, EX_OSERR, "out of memory");
	in->buf = p;
	in->cap *= 2;
	return 0;
}

static int jsonl_more(struct jsonl *in, struct err *e)
{
	ssize_t n;

	if (in->format == JSONL_UNKNOWN)
		return jsonl_sniff(in, e);
	if (jsonl_room(in, e))
		return -1;
	if (in->format == JSONL_GZIP)
		return jsonl_inflate(in, e);
	n = jsonl_read(in, in->buf + in->end, in->cap - in->end, e);
	if (n < 0)
		return -1;
	in->end += (size_t)n;
	in->eof = !n;
	return 0;
}

int jsonl_begin(const char *head, size_t n, const char *name, struct err *e)
{
	const char *what = n > 0 ? sniff(head, n < SNIFF_BYTES ? n : SNIFF_BYTES) : NULL;
	bool text = what != NULL && !strstr(what, "UTF-16") && !strstr(what, "LFS");

	for (size_t i = 0; text && i < n && i < 8; i++)
		text = (unsigned char)head[i] >= ' ' || strchr("\t\n\v\f\r", head[i]) != NULL;
	if (what != NULL && !text)
		return err_set(e, EX_DATAERR, "%s:1: is %s", name, what);
	if (n > 0 && head[0] == '\0')
		return err_set(e, EX_DATAERR, "%s:1: is no text: it begins with a NUL byte", name);
	return n >= 3 && memcmp(head, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
}

/* Could these bytes go on to be a mark? */
static bool jsonl_may_be_mark(const char *s, size_t n)
{
	return n < 3 && (memcmp(s, "\xef\xbb", n) == 0 ||
	    (n == 1 && (s[0] == '\xff' || s[0] == '\xfe')));
}

static int jsonl_fill(struct jsonl *in, struct err *e)
{
	int n;

	if (jsonl_more(in, e))
		return -1;
	while (!in->begun && !in->eof && jsonl_may_be_mark(in->buf, in->end))
		if (jsonl_more(in, e))
			return -1;
	if (in->begun)
		return 0;
	if ((n = jsonl_begin(in->buf, in->end, in->name, e)) < 0)
		return -1;
	in->line = in->scan = (size_t)n;
	in->behind = n;
	in->begun = true;
	return 0;
}

size_t jsonl_mark(const char *line, size_t len)
{
	return len > 3 && memcmp(line, "\xef\xbb\xbf{", 4) == 0 ? 3 : 0;
}

static char *jsonl_take(struct jsonl *in, size_t stop, size_t *len)
{
	size_t mark = jsonl_mark(in->buf + in->line, stop - in->line);
	char *s = in->buf + in->line + mark;

	in->line += mark;
	in->behind += (int64_t)mark;
	in->buf[stop] = '\0';
	*len = stop - in->line;
	in->last = in->line;
	in->last_len = *len;
	in->at = in->behind;
	in->behind += (int64_t)*len + (stop < in->end);
	in->line = in->scan = stop < in->end ? stop + 1 : stop;
	in->lineno++;
	return s;
}

const char *jsonl_line(struct jsonl *in, size_t *len, struct err *e)
{
	char *nl;

	for (;;) {
		if (in->fd < 0) {
			if (in->next == in->nfiles || jsonl_open_next(in, e))
				return NULL;
		}
		nl = memchr(in->buf + in->scan, '\n', in->end - in->scan);
		if (nl)
			return jsonl_take(in, (size_t)(nl - in->buf), len);
		in->scan = in->end;
		if (!in->eof) {
			if (jsonl_fill(in, e))
				return NULL;
		} else if (in->line < in->end) {
			return jsonl_take(in, in->end, len);	/* last line without newline */
		} else {
			jsonl_shut(in);
		}
	}
}

const char *jsonl_text(const struct jsonl *in, size_t *len)
{
	*len = in->last_len;
	return in->buf + in->last;
}

int jsonl_peek(struct jsonl *in, struct err *e)
{
	for (;;) {
		if (in->fd < 0 && (in->next == in->nfiles || jsonl_open_next(in, e)))
			return -1;
		if (in->line < in->end)
			return (unsigned char)in->buf[in->line];
		if (in->eof)
			jsonl_shut(in);
		else if (jsonl_fill(in, e))
			return -1;
	}
}

bool jsonl_has_objects(const struct jsonl *in)
{
	size_t i = in->line + 1;

	while (i < in->end && strchr(" \t\r\n", in->buf[i]) != NULL && in->buf[i] != '\0')
		i++;
	return i < in->end && in->buf[in->line] == '[' && in->buf[i] == '{';
}

ssize_t jsonl_bytes(struct jsonl *in, void *buf, size_t n, struct err *e)
{
	if (in->fd < 0)
		return 0;
	while (in->line == in->end && !in->eof)
		if (jsonl_fill(in, e))
			return -1;
	if (n > in->end - in->line)
		n = in->end - in->line;
	memcpy(buf, in->buf + in->line, n);
	in->line += n;
	in->scan = in->line;
	return (ssize_t)n;
}

/* (A read of gzip may bring nothing yet and ask for more.) */
bool jsonl_ready(struct jsonl *in)
{
	struct err again = {0};		/* whoever reads the line meets it too */
	struct pollfd p = { .fd = in->fd, .events = POLLIN };
	struct stat st;

	if (in->fd < 0 || (jsonl_stdin != NULL && in->fd == STDIN_FILENO) ||
	    (in->format == JSONL_GZIP && (fstat(in->fd, &st) < 0 || !S_ISREG(st.st_mode))))
		return in->fd >= 0 && memchr(in->buf + in->scan, '\n', in->end - in->scan) != NULL;
	while (!in->eof && memchr(in->buf + in->scan, '\n', in->end - in->scan) == NULL) {
		in->scan = in->end;
		if (poll(&p, 1, 0) <= 0)
			return false;
		if (jsonl_fill(in, &again))
			return true;
	}
	return true;
}

int jsonl_bad_at(struct jsonl *in, int64_t lineno, struct err *e, const char *text)
{
	if (!in->skip_bad)
		return err_set(e, EX_DATAERR, "%s:%lld: %.400s", in->name, (long long)lineno, text);
	in->skipped++;
	if (!in->warned)
		err_warn("%s:%lld: %.400s (skipped, like others that follow)", in->name,
		    (long long)lineno, text);
	in->warned = true;
	return 0;
}

int jsonl_bad(struct jsonl *in, struct err *e, const char *fmt, ...)
{
	char text[400];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	return jsonl_bad_at(in, in->lineno, e, text);
}

/* What is not a line of JSONL, in words that say what to do. */
static void jsonl_explain(const char *line, size_t len, struct err *why)
{
	const char *what = sniff(line, len < SNIFF_BYTES ? len : SNIFF_BYTES);
	char text[sizeof why->msg];

	snprintf(text, sizeof text, "%s", why->msg);
	if (what != NULL)
		err_set(why, EX_DATAERR, "is %s", what);
	else if (line[strspn(line, " \t\r")] == '[')
		err_set(why, EX_DATAERR, "not an object but a JSON array; JSONL has one object "
		    "per line: `jq -c '.[]' FILE` makes that of it");
	else if (strncmp(text, "JSON that is cut off", 20) == 0)
		err_set(why, EX_DATAERR, "the object does not end on its line; JSONL has one "
		    "object per line: `jq -c . FILE` makes that of it");
	else if (strncmp(text, "something follows", 17) == 0)
		err_set(why, EX_DATAERR, "%.200s; JSONL has one object per line", text);
}

json_t *jsonl_parse(const char *line, size_t len, struct err *why)
{
	json_t *rec;

	why->status = 0;
	if (strspn(line, " \t\r") == len)
		return NULL;
	rec = jsontext_parse(line, len, JSONTEXT_RECORD, NULL, why);
	if (json_is_object(rec))
		return rec;
	json_decref(rec);
	if (rec)
		err_set(why, EX_DATAERR, "not an object");
	jsonl_explain(line, len, why);
	return NULL;
}

json_t *jsonl_next(struct jsonl *in, struct err *e)
{
	struct err why = {0};
	const char *s;
	size_t len;
	json_t *rec;

	while ((s = jsonl_line(in, &len, e)) != NULL)
		if ((rec = jsonl_parse(s, len, &why)) != NULL ||
		    (why.status && jsonl_bad(in, e, "%s", why.msg)))
			return rec;
	return NULL;
}

const char *jsonl_name(const struct jsonl *in)
{
	return in->name;
}

int64_t jsonl_lineno(const struct jsonl *in)
{
	return in->lineno;
}

int64_t jsonl_offset(const struct jsonl *in)
{
	return in->at;
}

bool jsonl_plain(const struct jsonl *in)
{
	return in->format == JSONL_PLAIN;
}

int64_t jsonl_skipped(const struct jsonl *in)
{
	return in->skipped;
}

void jsonl_close(struct jsonl *in)
{
	if (!in)
		return;
	if (in->skipped > 0)
		err_warn("%s%s%lld bad records passed over", in->nfiles == 1 ? in->name : "",
		    in->nfiles == 1 ? ": " : "",
		    (long long)in->skipped);
	jsonl_shut(in);
	inflateEnd(&in->z);
	free(in->buf);
	free(in);
}

int json_put(FILE *f, const json_t *o, struct err *e)
{
	char *s = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(9));
	int rc = 0;

	if (!s)
		return err_set(e, EX_SOFTWARE, "cannot write a record as JSON");
	if (fputs(s, f) == EOF || putc('\n', f) == EOF || fflush(f) == EOF)
		rc = err_set(e, EX_IOERR, "%s:", f == stdout ? "standard output" : "write");
	free(s);
	return rc;
}

/* Of nine digits; null when it is not finite. */
static json_t *json_num(double v)
{
	char s[32];

	if (!isfinite(v))
		return json_null();
	snprintf(s, sizeof s, "%.9g", v);
	return json_real(strtod(s, NULL));
}

void json_set_num(json_t *o, const char *key, double v)
{
	json_object_set_new(o, key, json_num(v));
}

void json_set_int(json_t *o, const char *key, int64_t v)
{
	json_object_set_new(o, key, json_integer(v));
}

void json_set_str(json_t *o, const char *key, const char *v)
{
	json_object_set_new(o, key, v ? json_string(v) : json_null());
}

json_t *json_text(const char *s, size_t len)
{
	char *out = malloc(3 * len + 1);
	uint32_t code;
	size_t n = 0;
	json_t *v;

	if (!out)
		err_die(EX_OSERR, "out of memory");
	for (size_t i = 0; i < len;) {
		size_t c = plain_utf8(s + i, len - i, &code);

		memcpy(out + n, c ? s + i : "\xef\xbf\xbd", c ? c : 3);
		n += c ? c : 3;
		i += c ? c : 1;
	}
	v = json_stringn(out, n);
	free(out);
	return v;
}
