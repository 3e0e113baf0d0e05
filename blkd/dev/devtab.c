/*
 * The table of open devices. See devtab.h for the rules.
 *
 * An entry is the claim on an image: it is made before the image is opened and goes after it was closed, so
 * that two who ask at once meet in the table and not at the fence. While its maker opens or closes, the entry
 * is busy and others wait on one condition variable; the mutex is never held across anything that blocks. The
 * list is short (one entry a device) and only the control path walks it.
 */
#include "blkd/devtab.h"

#include "blkd/err.h"
#include "blkd/log.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define USERS_SHOWN 64u

struct image_key {
	bool block;
	dev_t dev;
	ino_t ino; /* 0 of a block device */
};

struct devtab_entry {
	struct list link;
	struct image_key key;
	bool busy; /* being opened or closed by one thread, which alone touches the rest */
	bool writable;
	struct dev *dev;
	char *path;
	char format[16];
	struct list refs; /* of struct devref */
};

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t table_changed = PTHREAD_COND_INITIALIZER;
static struct list table = {&table, &table};

static int key_of(const char *path, struct image_key *key, struct err *e)
{
	struct stat st;

	if (stat(path, &st) < 0) {
		int rc = errno ? -errno : -EIO;

		return err_set(e, rc, "%s: %s", path, strerror(-rc));
	}
	if (S_ISBLK(st.st_mode))
		*key = (struct image_key){.block = true, .dev = st.st_rdev};
	else if (S_ISREG(st.st_mode))
		*key = (struct image_key){.dev = st.st_dev, .ino = st.st_ino};
	else
		return err_set(e, -EINVAL, "%s: neither a regular file nor a block device", path);
	return 0;
}

static struct devtab_entry *find(const struct image_key *key)
{
	struct list *pos;

	list_for_each (pos, &table) {
		struct devtab_entry *t = container_of(pos, struct devtab_entry, link);

		if (t->key.block == key->block && t->key.dev == key->dev && t->key.ino == key->ino)
			return t;
	}
	return NULL;
}

static struct devref *ref_of(struct list *pos)
{
	return container_of(pos, struct devref, link);
}

/* May `o` join those who have the image? */
static int may_join(const struct devtab_entry *t, const struct devtab_opts *o, struct err *e)
{
	struct list *pos;

	if (o->format && strcmp(o->format, t->format) != 0)
		return err_set(e, -EINVAL, "%s is being served as %s: it cannot be %s at the same time",
			       o->path, t->format, o->format);
	list_for_each (pos, &t->refs) {
		const struct devref *r = ref_of(pos);

		if (o->writable && !t->writable)
			return err_set(e, -EBUSY,
				       "%s is being read by %s: a writer would change it under its feet",
				       o->path, r->user);
		if (!t->writable || o->shared || r->shared)
			continue;
		return err_set(e, -EBUSY, "%s is in use for writing by %s", o->path, r->user);
	}
	return 0;
}

static struct devref *ref_new(const struct devtab_opts *o)
{
	struct devref *r = calloc(1, sizeof(*r));

	if (!r)
		return NULL;
	list_init(&r->link);
	snprintf(r->user, sizeof(r->user), "%s", o->user);
	r->writable = o->writable;
	r->shared = o->shared;
	return r;
}

static int open_device(struct devtab_entry *t, const struct devtab_opts *o, struct err *e)
{
	const struct disk_opts disk_opts = {.path = o->path,
					    .format = o->format,
					    .writable = o->writable,
					    .run_dir = o->run_dir,
					    .opener = o->opener,
					    .fence_wait_ms = o->fence_wait_ms,
					    .backing_flags = o->backing_flags,
					    .poison_clear = o->poison_clear,
					    .cache = o->cache};
	const struct dev_opts dev_opts = {.name = o->user,
					  .engine = o->engine,
					  .write_mode = o->write_mode,
					  .pool = o->pool,
					  .cache = o->cache,
					  .idle_commit_ms = o->idle_commit_ms,
					  .max_requests = o->max_requests};
	struct disk *disk = NULL;
	struct stat st;
	int rc = disk_open(&disk_opts, &disk, e);

	if (rc < 0)
		return rc;
	/* The name may have moved to another file between the key and the open; then this entry guards the
	 * wrong one. */
	if (fstat(disk->chain.leaf->file->fd, &st) == 0 && S_ISREG(st.st_mode) &&
	    (st.st_ino != t->key.ino || st.st_dev != t->key.dev)) {
		disk_close(disk);
		return err_set(e, -ESTALE, "%s: the file was replaced while it was being opened", o->path);
	}
	snprintf(t->format, sizeof(t->format), "%s", disk->chain.leaf->ops->name);
	rc = dev_create(disk, &dev_opts, true, &t->dev, e);
	if (rc < 0)
		disk_close(disk);
	return rc;
}

/* The lock is held, and given back and taken again. The entry is this thread's until it is no longer busy. */
static int claim(const struct image_key *key, const struct devtab_opts *o, struct devref *r, struct err *e)
{
	struct devtab_entry *t = calloc(1, sizeof(*t));
	int rc;

	if (t)
		t->path = strdup(o->path);
	if (!t || !t->path) {
		free(t);
		return err_set(e, -ENOMEM, "%s: no memory", o->path);
	}
	list_init(&t->refs);
	t->key = *key;
	t->writable = o->writable;
	t->busy = true;
	list_add_tail(&table, &t->link);
	pthread_mutex_unlock(&table_lock);
	rc = open_device(t, o, e);
	pthread_mutex_lock(&table_lock);
	t->busy = false;
	pthread_cond_broadcast(&table_changed);
	if (rc < 0) {
		list_del(&t->link);
		free(t->path);
		free(t);
		return rc;
	}
	r->entry = t;
	r->dev = t->dev;
	list_add_tail(&t->refs, &r->link);
	return 0;
}

int devtab_get(const struct devtab_opts *o, struct devref **out, struct err *e)
{
	struct devtab_entry *t;
	struct image_key key = {.block = false};
	struct devref *r;
	int rc = key_of(o->path, &key, e);

	if (rc < 0)
		return rc;
	r = ref_new(o);
	if (!r)
		return err_set(e, -ENOMEM, "%s: no memory", o->path);
	pthread_mutex_lock(&table_lock);
	while ((t = find(&key)) && t->busy)
		pthread_cond_wait(&table_changed, &table_lock);
	if (!t) {
		rc = claim(&key, o, r, e);
	} else {
		rc = may_join(t, o, e);
		if (rc == 0) {
			r->entry = t;
			r->dev = t->dev;
			list_add_tail(&t->refs, &r->link);
		}
	}
	pthread_mutex_unlock(&table_lock);
	if (rc < 0)
		free(r);
	else
		*out = r;
	return rc;
}

int devtab_put(struct devref *r, struct err *e)
{
	struct devtab_entry *t = r->entry;
	bool last;
	int rc = 0;

	pthread_mutex_lock(&table_lock);
	list_del(&r->link);
	last = list_empty(&t->refs);
	t->busy = last;
	pthread_mutex_unlock(&table_lock);
	free(r);
	if (!last)
		return 0;
	rc = dev_destroy(t->dev, e);
	pthread_mutex_lock(&table_lock);
	list_del(&t->link);
	pthread_cond_broadcast(&table_changed);
	pthread_mutex_unlock(&table_lock);
	free(t->path);
	free(t);
	return rc;
}

void devtab_each(bool (*fn)(void *ctx, const struct devtab_info *), void *ctx)
{
	const char *users[USERS_SHOWN];
	struct list *pos, *ref;
	bool more = true;

	pthread_mutex_lock(&table_lock);
	for (pos = table.next; more && pos != &table; pos = pos->next) {
		struct devtab_entry *t = container_of(pos, struct devtab_entry, link);
		struct devtab_info info = {.path = t->path,
					   .format = t->format,
					   .writable = t->writable,
					   .dev = t->dev,
					   .users = users};

		if (t->busy)
			continue;
		list_for_each (ref, &t->refs) {
			if (info.n_users < USERS_SHOWN)
				users[info.n_users++] = ref_of(ref)->user;
		}
		more = fn(ctx, &info);
	}
	pthread_mutex_unlock(&table_lock);
}

unsigned devtab_count(void)
{
	struct list *pos;
	unsigned n = 0;

	pthread_mutex_lock(&table_lock);
	list_for_each (pos, &table)
		n++;
	pthread_mutex_unlock(&table_lock);
	return n;
}
