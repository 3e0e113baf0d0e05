/*
 * Decoding of blkif requests and encoding of responses, for the two x86 layouts. See abi.h.
 *
 * The decoders are written once, as a macro over the struct names: the field names are the same in both
 * layouts, only the offsets differ, and those are the compiler's business here. Source:
 * xen/include/public/io/blkif.h (struct blkif_request, blkif_request_discard, blkif_request_indirect,
 * blkif_response) with the i386 and x86-64 psABI's alignment of uint64_t.
 */
#include "blkd/blkif/abi.h"

#include <errno.h>
#include <string.h>

#define PACKED __attribute__((packed))

struct PACKED req_64 {
	uint8_t op, nr_segments;
	uint16_t handle;
	uint32_t pad;
	uint64_t id, sector;
	struct blkif_seg segs[BLKIF_DIRECT_SEGS];
};
struct PACKED discard_64 {
	uint8_t op, flag;
	uint16_t handle;
	uint32_t pad;
	uint64_t id, sector, nr_sectors;
};
struct PACKED indirect_64 {
	uint8_t op, indirect_op;
	uint16_t nr_segments;
	uint32_t pad;
	uint64_t id, sector;
	uint16_t handle, pad2;
	uint32_t grefs[BLKIF_INDIRECT_GREFS];
	uint32_t pad3;
};
struct PACKED rsp_64 {
	uint64_t id;
	uint8_t op, pad;
	int16_t status;
	uint32_t pad2;
};

struct PACKED req_32 {
	uint8_t op, nr_segments;
	uint16_t handle;
	uint64_t id, sector;
	struct blkif_seg segs[BLKIF_DIRECT_SEGS];
};
struct PACKED discard_32 {
	uint8_t op, flag;
	uint16_t handle;
	uint64_t id, sector, nr_sectors;
};
struct PACKED indirect_32 {
	uint8_t op, indirect_op;
	uint16_t nr_segments;
	uint64_t id, sector;
	uint16_t handle, pad;
	uint32_t grefs[BLKIF_INDIRECT_GREFS];
	uint64_t pad2;
};
struct PACKED rsp_32 {
	uint64_t id;
	uint8_t op, pad;
	int16_t status;
};

_Static_assert(sizeof(struct req_64) == 112 && offsetof(struct req_64, id) == 8 &&
		   offsetof(struct req_64, sector) == 16 && offsetof(struct req_64, segs) == 24,
	       "x86_64 request");
_Static_assert(sizeof(struct discard_64) == 32 && offsetof(struct discard_64, nr_sectors) == 24,
	       "x86_64 discard");
_Static_assert(sizeof(struct indirect_64) == 64 && offsetof(struct indirect_64, id) == 8 &&
		   offsetof(struct indirect_64, handle) == 24 && offsetof(struct indirect_64, grefs) == 28,
	       "x86_64 indirect");
_Static_assert(sizeof(struct rsp_64) == 16 && offsetof(struct rsp_64, status) == 10, "x86_64 response");
_Static_assert(sizeof(struct req_32) == 108 && offsetof(struct req_32, id) == 4 &&
		   offsetof(struct req_32, sector) == 12 && offsetof(struct req_32, segs) == 20,
	       "x86_32 request");
_Static_assert(sizeof(struct discard_32) == 28 && offsetof(struct discard_32, nr_sectors) == 20,
	       "x86_32 discard");
_Static_assert(sizeof(struct indirect_32) == 64 && offsetof(struct indirect_32, id) == 4 &&
		   offsetof(struct indirect_32, handle) == 20 && offsetof(struct indirect_32, grefs) == 24,
	       "x86_32 indirect");
_Static_assert(sizeof(struct rsp_32) == 12 && offsetof(struct rsp_32, status) == 10, "x86_32 response");
_Static_assert(sizeof(struct req_64) == BLKIF_ENTRY_MAX_BYTES &&
		   sizeof(struct rsp_64) == BLKIF_RESPONSE_MAX_BYTES,
	       "largest");

int blkif_abi_find(const char *protocol, enum blkif_abi *abi)
{
	if (!protocol || !strcmp(protocol, "x86_64-abi"))
		*abi = BLKIF_ABI_X86_64;
	else if (!strcmp(protocol, "x86_32-abi"))
		*abi = BLKIF_ABI_X86_32;
	else
		return -ENOTSUP;
	return 0;
}

const char *blkif_abi_name(enum blkif_abi abi)
{
	return abi == BLKIF_ABI_X86_64 ? "x86_64-abi" : "x86_32-abi";
}

unsigned blkif_entry_bytes(enum blkif_abi abi)
{
	return abi == BLKIF_ABI_X86_64 ? sizeof(struct req_64) : sizeof(struct req_32);
}

unsigned blkif_response_bytes(enum blkif_abi abi)
{
	return abi == BLKIF_ABI_X86_64 ? sizeof(struct rsp_64) : sizeof(struct rsp_32);
}

unsigned blkif_ring_entries(enum blkif_abi abi, unsigned pages)
{
	unsigned fit = (pages * 4096u - BLKIF_RING_HEADER_BYTES) / blkif_entry_bytes(abi);
	unsigned n = 1;

	while (n * 2 <= fit)
		n *= 2;
	return n;
}

#define DECODE(bits)                                                                                         \
	static void decode_##bits(const void *raw, struct blkif_req *out)                                    \
	{                                                                                                    \
		union {                                                                                      \
			struct req_##bits direct;                                                            \
			struct discard_##bits discard;                                                       \
			struct indirect_##bits indirect;                                                     \
		} u;                                                                                         \
                                                                                                             \
		memcpy(&u, raw, sizeof(u));                                                                  \
		out->op = out->inner = u.direct.op;                                                          \
		out->id = u.direct.id;                                                                       \
		out->sector = u.direct.sector;                                                               \
		if (u.direct.op == BLKIF_DISCARD) {                                                          \
			out->flag = u.discard.flag;                                                          \
			out->nr_sectors = u.discard.nr_sectors;                                              \
		} else if (u.direct.op == BLKIF_INDIRECT) {                                                  \
			out->inner = u.indirect.indirect_op;                                                 \
			out->nr_segments = u.indirect.nr_segments;                                           \
			memcpy(out->grefs, u.indirect.grefs, sizeof(out->grefs));                            \
		} else {                                                                                     \
			unsigned n = u.direct.nr_segments;                                                   \
                                                                                                             \
			out->nr_segments = (uint16_t)n;                                                      \
			memcpy(out->segs, u.direct.segs,                                                     \
			       (n < BLKIF_DIRECT_SEGS ? n : BLKIF_DIRECT_SEGS) * sizeof(out->segs[0]));      \
		}                                                                                            \
	}

DECODE(64)
DECODE(32)

void blkif_decode(enum blkif_abi abi, const void *raw, struct blkif_req *out)
{
	memset(out, 0, sizeof(*out));
	if (abi == BLKIF_ABI_X86_64)
		decode_64(raw, out);
	else
		decode_32(raw, out);
}

void blkif_encode_response(enum blkif_abi abi, uint64_t id, uint8_t op, int16_t status, void *raw)
{
	if (abi == BLKIF_ABI_X86_64) {
		struct rsp_64 r = {.id = id, .op = op, .status = status};

		memcpy(raw, &r, sizeof(r));
	} else {
		struct rsp_32 r = {.id = id, .op = op, .status = status};

		memcpy(raw, &r, sizeof(r));
	}
}

int16_t blkif_status_of(int result)
{
	if (result >= 0)
		return BLKIF_OKAY;
	return result == -EOPNOTSUPP ? BLKIF_NOTSUPP : BLKIF_ERROR;
}
