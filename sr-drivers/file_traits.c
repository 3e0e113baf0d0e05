/*
 * Traits of a file or block device, found without changing anything.
 *
 * Alignment of direct I/O: statx(STATX_DIOALIGN) where the kernel has it (6.1), else the block device's
 * logical sector from sysfs, and in both cases one real read, because a file system may promise 512 while its
 * device refuses it. What cannot be known is taken as 4096, which every store accepts. Durability: a raw
 * device that says "write through" has nothing to lose at a power cut, and the NFS client completes a direct
 * write after COMMIT. Every local file system is volatile whatever its disk: size and extent conversion sit
 * in a journal. fallocate and hole punching: by the kind of file system, since asking changes the file; a
 * kind that turns out not to have it (ext3 under the ext4 driver) says EOPNOTSUPP at the first use, and
 * file.c learns.
 */
#include "sr-drivers/file_traits.h"
#include "blkd/bytes.h"
#include "blkd/err.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

/* linux/stat.h of 6.1: mask bit, and the offsets of stx_dio_mem_align and stx_dio_offset_align in struct
 * statx. */
#define DIOALIGN_MASK	   0x2000u
#define DIOALIGN_MEM_AT	   0x98u
#define DIOALIGN_OFFSET_AT 0x9cu
#define SYSFS_VALUE_BYTES  32u
#define PHYSICAL_MAX_BYTES 4096u /* beyond it the figure speaks of stripes, not of sectors */

/* linux/magic.h, and for NFS and GFS2 the same numbers in statfs(2). */
static const struct fs_kind {
	uint32_t magic;
	bool can_fallocate, can_punch, zeroes_on_allocate, durable_at_completion;
} fs_kinds[] = {
    {0xef53, true, true, true, false},	    /* ext4, and ext2 and ext3 through it */
    {0x58465342, true, true, true, false},  /* xfs */
    {0x9123683e, true, true, true, false},  /* btrfs */
    {0xf2f52010, true, true, true, false},  /* f2fs */
    {0x7461636f, true, false, true, false}, /* ocfs2: punches, but has no zero-range */
    {0x01161970, true, false, true, false}, /* gfs2: the same */
    {0x01021994, true, false, true, false}, /* tmpfs: the same */
    {0x794c7630, true, false, true, false}, /* overlayfs: what its upper layer has */
    {0x6969, false, false, true, true}, /* nfs: only version 4.2 allocates, and the number does not tell */
};

/* Reads a queue attribute of a block device; a partition has none of its own, its disk has. */
static int queue_attr(dev_t dev, const char *name, char *value)
{
	static const char *const where[] = {"", "../"};
	char path[128];

	for (unsigned i = 0; i < 2; i++) {
		ssize_t n;
		int fd;

		snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%squeue/%s", major(dev), minor(dev),
			 where[i], name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		n = read(fd, value, SYSFS_VALUE_BYTES - 1);
		close(fd);
		if (n > 0) {
			value[n] = 0;
			value[strcspn(value, "\n")] = 0;
			return 0;
		}
	}
	return -ENOENT;
}

/* A number that is a power of two and at least a sector, or 0. */
static uint32_t queue_bytes(dev_t dev, const char *name)
{
	char value[SYSFS_VALUE_BYTES];
	unsigned long v;

	if (queue_attr(dev, name, value))
		return 0;
	v = strtoul(value, NULL, 10);
	return v >= SECTOR_BYTES && v <= (1u << 30) && is_pow2_u64(v) ? (uint32_t)v : 0;
}

static void dio_align(int fd, uint32_t *mem_bytes, uint32_t *offset_bytes)
{
	union {
		struct statx x;
		unsigned char raw[256];
	} u = {.raw = {0}};

	*mem_bytes = *offset_bytes = 0;
	if (statx(fd, "", AT_EMPTY_PATH, DIOALIGN_MASK, &u.x) || !(u.x.stx_mask & DIOALIGN_MASK))
		return;
	memcpy(mem_bytes, u.raw + DIOALIGN_MEM_AT, sizeof(*mem_bytes));
	memcpy(offset_bytes, u.raw + DIOALIGN_OFFSET_AT, sizeof(*offset_bytes));
	if (!is_pow2_u64(*mem_bytes) || !is_pow2_u64(*offset_bytes))
		*mem_bytes = *offset_bytes = 0;
}

/* Does the store really move `bytes` at an offset that is a multiple of no more? An empty file cannot tell:
 * reading there never fails. */
static bool reads_in(int fd, uint64_t size_bytes, uint32_t bytes)
{
	void *buf;
	ssize_t n;

	if (size_bytes < 2ull * bytes)
		return false;
	if (posix_memalign(&buf, FILE_LOGICAL_MAX_BYTES, bytes))
		return false;
	n = pread(fd, buf, bytes, bytes);
	free(buf);
	return n == (ssize_t)bytes;
}

static void alignment(int fd, const struct stat *st, bool direct, struct backing_traits *t)
{
	dev_t dev = S_ISBLK(st->st_mode) ? st->st_rdev : st->st_dev;
	uint32_t mem_bytes, offset_bytes;

	dio_align(fd, &mem_bytes, &offset_bytes);
	t->logical_bytes = offset_bytes > SECTOR_BYTES ? offset_bytes : offset_bytes ? SECTOR_BYTES : 0;
	if (!t->logical_bytes)
		t->logical_bytes = queue_bytes(dev, "logical_block_size");
	if (!direct)
		t->logical_bytes = SECTOR_BYTES;
	if (!t->logical_bytes)
		t->logical_bytes =
		    reads_in(fd, (uint64_t)st->st_size, SECTOR_BYTES) ? SECTOR_BYTES : FILE_LOGICAL_MAX_BYTES;
	else if (t->logical_bytes < FILE_LOGICAL_MAX_BYTES &&
		 (uint64_t)st->st_size >= 2ull * t->logical_bytes &&
		 !reads_in(fd, (uint64_t)st->st_size, t->logical_bytes))
		t->logical_bytes = FILE_LOGICAL_MAX_BYTES;
	t->mem_align_bytes = mem_bytes ? mem_bytes : t->logical_bytes;
	t->physical_bytes = queue_bytes(dev, "physical_block_size");
	if (t->physical_bytes > PHYSICAL_MAX_BYTES)
		t->physical_bytes = PHYSICAL_MAX_BYTES;
	if (t->physical_bytes < t->logical_bytes)
		t->physical_bytes = t->logical_bytes;
}

static void block_device(const struct stat *st, struct backing_traits *t)
{
	char value[SYSFS_VALUE_BYTES];

	t->fixed_size = true;
	t->durable_at_completion =
	    !queue_attr(st->st_rdev, "write_cache", value) && !strcmp(value, "write through");
	t->can_punch = !queue_attr(st->st_rdev, "write_zeroes_max_bytes", value) && strcmp(value, "0") != 0;
}

static void file_system(int fd, bool direct, struct backing_traits *t)
{
	struct statfs fs;

	if (fstatfs(fd, &fs))
		return;
	for (unsigned i = 0; i < sizeof(fs_kinds) / sizeof(fs_kinds[0]); i++)
		if (fs_kinds[i].magic == (uint32_t)fs.f_type) {
			t->can_fallocate = fs_kinds[i].can_fallocate;
			t->can_punch = fs_kinds[i].can_punch;
			t->zeroes_on_allocate = fs_kinds[i].zeroes_on_allocate;
			t->durable_at_completion = direct && fs_kinds[i].durable_at_completion;
			return;
		}
}

int file_traits(int fd, const struct stat *st, const char *path, bool direct, struct backing_traits *t,
		struct err *e)
{
	*t = (struct backing_traits){.fence = FENCE_FILE_LOCK};
	alignment(fd, st, direct, t);
	if (t->logical_bytes > FILE_LOGICAL_MAX_BYTES)
		return err_set(
		    e, -EOPNOTSUPP,
		    "%s: its storage moves data directly only in units of %u bytes; at most %u are supported",
		    path, t->logical_bytes, FILE_LOGICAL_MAX_BYTES);
	if (S_ISBLK(st->st_mode))
		block_device(st, t);
	else
		file_system(fd, direct, t);
	return 0;
}
