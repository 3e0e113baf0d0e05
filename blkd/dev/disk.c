/*
 * Opening a disk: the one door to a leaf's bytes. For writing, in this order, each step because the next
 * relies on it:
 *
 *   1. open and parse the leaf (nothing is written), refuse what must not be written: hidden, or named by
 * another image as its parent
 *   2. fence: no other process writes it, no late I/O of a dead one lands any more; then parse again, since a
 * predecessor may have written until the fence was ours
 *   3. journal: its records are changes that answered writes depend on; replayed and committed before
 * anything else is decided, because free space is what neither the BAT nor a record names
 *   4. begin_writing: trailing footer, free space, open generation
 *
 * For reading: refused while the journal has records, of the leaf or of a parent; who only reads cannot see
 * what they say.
 *
 * Parents are opened once per process and shared: the registry below. Its lock guards a list; a second one
 * serialises the opening of parents, so that two disks that open at once do not open one parent twice.
 * Control path only.
 */
#include "blkd/disk.h"
#include "blkd/bytes.h"
#include "blkd/cache.h"
#include "blkd/err.h"
#include "blkd/journal.h"
#include "blkd/list.h"
#include "blkd/log.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { FENCE_WAIT_MS = 5000 };

/* ---- the registry of parents ---- */

struct parent_entry {
	struct list link;
	struct image *img;
	struct timespec mtime; /* when it was opened: a file that was changed since is another image */
	off_t size;
};

struct index_entry { /* an owner index, shared by the children of index->img[0] */
	struct list link;
	struct parents *index;
};

struct writer_entry { /* a leaf that is open for writing */
	struct list link;
	const struct backing *file;
};

static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t opening_lock = PTHREAD_MUTEX_INITIALIZER;
static struct list parents_open = {&parents_open, &parents_open};
static struct list indexes = {&indexes, &indexes};
static struct list writers = {&writers, &writers};

static bool same_file(const struct backing *a, const struct backing *b)
{
	return a->dev_id == b->dev_id && a->ino == b->ino && a->ops == b->ops;
}

static bool stat_of(const struct backing *b, struct timespec *mtime, off_t *size)
{
	struct stat st;

	*mtime = (struct timespec){0};
	*size = 0;
	if (b->fd < 0)
		return true;
	if (fstat(b->fd, &st) < 0)
		return false;
	*mtime = st.st_mtim;
	*size = st.st_size;
	return true;
}

static struct image *registry_get(void *ctx, const struct backing *b)
{
	struct image *found = NULL;
	struct timespec mtime;
	struct list *pos;
	off_t size;

	(void)ctx;
	if (!stat_of(b, &mtime, &size))
		return NULL;
	pthread_mutex_lock(&registry_lock);
	list_for_each (pos, &parents_open) {
		struct parent_entry *p = container_of(pos, struct parent_entry, link);

		if (!same_file(p->img->file, b))
			continue;
		if (p->size != size || p->mtime.tv_sec != mtime.tv_sec || p->mtime.tv_nsec != mtime.tv_nsec) {
			log_warn("%s: was changed while it is open as a parent: disks that have it open may "
				 "be damaged; this one is given the "
				 "file as it is now",
				 b->path);
			continue;
		}
		found = p->img;
		found->refs++;
		break;
	}
	pthread_mutex_unlock(&registry_lock);
	return found;
}

static void registry_added(void *ctx, struct image *img)
{
	struct parent_entry *p = calloc(1, sizeof(*p));

	(void)ctx;
	img->refs = 1;
	if (!p) /* not shared, then; put closes it all the same */
		return;
	p->img = img;
	stat_of(img->file, &p->mtime, &p->size);
	pthread_mutex_lock(&registry_lock);
	list_add_tail(&parents_open, &p->link);
	pthread_mutex_unlock(&registry_lock);
}

static void registry_put(void *ctx, struct image *img)
{
	struct parent_entry *gone = NULL;
	struct cache *cache = ctx;
	struct list *pos;
	bool last;

	pthread_mutex_lock(&registry_lock);
	last = --img->refs == 0;
	if (last) {
		list_for_each (pos, &parents_open) {
			struct parent_entry *p = container_of(pos, struct parent_entry, link);

			if (p->img == img)
				gone = p;
		}
		if (gone)
			list_del(&gone->link);
	}
	pthread_mutex_unlock(&registry_lock);
	free(gone);
	if (!last)
		return;
	if (cache)
		cache_forget(cache, img->serial);
	img->ops->close(img);
}

/* A file is written by this process or a parent in it, never both: the one who comes second, by the order of
 * the lock, is refused. */
static int writer_add(struct disk *disk, struct err *e)
{
	struct writer_entry *w = calloc(1, sizeof(*w));
	bool is_parent = false;
	struct list *pos;

	if (!w)
		return err_set(e, -ENOMEM, "no memory to open %s", disk->path);
	w->file = disk->chain.leaf->file;
	pthread_mutex_lock(&registry_lock);
	list_for_each (pos, &parents_open)
		is_parent |= same_file(container_of(pos, struct parent_entry, link)->img->file, w->file);
	if (!is_parent)
		list_add_tail(&writers, &w->link);
	pthread_mutex_unlock(&registry_lock);
	if (!is_parent)
		return 0;
	free(w);
	return err_set(
	    e, -EBUSY,
	    "%s: is open here as the parent of another disk: it is never written; make a clone of it "
	    "(`blkimg snapshot`)",
	    disk->path);
}

static void writer_del(const struct disk *disk)
{
	struct writer_entry *gone = NULL;
	struct list *pos;

	pthread_mutex_lock(&registry_lock);
	list_for_each (pos, &writers) {
		struct writer_entry *w = container_of(pos, struct writer_entry, link);

		if (w->file == disk->chain.leaf->file)
			gone = w;
	}
	if (gone)
		list_del(&gone->link);
	pthread_mutex_unlock(&registry_lock);
	free(gone);
}

/* May these images be read for ever? Not while one is written, nor without what a killed writer left. */
static int check_parents(const struct disk *disk, const char *run_dir, struct image *const *img, unsigned n,
			 struct err *e)
{
	const struct image *written = NULL;
	struct list *pos;
	int res = 0;

	pthread_mutex_lock(&registry_lock);
	list_for_each (pos, &writers)
		for (unsigned i = 0; i < n; i++)
			if (same_file(container_of(pos, struct writer_entry, link)->file, img[i]->file))
				written = img[i];
	pthread_mutex_unlock(&registry_lock);
	if (written)
		return err_set(e, -EBUSY, "%s: its parent %s is being written", disk->path,
			       written->file->path);
	for (unsigned i = 0; i < n && res == 0; i++)
		res = journal_check(run_dir, img[i], e);
	return res;
}

/* An index over exactly these images, counted; takes the caller's counts of the images over into it, or gives
 * them back. */
static int index_get(struct image **img, unsigned n, struct cache *cache, struct parents **out, struct err *e)
{
	struct index_entry *entry;
	struct list *pos;
	int res;

	pthread_mutex_lock(&registry_lock);
	list_for_each (pos, &indexes) {
		entry = container_of(pos, struct index_entry, link);
		if (entry->index->n == n && !memcmp(entry->index->img, img, n * sizeof(*img))) {
			entry->index->refs++;
			*out = entry->index;
			pthread_mutex_unlock(&registry_lock);
			for (unsigned i = 0; i < n; i++)
				registry_put(cache, img[i]);
			return 0;
		}
	}
	pthread_mutex_unlock(&registry_lock);
	entry = calloc(1, sizeof(*entry));
	res = entry ? parents_build(img, n, out, e) : err_set(e, -ENOMEM, "no memory for the owner index");
	if (res < 0) {
		free(entry);
		for (unsigned i = 0; i < n; i++)
			registry_put(cache, img[i]);
		return res;
	}
	(*out)->refs = 1;
	entry->index = *out;
	pthread_mutex_lock(&registry_lock);
	list_add_tail(&indexes, &entry->link);
	pthread_mutex_unlock(&registry_lock);
	return 0;
}

static void index_put(struct parents *index, struct cache *cache)
{
	struct index_entry *gone = NULL;
	struct list *pos;
	bool last;

	pthread_mutex_lock(&registry_lock);
	last = --index->refs == 0;
	list_for_each (pos, &indexes) {
		struct index_entry *entry = container_of(pos, struct index_entry, link);

		if (last && entry->index == index)
			gone = entry;
	}
	if (gone)
		list_del(&gone->link);
	pthread_mutex_unlock(&registry_lock);
	if (!last)
		return;
	free(gone);
	for (unsigned i = 0; i < index->n; i++)
		registry_put(cache, index->img[i]);
	parents_free(index);
}

static int open_parents(struct disk *disk, const struct disk_opts *opts, const struct backing_opener *opener,
			struct err *e)
{
	const struct chain_share share = {registry_get, registry_put, registry_added, opts->cache};
	struct image **img = calloc(CHAIN_MAX_DEPTH, sizeof(*img));
	unsigned n = 0;
	int res;

	if (!img)
		return err_set(e, -ENOMEM, "no memory for the chain of %s", opts->path);
	pthread_mutex_lock(&opening_lock);
	res = chain_open_parents(disk->chain.leaf, opener, &share, img, &n, e);
	if (res == 0)
		res = check_parents(disk, opts->run_dir, img, n, e);
	if (res < 0)
		while (n)
			registry_put(opts->cache, img[--n]);
	if (res == 0 && n)
		res = index_get(img, n, opts->cache, &disk->chain.parents, e);
	pthread_mutex_unlock(&opening_lock);
	free(img);
	return res;
}

/* ---- opening for writing ---- */

static int parse_again(struct disk *disk, const struct disk_opts *opts, struct err *e)
{
	struct image *old = disk->chain.leaf, *img;
	struct backing *b = old->file;
	const struct image_format *f = old->ops;
	int res;

	/* The fence hangs on the backing: it must survive the image object. */
	old->file = NULL;
	old->ops->close(old);
	disk->chain.leaf = NULL;
	res = f->open(b, &img, e);
	if (res < 0) {
		b->ops->close(b);
		return res;
	}
	disk->chain.leaf = img;
	(void)opts;
	return 0;
}

static int replay_records(struct disk *disk, struct err *e)
{
	struct image *leaf = disk->chain.leaf;
	const struct meta_record *recs;
	unsigned n;
	int res = journal_records(disk->journal, leaf->ops->generation(leaf), &recs, &n, e);

	if (res < 0)
		return res;
	if (n) {
		log_info("%s: replaying %u metadata changes of answered writes", disk->path, n);
		res = leaf->ops->dirty_replay(leaf, recs, n, e);
		if (res == 0)
			res = image_run_job(leaf, JOB_COMMIT, e);
		if (res < 0) {
			err_prefix(e, "%s: replaying its journal", disk->path);
			return res;
		}
	}
	journal_clear(disk->journal);
	return 0;
}

/* Direct I/O in blocks of the storage cannot write the last part of a file that ends inside a block without
 * growing it. */
static int check_file_end(const struct disk *disk, struct err *e)
{
	struct backing *b = disk->chain.leaf->file;
	uint64_t size_bytes;
	int res = b->ops->size(b, &size_bytes);

	if (res < 0)
		return err_set(e, res, "%s: cannot ask its size: %s", disk->path, strerror(-res));
	if (size_bytes & (b->traits.logical_bytes - 1))
		return err_set(e, -EINVAL,
			       "%s: its size of %llu bytes is no multiple of the storage's blocks of %u "
			       "bytes, so it cannot be written in "
			       "place here: make a copy with `blkimg convert`",
			       disk->path, (unsigned long long)size_bytes, b->traits.logical_bytes);
	return 0;
}

static int begin(struct disk *disk, const struct disk_opts *opts, struct err *e)
{
	struct image *leaf = disk->chain.leaf;
	int res = journal_open(opts->run_dir, leaf, &disk->journal, e);

	if (res < 0)
		return res;
	if (journal_poisoned(disk->journal) && !opts->poison_clear)
		return err_set(e, -EIO,
			       "%s: a flush of this image failed earlier, what the storage lost "
			       "cannot be known: check it (`blkimg "
			       "check`) and open it again with the poison cleared",
			       disk->path);
	res = replay_records(disk, e);
	if (res == 0)
		res = leaf->ops->begin_writing(leaf, e);
	if (leaf->poisoned)
		journal_poison(disk->journal);
	if (res == 0)
		res = check_file_end(disk, e);
	if (res < 0)
		return res;
	journal_unpoison(disk->journal);
	journal_set_generation(disk->journal, leaf->ops->generation(leaf));
	journal_set_guest_flushed(disk->journal, false);
	disk->has_records_home = opts->run_dir && (leaf->ops->generation(leaf) || !leaf->ops->dirty_replay);
	disk->writable = true;
	return 0;
}

static int open_for_writing(struct disk *disk, const struct disk_opts *opts, struct err *e)
{
	struct backing *b = disk->chain.leaf->file;
	int res;

	if (!disk->chain.leaf->ops->write_begin || !b->writable)
		return err_set(e, -EROFS, "%s: cannot be opened for writing", disk->path);
	if (b->ops->fence) {
		res = b->ops->fence(b, opts->fence_wait_ms ? opts->fence_wait_ms : FENCE_WAIT_MS);
		if (res < 0)
			return err_set(e, res, "%s: another process has it open for writing%s", disk->path,
				       res == -EBUSY ? "" : " (or its lock cannot be taken)");
	}
	res = parse_again(disk, opts, e);
	if (res < 0)
		return res;
	if (disk->chain.leaf->hidden)
		return err_set(e, -EROFS,
			       "%s: is marked hidden: it is a parent of others and never written; make a "
			       "clone of it (`blkimg snapshot`)",
			       disk->path);
	res = b->fd >= 0 ? disk_check_not_parent(disk->chain.leaf, disk->path, e) : 0;
	if (res == 0)
		res = writer_add(disk, e);
	return res < 0 ? res : begin(disk, opts, e);
}

int disk_open(const struct disk_opts *opts, struct disk **out, struct err *e)
{
	const struct backing_opener *opener = opts->opener ? opts->opener : &file_opener;
	struct disk *disk = calloc(1, sizeof(*disk));
	unsigned flags = opts->backing_flags | (opts->writable ? BACKING_WRITE : 0);
	int res;

	if (!disk || !(disk->path = strdup(opts->path))) {
		free(disk);
		return err_set(e, -ENOMEM, "no memory to open %s", opts->path);
	}
	disk->cache = opts->cache;
	res = image_open_path(opener, opts->path, flags, opts->format, &disk->chain.leaf, e);
	if (res == 0)
		res = opts->writable ? open_for_writing(disk, opts, e)
				     : journal_check(opts->run_dir, disk->chain.leaf, e);
	if (res == 0 && disk->chain.leaf->notes[0])
		log_warn("%s: %s", disk->path, disk->chain.leaf->notes);
	if (res == 0)
		res = open_parents(disk, opts, opener, e);
	if (res < 0) {
		disk_close(disk);
		return res;
	}
	disk->chain.size_bytes = disk->chain.leaf->size_bytes;
	*out = disk;
	return 0;
}

static void release(struct disk *disk)
{
	if (disk->chain.parents)
		index_put(disk->chain.parents, disk->cache);
	if (disk->chain.leaf) {
		writer_del(disk);
		disk->chain.leaf->ops->close(disk->chain.leaf);
	}
	free(disk->path);
	free(disk);
}

void disk_close(struct disk *disk)
{
	if (!disk)
		return;
	journal_close(disk->journal);
	release(disk);
}

void disk_abandon(struct disk *disk)
{
	if (!disk)
		return;
	journal_abandon(disk->journal);
	release(disk);
}

int disk_finish(struct disk *disk, struct err *e)
{
	int res;

	if (!disk->writable)
		return 0;
	res = image_run_job(disk->chain.leaf, JOB_COMMIT, e);
	if (res == 0) {
		journal_clear(disk->journal);
		res = image_run_job(disk->chain.leaf, JOB_CLOSE, e);
	}
	if (disk->chain.leaf->poisoned)
		journal_poison(disk->journal);
	if (res < 0)
		err_prefix(e, "%s", disk->path);
	return res;
}
