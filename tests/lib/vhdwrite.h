/*
 * Driving the write half of the VHD format by hand: pieces and acts one at a time, each of which can be made
 * to fail, with a trace of what was handed out. Images of any block size, made byte by byte (vhd_create makes
 * 2 MiB blocks only).
 */
#ifndef TESTS_LIB_VHDWRITE_H
#define TESTS_LIB_VHDWRITE_H

#include "tests/lib/membacking.h"

#include "blkd/format.h"
#include "formats/vhd/vhd.h"
#include "formats/vhd/vhd_read.h"

#define VW_ACTS	 8u
#define VW_TRACE 512u

struct vw_image_opts {
	uint64_t size_bytes;
	uint32_t block_bytes;
	bool batmap;
	bool differencing; /* names a parent that no test opens */
	bool hidden;
};

/* An empty image: footer copy, header, BAT, batmap, footer; the file ends on 4 KiB. */
static MEM_UNUSED struct mem_file *vw_create(const char *path, const struct vw_image_opts *o)
{
	uint32_t n = (uint32_t)vhd_blocks_of(o->size_bytes, o->block_bytes);
	uint64_t bat_end = VHD_BAT_OFF + vhd_bat_bytes(n), end = bat_end;
	uint32_t map_sectors = (uint32_t)(round_up_u64((n + 7) / 8, 512) / 512);
	struct vhd_footer_info footer = {
	    .features = VHD_FEATURE_RESERVED,
	    .version = VHD_VERSION_1_0,
	    .data_offset = VHD_HEADER_OFF,
	    .creator_app = {'t', 'a', 'p', 0},
	    .creator_version = o->batmap ? VHD_CREATOR_VERSION(1, 3) : VHD_CREATOR_VERSION(1, 0),
	    .orig_size = o->size_bytes,
	    .curr_size = o->size_bytes,
	    .type = o->differencing ? VHD_DIFFERENCING : VHD_DYNAMIC,
	    .uuid = {1, 2, 3},
	    .hidden = o->hidden,
	};
	struct vhd_header_info header = {
	    .data_offset = VHD_NO_OFFSET,
	    .table_offset = VHD_BAT_OFF,
	    .version = VHD_VERSION_1_0,
	    .bat_entries = n,
	    .block_bytes = o->block_bytes,
	};
	struct mem_file *f = mem_file_new(path, 0);
	unsigned char raw[VHD_HEADER_BYTES], ff[512];

	if (o->batmap)
		end = bat_end + VHD_BATMAP_HEADER_BYTES + (uint64_t)map_sectors * 512;
	if (o->differencing) {
		header.parent_uuid[0] = 9;
		memcpy(header.parent_name, "\0p", 2);
	}
	end = round_up_u64(end + 512, 4096);
	mem_resize(f, end);
	memset(ff, 0xff, sizeof(ff));
	for (uint64_t at = VHD_BAT_OFF; at < bat_end; at += 512)
		mem_poke(f, at, ff, 512);
	vhd_header_build(&header, raw);
	mem_poke(f, VHD_HEADER_OFF, raw, VHD_HEADER_BYTES);
	if (o->batmap) {
		struct vhd_batmap_info map = {
		    .map_off = bat_end + VHD_BATMAP_HEADER_BYTES,
		    .map_sectors = map_sectors,
		    .version = VHD_BATMAP_VERSION_1_2,
		    .checksum = 0xffffffff,
		    .generation = 1,
		};

		vhd_batmap_build(&map, raw);
		mem_poke(f, bat_end, raw, VHD_BATMAP_HEADER_BYTES);
	}
	vhd_footer_build(&footer, raw);
	mem_poke(f, 0, raw, VHD_FOOTER_BYTES);
	mem_poke(f, end - 512, raw, VHD_FOOTER_BYTES);
	return f;
}

/* Opens for reading; NULL and a line on stderr if it is refused. */
static MEM_UNUSED struct image *vw_open(struct mem_file *f, unsigned flags)
{
	struct backing *b = mem_open(f, flags);
	struct err e = ERR_INIT;
	struct image *img;

	if (vhd_format.open(b, &img, &e)) {
		fprintf(stderr, "open: %s\n", e.text);
		b->ops->close(b);
		return NULL;
	}
	return img;
}

static MEM_UNUSED struct image *vw_open_write(struct mem_file *f)
{
	struct image *img = vw_open(f, BACKING_WRITE);
	struct err e = ERR_INIT;

	if (img && vhd_begin_writing(img, &e)) {
		fprintf(stderr, "begin_writing: %s\n", e.text);
		vhd_close(img);
		return NULL;
	}
	return img;
}

/* ---- acts ---- */

struct vw_job {
	struct job job;
	struct meta_act acts[VW_ACTS];
	unsigned char bufs[VW_ACTS][META_PAGE_BYTES];
	unsigned n; /* handed out by the last vw_next */
};

static MEM_UNUSED int vw_next(struct image *img, struct vw_job *j, unsigned max)
{
	int n;

	for (unsigned i = 0; i < VW_ACTS; i++)
		j->acts[i] = (struct meta_act){.buf = memset(j->bufs[i], 0xa5, META_PAGE_BYTES)};
	n = vhd_job_next(img, &j->job, j->acts, max);
	j->n = n > 0 ? (unsigned)n : 0;
	return n;
}

static MEM_UNUSED int vw_act_do(struct image *img, const struct meta_act *a)
{
	struct backing *b = img->file;

	switch (a->kind) {
	case ACT_FLUSH:
		return b->ops->flush(b);
	case ACT_WRITE:
		assert(a->len_bytes && a->len_bytes % 512 == 0 && a->len_bytes <= META_PAGE_BYTES);
		assert(a->off_bytes + a->len_bytes <= mem_size(((struct mem_backing *)b)->file));
		return b->ops->write(b, a->off_bytes, a->buf, a->len_bytes);
	case ACT_EXTEND:
		return b->ops->extend(b, a->off_bytes + a->len_bytes);
	case ACT_TRUNCATE:
		return b->ops->truncate(b, a->off_bytes);
	case ACT_ZERO:
	case ACT_PUNCH:
		return b->ops->zero(b, a->off_bytes, a->len_bytes);
	}
	return -EINVAL;
}

/* What a job did, one letter an act (F W E T Z P), places in off[]. fail_at: the nth act (from 1) fails with
 * -EIO and is not done. */
struct vw_trace {
	char acts[VW_TRACE + 1];
	uint64_t off[VW_TRACE];
	unsigned n;
	unsigned fail_at;
	int fail_errno;
};

static MEM_UNUSED int vw_run(struct image *img, enum job_kind kind, struct vw_trace *t)
{
	static struct vw_trace scratch;
	struct vw_job j;
	int ret = vhd_job_begin(img, kind, &j.job);

	if (!t) {
		t = &scratch;
		memset(t, 0, sizeof(*t));
	}
	while (!ret) {
		int n = vw_next(img, &j, VW_ACTS);

		assert(n >= 0);
		if (!n)
			return j.job.res;
		for (int i = 0; i < n; i++) {
			int res = 0;

			assert(t->n < VW_TRACE);
			t->off[t->n] = j.acts[i].off_bytes;
			t->acts[t->n++] = "FWETZP"[j.acts[i].kind];
			t->acts[t->n] = 0;
			if (t->n == t->fail_at)
				res = -(t->fail_errno ? t->fail_errno : EIO);
			vhd_job_done(img, &j.job, &j.acts[i], res ? res : vw_act_do(img, &j.acts[i]));
		}
	}
	return ret;
}

/* ---- pieces ---- */

/* write_begin, with bitmaps brought and slots made as it asks; the piece is not done. */
static MEM_UNUSED int vw_begin(struct image *img, enum write_op op, unsigned flags, uint64_t off,
			       uint64_t len, struct write_piece *p)
{
	unsigned char sector[512];
	int ret;

	for (;;) {
		ret = vhd_write_begin(img, op, flags, off, len, p);
		if (ret != -EINPROGRESS || p->park == PARK_EPOCH)
			return ret;
		if (p->park == PARK_GROW) {
			ret = vw_run(img, JOB_GROW, NULL);
			if (ret)
				return ret;
			continue;
		}
		ret = img->file->ops->read(img->file, p->park_key, sector, 512);
		vhd_meta_put(img, p->park_key, sector, ret);
		if (ret)
			return ret;
	}
}

static MEM_UNUSED int vw_piece_do(struct image *img, const struct write_piece *p, const void *buf)
{
	struct backing *b = img->file;

	switch (p->act) {
	case PIECE_WRITE:
		return b->ops->write(b, p->file_off, buf, p->len_bytes);
	case PIECE_PUNCH:
		assert(p->file_off % 4096 == 0 && p->len_bytes % 4096 == 0);
		return b->ops->zero(b, p->file_off, p->len_bytes);
	case PIECE_ZERO:
		return b->ops->zero(b, p->file_off, p->len_bytes);
	case PIECE_NOTHING:
		return 0;
	}
	return -EINVAL;
}

/* The whole range, commits when it must wait for one. Every byte becomes fill. Returns the newest epoch it
 * depends on, or -errno. */
static MEM_UNUSED int64_t vw_write(struct image *img, enum write_op op, unsigned flags, uint64_t off,
				   uint64_t len, int fill)
{
	unsigned char *buf = malloc(len);
	struct write_piece p;
	uint64_t epoch = 0;
	int ret = 0;

	memset(buf, fill, len);
	while (len && !ret) {
		ret = vw_begin(img, op, flags, off, len, &p);
		if (ret == -EINPROGRESS) {
			ret = vw_run(img, JOB_COMMIT, NULL);
			continue;
		}
		if (ret)
			break;
		ret = vw_piece_do(img, &p, buf);
		vhd_write_end(img, &p, ret);
		epoch = p.epoch > epoch ? p.epoch : epoch;
		off += p.len_bytes;
		len -= p.len_bytes;
	}
	free(buf);
	return ret ? ret : (int64_t)epoch;
}

/* One sector as the image alone has it: absent ones read as `below`. */
static MEM_UNUSED void vw_read_sector(struct image *img, uint64_t off, unsigned char buf[512], int below)
{
	unsigned char sector[512];
	const void *meta = NULL;
	struct extent x;

	vhd_map(img, NULL, off, 512, &x);
	if (x.kind == EXT_META) {
		meta = vhd_meta_get(img, x.file_off);
		if (!meta) {
			assert(!img->file->ops->read(img->file, x.file_off, sector, 512));
			vhd_meta_put(img, x.file_off, sector, 0);
			meta = vhd_meta_get(img, x.file_off);
			if (!meta)
				meta = sector;
		}
		vhd_map(img, meta, off, 512, &x);
	}
	if (x.kind == EXT_DATA)
		assert(!img->file->ops->read(img->file, x.file_off, buf, 512));
	else
		memset(buf, below, 512);
}

/* The value of all bytes of a sector, or -1 if they differ. */
static MEM_UNUSED int vw_value(struct image *img, uint64_t off, int below)
{
	unsigned char buf[512];

	vw_read_sector(img, off, buf, below);
	return memcmp(buf, buf + 1, 511) ? -1 : buf[0];
}

#endif
