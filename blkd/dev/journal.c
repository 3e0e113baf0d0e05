/*
 * In-flight journals in shared memory. See journal.h for what they promise; here is how the stores keep it.
 *
 * Disk journal: a header page, then a ring of records between two free-running indices. A record is written,
 * then `tail` is stored with release: a successor sees whole records only. Merging lengthens the last record
 * by one aligned 16-bit store. Dropping moves `head`. The file is mapped at its maximum and allocated as far
 * as `room` says. Room grows after a commit, if it was short: the indices for the larger room are written
 * aside (there are two sets) and made the live ones by one store, so a kill leaves the old set or the new
 * one; that is done only while the records do not wrap, so that none of them moves.
 *
 * Bound to boot id, leaf identity and open generation: the header is stored once at open, the generation
 * after begin_writing().
 */
#include "blkd/journal.h"
#include "blkd/err.h"
#include "blkd/log.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum { JOURNAL_VERSION = 1, HEADER_BYTES = 4096, BOOT_ID_BYTES = 40 };

struct disk_header {
	char magic[8]; /* "blkdjrnl" */
	uint32_t version;
	uint32_t live; /* which set of indices counts: 0 or 1 */
	char boot_id[BOOT_ID_BYTES];
	uint64_t dev_id, ino;
	unsigned char uuid[16];
	uint64_t generation;
	struct ring {
		uint32_t head, tail; /* free-running; tail - head <= room */
		uint32_t room;	     /* power of two */
	} ring[2];
	uint32_t poisoned, guest_flushed;
};
_Static_assert(sizeof(struct disk_header) <= HEADER_BYTES, "fits its page");

struct journal {
	struct disk_header *hdr;
	struct meta_record *rec;     /* index i is at rec[i % room] */
	struct meta_record *earlier; /* copy, in order, for journal_records() */
	unsigned n_earlier;
	int fd; /* -1: memory only */
	char path[PATH_MAX];
	bool short_of_room;
};

static const char magic[8] = "blkdjrnl";
#define MAP_BYTES (HEADER_BYTES + (size_t)JOURNAL_RECORDS_MAX * sizeof(struct meta_record))

static struct ring *live_ring(const struct journal *j)
{
	return &j->hdr->ring[j->hdr->live & 1];
}

static size_t bytes_for(uint32_t room)
{
	return HEADER_BYTES + (size_t)room * sizeof(struct meta_record);
}

static void read_boot_id(char out[BOOT_ID_BYTES])
{
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, out, BOOT_ID_BYTES - 1);

	if (fd >= 0)
		close(fd);
	memset(out + (n < 0 ? 0 : n), 0, BOOT_ID_BYTES - (n < 0 ? 0 : (size_t)n));
}

/* The file system's number as part of a file's identity. Those of NFS and btrfs (major 0) change with each
 * mount: there uuid and inode must do. */
static uint64_t device_of(const struct image *leaf)
{
	return major(leaf->file->dev_id) ? leaf->file->dev_id : 0;
}

static void header_init(struct journal *j, const struct image *leaf, const char *boot_id)
{
	struct disk_header *h = j->hdr;

	memset(h, 0, sizeof(*h));
	h->version = JOURNAL_VERSION;
	h->ring[0].room = JOURNAL_RECORDS_MIN;
	memcpy(h->boot_id, boot_id, BOOT_ID_BYTES);
	h->dev_id = device_of(leaf);
	h->ino = leaf->file->ino;
	memcpy(h->uuid, leaf->uuid, sizeof(h->uuid));
	__atomic_thread_fence(__ATOMIC_RELEASE);
	memcpy(h->magic, magic, sizeof(magic));
}

/* Is what lies in the file ours to go on with? -EUCLEAN: of a version unknown here. 0: no (to be emptied). 1:
 * yes. */
static int header_judge(const struct journal *j, const struct image *leaf, const char *boot_id,
			uint64_t file_bytes, struct err *e)
{
	const struct disk_header *h = j->hdr;
	const struct ring *r = live_ring(j);

	if (memcmp(h->magic, magic, sizeof(magic)) != 0)
		return 0;
	if (h->version != JOURNAL_VERSION)
		return err_set(e, -EUCLEAN,
			       "%s: journal of layout version %u, this program knows %u: let the version "
			       "that wrote it open the disk once, or "
			       "remove the file if the disk may lose its last unflushed writes",
			       j->path, h->version, JOURNAL_VERSION);
	if (memcmp(h->boot_id, boot_id, BOOT_ID_BYTES) != 0 || h->dev_id != device_of(leaf) ||
	    h->ino != (uint64_t)leaf->file->ino || memcmp(h->uuid, leaf->uuid, sizeof(h->uuid)) != 0)
		return 0;
	if (h->live > 1 || r->room < JOURNAL_RECORDS_MIN || r->room > JOURNAL_RECORDS_MAX ||
	    (r->room & (r->room - 1)) || r->tail - r->head > r->room || bytes_for(r->room) > file_bytes)
		return err_set(e, -EUCLEAN,
			       "%s: damaged journal (room %u, head %u, tail %u, %llu bytes): it may hold "
			       "answered writes; remove it to open the "
			       "disk without them",
			       j->path, r->room, r->head, r->tail, (unsigned long long)file_bytes);
	return 1;
}

static int copy_earlier(struct journal *j)
{
	const struct ring *r = live_ring(j);

	j->n_earlier = r->tail - r->head;
	if (!j->n_earlier)
		return 0;
	j->earlier = calloc(j->n_earlier, sizeof(*j->earlier));
	if (!j->earlier)
		return -ENOMEM;
	for (unsigned i = 0; i < j->n_earlier; i++)
		j->earlier[i] = j->rec[(r->head + i) % r->room];
	return 0;
}

static void path_of(struct journal *j, const char *run_dir, const struct image *leaf)
{
	char uuid[37];

	uuid_text(leaf->uuid, uuid);
	snprintf(j->path, sizeof(j->path), "%s/disk-%s-%llx-%llx.journal", run_dir, uuid,
		 (unsigned long long)device_of(leaf), (unsigned long long)leaf->file->ino);
}

static int open_file(struct journal *j, const char *run_dir, const struct image *leaf, struct err *e)
{
	int res;

	path_of(j, run_dir, leaf);
	j->fd = open(j->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (j->fd < 0)
		return err_set(
		    e, -errno,
		    "%s: cannot open the in-flight journal: %s: is the run directory there and writable?",
		    j->path, strerror(errno));
	/* Also of a file that is there: a hole in it would be a SIGBUS when the tmpfs is full. */
	res = -posix_fallocate(j->fd, 0, (off_t)bytes_for(JOURNAL_RECORDS_MIN));
	if (res < 0)
		return err_set(e, res, "%s: no room for the in-flight journal (%zu bytes): %s", j->path,
			       bytes_for(JOURNAL_RECORDS_MIN), strerror(-res));
	return 0;
}

int journal_open(const char *run_dir, const struct image *leaf, struct journal **out, struct err *e)
{
	struct journal *j = calloc(1, sizeof(*j));
	char boot_id[BOOT_ID_BYTES];
	struct stat st;
	void *mem;
	int res;

	if (!j)
		return err_set(e, -ENOMEM, "no memory for a journal");
	j->fd = -1;
	res = run_dir ? open_file(j, run_dir, leaf, e) : 0;
	if (res < 0)
		goto fail;
	mem = mmap(NULL, MAP_BYTES, PROT_READ | PROT_WRITE,
		   run_dir ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, j->fd, 0);
	if (mem == MAP_FAILED) {
		res = err_set(e, -errno, "%s: cannot map the in-flight journal: %s",
			      run_dir ? j->path : "memory", strerror(errno));
		goto fail;
	}
	j->hdr = mem;
	j->rec = (struct meta_record *)(void *)((char *)mem + HEADER_BYTES);
	read_boot_id(boot_id);
	if (run_dir) {
		if (fstat(j->fd, &st) < 0)
			st.st_size = 0;
		res = header_judge(j, leaf, boot_id, (uint64_t)st.st_size, e);
		if (res < 0)
			goto fail;
	}
	if (!res)
		header_init(j, leaf, boot_id);
	res = copy_earlier(j);
	if (res < 0) {
		err_set(e, res, "no memory for the records of %s", j->path);
		goto fail;
	}
	*out = j;
	return 0;
fail:
	journal_abandon(j);
	return res;
}

/* Judges the header of the file that is there; nothing is changed. */
static int check_file(struct journal *j, const struct image *img, struct err *e)
{
	union {
		struct disk_header header;
		unsigned char bytes[HEADER_BYTES];
	} page = {.bytes = {0}};
	char boot_id[BOOT_ID_BYTES];
	const struct ring *r;
	struct stat st;
	int res;

	if (fstat(j->fd, &st) < 0 || pread(j->fd, page.bytes, sizeof(page), 0) < 0)
		return err_set(e, -EIO, "%s: cannot read the in-flight journal: %s", j->path,
			       strerror(errno));
	j->hdr = &page.header;
	read_boot_id(boot_id);
	res = header_judge(j, img, boot_id, (uint64_t)st.st_size, e);
	r = live_ring(j);
	if (res == 1 && r->head != r->tail)
		res =
		    err_set(e, -EBUSY,
			    "%s: %u metadata changes of answered writes are in its journal (%s) only: it is "
			    "being written, or its writer was killed: then an open for writing puts them "
			    "into the image",
			    img->file->path, r->tail - r->head, j->path);
	j->hdr = NULL;
	return res < 0 ? res : 0;
}

int journal_check(const char *run_dir, const struct image *img, struct err *e)
{
	struct journal j = {.fd = -1};
	int res;

	if (!run_dir)
		return 0;
	path_of(&j, run_dir, img);
	j.fd = open(j.path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (j.fd < 0)
		return errno == ENOENT || errno == ENOTDIR
			   ? 0
			   : err_set(e, -EIO, "%s: cannot open the in-flight journal: %s", j.path,
				     strerror(errno));
	res = check_file(&j, img, e);
	close(j.fd);
	return res;
}

void journal_abandon(struct journal *j)
{
	if (!j)
		return;
	if (j->hdr)
		munmap(j->hdr, MAP_BYTES);
	if (j->fd >= 0)
		close(j->fd);
	free(j->earlier);
	free(j);
}

void journal_close(struct journal *j)
{
	if (j && j->fd >= 0 && live_ring(j)->head == live_ring(j)->tail && !j->hdr->poisoned &&
	    unlink(j->path) < 0 && errno != ENOENT)
		log_warn("%s: cannot remove the journal: %s", j->path, strerror(errno));
	journal_abandon(j);
}

int journal_records(const struct journal *j, uint64_t generation, const struct meta_record **recs,
		    unsigned *n, struct err *e)
{
	*recs = j->earlier;
	*n = j->n_earlier;
	if (j->n_earlier && j->hdr->generation != generation)
		return err_set(
		    e, -ESTALE,
		    "%s: holds %u metadata changes of answered writes under open generation %llu, but the "
		    "image is at %llu: another "
		    "program has opened it for writing since; remove the journal to go on without them",
		    j->path, j->n_earlier, (unsigned long long)j->hdr->generation,
		    (unsigned long long)generation);
	return 0;
}

void journal_clear(struct journal *j)
{
	struct ring *r = live_ring(j);

	__atomic_store_n(&r->head, r->tail, __ATOMIC_RELEASE);
}

void journal_set_generation(struct journal *j, uint64_t generation)
{
	CHECK(live_ring(j)->head == live_ring(j)->tail);
	__atomic_store_n(&j->hdr->generation, generation, __ATOMIC_RELEASE);
}

bool journal_poisoned(const struct journal *j)
{
	return j->hdr->poisoned;
}

void journal_poison(struct journal *j)
{
	j->hdr->poisoned = 1;
}

void journal_unpoison(struct journal *j)
{
	j->hdr->poisoned = 0;
}

bool journal_guest_flushed(const struct journal *j)
{
	return j->hdr->guest_flushed;
}

void journal_set_guest_flushed(struct journal *j, bool flushed)
{
	j->hdr->guest_flushed = flushed;
}

/* ---- device thread ---- */

static bool continues(const struct meta_record *last, const struct meta_record *rec)
{
	return last->block == rec->block && last->sector == rec->sector &&
	       last->epoch_low == rec->epoch_low && last->count && rec->count &&
	       last->first + last->count == rec->first && last->count + rec->count <= UINT16_MAX;
}

int journal_add(struct journal *j, const struct meta_record *rec)
{
	struct ring *r = live_ring(j);
	uint32_t used = r->tail - r->head;

	if (used) {
		struct meta_record *last = &j->rec[(r->tail - 1) % r->room];

		if (continues(last, rec)) {
			__atomic_store_n(&last->count, (uint16_t)(last->count + rec->count),
					 __ATOMIC_RELEASE);
			return 0;
		}
	}
	if (used >= r->room)
		return -ENOSPC;
	j->rec[r->tail % r->room] = *rec;
	__atomic_store_n(&r->tail, r->tail + 1, __ATOMIC_RELEASE);
	j->short_of_room |= used >= r->room / 2;
	return 0;
}

void journal_drop(struct journal *j, uint64_t epoch_durable)
{
	struct ring *r = live_ring(j);
	uint32_t head = r->head;

	while (head != r->tail && (int32_t)(j->rec[head % r->room].epoch_low - (uint32_t)epoch_durable) <= 0)
		head++;
	__atomic_store_n(&r->head, head, __ATOMIC_RELEASE);
}

bool journal_is_full(const struct journal *j)
{
	const struct ring *r = live_ring(j);

	return r->tail - r->head > r->room - r->room / 4;
}

void journal_relieve(struct journal *j)
{
	const struct ring *r = live_ring(j);
	uint32_t first = r->head % r->room, used = r->tail - r->head, room = r->room * 2;
	unsigned other = !j->hdr->live;

	if (!j->short_of_room || room > JOURNAL_RECORDS_MAX || first + used > r->room)
		return;
	j->short_of_room = false;
	if (j->fd >= 0 && posix_fallocate(j->fd, 0, (off_t)bytes_for(room)) != 0)
		return;
	j->hdr->ring[other] = (struct ring){first, first + used, room};
	__atomic_store_n(&j->hdr->live, other, __ATOMIC_RELEASE);
}
