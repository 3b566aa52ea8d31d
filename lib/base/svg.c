#include "base/svg.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

#define SERIES 16
#define WIDTH 300		/* of a panel, its axes included */
#define HEIGHT 260
#define LEFT 52
#define RIGHT 12
#define TOP 34
#define BOTTOM 44
#define LINE 16			/* of the legend */

struct point {
	int series;
	double x, y, low, high;
};

struct panel {
	char title[64], x[64], y[64];
	struct point *p;
	int n;
};

struct svg {
	int panels, series;
	char name[SERIES][128];
	struct panel panel[];
};

/* Told apart by those who do not see red and green, too (Okabe, Ito 2008); the second eight have
 * dashes. */
static const char *const colour[] = { "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00",
    "#56b4e9", "#000000", "#999999" };

struct svg *svg_new(int panels)
{
	struct svg *s = calloc(1, sizeof *s + (size_t)panels * sizeof *s->panel);

	if (s)
		s->panels = panels;
	return s;
}

void svg_free(struct svg *s)
{
	for (int i = 0; s && i < s->panels; i++)
		free(s->panel[i].p);
	free(s);
}

void svg_panel(struct svg *s, int panel, const char *title, const char *x, const char *y)
{
	struct panel *p = &s->panel[panel];

	snprintf(p->title, sizeof p->title, "%s", title);
	snprintf(p->x, sizeof p->x, "%s", x);
	snprintf(p->y, sizeof p->y, "%s", y);
}

int svg_point(struct svg *s, int panel, const char *series, double x, double y, double low,
    double high)
{
	struct panel *p = &s->panel[panel];
	struct point *more;
	int k = 0, at;

	while (k < s->series && strncmp(s->name[k], series, sizeof s->name[k] - 1) != 0)
		k++;
	if (k == SERIES || (more = realloc(p->p, sizeof *more * ((size_t)p->n + 1))) == NULL)
		return -1;
	if (k == s->series)
		snprintf(s->name[s->series++], sizeof s->name[0], "%s", series);
	p->p = more;
	for (at = p->n++; at > 0 && more[at - 1].x > x; at--)
		more[at] = more[at - 1];
	more[at] = (struct point){ k, x, y, low, high };
	return 0;
}

/* ---- writing ---- */

static void put_text(FILE *f, double x, double y, const char *anchor, const char *extra,
    const char *text)
{
	fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\"%s>", x, y, anchor, extra);
	for (; *text; text++)
		if (*text == '<' || *text == '&')
			fputs(*text == '<' ? "&lt;" : "&amp;", f);
		else
			fputc(*text, f);
	fputs("</text>\n", f);
}

struct axis {
	double lo, hi, step;
};

/* From 0 where all is positive, in steps of 1, 2 or 5. */
static struct axis axis(double least, double most)
{
	double range, mag;
	struct axis a = { fmin(least, 0), most, 1 };

	if (!(a.hi > a.lo))
		a.hi = a.lo + 1;
	range = (a.hi - a.lo) / 4;
	mag = pow(10, floor(log10(range)));
	a.step = range / mag <= 1 ? mag : range / mag <= 2 ? 2 * mag : range / mag <= 5 ? 5 * mag
	    : 10 * mag;
	a.lo = floor(a.lo / a.step) * a.step;
	a.hi = ceil(a.hi / a.step - 1e-9) * a.step;
	return a;
}

struct frame {			/* where a panel's numbers come to lie */
	double left, right, top, bottom;
	struct axis x, y;
};

static double at_x(const struct frame *f, double v)
{
	return f->left + (v - f->x.lo) / (f->x.hi - f->x.lo) * (f->right - f->left);
}
static double at_y(const struct frame *f, double v)
{
	return f->bottom - (v - f->y.lo) / (f->y.hi - f->y.lo) * (f->bottom - f->top);
}

static struct frame frame(const struct panel *p, int at)
{
	double x0 = INFINITY, x1 = -INFINITY, y0 = INFINITY, y1 = -INFINITY;

	for (int i = 0; i < p->n; i++) {
		x0 = fmin(x0, p->p[i].x);
		x1 = fmax(x1, p->p[i].x);
		y0 = fmin(y0, p->p[i].low);
		y1 = fmax(y1, p->p[i].high);
	}
	if (p->n == 0)
		x0 = x1 = y0 = y1 = 0;
	return (struct frame){ at * WIDTH + LEFT, (at + 1) * WIDTH - RIGHT, TOP, HEIGHT - BOTTOM,
	    axis(x0, x1), axis(y0, y1) };
}

static void put_axes(FILE *f, const struct panel *p, const struct frame *r)
{
	char num[32], turn[80];

	for (double v = r->x.lo; v <= r->x.hi + r->x.step / 2; v += r->x.step) {
		snprintf(num, sizeof num, "%g", fabs(v) < r->x.step / 1e6 ? 0 : v);
		put_text(f, at_x(r, v), r->bottom + 14, "middle", "", num);
	}
	for (double v = r->y.lo; v <= r->y.hi + r->y.step / 2; v += r->y.step) {
		snprintf(num, sizeof num, "%g", fabs(v) < r->y.step / 1e6 ? 0 : v);
		fprintf(f, "<path d=\"M%.1f %.1fH%.1f\" stroke=\"#ddd\"/>\n", r->left, at_y(r, v),
		    r->right);
		put_text(f, r->left - 4, at_y(r, v) + 4, "end", "", num);
	}
	fprintf(f, "<path d=\"M%.1f %.1fV%.1fH%.1f\" fill=\"none\" stroke=\"#000\"/>\n", r->left,
	    r->top, r->bottom, r->right);
	put_text(f, (r->left + r->right) / 2, r->top - 14, "middle", " font-weight=\"bold\"",
	    p->title);
	put_text(f, (r->left + r->right) / 2, r->bottom + 32, "middle", "", p->x);
	snprintf(turn, sizeof turn, " transform=\"rotate(-90 %.1f %.1f)\"", r->left - 38,
	    (r->top + r->bottom) / 2);
	put_text(f, r->left - 38, (r->top + r->bottom) / 2, "middle", turn, p->y);
}

static void put_series(FILE *f, const struct panel *p, const struct frame *r, int k)
{
	const char *c = colour[k % 8];
	bool first = true;

	fprintf(f, "<path fill=\"none\" stroke=\"%s\" stroke-width=\"1.5\"%s d=\"", c, k < 8 ? ""
	    : " stroke-dasharray=\"4 3\"");
	for (int i = 0; i < p->n; i++)
		if (p->p[i].series == k) {
			fprintf(f, "%c%.1f %.1f", first ? 'M' : 'L', at_x(r, p->p[i].x),
			    at_y(r, p->p[i].y));
			first = false;
		}
	fputs(first ? "M0 0\"/>\n" : "\"/>\n", f);
	for (int i = 0; i < p->n; i++) {
		const struct point *q = &p->p[i];

		if (q->series != k)
			continue;
		fprintf(f, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n", at_x(r, q->x),
		    at_y(r, q->y), c);
		if (q->low < q->high)
			fprintf(f, "<path d=\"M%.1f %.1fV%.1f\" stroke=\"%s\"/>\n", at_x(r, q->x),
			    at_y(r, q->low), at_y(r, q->high), c);
	}
}

static void put_picture(const struct svg *s, FILE *f)
{
	int width = s->panels * WIDTH, height = HEIGHT + s->series * LINE + 8;

	fprintf(f, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
	    "viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" "
	    "font-size=\"11\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n", width,
	    height, width, height);
	for (int i = 0; i < s->panels; i++) {
		struct frame r = frame(&s->panel[i], i);

		put_axes(f, &s->panel[i], &r);
		for (int k = 0; k < s->series; k++)
			put_series(f, &s->panel[i], &r, k);
	}
	for (int k = 0; k < s->series; k++) {
		double y = HEIGHT + k * LINE + 4;

		fprintf(f, "<path d=\"M%d %.1fh20\" stroke=\"%s\" stroke-width=\"3\"%s/>\n", LEFT,
		    y, colour[k % 8], k < 8 ? ""
		    : " stroke-dasharray=\"4 3\"");
		put_text(f, LEFT + 26, y + 4, "start", "", s->name[k]);
	}
	fputs("</svg>\n", f);
}

int svg_write(const struct svg *s, const char *path, struct err *e)
{
	char *text = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);
	int rc = -1;

	if (f) {
		put_picture(s, f);
		rc = fclose(f);
	}
	rc = rc == 0 ? file_put(path, text, len, e) : err_set(e, EX_OSERR,
	    "out of memory for a picture");
	free(text);
	return rc;
}
