/*
 * lsview: records of chr-ls as lines for people, on stdout. Names come from files: control
 * characters are shown as '?'.
 */
#ifndef CHR_LSVIEW_H
#define CHR_LSVIEW_H

#include <jansson.h>

void lsview_put(const json_t *record);

#endif
