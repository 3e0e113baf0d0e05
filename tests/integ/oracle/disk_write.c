/*
 * Writes at random into a disk through blkd's formats, and the same into a flat file with plain system calls:
 * disk_write IMAGE MODEL SEED N. Both are closed cleanly; whoever reads the image afterwards should find what
 * the model holds.
 */
#include "blkd/backing.h"
#include "blkd/disk.h"
#include "blkd/err.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_BYTES (300u * 1024)

static struct err e;

static void check(int ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "disk_write: %s: %s\n", what, e.text);
	exit(1);
}

/* Fills buf with what the model shall hold after the operation, having done it on the disk. */
static void step(const struct chain *c, uint64_t off, unsigned char *buf, uint32_t len)
{
	switch (rand() % 8) {
	case 0:
		check(!chain_write(c, WRITE_ZERO, off, NULL, len, &e), "zero");
		memset(buf, 0, len);
		break;
	case 1: /* old bytes or zeros: what it became is asked */
		check(!chain_write(c, WRITE_TRIM, off, NULL, len, &e), "trim");
		check(!chain_read(c, off, buf, len, &e), "read");
		break;
	default:
		for (uint32_t i = 0; i < len; i++)
			buf[i] = (unsigned char)(rand() >> 8);
		check(!chain_write(c, WRITE_DATA, off, buf, len, &e), "write");
		break;
	}
}

int main(int argc, char **argv)
{
	static unsigned char buf[MAX_BYTES];
	struct disk_opts opts = {.writable = true, .backing_flags = BACKING_BUFFERED};
	struct disk *disk = NULL;
	uint64_t units;
	uint32_t unit;
	int model;

	if (argc < 5)
		return 2;
	unit = argc > 5 ? (uint32_t)atoi(argv[5]) : 512;
	opts.path = argv[1];
	srand((unsigned)atoi(argv[3]));
	check(!disk_open(&opts, &disk, &e), "open");
	units = disk->chain.size_bytes / unit;
	model = open(argv[2], O_RDWR);
	check(model >= 0 && (uint64_t)lseek(model, 0, SEEK_END) == disk->chain.size_bytes,
	      "the model's size");
	for (int i = 0; i < atoi(argv[4]); i++) {
		uint64_t first = ((uint64_t)rand() << 16 ^ (uint64_t)rand()) % units;
		uint64_t most = units - first < MAX_BYTES / unit ? units - first : MAX_BYTES / unit;
		uint32_t len = (uint32_t)(1 + (uint64_t)rand() % most) * unit;

		step(&disk->chain, first * unit, buf, len);
		check(pwrite(model, buf, len, (off_t)(first * unit)) == (ssize_t)len, "model");
	}
	check(!disk_finish(disk, &e), "finish");
	disk_close(disk);
	close(model);
	return 0;
}
