/*
 * A few helper threads for what blocks on storage: opening an image (a fence may take seconds) and closing
 * one (drain, commit).
 *
 * Threads are made as tasks come, up to a bound, and stay until the end: a thread at rest costs nothing worth
 * a policy. The control thread posts and never waits. A task's memory is its poster's, until done() was
 * called on it; that is the last the helper does with it.
 */
#include "blkd/blkif/backend_priv.h"

void tasks_init(struct tasks *j)
{
	*j = (struct tasks){.n_threads = 0};
	pthread_mutex_init(&j->lock, NULL);
	pthread_cond_init(&j->wake, NULL);
	list_init(&j->queue);
}

static void run(struct task *task)
{
	task->run(task);
	task->done(task);
}

static void *helper(void *arg)
{
	struct tasks *j = arg;
	struct list *n;

	pthread_mutex_lock(&j->lock);
	for (;;) {
		n = list_pop(&j->queue);
		if (n) {
			pthread_mutex_unlock(&j->lock);
			run(container_of(n, struct task, link));
			pthread_mutex_lock(&j->lock);
		} else if (j->stop) {
			break;
		} else {
			j->n_idle++;
			pthread_cond_wait(&j->wake, &j->lock);
			j->n_idle--;
		}
	}
	pthread_mutex_unlock(&j->lock);
	return NULL;
}

void tasks_post(struct tasks *j, struct task *task)
{
	const unsigned max = sizeof(j->threads) / sizeof(j->threads[0]);
	bool here = false;

	list_init(&task->link);
	pthread_mutex_lock(&j->lock);
	if (!j->n_idle && j->n_threads < max) {
		if (pthread_create(&j->threads[j->n_threads], NULL, helper, j) == 0)
			j->n_threads++;
	}
	here = j->n_threads == 0;
	if (!here) {
		list_add_tail(&j->queue, &task->link);
		pthread_cond_signal(&j->wake);
	}
	pthread_mutex_unlock(&j->lock);
	if (here)
		run(task);
}

void tasks_end(struct tasks *j)
{
	pthread_mutex_lock(&j->lock);
	j->stop = true;
	pthread_cond_broadcast(&j->wake);
	pthread_mutex_unlock(&j->lock);
	for (unsigned i = 0; i < j->n_threads; i++)
		pthread_join(j->threads[i], NULL);
	pthread_cond_destroy(&j->wake);
	pthread_mutex_destroy(&j->lock);
}
