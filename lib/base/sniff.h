/*
 * sniff: what a file is instead of what it should be. A clone without Git LFS holds a text of three
 * lines in place of the weights, a failed download a web page, and a program that reads such bytes
 * as its own format says something that nobody understands.
 *
 *	if ((what = sniff_file(path)) != NULL)
 *		return err_set(e, EX_DATAERR, "%s: is %s", path, what);
 */
#ifndef CHR_SNIFF_H
#define CHR_SNIFF_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define SNIFF_BYTES 64		/* that sniff() wants, where the file has them */

/* "a Git LFS pointer, ..." for the first n bytes of a file; NULL: none of those known here. Neither
 * JSON nor safetensors is ever taken for one. */
const char *sniff(const void *head, size_t n);
/* Does a safetensors file begin so? sniff() has no word for these. */
bool sniff_safetensors(const void *head, size_t n);
/* The first bytes of a regular file: how many, or -1. */
ssize_t sniff_head(const char *path, char head[SNIFF_BYTES]);
/* What sniff() says of them; NULL also when it cannot be read. */
const char *sniff_file(const char *path);

#endif
