/*
 * lsview: records of chr-ls as lines for people, on stdout. Names and values come from
 * files of strangers, so all of them pass through plain.h.
 */
#ifndef CHR_LSVIEW_H
#define CHR_LSVIEW_H

#include <jansson.h>

/* Tensors wait for the next record of another type, or the end: their columns are as wide as what
 * is in them. */
void lsview_put(const json_t *record);
void lsview_end(void);

#endif
