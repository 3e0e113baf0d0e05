/*
 * The judge; see vhdref.h. Every number is read from the bytes each time it is needed: nothing is remembered
 * that could go stale.
 *
 * Judged: the footer copy at 0 and the header, checksums, reserved bytes; that BAT, batmap and locators lie
 * apart and in the file; that every block lies behind the metadata, in the file, before the trailing footer,
 * and no two overlap; that the batmap says "full" only of blocks whose bitmap is full.
 */
#include "tests/crash/vhdref.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define NO_BLOCK 0xffffffffu

static bool bad(char *why, size_t n, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

static bool bad(char *why, size_t n, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, n, fmt, ap);
	va_end(ap);
	return false;
}

static void fetch(const struct vref_bytes *f, uint64_t off, uint8_t *out, size_t n)
{
	while (n) {
		size_t in = off % 4096, part = n < 4096 - in ? n : 4096 - in;
		size_t have = off >= f->size ? 0 : f->size - off < part ? (size_t)(f->size - off) : part;
		const uint8_t *page = have ? f->page[off / 4096] : NULL;

		memset(out, 0, part);
		if (page)
			memcpy(out, page + in, have);
		out += part;
		off += part;
		n -= part;
	}
}

static uint64_t number(const uint8_t *p, unsigned bytes)
{
	uint64_t v = 0;

	while (bytes--)
		v = v << 8 | *p++;
	return v;
}

static uint64_t number_at(const struct vref_bytes *f, uint64_t off, unsigned bytes)
{
	uint8_t b[8];

	fetch(f, off, b, bytes);
	return number(b, bytes);
}

/* Sum of all bytes but the four of the checksum field, inverted. */
static uint32_t sum_without(const uint8_t *p, size_t n, size_t field)
{
	uint32_t sum = 0;

	for (size_t i = 0; i < n; i++)
		if (i < field || i >= field + 4)
			sum += p[i];
	return ~sum;
}

static bool all(const uint8_t *p, size_t n, uint8_t v)
{
	while (n--)
		if (*p++ != v)
			return false;
	return true;
}

static bool judge_footer(const uint8_t f[512], uint64_t *size, bool *diff, char *why, size_t n)
{
	uint64_t type = number(f + 60, 4);

	if (memcmp(f, "conectix", 8))
		return bad(why, n, "footer: no cookie");
	if (number(f + 64, 4) != sum_without(f, 512, 64))
		return bad(why, n, "footer: checksum");
	if (!(f[11] & 2) || (f[11] & ~3) || f[8] || f[9] || f[10])
		return bad(why, n, "footer: features");
	if (number(f + 12, 4) != 0x10000 || number(f + 16, 8) != 512)
		return bad(why, n, "footer: version or data offset");
	if (type != 3 && type != 4)
		return bad(why, n, "footer: type %llu", (unsigned long long)type);
	if (all(f + 68, 16, 0) || f[84] > 1 || f[85] > 1 || !all(f + 86, 426, 0))
		return bad(why, n, "footer: uuid, flags or reserved bytes");
	*size = number(f + 48, 8);
	*diff = type == 4;
	return *size && *size % 512 == 0 ? true : bad(why, n, "footer: size");
}

static uint64_t bat_end(const struct vref *v)
{
	uint64_t entries = number_at(&v->f, 512 + 28, 4);

	return v->bat_off + (entries * 4 + 511) / 512 * 512;
}

static bool judge_header(struct vref *v, char *why, size_t n)
{
	uint8_t h[1024];
	uint64_t entries;

	fetch(&v->f, 512, h, sizeof(h));
	if (memcmp(h, "cxsparse", 8) || !all(h + 8, 8, 0xff))
		return bad(why, n, "header: cookie or data offset");
	if (number(h + 36, 4) != sum_without(h, 1024, 36))
		return bad(why, n, "header: checksum");
	if (number(h + 24, 4) != 0x10000 || !all(h + 60, 4, 0) || !all(h + 768, 256, 0))
		return bad(why, n, "header: version or reserved bytes");
	v->bat_off = number(h + 16, 8);
	entries = number(h + 28, 4);
	v->block = (uint32_t)number(h + 32, 4);
	if (v->block < 4096 || v->block & (v->block - 1))
		return bad(why, n, "header: block size %u", v->block);
	v->n_blocks = (uint32_t)((v->size + v->block - 1) / v->block);
	if (entries < v->n_blocks || v->bat_off < 1536 || v->bat_off % 512 ||
	    v->bat_off + entries * 4 > v->f.size)
		return bad(why, n, "header: BAT of %llu entries at %llu", (unsigned long long)entries,
			   (unsigned long long)v->bat_off);
	memcpy(v->parent_uuid, h + 40, 16);
	if (!v->differencing && (!all(v->parent_uuid, 16, 0) || !all(h + 64, 512, 0)))
		return bad(why, n, "header: a dynamic disk with a parent");
	return true;
}

/* First byte behind all metadata. */
static uint64_t metadata_end(const struct vref *v)
{
	uint64_t end = bat_end(v);
	uint8_t b[512];

	fetch(&v->f, end, b, 512);
	if (!memcmp(b, "tdbatmap", 8)) {
		uint64_t map_end = number(b + 8, 8) + number(b + 16, 4) * 512;

		end = map_end > end + 512 ? map_end : end + 512;
	}
	for (unsigned i = 0; i < 8; i++) {
		uint64_t at = 512 + 576 + 24 * i, room = number_at(&v->f, at + 4, 4);

		if (number_at(&v->f, at, 4)) {
			uint64_t loc_end = number_at(&v->f, at + 16, 8) + (room < 512 ? room * 512 : room);

			end = loc_end > end ? loc_end : end;
		}
	}
	return end;
}

/* A batmap whose checksum is wrong is no batmap: map and checksum cannot change in one write. */
static void find_batmap(struct vref *v)
{
	uint8_t b[512], map[512];
	uint64_t off, covered, sum = 0;

	fetch(&v->f, bat_end(v), b, 512);
	if (memcmp(b, "tdbatmap", 8) || number(b + 20, 4) != 0x10002)
		return;
	off = number(b + 8, 8);
	covered = ((v->size >> 24) + 511) / 512 * 512;
	for (uint64_t at = 0; at < covered; at += 512) {
		fetch(&v->f, off + at, map, 512);
		for (unsigned i = 0; i < 512; i++)
			sum += map[i];
	}
	if ((uint32_t)~sum != number(b + 24, 4) || !covered)
		return;
	v->batmap_off = off;
	v->batmap_bits = (uint32_t)(covered * 8);
}

static uint32_t entry(const struct vref *v, uint32_t block)
{
	return (uint32_t)number_at(&v->f, v->bat_off + 4ull * block, 4);
}

static bool bit(const struct vref *v, uint32_t at_sector, uint64_t sector_in_block)
{
	uint8_t b;

	fetch(&v->f, at_sector * 512ull + sector_in_block / 8, &b, 1);
	return b >> (7 - sector_in_block % 8) & 1;
}

static bool judge_block(const struct vref *v, uint32_t block, uint64_t room_end, char *why, size_t n)
{
	uint32_t at = entry(v, block);
	uint64_t bytes = 512ull + v->block, off = at * 512ull;

	if (off < metadata_end(v) || off + bytes > room_end)
		return bad(why, n, "BAT[%u] = sector %u: block outside %llu..%llu", block, at,
			   (unsigned long long)metadata_end(v), (unsigned long long)room_end);
	for (uint32_t i = 0; i < block; i++) {
		uint32_t other = entry(v, i);

		if (other != NO_BLOCK && off < other * 512ull + bytes && other * 512ull < off + bytes)
			return bad(why, n, "BAT[%u] = sector %u overlaps BAT[%u] = sector %u", block, at, i,
				   other);
	}
	return true;
}

static bool judge_batmap(const struct vref *v, char *why, size_t n)
{
	for (uint32_t i = 0; v->batmap_off && i < v->n_blocks && i < v->batmap_bits; i++) {
		uint8_t b;
		uint32_t at = entry(v, i);

		fetch(&v->f, v->batmap_off + i / 8, &b, 1);
		if (!(b >> (7 - i % 8) & 1))
			continue;
		if (at == NO_BLOCK)
			return bad(why, n, "batmap: block %u is full but not allocated", i);
		for (uint64_t s = 0; s < v->block / 512 && i * (v->block / 512ull) + s < v->size / 512; s++)
			if (!bit(v, at, s))
				return bad(why, n, "batmap: block %u is full but sector %llu is not there", i,
					   (unsigned long long)s);
	}
	return true;
}

static bool judge_end(const struct vref *v, const uint8_t copy[512], enum vref_close how, uint64_t used_end,
		      char *why, size_t n)
{
	uint8_t tail[512];

	if (how == VREF_CUT)
		return true;
	if (v->f.size % 512)
		return bad(why, n, "file size %llu is no multiple of 512", (unsigned long long)v->f.size);
	fetch(&v->f, v->f.size - 512, tail, 512);
	if (memcmp(tail, copy, 512))
		return bad(why, n, "trailing footer at %llu differs from the copy at 0",
			   (unsigned long long)v->f.size - 512);
	if (how == VREF_CLEAN && v->f.size - 512 >= used_end + 4096)
		return bad(why, n, "closed with slack: blocks end at %llu, footer at %llu",
			   (unsigned long long)used_end, (unsigned long long)v->f.size - 512);
	return true;
}

bool vref_open(struct vref *v, const struct vref_bytes *f, enum vref_close how, char *why, size_t n)
{
	uint8_t footer[512];
	uint64_t used_end;

	*v = (struct vref){.f = *f};
	fetch(f, 0, footer, 512);
	if (!judge_footer(footer, &v->size, &v->differencing, why, n) || !judge_header(v, why, n))
		return false;
	memcpy(v->uuid, footer + 68, 16);
	find_batmap(v);
	used_end = metadata_end(v);
	for (uint32_t i = 0; i < v->n_blocks; i++) {
		uint64_t end;

		if (entry(v, i) == NO_BLOCK)
			continue;
		/* A cut may have taken the trailing footer, never a byte of a block. */
		if (!judge_block(v, i, how == VREF_CUT ? f->size : f->size - 512, why, n))
			return false;
		end = entry(v, i) * 512ull + 512 + v->block;
		used_end = end > used_end ? end : used_end;
	}
	return judge_batmap(v, why, n) && judge_end(v, footer, how, used_end, why, n);
}

void vref_open_raw(struct vref *v, const struct vref_bytes *f)
{
	*v = (struct vref){.f = *f, .raw = true, .size = f->size / 512 * 512};
}

void vref_read(const struct vref *const *chain, unsigned depth, uint64_t sector, uint8_t out[512])
{
	for (unsigned i = 0; i < depth; i++) {
		const struct vref *v = chain[i];
		uint64_t per_block = v->block / 512;
		uint32_t at;

		if (sector >= v->size / 512)
			break;
		if (v->raw) {
			fetch(&v->f, sector * 512, out, 512);
			return;
		}
		at = entry(v, (uint32_t)(sector / per_block));
		if (at != NO_BLOCK && bit(v, at, sector % per_block)) {
			fetch(&v->f, at * 512ull + 512 + sector % per_block * 512, out, 512);
			return;
		}
	}
	memset(out, 0, 512);
}
