#include "base/rank_deal.h"

#include <stdlib.h>
#include <string.h>

#include "base/comm.h"
#include "base/sig.h"

struct head {			/* of a message; the bytes follow */
	int64_t record;
	double sums[RANK_DEAL_SUMS];
};

struct result {			/* that came before its turn */
	struct head *message;
	size_t size;
	struct result *next;
};

static struct {
	void (*write)(const char *p, size_t n, const double sums[RANK_DEAL_SUMS]);
	struct result *early;
	int64_t next;		/* record to be written */
} deal;

void rank_deal_open(void (*write)(const char *p, size_t n, const double sums[RANK_DEAL_SUMS]))
{
	deal.write = write;
}

bool rank_deal_own(int64_t record)
{
	return record % comm_size() == comm_rank();
}

static void *need(size_t n)
{
	void *p = malloc(n);

	if (p == NULL)
		err_die(EX_OSERR, "no memory for the results of a record");
	return p;
}

static void keep(struct head *message, size_t size)
{
	struct result *r = need(sizeof *r);

	*r = (struct result){ message, size, deal.early };
	deal.early = r;
}

/* Writes what is there and has its turn. */
static void write_early(void)
{
	struct result **at = &deal.early, *r;

	while ((r = *at) != NULL) {
		if (r->message->record != deal.next) {
			at = &r->next;
			continue;
		}
		deal.write((const char *)(r->message + 1), r->size - sizeof *r->message,
		    r->message->sums);
		deal.next++;
		*at = r->next;
		free(r->message);
		free(r);
		at = &deal.early;
	}
}

/* Takes the messages that have come; with wait, at least one. */
static void take(bool wait)
{
	size_t size;
	int from;
	void *p;

	while ((p = comm_receive(wait, &size, &from)) != NULL) {
		keep(p, size);
		wait = false;
	}
	write_early();
}

void rank_deal_put(int64_t record, const char *p, size_t n, const double sums[RANK_DEAL_SUMS])
{
	static const double none[RANK_DEAL_SUMS];
	struct head *message;

	if (comm_size() == 1) {
		deal.write(p, n, sums != NULL ? sums : none);
		return;
	}
	message = need(sizeof *message + n);
	message->record = record;
	memcpy(message->sums, sums != NULL ? sums : none, sizeof message->sums);
	if (n > 0)
		memcpy(message + 1, p, n);
	if (comm_rank() == 0) {
		keep(message, sizeof *message + n);
		take(false);
		return;
	}
	comm_send(message, sizeof *message + n);
	free(message);
}

void rank_deal_finish(int64_t records)
{
	if (comm_size() == 1)
		return;
	if (sig_stop)
		comm_abort(EX_TEMPFAIL);
	while (comm_rank() == 0 && deal.next < records)
		take(true);
	comm_barrier();
}

_Noreturn void rank_deal_fail(int64_t records, struct err *e)
{
	if (comm_size() > 1 && e->status != EX_TEMPFAIL)
		rank_deal_finish(records);
	if (e->status != EX_TEMPFAIL)
		comm_close(-1, e);
	err_exit(e);
}
