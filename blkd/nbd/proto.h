/*
 * What goes over the wire: numbers, and the checks of a request that need nothing but the request. Source of
 * every value: NetworkBlockDevice/nbd, doc/proto.md. All integers are big-endian.
 */
#ifndef BLKD_NBD_PROTO_H
#define BLKD_NBD_PROTO_H

#include <stdbool.h>
#include <stdint.h>

/* ---- handshake ---- */

#define NBD_MAGIC     0x4e42444d41474943ull /* "NBDMAGIC" */
#define NBD_OPT_MAGIC 0x49484156454f5054ull /* "IHAVEOPT" */
#define NBD_REP_MAGIC 0x0003e889045565a9ull

enum { NBD_FLAG_FIXED_NEWSTYLE = 1u << 0, NBD_FLAG_NO_ZEROES = 1u << 1 }; /* both sides use the same bits */

enum nbd_option {
	NBD_OPT_EXPORT_NAME = 1,
	NBD_OPT_ABORT = 2,
	NBD_OPT_LIST = 3,
	NBD_OPT_STARTTLS = 5,
	NBD_OPT_INFO = 6,
	NBD_OPT_GO = 7,
	NBD_OPT_STRUCTURED_REPLY = 8,
	NBD_OPT_LIST_META_CONTEXT = 9,
	NBD_OPT_SET_META_CONTEXT = 10,
};

#define NBD_REP_ACK	     1u
#define NBD_REP_SERVER	     2u
#define NBD_REP_INFO	     3u
#define NBD_REP_META_CONTEXT 4u
#define NBD_REP_ERR_UNSUP    0x80000001u
#define NBD_REP_ERR_INVALID  0x80000003u
#define NBD_REP_ERR_UNKNOWN  0x80000006u
#define NBD_REP_ERR_TOO_BIG  0x80000009u

enum { NBD_INFO_EXPORT = 0, NBD_INFO_NAME = 1, NBD_INFO_DESCRIPTION = 2, NBD_INFO_BLOCK_SIZE = 3 };

/* Transmission flags. */
#define NBD_FLAG_HAS_FLAGS	   (1u << 0)
#define NBD_FLAG_READ_ONLY	   (1u << 1)
#define NBD_FLAG_SEND_FLUSH	   (1u << 2)
#define NBD_FLAG_SEND_FUA	   (1u << 3)
#define NBD_FLAG_SEND_TRIM	   (1u << 5)
#define NBD_FLAG_SEND_WRITE_ZEROES (1u << 6)
#define NBD_FLAG_SEND_DF	   (1u << 7)
#define NBD_FLAG_CAN_MULTI_CONN	   (1u << 8)
#define NBD_FLAG_SEND_FAST_ZERO	   (1u << 11)

/* ---- transmission ---- */

#define NBD_REQUEST_MAGIC      0x25609513u
#define NBD_SIMPLE_REPLY_MAGIC 0x67446698u
#define NBD_CHUNK_MAGIC	       0x668e33efu /* structured reply */

enum {
	NBD_REQUEST_BYTES = 28,
	NBD_SIMPLE_REPLY_BYTES = 16,
	NBD_CHUNK_BYTES = 20, /* before the payload */
};

enum nbd_cmd_type {
	NBD_CMD_READ = 0,
	NBD_CMD_WRITE = 1,
	NBD_CMD_DISC = 2,
	NBD_CMD_FLUSH = 3,
	NBD_CMD_TRIM = 4,
	NBD_CMD_WRITE_ZEROES = 6,
	NBD_CMD_BLOCK_STATUS = 7,
};

#define NBD_CMD_FLAG_FUA       (1u << 0)
#define NBD_CMD_FLAG_NO_HOLE   (1u << 1)
#define NBD_CMD_FLAG_DF	       (1u << 2)
#define NBD_CMD_FLAG_REQ_ONE   (1u << 3)
#define NBD_CMD_FLAG_FAST_ZERO (1u << 4)

#define NBD_CHUNK_FLAG_DONE 1u

#define NBD_CHUNK_NONE	       0u
#define NBD_CHUNK_OFFSET_DATA  1u
#define NBD_CHUNK_OFFSET_HOLE  2u
#define NBD_CHUNK_BLOCK_STATUS 5u
#define NBD_CHUNK_ERROR	       0x8001u

#define NBD_STATE_HOLE 1u
#define NBD_STATE_ZERO 2u

#define NBD_CONTEXT_ID 1u /* of base:allocation, the only one */

enum nbd_error {
	NBD_OK = 0,
	NBD_EPERM = 1,
	NBD_EIO = 5,
	NBD_ENOMEM = 12,
	NBD_EINVAL = 22,
	NBD_ENOSPC = 28,
	NBD_EOVERFLOW = 75,
	NBD_ENOTSUP = 95,
	NBD_ESHUTDOWN = 108,
};

/* What this server asks of its clients. */
#define NBD_MIN_BLOCK_BYTES	  512u
#define NBD_PREFERRED_BLOCK_BYTES 4096u
#define NBD_MAX_BLOCK_BYTES	  (32u << 20)

struct nbd_request {
	uint64_t cookie, off_bytes;
	uint32_t len_bytes;
	uint16_t flags, type;
};

/* What a connection agreed on, as far as a request is judged by it. */
struct nbd_session {
	uint64_t size_bytes;
	bool read_only, structured, block_status;
};

/* The error value for a negative errno (0: NBD_OK): the only translation there is. Values that the protocol
 * does not know become NBD_EIO. */
enum nbd_error nbd_error_of(int res);

/* Judges a request completely, except for what only the device knows. NBD_OK: it may be carried out. */
enum nbd_error nbd_request_check(const struct nbd_session *, const struct nbd_request *);

/* Transmission flags of an export. */
uint16_t nbd_transmission_flags(bool read_only, bool structured);

#endif
