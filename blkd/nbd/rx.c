/* HOT PATH: no malloc, no log, no syscall but readv, no lock. */
/*
 * Requests: from the socket to the device.
 *
 * The socket is read in large pieces into the connection's buffer, and as many requests as are there are
 * parsed out of it: one system call for many requests. A write's payload that is there already is copied; the
 * rest of it is read straight into the request's buffer, with the requests that follow in the same call.
 *
 * Nothing of the device waits for a client: a write takes the device's last buffer only when its payload is
 * complete; until then the payload gathers in the connection's own buffer, which has room for it.
 *
 * What stops fetch(). Nothing in the socket: its descriptor is armed. No slot, or the connection holds as
 * many bytes as it may: goes on when an answer left. No buffer: the device says when. In the last two cases
 * the socket is not read, so the client is held up by its own unread answers.
 *
 * A request that the door refuses is answered from here, in its place, and the payload of a refused write is
 * thrown away.
 */
#include "blkd/nbd/conn.h"

#include "blkd/bytes.h"
#include "blkd/log.h"

#include <errno.h>
#include <sys/uio.h>

enum step {
	STEP_REQUEST, /* one for the device */
	STEP_ON,      /* some progress */
	STEP_STALL,   /* goes on when something comes free */
	STEP_EMPTY,   /* goes on when the socket is readable */
	STEP_END,     /* of this connection */
};

enum {
	FAST_ZERO_BYTES = 128u << 10,	 /* from here on zeroing is surely cheaper than a write */
	STATUS_SLICE_BYTES = 128u << 20, /* looked at for one BLOCK_STATUS: bounds the time it takes */
	STATUS_EXTENT_BYTES = 8,
};

static struct nbd_conn *conn_of(struct transport *t)
{
	return container_of(t, struct nbd_conn, transport);
}

/* ---- the socket ---- */

static uint32_t unread(const struct nbd_conn *c)
{
	return c->rx_end - c->rx_start;
}

static void make_room(struct nbd_conn *c)
{
	uint32_t n = unread(c);

	if (n && n > 4096 && NBD_RX_BYTES - c->rx_end >= NBD_RX_WINDOW_BYTES)
		return;
	if (c->rx_start)
		memmove(c->rx, c->rx + c->rx_start, n);
	c->rx_start = 0;
	c->rx_end = n;
}

static enum step receive(struct nbd_conn *c)
{
	struct iovec iov[2];
	size_t direct = 0, asked;
	int n = 0;
	ssize_t got;

	if (c->drained)
		return STEP_EMPTY;
	make_room(c);
	if (c->filling) {
		direct = c->filling->req.len_bytes - c->filled_bytes;
		iov[n++] = (struct iovec){(unsigned char *)c->filling->req.buf.mem + c->filled_bytes, direct};
	}
	iov[n++] = (struct iovec){c->rx + c->rx_end, u64_min(NBD_RX_WINDOW_BYTES, NBD_RX_BYTES - c->rx_end)};
	asked = direct + iov[n - 1].iov_len;
	got = readv(c->fd, iov, n);
	if (got < 0 && errno == EINTR)
		return STEP_ON;
	if (got < 0 && errno == EAGAIN) {
		c->drained = true;
		return STEP_EMPTY;
	}
	if (got < 0) {
		conn_die(c, NULL);
		return STEP_END;
	}
	if (got == 0) {
		conn_end(c);
		return STEP_END;
	}
	c->drained = (size_t)got < asked;
	direct = u64_min(direct, (size_t)got);
	c->filled_bytes += (uint32_t)direct;
	c->rx_end += (uint32_t)((size_t)got - direct);
	return STEP_ON;
}

static enum step throw_away(struct nbd_conn *c)
{
	uint32_t n = (uint32_t)u64_min(c->skip_bytes, unread(c));

	c->rx_start += n;
	c->skip_bytes -= n;
	return c->skip_bytes ? receive(c) : STEP_ON;
}

/* ---- parts ---- */

static enum step stall(struct nbd_conn *c)
{
	struct nbd_cmd *cmd = c->cmd;

	c->stalled = true;
	if (cmd && cmd->ordered && cmd->issued_bytes && cmd->issued_bytes < cmd->r.len_bytes) {
		cmd->streaming = true;
		ordered_advance(c, cmd);
	}
	return c->dead ? STEP_END : STEP_STALL;
}

/* A slot for the next part, which will hold len_bytes; NULL: stall. */
static struct nbd_slot *part_slot(struct nbd_conn *c, uint32_t len_bytes)
{
	if (c->stashed || (c->held_bytes && c->held_bytes + len_bytes > NBD_HELD_BYTES))
		return NULL;
	return slot_get(c, c->cmd);
}

static uint32_t next_part(const struct nbd_cmd *cmd)
{
	return (uint32_t)u64_min(cmd->r.len_bytes - cmd->issued_bytes, REQ_MAX_BYTES);
}

/* Counts the part as handed out. */
static void describe(struct nbd_conn *c, struct nbd_slot *s, enum blk_op op, uint32_t len_bytes)
{
	struct nbd_cmd *cmd = s->cmd;

	s->req.op = op;
	s->req.fua = (cmd->r.flags & NBD_CMD_FLAG_FUA) != 0;
	s->req.off_bytes = cmd->r.off_bytes + cmd->issued_bytes;
	s->req.len_bytes = len_bytes;
	s->req.status = 0;
	cmd->issued_bytes += len_bytes;
	cmd->parts++;
	if (cmd->issued_bytes == cmd->r.len_bytes && !cmd->ordered)
		c->cmd = NULL;
}

static enum step read_part(struct nbd_conn *c, struct blkreq **out)
{
	struct nbd_cmd *cmd = c->cmd;
	uint32_t len_bytes = next_part(cmd);
	uint64_t off_bytes = cmd->r.off_bytes + cmd->issued_bytes, prefix;
	struct nbd_slot *s;

	/* An ordered one has the connection for itself, until all of its answer is on its way. */
	if (!len_bytes || (cmd->ordered && !cmd->issued_bytes && c->used))
		return stall(c);
	s = part_slot(c, len_bytes);
	if (!s)
		return stall(c);
	if (c->session.structured && dev_block_status(c->dev, off_bytes, len_bytes, &prefix) == EXT_ZERO &&
	    prefix >= len_bytes) {
		describe(c, s, BLK_READ, len_bytes);
		part_is_hole(c, s);
		return STEP_ON;
	}
	if (!slot_buf_get(c, s, len_bytes)) {
		slot_put(c, s);
		return stall(c);
	}
	describe(c, s, BLK_READ, len_bytes);
	*out = &s->req;
	return STEP_REQUEST;
}

static enum step write_filled(struct nbd_conn *c, struct blkreq **out)
{
	struct nbd_slot *s = c->filling;

	if (c->filled_bytes < s->req.len_bytes)
		return receive(c);
	c->filling = NULL;
	describe(c, s, BLK_WRITE, (uint32_t)s->req.len_bytes);
	*out = &s->req;
	return STEP_REQUEST;
}

static enum step write_part(struct nbd_conn *c, struct blkreq **out)
{
	uint32_t len_bytes = next_part(c->cmd), there = (uint32_t)u64_min(unread(c), len_bytes);
	struct nbd_slot *s;
	bool got;

	if (c->filling)
		return write_filled(c, out);
	s = part_slot(c, len_bytes);
	if (!s)
		return stall(c);
	got = slot_buf_get(c, s, len_bytes);
	if (there < len_bytes && (!got || s->req.buf.tag)) {
		slot_put(c, s);
		return receive(c);
	}
	if (!got) {
		slot_put(c, s);
		return stall(c);
	}
	memcpy(s->req.buf.mem, c->rx + c->rx_start, there);
	c->rx_start += there;
	s->req.len_bytes = len_bytes;
	c->filling = s;
	c->filled_bytes = there;
	return write_filled(c, out);
}

/* NO_HOLE promises that later writes have their space: only writing zeros does in every format. */
static enum step provision_part(struct nbd_conn *c, struct blkreq **out)
{
	uint32_t len_bytes = next_part(c->cmd);
	struct nbd_slot *s = part_slot(c, len_bytes);

	if (!s)
		return stall(c);
	if (!slot_buf_get(c, s, len_bytes)) {
		slot_put(c, s);
		return stall(c);
	}
	memset(s->req.buf.mem, 0, len_bytes);
	describe(c, s, BLK_WRITE, len_bytes);
	*out = &s->req;
	return STEP_REQUEST;
}

/* A command without data is one part, however long. */
static enum step whole(struct nbd_conn *c, enum blk_op op, struct blkreq **out)
{
	struct nbd_slot *s = part_slot(c, 0);

	if (!s)
		return stall(c);
	describe(c, s, op, c->cmd->r.len_bytes);
	*out = &s->req;
	return STEP_REQUEST;
}

static enum step block_status(struct nbd_conn *c)
{
	const struct nbd_request r = c->cmd->r;
	uint32_t len_bytes = (uint32_t)u64_min(r.len_bytes, STATUS_SLICE_BYTES), done = 0;
	unsigned n = 0, max = r.flags & NBD_CMD_FLAG_REQ_ONE ? 1 : NBD_STATUS_EXTENTS;
	struct nbd_slot *s = part_slot(c, BUF_UNIT_BYTES);
	unsigned char *to;

	if (!s)
		return stall(c);
	if (!slot_buf_get(c, s, NBD_STATUS_EXTENTS * STATUS_EXTENT_BYTES)) {
		slot_put(c, s);
		return stall(c);
	}
	describe(c, s, BLK_READ, r.len_bytes);
	to = s->req.buf.mem;
	while (done < len_bytes && n < max) {
		uint64_t prefix;
		enum extent_kind kind =
		    dev_block_status(c->dev, r.off_bytes + done, len_bytes - done, &prefix);

		be32_store(to + n * STATUS_EXTENT_BYTES, (uint32_t)prefix);
		be32_store(to + n * STATUS_EXTENT_BYTES + 4,
			   kind == EXT_ZERO ? NBD_STATE_HOLE | NBD_STATE_ZERO : 0);
		done += (uint32_t)prefix;
		n++;
	}
	s->req.len_bytes = n * STATUS_EXTENT_BYTES;
	part_ended(c, s, NBD_OK);
	return STEP_ON;
}

static enum step go_on(struct nbd_conn *c, struct blkreq **out)
{
	switch ((enum nbd_cmd_type)c->cmd->r.type) {
	case NBD_CMD_READ:
		return read_part(c, out);
	case NBD_CMD_WRITE:
		return write_part(c, out);
	case NBD_CMD_FLUSH:
		return whole(c, BLK_FLUSH, out);
	case NBD_CMD_TRIM:
		return whole(c, BLK_TRIM, out);
	case NBD_CMD_WRITE_ZEROES:
		return c->cmd->r.flags & NBD_CMD_FLAG_NO_HOLE ? provision_part(c, out)
							      : whole(c, BLK_ZERO, out);
	case NBD_CMD_BLOCK_STATUS:
		return block_status(c);
	case NBD_CMD_DISC:
		break;
	}
	return STEP_END;
}

/* ---- the door ---- */

/* What a request may not have on this connection or device, beyond what nbd_request_check knows. */
static enum nbd_error judge(const struct nbd_conn *c, const struct nbd_request *r)
{
	enum nbd_error error = nbd_request_check(&c->session, r);

	if (error)
		return error;
	if (r->type == NBD_CMD_READ && r->flags & NBD_CMD_FLAG_DF && r->len_bytes > REQ_MAX_BYTES)
		return NBD_EOVERFLOW;
	if (r->type == NBD_CMD_WRITE_ZEROES && r->flags & NBD_CMD_FLAG_FAST_ZERO &&
	    (r->flags & NBD_CMD_FLAG_NO_HOLE || r->len_bytes < FAST_ZERO_BYTES ||
	     !dev_disk(c->dev)->chain.leaf->file->traits.can_punch))
		return NBD_ENOTSUP;
	return NBD_OK;
}

static struct nbd_cmd *cmd_get(struct nbd_conn *c, const struct nbd_request *r)
{
	struct list *n = list_pop(&c->free_cmds);
	struct nbd_cmd *cmd;

	CHECK(n); /* next_command looked */
	cmd = container_of(n, struct nbd_cmd, link);
	cmd->r = *r;
	cmd->issued_bytes = cmd->queued_bytes = 0;
	cmd->parts = 0;
	cmd->error = NBD_OK;
	cmd->streaming = false;
	cmd->ordered = r->type == NBD_CMD_READ && !c->session.structured && r->len_bytes > REQ_MAX_BYTES;
	return cmd;
}

static void refuse(struct nbd_conn *c, const struct nbd_request *r, enum nbd_error error)
{
	struct nbd_cmd *cmd = cmd_get(c, r);

	cmd->ordered = false;
	cmd->issued_bytes = r->len_bytes;
	cmd->parts = 1;
	part_ended(c, slot_get(c, cmd), error);
}

static enum step next_command(struct nbd_conn *c)
{
	const unsigned char *from = c->rx + c->rx_start;
	struct nbd_request r;
	enum nbd_error error;

	if (unread(c) < NBD_REQUEST_BYTES)
		return receive(c);
	if (list_empty(&c->free_slots) || list_empty(&c->free_cmds))
		return stall(c);
	if (be32_load(from) != NBD_REQUEST_MAGIC) {
		conn_die(c, "a request without its magic number");
		return STEP_END;
	}
	r = (struct nbd_request){.flags = be16_load(from + 4),
				 .type = be16_load(from + 6),
				 .cookie = be64_load(from + 8),
				 .off_bytes = be64_load(from + 16),
				 .len_bytes = be32_load(from + 24)};
	c->rx_start += NBD_REQUEST_BYTES;
	if (r.type == NBD_CMD_DISC) {
		conn_end(c);
		return STEP_END;
	}
	if (r.type == NBD_CMD_WRITE && r.len_bytes > NBD_MAX_BLOCK_BYTES) {
		conn_die(c, "a write of more than 32 MiB");
		return STEP_END;
	}
	error = judge(c, &r);
	if (error) {
		refuse(c, &r, error);
		if (r.type == NBD_CMD_WRITE)
			c->skip_bytes = r.len_bytes;
	} else {
		c->cmd = cmd_get(c, &r);
	}
	return STEP_ON;
}

static enum step step(struct nbd_conn *c, struct blkreq **out)
{
	if (c->skip_bytes)
		return throw_away(c);
	return c->cmd ? go_on(c, out) : next_command(c);
}

unsigned nbd_fetch(struct transport *t, struct blkreq **reqs, unsigned max)
{
	struct nbd_conn *c = conn_of(t);
	enum step now = STEP_ON;
	unsigned n = 0, budget = 4 * NBD_SLOTS;

	if (c->ending || c->dead)
		return 0;
	c->stalled = false;
	while (n < max && (now == STEP_ON || now == STEP_REQUEST) && budget--) {
		now = step(c, &reqs[n]);
		n += now == STEP_REQUEST;
	}
	/* Answers of the door; the device's leave with kick(). */
	if (!list_empty(&c->answers))
		tx_send(c);
	if (c->ending || c->dead)
		return n;
	if (now == STEP_EMPTY && !c->in.armed)
		dev_poll_arm(c->dev, &c->in, t);
	else if (now == STEP_ON || now == STEP_REQUEST)
		dev_transport_ready(t);
	return n;
}
