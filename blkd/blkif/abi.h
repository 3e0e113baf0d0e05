/*
 * The bytes of a blkif ring: two layouts of one protocol (xen/io/blkif.h), and the one form in which the rest
 * of blkd sees a request.
 *
 * The layouts are what a 64-bit and a 32-bit x86 compiler make of the public header's structs, written down
 * here as packed structs with their offsets asserted: the header itself has only the layout of whoever
 * compiles it. "native" is x86_64, as blkd is. The two differ in the padding before 64-bit members and
 * nothing else.
 *
 * Decoding takes a private copy of a ring entry; nothing here ever looks at shared memory. Nothing here
 * judges either: that is the door's work (ring.c). Byte order is the host's, on both sides.
 */
#ifndef BLKD_BLKIF_ABI_H
#define BLKD_BLKIF_ABI_H

#include <stddef.h>
#include <stdint.h>

enum blkif_op { /* xen/io/blkif.h, BLKIF_OP_* */
		BLKIF_READ = 0,
		BLKIF_WRITE = 1,
		BLKIF_WRITE_BARRIER = 2,
		BLKIF_FLUSH = 3,
		BLKIF_DISCARD = 5,
		BLKIF_INDIRECT = 6,
};

enum blkif_status { /* BLKIF_RSP_* */
		    BLKIF_OKAY = 0,
		    BLKIF_ERROR = -1,
		    BLKIF_NOTSUPP = -2,
};

#define BLKIF_DIRECT_SEGS	 11u
#define BLKIF_INDIRECT_SEGS	 256u /* what we advertise; the protocol's end is 4096 */
#define BLKIF_SEGS_PER_PAGE	 512u
#define BLKIF_INDIRECT_GREFS	 8u
#define BLKIF_DISCARD_SECURE	 1u /* flag bit */
#define BLKIF_PAGE_SECTORS	 8u
#define BLKIF_ENTRY_MAX_BYTES	 112u
#define BLKIF_RESPONSE_MAX_BYTES 16u
#define BLKIF_RING_HEADER_BYTES	 64u
#define BLKIF_MAX_ORDER		 4u
#define BLKIF_MAX_ENTRIES	 512u

_Static_assert(BLKIF_INDIRECT_SEGS <= BLKIF_SEGS_PER_PAGE, "one indirect page has all segments of a request");

/* A piece of a guest page; the same 8 bytes in requests of both layouts and in indirect pages. */
struct blkif_seg {
	uint32_t gref;
	uint8_t first_sect, last_sect; /* inclusive; of 512 bytes */
	uint16_t pad;
};
_Static_assert(sizeof(struct blkif_seg) == 8 && offsetof(struct blkif_seg, first_sect) == 4, "segment");

/* xen/io/ring.h: the first bytes of every shared ring. */
struct blkif_shared {
	uint32_t req_prod, req_event; /* the guest's; ours */
	uint32_t rsp_prod, rsp_event; /* ours; the guest's */
	uint8_t reserved[48];
};
_Static_assert(sizeof(struct blkif_shared) == BLKIF_RING_HEADER_BYTES, "ring header");

enum blkif_abi { BLKIF_ABI_X86_64, BLKIF_ABI_X86_32 };

/* A request as everybody but abi.c sees it. */
struct blkif_req {
	uint8_t op;	      /* as the guest wrote it; of INDIRECT: `inner` has what is meant */
	uint8_t inner;	      /* INDIRECT: indirect_op; else op */
	uint8_t flag;	      /* DISCARD */
	uint16_t nr_segments; /* DISCARD: 0 */
	uint64_t id;
	uint64_t sector;     /* 512 bytes, whatever sector-size says */
	uint64_t nr_sectors; /* DISCARD only */
	union {
		struct blkif_seg segs[BLKIF_DIRECT_SEGS];
		uint32_t grefs[BLKIF_INDIRECT_GREFS]; /* INDIRECT */
	};
};

/* By the frontend's `protocol` node; NULL means native. -ENOTSUP: unknown. */
int blkif_abi_find(const char *protocol, enum blkif_abi *);
const char *blkif_abi_name(enum blkif_abi);

/* Size of a ring entry: of the larger of request and response. */
unsigned blkif_entry_bytes(enum blkif_abi);
unsigned blkif_response_bytes(enum blkif_abi);
/* Entries of a ring of so many pages (1..16): a power of two. */
unsigned blkif_ring_entries(enum blkif_abi, unsigned pages);

/* Any thread, pure. raw: blkif_entry_bytes() private bytes. Fields that the operation does not have are 0; of
 * segments only nr_segments (11 at most) are taken over. */
void blkif_decode(enum blkif_abi, const void *raw, struct blkif_req *out);

/* All blkif_response_bytes() of a response, padding zero (XSA-216), into private memory. */
void blkif_encode_response(enum blkif_abi, uint64_t id, uint8_t op, int16_t status, void *raw);

/* What a guest is told of a result of ours: 0 or -errno. */
int16_t blkif_status_of(int result);

#endif
