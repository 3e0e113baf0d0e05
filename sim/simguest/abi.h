/*
 * The two byte layouts of the blkif ring, as offsets. A request is built in a private buffer and copied into
 * the ring once; a response is copied out of the ring once. The layouts are ours (public headers have only
 * the compiler's own); abi.c asserts that the 64-bit one is what xen/io/blkif.h compiles to.
 */
#ifndef SIMGUEST_ABI_H
#define SIMGUEST_ABI_H

#include <stdint.h>

#define ABI_ENTRY_MAX 112u
#define ABI_RSP_MAX   16u

struct abi {
	const char *name;     /* what --abi says */
	const char *protocol; /* what the `protocol` node says; NULL: not written */
	uint32_t entry_bytes, rsp_bytes;
	uint32_t id_off, sector_off, seg_off;  /* READ, WRITE, WRITE_BARRIER, FLUSH_DISKCACHE */
	uint32_t ind_handle_off, ind_gref_off; /* INDIRECT; id and sector as above */
	uint32_t discard_nr_off;	       /* DISCARD */
};

struct segment {
	uint32_t gref;
	uint8_t first_sect, last_sect;
};

struct response {
	uint64_t id;
	uint8_t operation;
	int16_t status;
	uint8_t pad[5]; /* the bytes between and behind the fields */
	uint32_t npad;
};

const struct abi *abi_find(const char *name);

/* Each fills all of entry[ABI_ENTRY_MAX]: unused bytes are zero. */
void abi_put_direct(const struct abi *a, uint8_t *entry, uint8_t op, uint64_t id, uint16_t handle,
		    uint64_t sector, const struct segment *seg, unsigned nseg);
void abi_put_indirect(const struct abi *a, uint8_t *entry, uint8_t op, uint64_t id, uint16_t handle,
		      uint64_t sector, unsigned nseg, const uint32_t *grefs, unsigned ngrefs);
void abi_put_discard(const struct abi *a, uint8_t *entry, uint64_t id, uint16_t handle, uint64_t sector,
		     uint64_t nr_sectors);

/* One segment in the 8-byte form that requests and indirect pages share. */
void abi_put_segment(uint8_t *p, const struct segment *seg);

void abi_get_response(const struct abi *a, const uint8_t *bytes, struct response *rsp);

#endif
