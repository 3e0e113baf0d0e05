/* HOT PATH: no malloc, no log, no syscall but sendmsg, no lock. */
/*
 * Answers: what a finished part becomes, and their way into the socket.
 *
 * A command is over when its last part has ended. Its error is that of the first part that failed. With
 * structured replies every part of a read is a chunk of its own, sent when it is there, and the last one says
 * so; the other commands have one simple reply, made by whichever part ends last. A read in several parts
 * without structured replies is `ordered`: one header and then all data in order. Such a command runs alone
 * on its connection. Its answer waits for its end, so that an error can be told; if it holds more than a
 * connection may have in flight, it streams, and an error in the middle can only be told by closing.
 *
 * Answers leave in one sendmsg for as many as fit, straight from the requests' buffers. What the socket does
 * not take stays, with its buffer, and counts against the connection: fetch() stops when slots or bytes are
 * used up. But the device's last buffer is never kept waiting for a client: its bytes move to the stash.
 * There is one such buffer and nothing is fetched while the stash is in use, so one stash is enough.
 */
#include "blkd/nbd/conn.h"

#include "blkd/bytes.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum { SEND_IOVECS = 128 };

/* ---- slots ---- */

struct nbd_slot *slot_get(struct nbd_conn *c, struct nbd_cmd *cmd)
{
	struct list *n = list_pop(&c->free_slots);
	struct nbd_slot *s;

	if (!n)
		return NULL;
	s = container_of(n, struct nbd_slot, link);
	s->cmd = cmd;
	s->data = NULL;
	s->data_bytes = 0;
	c->used++;
	return s;
}

bool slot_buf_get(struct nbd_conn *c, struct nbd_slot *s, uint32_t len_bytes)
{
	if (!dev_buf_get(c->dev, &c->transport, len_bytes, &s->req.buf))
		return false;
	s->held_bytes = s->req.buf.cap_bytes;
	c->held_bytes += s->held_bytes;
	if (s->req.buf.tag)
		c->reserve = s;
	return true;
}

void slot_buf_put(struct nbd_conn *c, struct nbd_slot *s)
{
	if (!s->req.buf.mem)
		return;
	dev_buf_put(c->dev, &s->req.buf);
	c->held_bytes -= s->held_bytes;
	if (c->reserve == s)
		c->reserve = NULL;
}

void slot_put(struct nbd_conn *c, struct nbd_slot *s)
{
	slot_buf_put(c, s);
	if (c->stashed == s)
		c->stashed = NULL;
	/* At the head: the one that is warm is the next. */
	s->link.next = c->free_slots.next;
	s->link.prev = &c->free_slots;
	s->link.next->prev = &s->link;
	c->free_slots.next = &s->link;
	c->used--;
	if (c->stalled) {
		c->stalled = false;
		dev_transport_ready(&c->transport);
	}
}

/* ---- what an answer looks like ---- */

static void queue(struct nbd_conn *c, struct nbd_slot *s)
{
	list_add_tail(&c->answers, &s->link);
}

static void simple_head(struct nbd_slot *s, uint32_t error)
{
	be32_store(s->head, NBD_SIMPLE_REPLY_MAGIC);
	be32_store(s->head + 4, error);
	be64_store(s->head + 8, s->cmd->r.cookie);
	s->head_bytes = NBD_SIMPLE_REPLY_BYTES;
}

/* payload_bytes: all of it, of which head_bytes are in the head. */
static void chunk_head(struct nbd_slot *s, unsigned type, bool done, uint32_t payload_bytes,
		       unsigned head_bytes)
{
	be32_store(s->head, NBD_CHUNK_MAGIC);
	be16_store(s->head + 4, done ? NBD_CHUNK_FLAG_DONE : 0);
	be16_store(s->head + 6, (uint16_t)type);
	be64_store(s->head + 8, s->cmd->r.cookie);
	be32_store(s->head + 16, payload_bytes);
	s->head_bytes = (uint8_t)(NBD_CHUNK_BYTES + head_bytes);
}

static void error_chunk(struct nbd_conn *c, struct nbd_slot *s)
{
	slot_buf_put(c, s);
	s->data_bytes = 0;
	chunk_head(s, NBD_CHUNK_ERROR, true, 6, 6);
	be32_store(s->head + NBD_CHUNK_BYTES, s->cmd->error);
	be16_store(s->head + NBD_CHUNK_BYTES + 4, 0);
}

static void data_chunk(struct nbd_slot *s, bool done)
{
	chunk_head(s, NBD_CHUNK_OFFSET_DATA, done, 8 + s->data_bytes, 8);
	be64_store(s->head + NBD_CHUNK_BYTES, s->req.off_bytes);
}

static void hole_chunk(struct nbd_slot *s, bool done)
{
	chunk_head(s, NBD_CHUNK_OFFSET_HOLE, done, 12, 12);
	be64_store(s->head + NBD_CHUNK_BYTES, s->req.off_bytes);
	be32_store(s->head + NBD_CHUNK_BYTES + 8, (uint32_t)s->req.len_bytes);
}

/* The extents are in the buffer; data_bytes of them. */
static void status_chunk(struct nbd_slot *s)
{
	chunk_head(s, NBD_CHUNK_BLOCK_STATUS, true, 4 + s->data_bytes, 4);
	be32_store(s->head + NBD_CHUNK_BYTES, NBD_CONTEXT_ID);
}

/* ---- the end of a part ---- */

static bool is_over(const struct nbd_cmd *cmd)
{
	return !cmd->parts && cmd->issued_bytes == cmd->r.len_bytes;
}

static void cmd_put(struct nbd_conn *c, struct nbd_cmd *cmd)
{
	if (c->cmd == cmd)
		c->cmd = NULL;
	list_add_tail(&c->free_cmds, &cmd->link);
}

/* One part of a structured answer; failed: it has nothing to show. */
static void chunk_ended(struct nbd_conn *c, struct nbd_slot *s, bool failed, bool hole)
{
	struct nbd_cmd *cmd = s->cmd;
	bool over = is_over(cmd);

	if (over && cmd->error) {
		error_chunk(c, s);
	} else if (failed) {
		slot_put(c, s);
		return;
	} else if (cmd->r.type == NBD_CMD_BLOCK_STATUS) {
		status_chunk(s);
	} else if (hole) {
		hole_chunk(s, over);
	} else {
		data_chunk(s, over);
	}
	queue(c, s);
	if (over)
		cmd_put(c, cmd);
}

static void simple_ended(struct nbd_conn *c, struct nbd_slot *s)
{
	struct nbd_cmd *cmd = s->cmd;

	if (cmd->error || cmd->r.type != NBD_CMD_READ) {
		slot_buf_put(c, s);
		s->data_bytes = 0;
	}
	if (!is_over(cmd)) {
		slot_put(c, s);
		return;
	}
	simple_head(s, cmd->error);
	queue(c, s);
	cmd_put(c, cmd);
}

static struct nbd_slot *ordered_next(const struct nbd_cmd *cmd)
{
	struct list *pos;

	list_for_each (pos, &cmd->ended) {
		struct nbd_slot *s = container_of(pos, struct nbd_slot, link);

		if (s->req.off_bytes == cmd->r.off_bytes + cmd->queued_bytes)
			return s;
	}
	return NULL;
}

/* Nothing of the answer was sent: one slot tells the error, once all parts have ended. */
static void ordered_failed(struct nbd_conn *c, struct nbd_cmd *cmd)
{
	struct nbd_slot *s;

	cmd->issued_bytes = cmd->r.len_bytes;
	if (cmd->parts)
		return;
	s = container_of(list_pop(&cmd->ended), struct nbd_slot, link);
	while (!list_empty(&cmd->ended))
		slot_put(c, container_of(list_pop(&cmd->ended), struct nbd_slot, link));
	simple_ended(c, s);
}

void ordered_advance(struct nbd_conn *c, struct nbd_cmd *cmd)
{
	struct nbd_slot *s;

	if (cmd->error) {
		if (cmd->queued_bytes)
			conn_die(c, NULL);
		else
			ordered_failed(c, cmd);
		return;
	}
	if (!cmd->streaming && !is_over(cmd))
		return;
	while ((s = ordered_next(cmd))) {
		list_del(&s->link);
		s->head_bytes = 0;
		if (!cmd->queued_bytes)
			simple_head(s, NBD_OK);
		cmd->queued_bytes += s->data_bytes;
		queue(c, s);
	}
	if (cmd->queued_bytes == cmd->r.len_bytes) {
		cmd_put(c, cmd);
		dev_transport_ready(&c->transport);
	}
}

void part_ended(struct nbd_conn *c, struct nbd_slot *s, enum nbd_error error)
{
	struct nbd_cmd *cmd = s->cmd;

	cmd->parts--;
	if (error && !cmd->error)
		cmd->error = error;
	if (c->dead) {
		slot_put(c, s);
		return;
	}
	if (s->req.buf.mem && (cmd->r.type == NBD_CMD_READ || cmd->r.type == NBD_CMD_BLOCK_STATUS)) {
		s->data = s->req.buf.mem;
		s->data_bytes = (uint32_t)s->req.len_bytes;
	}
	if (cmd->ordered) {
		list_add_tail(&cmd->ended, &s->link);
		ordered_advance(c, cmd);
	} else if (c->session.structured &&
		   (cmd->r.type == NBD_CMD_READ || cmd->r.type == NBD_CMD_BLOCK_STATUS)) {
		chunk_ended(c, s, error != NBD_OK, false);
	} else {
		simple_ended(c, s);
	}
}

void part_is_hole(struct nbd_conn *c, struct nbd_slot *s)
{
	s->cmd->parts--;
	chunk_ended(c, s, false, true);
}

/* ---- sending ---- */

static unsigned gather(const struct nbd_conn *c, struct iovec *iov, size_t *total)
{
	uint32_t skip = c->sent_bytes;
	const struct list *pos;
	unsigned n = 0;

	*total = 0;
	list_for_each (pos, &c->answers) {
		const struct nbd_slot *s =
		    (const struct nbd_slot *)(const void *)((const char *)pos -
							    offsetof(struct nbd_slot, link));
		uint32_t head_skip = skip < s->head_bytes ? skip : s->head_bytes;
		uint32_t data_skip = skip - head_skip;

		if (n + 2 > SEND_IOVECS)
			break;
		/* Casts away const: sendmsg only reads. */
		if (s->head_bytes > head_skip)
			iov[n++] = (struct iovec){(void *)(uintptr_t)(s->head + head_skip),
						  s->head_bytes - head_skip};
		if (s->data_bytes > data_skip)
			iov[n++] = (struct iovec){(void *)((uintptr_t)s->data + data_skip),
						  s->data_bytes - data_skip};
		*total += s->head_bytes + s->data_bytes - skip;
		skip = 0;
	}
	return n;
}

/* The socket took n bytes more. */
static void retire(struct nbd_conn *c, size_t n)
{
	n += c->sent_bytes;
	while (!list_empty(&c->answers)) {
		struct nbd_slot *s = container_of(c->answers.next, struct nbd_slot, link);
		size_t size = (size_t)s->head_bytes + s->data_bytes;

		if (n < size)
			break;
		n -= size;
		list_del(&s->link);
		slot_put(c, s);
	}
	c->sent_bytes = (uint32_t)n;
}

static void give_back_reserve(struct nbd_conn *c)
{
	struct nbd_slot *s = c->reserve;

	if (!s || !s->data)
		return;
	memcpy(c->stash, s->data, s->data_bytes);
	s->data = c->stash;
	c->stashed = s;
	slot_buf_put(c, s);
}

void tx_send(struct nbd_conn *c)
{
	struct iovec iov[SEND_IOVECS];

	if (c->dead)
		return;
	while (!list_empty(&c->answers) && !c->out.armed) {
		size_t total;
		struct msghdr msg = {.msg_iov = iov, .msg_iovlen = gather(c, iov, &total)};
		ssize_t sent = sendmsg(c->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0 && errno != EAGAIN) {
			conn_die(c, NULL);
			return;
		}
		if (sent > 0)
			retire(c, (size_t)sent);
		if (sent < 0 || (size_t)sent < total)
			dev_poll_arm(c->dev, &c->out, &c->transport);
	}
	if (c->out.armed)
		give_back_reserve(c);
	conn_leave_if_idle(c);
}
