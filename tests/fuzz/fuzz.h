/*
 * What the fuzz targets share: a flat image in memory as the backing, and a mutator that knows enough of VHD
 * to make checksums right again.
 *
 * An input is: 4 bytes (little-endian: zero sectors in the gap), the head of the file, and its last 512
 * bytes. The gap lets a small input be a file that is large enough for its blocks.
 */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include "blkd/log.h"
#include "tests/lib/vhdmut.h"

#include <stdint.h>

#define FLAT_CAP      (64ull << 20)
#define FUZZ_GAP_MASK 0x3fffu /* sectors: below 8 MiB */

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

struct flat {
	struct backing b;
	uint64_t size;
	uint64_t changes;
	bool open;
};

static unsigned char *flat_mem;
static struct flat flat;
static char flat_path[] = "/f/image.vhd";

static int flat_read(struct backing *b, uint64_t off, void *buf, size_t len)
{
	uint64_t have = off < flat.size ? flat.size - off : 0;

	(void)b;
	if (off > (uint64_t)INT64_MAX || len > (uint64_t)INT64_MAX - off)
		abort();
	have = have < len ? have : len;
	if (have)
		memcpy(buf, flat_mem + off, have);
	memset((char *)buf + have, 0, len - have);
	return 0;
}

static int flat_write(struct backing *b, uint64_t off, const void *buf, size_t len)
{
	flat.changes++;
	if (!b->writable)
		abort();
	if (off > FLAT_CAP || len > FLAT_CAP - off)
		return -ENOSPC;
	memcpy(flat_mem + off, buf, len);
	flat.size = flat.size > off + len ? flat.size : off + len;
	return 0;
}

static int flat_flush(struct backing *b)
{
	(void)b;
	return 0;
}

static int flat_size(struct backing *b, uint64_t *size)
{
	(void)b;
	*size = flat.size;
	return 0;
}

/* Zeros; whole pages are given back, which is cheaper than touching them. */
static void flat_clear(uint64_t off, uint64_t end)
{
	uint64_t first = (off + 4095) & ~4095ull, last = end & ~4095ull;

	if (first >= last) {
		memset(flat_mem + off, 0, end - off);
		return;
	}
	memset(flat_mem + off, 0, first - off);
	madvise(flat_mem + first, last - first, MADV_DONTNEED);
	memset(flat_mem + last, 0, end - last);
}

static int flat_truncate(struct backing *b, uint64_t size)
{
	(void)b;
	flat.changes++;
	if (size > FLAT_CAP)
		return -ENOSPC;
	if (size < flat.size)
		flat_clear(size, flat.size);
	flat.size = size;
	return 0;
}

static int flat_extend(struct backing *b, uint64_t size)
{
	return size > flat.size ? flat_truncate(b, size) : 0;
}

static int flat_zero(struct backing *b, uint64_t off, uint64_t len)
{
	(void)b;
	flat.changes++;
	if (off < flat.size)
		flat_clear(off, len < flat.size - off ? off + len : flat.size);
	return 0;
}

static int flat_fence(struct backing *b, unsigned wait_ms)
{
	(void)b;
	(void)wait_ms;
	return 0;
}

static void flat_close(struct backing *b)
{
	(void)b;
	if (!flat.open)
		abort();
	flat.open = false;
}

static const struct backing_ops flat_ops = {
    .name = "flat",
    .read = flat_read,
    .write = flat_write,
    .flush = flat_flush,
    .size = flat_size,
    .extend = flat_extend,
    .truncate = flat_truncate,
    .zero = flat_zero,
    .fence = flat_fence,
    .close = flat_close,
};

static struct backing *flat_open(bool writable)
{
	if (flat.open)
		abort();
	flat.open = true;
	flat.b = (struct backing){
	    .ops = &flat_ops, .fd = -1, .writable = writable, .path = flat_path, .dev_id = 1, .ino = 1};
	flat.b.traits = (struct backing_traits){.logical_bytes = 512,
						.physical_bytes = 4096,
						.mem_align_bytes = 512,
						.zeroes_on_allocate = true,
						.can_fallocate = true,
						.can_punch = true};
	return &flat.b;
}

/* A tree of one: whatever is named as a parent is the image itself, or not there. */
static MEM_UNUSED int flat_opener_open(void *ctx, const char *path, unsigned flags, struct backing **out,
				       struct err *e)
{
	(void)ctx;
	(void)flags;
	if (flat.open || !strstr(path, "image"))
		return err_set(e, -ENOENT, "%s: no such file", path);
	*out = flat_open(false);
	return 0;
}

static bool flat_load(const uint8_t *data, size_t size)
{
	uint64_t gap, head;

	if (size < 4)
		return false;
	gap = ((uint32_t)data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16) & FUZZ_GAP_MASK;
	data += 4;
	size -= 4;
	head = size >= 512 ? size - 512 : size;
	madvise(flat_mem, FLAT_CAP, MADV_DONTNEED);
	memcpy(flat_mem, data, head);
	flat.size = head + (size >= 512 ? gap * 512 + 512 : 0);
	if (size >= 512)
		memcpy(flat_mem + flat.size - 512, data + head, 512);
	flat.changes = 0;
	flat.open = false;
	return true;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	flat_mem =
	    mmap(NULL, FLAT_CAP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (flat_mem == MAP_FAILED)
		abort();
	log_set_level(LOG_ERROR);
	return 0;
}

/* ---- the mutator ---- */

struct input {
	uint8_t *p;
	size_t n;
	uint64_t gap_bytes;
};

/* Bytes of the file, through the input's form; the gap is zeros and stays so. */
static void input_move(struct input *in, uint64_t off, unsigned char *buf, size_t len, bool put)
{
	uint64_t head = in->n - 4 - 512;

	for (size_t i = 0; i < len; i++) {
		uint64_t at = off + i;
		uint8_t *byte = at < head		    ? in->p + 4 + at
				: at < head + in->gap_bytes ? NULL
							    : in->p + 4 + at - in->gap_bytes;

		if (byte && at >= head + in->gap_bytes + 512)
			byte = NULL;
		if (put && byte)
			*byte = buf[i];
		else if (!put)
			buf[i] = byte ? *byte : 0;
	}
}

static void input_get(void *ctx, uint64_t off, void *buf, size_t len)
{
	input_move(ctx, off, buf, len, false);
}

static void input_put(void *ctx, uint64_t off, const void *buf, size_t len)
{
	unsigned char copy[1024];

	memcpy(copy, buf, len);
	input_move(ctx, off, copy, len, true);
}

static void poke_field(const struct mut_bytes *b, unsigned r)
{
	const struct mut_field *f;
	unsigned char be[8];
	uint64_t base;

	be64_store(be, mut_value(r >> 16 & 63, b->size));
	switch (r % 5) {
	case 0:
		f = &mut_footer_fields[(r >> 4) % MUT_COUNT(mut_footer_fields)];
		base = r & 0x80000000 ? 0 : b->size - 512;
		break;
	case 1:
		f = &mut_header_fields[(r >> 4) % MUT_COUNT(mut_header_fields)];
		base = MUT_HEADER_OFF;
		break;
	case 2:
		f = &mut_locator_fields[(r >> 4) % MUT_COUNT(mut_locator_fields)];
		base = MUT_HEADER_OFF + 576 + 24 * (r >> 10 & 7);
		break;
	case 3:
		f = &mut_batmap_fields[(r >> 4) % MUT_COUNT(mut_batmap_fields)];
		base = 2048;
		break;
	default:
		be32_store(be + 4, (r >> 8) % (unsigned)(b->size / 512 + 2));
		b->put(b->ctx, MUT_BAT_OFF + 4 * (r >> 4 & 7), be + 4, 4);
		return;
	}
	b->put(b->ctx, base + f->off, be + 8 - f->len, f->len);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
	struct input in;
	struct mut_bytes b = {input_get, input_put, &in, 0};

	if (seed % 4)
		size = LLVMFuzzerMutate(data, size, max_size);
	if (size < 4 + 1024)
		return size;
	in = (struct input){data, size, 0};
	in.gap_bytes =
	    (((uint32_t)data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16) & FUZZ_GAP_MASK) * 512ull;
	b.size = size - 4 + in.gap_bytes;
	if (seed % 4 == 0 || seed % 3 == 0)
		poke_field(&b, seed * 2654435761u);
	if (seed % 7 == 0) { /* as after a clean close */
		unsigned char f[512];

		b.get(b.ctx, 0, f, 512);
		b.put(b.ctx, b.size - 512, f, 512);
	}
	if (seed % 16)
		mut_fix(&b, MUT_FIX_ALL);
	return size;
}

#endif
