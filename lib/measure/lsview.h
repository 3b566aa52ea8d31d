/*
 * lsview: records of chr-ls as lines for people, on stdout. Names and values come from
 * files of strangers, so all of them pass through plain.h.
 */
#ifndef CHR_LSVIEW_H
#define CHR_LSVIEW_H

#include <jansson.h>

void lsview_put(const json_t *record);

#endif
