/* Reads by threads that call preadv. The caller does the next read itself when it waits and none
 * has begun it. */
#include "experts/reader_int.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#define MAX_THREADS 64

struct list { struct reader_job *first, **last; };

struct state {
	struct reader *r;
	pthread_t thread[MAX_THREADS];
	int nthreads;
	pthread_mutex_t lock;		/* guards all below */
	pthread_cond_t work, ended;
	struct list queue, done;
	atomic_int ndone;		/* may be read without the lock */
	int idle;
	bool quit;
};

static void put(struct list *l, struct reader_job *job)
{
	job->next = NULL;
	*l->last = job;
	l->last = &job->next;
}

static struct reader_job *take(struct list *l)
{
	struct reader_job *job = l->first;

	if (job == NULL)
		return NULL;
	l->first = job->next;
	if (l->first == NULL)
		l->last = &l->first;
	return job;
}

static void read_all(struct reader *r, struct reader_job *job)
{
	int64_t offset, n;

	do {
		offset = reader_rest(job);
		n = preadv(r->f[job->file].fd, job->left, job->nleft, offset);
	} while (!reader_step(r, job, n < 0 ? -errno : n));
}

static void *thread_main(void *arg)
{
	struct state *s = arg;
	struct reader_job *job;

	pthread_mutex_lock(&s->lock);
	while (!s->quit) {
		job = take(&s->queue);
		if (job == NULL) {
			s->idle++;
			pthread_cond_wait(&s->work, &s->lock);
			s->idle--;
			continue;
		}
		pthread_mutex_unlock(&s->lock);
		read_all(s->r, job);
		pthread_mutex_lock(&s->lock);
		put(&s->done, job);
		atomic_fetch_add(&s->ndone, 1);
		pthread_cond_signal(&s->ended);
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

static void submit(void *state, struct reader_job *job)
{
	struct state *s = state;

	pthread_mutex_lock(&s->lock);
	put(&s->queue, job);
	if (s->idle > 0)
		pthread_cond_signal(&s->work);
	pthread_mutex_unlock(&s->lock);
}

static struct reader_job *reap(void *state, bool wait)
{
	struct state *s = state;
	struct reader_job *job;

	if (!wait && atomic_load(&s->ndone) == 0)
		return NULL;
	pthread_mutex_lock(&s->lock);
	while ((job = take(&s->done)) == NULL && wait) {
		struct reader_job *mine = take(&s->queue);

		if (mine == NULL) {
			pthread_cond_wait(&s->ended, &s->lock);
			continue;
		}
		pthread_mutex_unlock(&s->lock);
		read_all(s->r, mine);
		return mine;
	}
	if (job != NULL)
		atomic_fetch_sub(&s->ndone, 1);
	pthread_mutex_unlock(&s->lock);
	return job;
}

static void shut(void *state)
{
	struct state *s = state;

	pthread_mutex_lock(&s->lock);
	s->quit = true;
	pthread_cond_broadcast(&s->work);
	pthread_mutex_unlock(&s->lock);
	for (int i = 0; i < s->nthreads; i++)
		pthread_join(s->thread[i], NULL);
	pthread_cond_destroy(&s->work);
	pthread_cond_destroy(&s->ended);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

/* Signals are for the main thread: its reads and waits are the ones that must notice a stop. */
void *reader_threads_open(struct reader *r, int threads, struct err *e)
{
	struct state *s = calloc(1, sizeof *s);
	sigset_t all, old;
	pthread_attr_t a;
	int status = 0;

	if (s == NULL) {
		err_set(e, EX_OSERR, "out of memory for reader threads");
		return NULL;
	}
	s->r = r;
	s->queue.last = &s->queue.first;
	s->done.last = &s->done.first;
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->work, NULL);
	pthread_cond_init(&s->ended, NULL);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pthread_attr_init(&a);
	pthread_attr_setstacksize(&a, READER_STACK);
	for (; status == 0 && s->nthreads < threads && s->nthreads < MAX_THREADS; s->nthreads +=
	    status == 0)
		status = pthread_create(&s->thread[s->nthreads], &a, thread_main, s);
	pthread_attr_destroy(&a);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (status == 0)
		return s;
	err_set(e, EX_OSERR, "cannot start a reader thread: %s", strerror(status));
	shut(s);
	return NULL;
}

const struct reader_engine reader_threads = { "threads", submit, reap, shut };
