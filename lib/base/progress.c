#include "base/progress.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/opt.h"

static bool on_screen;		/* a line stands on the terminal */

double progress_clock(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void progress_start(struct progress *p, const char *what, const char *unit, double total)
{
	double now = progress_clock();

	*p = (struct progress){ .what = what, .unit = unit, .total = total, .first = -1,
	    .began = now, .last = now,
	    .tty = isatty(STDERR_FILENO) };
}

/* "1:02:03" or "2:03" */
static void format_time(char *s, size_t size, double seconds)
{
	long t = (long)(seconds + 0.5);

	if (t >= 3600)
		snprintf(s, size, "%ld:%02ld:%02ld", t / 3600, t / 60 % 60, t % 60);
	else
		snprintf(s, size, "%ld:%02ld", t / 60, t % 60);
}

/* The rate counts from the first call, so that a resumed run is not credited with the work of the
 * one before. */
static void format_left(const struct progress *p, char *s, size_t size, double done, double now)
{
	char left[32];

	s[0] = '\0';
	if (p->total <= 0 || done <= p->first || done > p->total)
		return;
	format_time(left, sizeof left, (p->total - done) * (now - p->began) / (done - p->first));
	snprintf(s, size, ", %s left", left);
}

void progress_at(struct progress *p, double done, const char *fmt, ...)
{
	double now = progress_clock();
	char line[256], left[48];
	va_list ap;
	int n;

	if (p->first < 0) {
		p->first = done;
		p->began = now;
	}
	if (opt_quiet || now - p->last < (p->tty ? 0.2 : 30))
		return;
	p->last = now;
	if (p->total > 0)
		n = snprintf(line, sizeof line, "%s: %.0f of %.0f %s (%.0f%%", p->what, done,
		    p->total, p->unit,
		    100 * done / p->total);
	else
		n = snprintf(line, sizeof line, "%s: %.0f %s", p->what, done, p->unit);
	format_left(p, left, sizeof left, done, now);
	n += snprintf(line + n, sizeof line - (size_t)n, p->total > 0 ? "%s)" : "%s", left);
	if (fmt != NULL && n < (int)sizeof line - 2) {
		line[n++] = ' ';
		va_start(ap, fmt);
		vsnprintf(line + n, sizeof line - (size_t)n, fmt, ap);
		va_end(ap);
	}
	if (p->tty)
		fprintf(stderr, "\r%.120s\033[K", line);
	else
		fprintf(stderr, "%s: %s\n", err_prog, line);
	on_screen = p->drawn = p->tty;
}

void progress_clear(struct progress *p)
{
	if (p->drawn)
		fputs("\r\033[K", stderr);
	on_screen = p->drawn = false;
}

void progress_wipe(void)
{
	if (on_screen)
		fputs("\r\033[K", stderr);
	on_screen = false;
}

void progress_end(struct progress *p)
{
	progress_clear(p);
}
