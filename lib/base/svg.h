/*
 * svg: line charts as SVG, written whole or not at all. A picture is panels in a row, each with
 * axes of its own, and one legend.
 *
 *	struct svg *s = svg_new(3);
 *	svg_panel(s, 0, "tokens per second", "memory, % of experts", "tok/s");
 *	svg_point(s, 0, "gate", 50, 11, "label or NULL");
 *	svg_write(s, "sweep.svg", &e);
 *	svg_free(s);
 */
#ifndef CHR_SVG_H
#define CHR_SVG_H

#include "base/err.h"

struct svg;

struct svg *svg_new(int panels);		/* NULL: out of memory */
void svg_panel(struct svg *s, int panel, const char *title, const char *x, const char *y);
/* Points of one series are joined in the order of x. 0, or -1: out of memory, or more than 16
 * series. low and high: the range of y that was measured, drawn as a bar; equal to y: none. */
int svg_point(struct svg *s, int panel, const char *series, double x, double y, double low,
    double high);
int svg_write(const struct svg *s, const char *path, struct err *e) CHR_MUST_CHECK;
void svg_free(struct svg *s);

#endif
