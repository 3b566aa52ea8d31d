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

#include <stddef.h>

#define SNIFF_BYTES 64		/* that sniff() wants, where the file has them */

/* "a Git LFS pointer, ..." for the first n bytes of a file; NULL: none of those known here. Neither
 * JSON nor safetensors is ever taken for one. */
const char *sniff(const void *head, size_t n);
/* Of a regular file; NULL also when it cannot be read. */
const char *sniff_file(const char *path);

#endif
