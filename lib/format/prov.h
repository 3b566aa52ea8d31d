/*
 * prov: provenance, the `__metadata__` of a model.safetensors: what made these weights. Every
 * value is a string:
 *
 *	chronos.version		"0.1.0"
 *	chronos.config		config.json, compact
 *	chronos.seed		"42"
 *	chronos.data		[{"file":..,"sha256":..,"records":..}, ...]; of a pipe, records
 *				and tokens only
 *	chronos.ancestry	[{"program":..,"version":..,"command":[..],"parent":fingerprint
 *				or null}, ...], oldest first
 *
 *	struct prov p = { .program = err_prog, .command = prov_command(argc, argv, opts, OPT_TALKS),
 *	    .config = json, ... };
 *	json_t *meta = prov_metadata(&p);
 *
 * No time, no host, no path of the output: the same work writes the same bytes, whether it was
 * done in one go or stopped and resumed.
 */
#ifndef CHR_PROV_H
#define CHR_PROV_H

#include <jansson.h>
#include <stdint.h>

#include "base/err.h"
#include "base/opt.h"

struct prov {			/* all borrowed; NULL leaves the key out */
	const char *program;
	const json_t *command;	/* list of arguments, from prov_command() */
	const json_t *config;
	const uint64_t *seed;
	const json_t *data;	/* list of prov_file() */
	const json_t *parent_metadata;	/* metadata of the model this one was made from */
	const char *parent;	/* its fingerprint */
};

json_t *prov_metadata(const struct prov *p);	/* an object of strings; the caller
						   json_decref()s */

/* The command line in canonical form: program name, long options as --name=value in the order
 * given, operands. omit: marks of the options that are left out (OPT_TALKS, OPT_JUDGES), 0:
 * none. */
json_t *prov_command(int argc, char *const argv[], const struct opt *opts, int omit);

/* {"file":name,"sha256":hex,"records":n}, reading the file for its digest; NULL on error. */
json_t *prov_file(const char *path, int64_t records, struct err *e) CHR_MUST_CHECK;

#endif
