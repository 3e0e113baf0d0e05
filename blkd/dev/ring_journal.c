/*
 * The journal of one ring: a copy of every request in flight, so that a successor can take the ring up again.
 * The order of the stores is the caller's (blkif), as journal.h says; here is only the file: a header with
 * the connection it is bound to, then the slots.
 */
#include "blkd/err.h"
#include "blkd/journal.h"
#include "blkd/log.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { RING_VERSION = 1, BINDING_BYTES = 256 };

struct ring_header {
	char magic[8]; /* "blkdring" */
	uint32_t version, binding_bytes;
	unsigned char binding[BINDING_BYTES]; /* what the connection is, as its owner encodes it */
	uint32_t req_cons, rsp_prod;
	unsigned char pad[232];
};
_Static_assert(sizeof(struct ring_header) == 512, "slots follow");

struct ring_journal {
	struct ring_header *hdr;
	struct ring_slot *slots;
	int fd;
	char path[PATH_MAX];
};

#define RING_MAP_BYTES (sizeof(struct ring_header) + (size_t)RING_JOURNAL_SLOTS * sizeof(struct ring_slot))

static int open_file(struct ring_journal *j, const char *run_dir, const char *name, struct err *e)
{
	int res;

	snprintf(j->path, sizeof(j->path), "%s/ring-%s.journal", run_dir, name);
	j->fd = open(j->path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (j->fd < 0)
		return err_set(e, -errno, "%s: cannot open the ring's journal: %s", j->path, strerror(errno));
	res = -posix_fallocate(j->fd, 0, (off_t)RING_MAP_BYTES);
	if (res < 0)
		return err_set(e, res, "%s: no room for the ring's journal (%zu bytes): %s", j->path,
			       RING_MAP_BYTES, strerror(-res));
	return 0;
}

int ring_journal_open(const char *run_dir, const char *name, const void *binding, unsigned binding_bytes,
		      struct ring_journal **out, struct err *e)
{
	struct ring_journal *j = calloc(1, sizeof(*j));
	void *mem;
	int res;

	if (!j)
		return err_set(e, -ENOMEM, "no memory for a journal");
	CHECK(binding_bytes <= BINDING_BYTES);
	j->fd = -1;
	res = run_dir ? open_file(j, run_dir, name, e) : 0;
	if (res < 0)
		goto fail;
	mem = mmap(NULL, RING_MAP_BYTES, PROT_READ | PROT_WRITE,
		   run_dir ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, j->fd, 0);
	if (mem == MAP_FAILED) {
		res = err_set(e, -errno, "%s: cannot map the ring's journal: %s", j->path, strerror(errno));
		goto fail;
	}
	j->hdr = mem;
	j->slots = (struct ring_slot *)(void *)((char *)mem + sizeof(struct ring_header));
	j->hdr->version = RING_VERSION;
	j->hdr->binding_bytes = binding_bytes;
	memcpy(j->hdr->binding, binding, binding_bytes);
	__atomic_thread_fence(__ATOMIC_RELEASE);
	memcpy(j->hdr->magic, "blkdring", 8); /* NOLINT(bugprone-not-null-terminated-result): no string */
	*out = j;
	return 0;
fail:
	ring_journal_close(j, true);
	return res;
}

void ring_journal_close(struct ring_journal *j, bool keep)
{
	if (!j)
		return;
	if (j->hdr)
		munmap(j->hdr, RING_MAP_BYTES);
	if (j->fd >= 0) {
		if (!keep && unlink(j->path) < 0 && errno != ENOENT)
			log_warn("%s: cannot remove the ring's journal: %s", j->path, strerror(errno));
		close(j->fd);
	}
	free(j);
}

struct ring_slot *ring_journal_slot(struct ring_journal *j, unsigned i)
{
	DCHECK(i < RING_JOURNAL_SLOTS);
	return &j->slots[i];
}

void ring_journal_consumed(struct ring_journal *j, uint32_t req_cons)
{
	__atomic_store_n(&j->hdr->req_cons, req_cons, __ATOMIC_RELEASE);
}

void ring_journal_published(struct ring_journal *j, uint32_t rsp_prod)
{
	__atomic_store_n(&j->hdr->rsp_prod, rsp_prod, __ATOMIC_RELEASE);
}
