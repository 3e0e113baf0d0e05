/* HOT PATH: no malloc, no log, no syscall, no lock. */
/*
 * The door: what a client may ask, decided from the request and the session alone, and how results are told.
 * After nbd_request_check() said yes nobody looks at flags or ranges again.
 *
 * Refusals follow the protocol's advice: EPERM for changes of a read-only export, ENOSPC for changes beyond
 * the end, EINVAL for the rest. A length of 0 is refused too: the protocol leaves it open.
 */
#include "blkd/nbd/proto.h"

#include <errno.h>

enum nbd_error nbd_error_of(int res)
{
	switch (-res) {
	case 0:
		return NBD_OK;
	case EPERM:
	case EROFS:
	case EACCES:
		return NBD_EPERM;
	case ENOMEM:
		return NBD_ENOMEM;
	case EINVAL:
		return NBD_EINVAL;
	case ENOSPC:
	case EDQUOT:
	case EFBIG:
		return NBD_ENOSPC;
	case EOVERFLOW:
		return NBD_EOVERFLOW;
	case EOPNOTSUPP:
		return NBD_ENOTSUP;
	case ESHUTDOWN:
		return NBD_ESHUTDOWN;
	default:
		return NBD_EIO;
	}
}

static enum nbd_error check_range(const struct nbd_session *s, const struct nbd_request *r,
				  enum nbd_error beyond)
{
	if (!r->len_bytes || (r->off_bytes | r->len_bytes) % NBD_MIN_BLOCK_BYTES)
		return NBD_EINVAL;
	if (r->off_bytes > s->size_bytes || r->len_bytes > s->size_bytes - r->off_bytes)
		return beyond;
	return NBD_OK;
}

static enum nbd_error check_read(const struct nbd_session *s, const struct nbd_request *r)
{
	if (r->flags & NBD_CMD_FLAG_DF && !s->structured)
		return NBD_EINVAL;
	return r->len_bytes > NBD_MAX_BLOCK_BYTES ? NBD_EINVAL : check_range(s, r, NBD_EINVAL);
}

enum nbd_error nbd_request_check(const struct nbd_session *s, const struct nbd_request *r)
{
	/* FUA is legal with every command. */
	static const uint16_t flags[] = {
	    [NBD_CMD_READ] = NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_DF,
	    [NBD_CMD_WRITE] = NBD_CMD_FLAG_FUA,
	    [NBD_CMD_DISC] = NBD_CMD_FLAG_FUA,
	    [NBD_CMD_FLUSH] = NBD_CMD_FLAG_FUA,
	    [NBD_CMD_TRIM] = NBD_CMD_FLAG_FUA,
	    [NBD_CMD_WRITE_ZEROES] = NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
	    [NBD_CMD_BLOCK_STATUS] = NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE,
	};

	if (r->type >= sizeof(flags) / sizeof(flags[0]) || r->flags & ~(unsigned)flags[r->type])
		return NBD_EINVAL;
	switch (r->type) {
	case NBD_CMD_READ:
		return check_read(s, r);
	case NBD_CMD_WRITE:
	case NBD_CMD_WRITE_ZEROES:
		return s->read_only ? NBD_EPERM : check_range(s, r, NBD_ENOSPC);
	case NBD_CMD_TRIM:
		return s->read_only ? NBD_EPERM : check_range(s, r, NBD_EINVAL);
	case NBD_CMD_FLUSH:
		return r->off_bytes || r->len_bytes ? NBD_EINVAL : NBD_OK;
	case NBD_CMD_BLOCK_STATUS:
		return s->block_status ? check_range(s, r, NBD_EINVAL) : NBD_EINVAL;
	default:
		return NBD_EINVAL;
	}
}

uint16_t nbd_transmission_flags(bool read_only, bool structured)
{
	/* All connections of an export share one device, whose FLUSH covers what any of them was answered. */
	unsigned flags =
	    NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_CAN_MULTI_CONN;

	flags |= read_only ? NBD_FLAG_READ_ONLY
			   : NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
	flags |= structured ? NBD_FLAG_SEND_DF : 0;
	return (uint16_t)flags;
}
