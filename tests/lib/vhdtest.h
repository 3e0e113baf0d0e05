/*
 * VHDs in memory for tests: made by vhd_create, then changed byte by byte. The block writer here is a few
 * lines of its own, so that reading is tested without the write path.
 */
#ifndef TESTS_LIB_VHDTEST_H
#define TESTS_LIB_VHDTEST_H

#include "tests/lib/membacking.h"

#include "blkd/format.h"
#include "blkd/vhd.h"
#include "formats/vhd/layout.h"

#define TV_HDR 512u  /* where vhd_create puts the header */
#define TV_BAT 1536u /* and the BAT */
#define TV_MIB (1ull << 20)

/* A new image in a new file. Fails the test (abort) if it cannot be made. */
static MEM_UNUSED struct mem_file *tv_create(const char *path, const struct vhd_create_opts *o)
{
	struct mem_file *f = mem_file_new(path, 0);
	struct backing *b = mem_open(f, BACKING_WRITE);
	struct err e = ERR_INIT;

	if (vhd_create(b, o, &e)) {
		fprintf(stderr, "vhd_create: %s\n", e.text);
		abort();
	}
	b->ops->close(b);
	return f;
}

static MEM_UNUSED struct mem_file *tv_dynamic(const char *path, uint64_t size_bytes)
{
	struct vhd_create_opts o = {.kind = VHD_KIND_DYNAMIC, .size_bytes = size_bytes, .exact_size = true};

	return tv_create(path, &o);
}

static MEM_UNUSED struct mem_file *tv_child(const char *path, const struct image *parent,
					    const char *parent_path, uint64_t size_bytes)
{
	struct vhd_create_opts o = {
	    .kind = VHD_KIND_DIFFERENCING,
	    .size_bytes = size_bytes,
	    .exact_size = true,
	    .parent = parent,
	    .parent_path = parent_path,
	};

	return tv_create(path, &o);
}

static MEM_UNUSED void tv_poke32(struct mem_file *f, uint64_t off, uint32_t v)
{
	unsigned char raw[4];

	be32_store(raw, v);
	mem_poke(f, off, raw, 4);
}

static MEM_UNUSED void tv_poke64(struct mem_file *f, uint64_t off, uint64_t v)
{
	unsigned char raw[8];

	be64_store(raw, v);
	mem_poke(f, off, raw, 8);
}

static MEM_UNUSED uint32_t tv_peek32(struct mem_file *f, uint64_t off)
{
	unsigned char raw[4];

	mem_peek(f, off, raw, 4);
	return be32_load(raw);
}

/* Makes the checksum of the footer at off right again. */
static MEM_UNUSED void tv_fix_footer(struct mem_file *f, uint64_t off)
{
	unsigned char raw[VHD_FOOTER_BYTES];

	mem_peek(f, off, raw, sizeof(raw));
	tv_poke32(f, off + 64, vhd_footer_checksum(raw));
}

static MEM_UNUSED void tv_fix_header(struct mem_file *f)
{
	unsigned char raw[VHD_HEADER_BYTES];

	mem_peek(f, TV_HDR, raw, sizeof(raw));
	tv_poke32(f, TV_HDR + 36, vhd_header_checksum(raw));
}

/* Allocates a block at the end of the file, 4 KiB-aligned, and moves the footer behind it. Returns the file
 * offset of its data. */
static MEM_UNUSED uint64_t tv_add_block(struct mem_file *f, uint32_t block, const unsigned char bitmap[512])
{
	uint32_t block_bytes = tv_peek32(f, TV_HDR + 32);
	uint64_t at = round_up_u64(mem_size(f), 4096) - 512,
		 end = round_up_u64(at + 512 + block_bytes + 512, 4096);
	unsigned char footer[VHD_FOOTER_BYTES];

	mem_peek(f, 0, footer, sizeof(footer));
	tv_poke32(f, TV_BAT + block * 4, (uint32_t)(at / 512));
	mem_resize(f, end);
	mem_poke(f, at, bitmap, 512);
	mem_poke(f, end - 512, footer, sizeof(footer));
	return at + 512;
}

/* Opens what is in the file. NULL and e, if it is refused; the backing is closed then. */
static MEM_UNUSED struct image *tv_open_as(struct mem_file *f, const struct image_format *format,
					   unsigned flags, struct err *e)
{
	struct backing *b = mem_open(f, flags);
	struct image *img = NULL;
	int ret = format->open(b, &img, e);

	if (ret) {
		assert(ret < 0 && e->code == ret && e->text[0]);
		b->ops->close(b);
		return NULL;
	}
	return img;
}

static MEM_UNUSED struct image *tv_open(struct mem_file *f)
{
	struct err e = ERR_INIT;
	struct image *img = tv_open_as(f, &vhd_format, 0, &e);

	if (!img)
		fprintf(stderr, "open: %s\n", e.text);
	return img;
}

#endif
