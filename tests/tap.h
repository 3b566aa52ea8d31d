/* tap: TAP from C. ok(cond, "name %d", i); is_close(got, want, tol, "name"); return tap_done(); */
#ifndef TAP_H
#define TAP_H

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

static int tap_n, tap_failed;

__attribute__((format(printf, 2, 3), unused)) static int ok(int cond, const char *fmt, ...)
{
	va_list ap;

	printf("%sok %d - ", cond ? "" : "not ", ++tap_n);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
	fflush(stdout);
	tap_failed += !cond;
	return cond;
}

__attribute__((unused)) static int is_close(double got, double want, double tol, const char *name)
{
	int good = fabs(got - want) <= tol;	/* false for NaN */

	ok(good, "%s", name);
	if (!good)
		printf("# got %.12g, want %.12g, tolerance %g\n", got, want, tol);
	return good;
}

__attribute__((unused)) static int tap_skip(const char *why)
{
	printf("1..0 # SKIP %s\n", why);
	return 0;
}

__attribute__((unused)) static int tap_done(void)
{
	printf("1..%d\n", tap_n);
	return tap_failed != 0;
}

#endif
