/*
 * blkif layouts as tables of offsets, so that one builder serves both. Source of the 32-bit offsets: the i386
 * rule that a 64-bit integer is aligned to 4 bytes, applied to xen/io/blkif.h. `native` is the 64-bit layout
 * without a `protocol` node.
 */
#include "sim/simguest/abi.h"

#include <stddef.h>
#include <string.h>

#include <xen/xen.h>
#include <xen/io/blkif.h>

static const struct abi abis[] = {
    {.name = "x86_64",
     .protocol = "x86_64-abi",
     .entry_bytes = 112,
     .rsp_bytes = 16,
     .id_off = 8,
     .sector_off = 16,
     .seg_off = 24,
     .ind_handle_off = 24,
     .ind_gref_off = 28,
     .discard_nr_off = 24},
    {.name = "native",
     .protocol = NULL,
     .entry_bytes = 112,
     .rsp_bytes = 16,
     .id_off = 8,
     .sector_off = 16,
     .seg_off = 24,
     .ind_handle_off = 24,
     .ind_gref_off = 28,
     .discard_nr_off = 24},
    {.name = "x86_32",
     .protocol = "x86_32-abi",
     .entry_bytes = 108,
     .rsp_bytes = 12,
     .id_off = 4,
     .sector_off = 12,
     .seg_off = 20,
     .ind_handle_off = 20,
     .ind_gref_off = 24,
     .discard_nr_off = 20},
};

#ifdef __x86_64__
_Static_assert(sizeof(union blkif_sring_entry) == 112, "ring entry");
_Static_assert(sizeof(struct blkif_response) == 16 && offsetof(struct blkif_response, status) == 10,
	       "response");
_Static_assert(offsetof(struct blkif_request, id) == 8 && offsetof(struct blkif_request, sector_number) == 16,
	       "request");
_Static_assert(offsetof(struct blkif_request, seg) == 24, "segments");
_Static_assert(offsetof(struct blkif_request_indirect, handle) == 24, "indirect handle");
_Static_assert(offsetof(struct blkif_request_indirect, indirect_grefs) == 28, "indirect grefs");
_Static_assert(offsetof(struct blkif_request_discard, nr_sectors) == 24, "discard");
_Static_assert(offsetof(struct blkif_sring, ring) == 64, "ring header");
#endif
_Static_assert(sizeof(struct blkif_request_segment) == 8, "segment");

const struct abi *abi_find(const char *name)
{
	for (size_t i = 0; i < sizeof(abis) / sizeof(abis[0]); i++) {
		if (!strcmp(abis[i].name, name))
			return &abis[i];
	}
	return NULL;
}

static void put16(uint8_t *p, uint16_t v)
{
	memcpy(p, &v, sizeof(v));
}

static void put32(uint8_t *p, uint32_t v)
{
	memcpy(p, &v, sizeof(v));
}

static void put64(uint8_t *p, uint64_t v)
{
	memcpy(p, &v, sizeof(v));
}

void abi_put_segment(uint8_t *p, const struct segment *seg)
{
	put32(p, seg->gref);
	p[4] = seg->first_sect;
	p[5] = seg->last_sect;
	put16(p + 6, 0);
}

static void put_head(const struct abi *a, uint8_t *entry, uint8_t op, uint8_t second, uint16_t third,
		     uint64_t id, uint64_t sector)
{
	memset(entry, 0, ABI_ENTRY_MAX);
	entry[0] = op;
	entry[1] = second;
	put16(entry + 2, third);
	put64(entry + a->id_off, id);
	put64(entry + a->sector_off, sector);
}

void abi_put_direct(const struct abi *a, uint8_t *entry, uint8_t op, uint64_t id, uint16_t handle,
		    uint64_t sector, const struct segment *seg, unsigned nseg)
{
	put_head(a, entry, op, (uint8_t)nseg, handle, id, sector);
	for (unsigned i = 0; i < nseg; i++)
		abi_put_segment(entry + a->seg_off + i * 8, &seg[i]);
}

void abi_put_indirect(const struct abi *a, uint8_t *entry, uint8_t op, uint64_t id, uint16_t handle,
		      uint64_t sector, unsigned nseg, const uint32_t *grefs, unsigned ngrefs)
{
	put_head(a, entry, BLKIF_OP_INDIRECT, op, (uint16_t)nseg, id, sector);
	put16(entry + a->ind_handle_off, handle);
	for (unsigned i = 0; i < ngrefs; i++)
		put32(entry + a->ind_gref_off + i * 4, grefs[i]);
}

void abi_put_discard(const struct abi *a, uint8_t *entry, uint64_t id, uint16_t handle, uint64_t sector,
		     uint64_t nr_sectors)
{
	put_head(a, entry, BLKIF_OP_DISCARD, 0, handle, id, sector);
	put64(entry + a->discard_nr_off, nr_sectors);
}

void abi_get_response(const struct abi *a, const uint8_t *bytes, struct response *rsp)
{
	memset(rsp, 0, sizeof(*rsp));
	memcpy(&rsp->id, bytes, 8);
	rsp->operation = bytes[8];
	memcpy(&rsp->status, bytes + 10, 2);
	rsp->pad[0] = bytes[9];
	rsp->npad = 1;
	for (uint32_t i = 12; i < a->rsp_bytes; i++)
		rsp->pad[rsp->npad++] = bytes[i];
}
