/*
 * gguf_rows: the order in which a GGUF file has the rows, or the columns, of a parameter, where it
 * is not the published one. Reading (stored_gguf.c) and writing (gguf_save.c) ask the same
 * functions.
 *
 *	struct gguf_rows g = { AT_PAIRS, rows, cols, head_dim, block };
 *	at = gguf_row(&g, r, &second);		row r lies there, in the second tensor if it says so
 */
#ifndef CHR_GGUF_ROWS_H
#define CHR_GGUF_ROWS_H

#include <stdbool.h>
#include <stdint.h>

#include "arch/block.h"
#include "arch/param.h"

struct gguf_rows {
	unsigned how;			/* of enum param_how */
	int rows, cols;			/* of the parameter */
	int head;			/* rows of a head, of AT_PAIRS */
	const struct block *block;	/* of its layer; NULL: it has none */
};

/* What takes rows out of their order. */
#define GGUF_SCATTERED (AT_PAIRS | AT_TILED | AT_QKVZ_APART)

/* of GGUF_SCATTERED, and no AT_ACROSS; *second is false but with AT_QKVZ_APART */
int64_t gguf_row(const struct gguf_rows *g, int64_t r, bool *second);
int64_t gguf_col(const struct gguf_rows *g, int64_t c);		/* of AT_ACROSS with AT_TILED */

#endif
