/*
 * The blkif layouts against the public header: what the compiler makes of xen/io/blkif.h is our x86_64
 * layout, and the x86_32 one is it with 64-bit members aligned to 4.
 */
#include "blkd/blkif/abi.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <xen/xen.h>
#include <xen/io/blkif.h>

#include <cmocka.h>

static void native_sizes_are_the_public_headers(void **state)
{
	(void)state;
	assert_int_equal(blkif_entry_bytes(BLKIF_ABI_X86_64), sizeof(struct blkif_request));
	assert_int_equal(blkif_response_bytes(BLKIF_ABI_X86_64), sizeof(struct blkif_response));
	assert_int_equal(blkif_entry_bytes(BLKIF_ABI_X86_32), 108);
	assert_int_equal(blkif_response_bytes(BLKIF_ABI_X86_32), 12);
	assert_int_equal(BLKIF_DIRECT_SEGS, BLKIF_MAX_SEGMENTS_PER_REQUEST);
	assert_int_equal(BLKIF_INDIRECT_GREFS, BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST);
	assert_int_equal(sizeof(struct blkif_seg), sizeof(struct blkif_request_segment));
}

static void operations_and_statuses_are_the_public_headers(void **state)
{
	(void)state;
	assert_int_equal(BLKIF_READ, BLKIF_OP_READ);
	assert_int_equal(BLKIF_WRITE, BLKIF_OP_WRITE);
	assert_int_equal(BLKIF_WRITE_BARRIER, BLKIF_OP_WRITE_BARRIER);
	assert_int_equal(BLKIF_FLUSH, BLKIF_OP_FLUSH_DISKCACHE);
	assert_int_equal(BLKIF_DISCARD, BLKIF_OP_DISCARD);
	assert_int_equal(BLKIF_INDIRECT, BLKIF_OP_INDIRECT);
	assert_int_equal(BLKIF_OKAY, BLKIF_RSP_OKAY);
	assert_int_equal(BLKIF_ERROR, BLKIF_RSP_ERROR);
	assert_int_equal(BLKIF_NOTSUPP, BLKIF_RSP_EOPNOTSUPP);
}

static void rings_have_32_entries_a_page(void **state)
{
	const unsigned entries[] = {32, 64, 128, 256, 512};

	(void)state;
	for (unsigned order = 0; order <= BLKIF_MAX_ORDER; order++) {
		assert_int_equal(blkif_ring_entries(BLKIF_ABI_X86_64, 1u << order), entries[order]);
		assert_int_equal(blkif_ring_entries(BLKIF_ABI_X86_32, 1u << order), entries[order]);
	}
}

static void native_direct_request_decodes(void **state)
{
	struct blkif_request raw = {.operation = BLKIF_OP_WRITE,
				    .nr_segments = 11,
				    .handle = 7,
				    .id = 0x1122334455667788,
				    .sector_number = 99};
	struct blkif_req q;

	(void)state;
	for (unsigned i = 0; i < 11; i++)
		raw.seg[i] =
		    (struct blkif_request_segment){.gref = 100 + i, .first_sect = 1, .last_sect = (uint8_t)i};
	blkif_decode(BLKIF_ABI_X86_64, &raw, &q);
	assert_int_equal(q.op, BLKIF_WRITE);
	assert_int_equal(q.inner, BLKIF_WRITE);
	assert_int_equal(q.nr_segments, 11);
	assert_int_equal(q.id, 0x1122334455667788);
	assert_int_equal(q.sector, 99);
	for (unsigned i = 0; i < 11; i++) {
		assert_int_equal(q.segs[i].gref, 100 + i);
		assert_int_equal(q.segs[i].first_sect, 1);
		assert_int_equal(q.segs[i].last_sect, i);
	}
}

static void segment_count_255_reads_eleven(void **state)
{
	struct blkif_request raw;
	struct blkif_req q;

	(void)state;
	memset(&raw, 0xff, sizeof(raw));
	raw.operation = BLKIF_OP_READ;
	blkif_decode(BLKIF_ABI_X86_64, &raw, &q);
	assert_int_equal(q.nr_segments, 255);
	assert_int_equal(q.segs[10].gref, 0xffffffff);
}

static void native_indirect_and_discard_decode(void **state)
{
	union {
		struct blkif_request all;
		struct blkif_request_indirect ind;
		struct blkif_request_discard dis;
	} raw = {.all = {0}};
	struct blkif_req q;

	(void)state;
	raw.ind.operation = BLKIF_OP_INDIRECT;
	raw.ind.indirect_op = BLKIF_OP_WRITE;
	raw.ind.nr_segments = 4096;
	raw.ind.id = 5;
	raw.ind.sector_number = 6;
	for (unsigned i = 0; i < 8; i++)
		raw.ind.indirect_grefs[i] = 70 + i;
	blkif_decode(BLKIF_ABI_X86_64, &raw, &q);
	assert_int_equal(q.op, BLKIF_INDIRECT);
	assert_int_equal(q.inner, BLKIF_WRITE);
	assert_int_equal(q.nr_segments, 4096);
	assert_int_equal(q.id, 5);
	assert_int_equal(q.sector, 6);
	assert_int_equal(q.grefs[0], 70);
	assert_int_equal(q.grefs[7], 77);

	memset(&raw, 0, sizeof(raw));
	raw.dis.operation = BLKIF_OP_DISCARD;
	raw.dis.flag = BLKIF_DISCARD_SECURE;
	raw.dis.id = 8;
	raw.dis.sector_number = 9;
	raw.dis.nr_sectors = 1ull << 40;
	blkif_decode(BLKIF_ABI_X86_64, &raw, &q);
	assert_int_equal(q.op, BLKIF_DISCARD);
	assert_int_equal(q.flag, 1);
	assert_int_equal(q.nr_segments, 0);
	assert_int_equal(q.sector, 9);
	assert_int_equal(q.nr_sectors, 1ull << 40);
}

static void put(unsigned char *raw, unsigned at, uint64_t v, unsigned bytes)
{
	memcpy(raw + at, &v, bytes);
}

/* By the offsets that tapback and blkback have for 32-bit frontends. */
static void x86_32_requests_decode(void **state)
{
	unsigned char raw[108] = {0};
	struct blkif_req q;

	(void)state;
	put(raw, 0, BLKIF_OP_READ, 1);
	put(raw, 1, 2, 1);
	put(raw, 4, 0xaabbccdd00112233, 8);
	put(raw, 12, 0x1234567890, 8);
	put(raw, 28, 55, 4);
	put(raw, 32, 3, 1);
	put(raw, 33, 4, 1);
	blkif_decode(BLKIF_ABI_X86_32, raw, &q);
	assert_int_equal(q.op, BLKIF_READ);
	assert_int_equal(q.nr_segments, 2);
	assert_int_equal(q.id, 0xaabbccdd00112233);
	assert_int_equal(q.sector, 0x1234567890);
	assert_int_equal(q.segs[1].gref, 55);
	assert_int_equal(q.segs[1].first_sect, 3);
	assert_int_equal(q.segs[1].last_sect, 4);

	memset(raw, 0, sizeof(raw));
	put(raw, 0, BLKIF_OP_INDIRECT, 1);
	put(raw, 1, BLKIF_OP_READ, 1);
	put(raw, 2, 200, 2);
	put(raw, 4, 1, 8);
	put(raw, 12, 2, 8);
	put(raw, 24, 77, 4);
	blkif_decode(BLKIF_ABI_X86_32, raw, &q);
	assert_int_equal(q.inner, BLKIF_READ);
	assert_int_equal(q.nr_segments, 200);
	assert_int_equal(q.grefs[0], 77);

	memset(raw, 0, sizeof(raw));
	put(raw, 0, BLKIF_OP_DISCARD, 1);
	put(raw, 12, 2, 8);
	put(raw, 20, 64, 8);
	blkif_decode(BLKIF_ABI_X86_32, raw, &q);
	assert_int_equal(q.sector, 2);
	assert_int_equal(q.nr_sectors, 64);
}

static void responses_have_zero_padding(void **state)
{
	unsigned char raw[17];
	struct blkif_response r;

	(void)state;
	memset(raw, 0xee, sizeof(raw));
	blkif_encode_response(BLKIF_ABI_X86_64, 0x0102030405060708, 1, -2, raw);
	memcpy(&r, raw, sizeof(r));
	assert_int_equal(r.id, 0x0102030405060708);
	assert_int_equal(r.operation, 1);
	assert_int_equal(r.status, -2);
	assert_int_equal(raw[9], 0);
	for (unsigned i = 12; i < 16; i++)
		assert_int_equal(raw[i], 0);
	assert_int_equal(raw[16], 0xee);

	memset(raw, 0xee, sizeof(raw));
	blkif_encode_response(BLKIF_ABI_X86_32, 3, 2, 0, raw);
	assert_int_equal(raw[8], 2);
	assert_int_equal(raw[9], 0);
	assert_int_equal(raw[10], 0);
	assert_int_equal(raw[12], 0xee);
}

static void protocols_are_known_or_refused(void **state)
{
	enum blkif_abi abi;

	(void)state;
	assert_int_equal(blkif_abi_find(NULL, &abi), 0);
	assert_int_equal(abi, BLKIF_ABI_X86_64);
	assert_int_equal(blkif_abi_find("x86_32-abi", &abi), 0);
	assert_int_equal(abi, BLKIF_ABI_X86_32);
	assert_string_equal(blkif_abi_name(abi), "x86_32-abi");
	assert_int_equal(blkif_abi_find("arm-abi", &abi), -ENOTSUP);
	assert_int_equal(blkif_abi_find("", &abi), -ENOTSUP);
	assert_int_equal(blkif_abi_find("x86_64-abi ", &abi), -ENOTSUP);
}

static void results_become_statuses(void **state)
{
	(void)state;
	assert_int_equal(blkif_status_of(0), BLKIF_OKAY);
	assert_int_equal(blkif_status_of(-EOPNOTSUPP), BLKIF_NOTSUPP);
	assert_int_equal(blkif_status_of(-EIO), BLKIF_ERROR);
	assert_int_equal(blkif_status_of(-ENOSPC), BLKIF_ERROR);
	assert_int_equal(blkif_status_of(-EROFS), BLKIF_ERROR);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(native_sizes_are_the_public_headers),
	    cmocka_unit_test(operations_and_statuses_are_the_public_headers),
	    cmocka_unit_test(rings_have_32_entries_a_page),
	    cmocka_unit_test(native_direct_request_decodes),
	    cmocka_unit_test(segment_count_255_reads_eleven),
	    cmocka_unit_test(native_indirect_and_discard_decode),
	    cmocka_unit_test(x86_32_requests_decode),
	    cmocka_unit_test(responses_have_zero_padding),
	    cmocka_unit_test(protocols_are_known_or_refused),
	    cmocka_unit_test(results_become_statuses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
