/*
 * Option haggling, fixed newstyle. A machine of four states that is fed with whatever the socket gives.
 *
 * One option at a time: the next is looked at when all answers to the last one are out, so what a client can
 * make us store is one option and its answer. An option's data is checked to the last byte before any of it
 * is used. What is too long is skipped and refused; what is absurdly long, or has a wrong magic number, ends
 * the connection. A deadline over the whole of it (the server's) ends slow clients.
 *
 * Not here: TLS. The socket is a local one with file permissions.
 */
#include "blkd/nbd/haggle.h"

#include "blkd/bytes.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum { OPTION_HEAD_BYTES = 16, REPLY_HEAD_BYTES = 20, EXPORT_NAME_ZEROES = 124 };

static const char context[] = "base:allocation";

/* ---- answers ---- */

static unsigned char *room(struct haggle *h, size_t n)
{
	unsigned char *at;

	if (h->out_room - h->out_bytes < n) {
		size_t want = 2 * (h->out_bytes + n);
		unsigned char *more = realloc(h->out, want);

		if (!more) {
			h->broken = true;
			return NULL;
		}
		h->out = more;
		h->out_room = want;
	}
	at = h->out + h->out_bytes;
	h->out_bytes += n;
	return at;
}

static void say(struct haggle *h, const void *bytes, size_t n)
{
	unsigned char *at = room(h, n);

	if (at)
		memcpy(at, bytes, n);
}

static void say16(struct haggle *h, uint16_t v)
{
	unsigned char *at = room(h, 2);

	if (at)
		be16_store(at, v);
}

static void say32(struct haggle *h, uint32_t v)
{
	unsigned char *at = room(h, 4);

	if (at)
		be32_store(at, v);
}

static void say64(struct haggle *h, uint64_t v)
{
	unsigned char *at = room(h, 8);

	if (at)
		be64_store(at, v);
}

static void reply_head(struct haggle *h, uint32_t option, uint32_t type, size_t len)
{
	say64(h, NBD_REP_MAGIC);
	say32(h, option);
	say32(h, type);
	say32(h, (uint32_t)len);
}

static void reply(struct haggle *h, uint32_t option, uint32_t type, const char *text)
{
	reply_head(h, option, type, strlen(text));
	say(h, text, strlen(text));
}

static void ack(struct haggle *h, uint32_t option)
{
	reply(h, option, NBD_REP_ACK, "");
}

static void invalid(struct haggle *h, uint32_t option, const char *text)
{
	reply(h, option, NBD_REP_ERR_INVALID, text);
}

/* ---- an option's data ---- */

struct cursor {
	const unsigned char *at;
	uint32_t left;
	bool bad; /* something was asked for that is not there */
};

static const unsigned char *take(struct cursor *c, uint32_t n)
{
	const unsigned char *at = c->at;

	if (c->bad || n > c->left) {
		c->bad = true;
		return NULL;
	}
	c->at += n;
	c->left -= n;
	return at;
}

static uint32_t take32(struct cursor *c)
{
	const unsigned char *at = take(c, 4);

	return at ? be32_load(at) : 0;
}

static uint16_t take16(struct cursor *c)
{
	const unsigned char *at = take(c, 2);

	return at ? be16_load(at) : 0;
}

struct string {
	const char *at;
	uint32_t len;
};

static struct string take_string(struct cursor *c)
{
	uint32_t len = take32(c);
	const unsigned char *at = take(c, len);

	return (struct string){(const char *)at, at ? len : 0};
}

static bool is(struct string s, const char *text)
{
	return s.len == strlen(text) && !memcmp(s.at, text, s.len);
}

/* ---- options ---- */

static void begin_transmission(struct haggle *h, const struct nbd_export_view *x)
{
	memcpy(h->export_name, x->name, sizeof(h->export_name));
	h->block_status = h->block_status && !strcmp(h->context_name, x->name);
	h->state = HAGGLE_READY;
}

/* The only option whose refusal cannot be told. */
static void export_name(struct haggle *h, struct nbd_server *srv, struct cursor *c)
{
	static const unsigned char zeroes[EXPORT_NAME_ZEROES];
	struct nbd_export_view x;

	if (!server_find(srv, (const char *)c->at, c->left, &x)) {
		h->broken = true;
		return;
	}
	say64(h, x.size_bytes);
	say16(h, nbd_transmission_flags(x.read_only, h->structured));
	if (!h->no_zeroes)
		say(h, zeroes, sizeof(zeroes));
	begin_transmission(h, &x);
}

static void list_one(void *ctx, const struct nbd_export_view *x)
{
	struct haggle *h = ctx;
	size_t len = strlen(x->name);

	reply_head(h, NBD_OPT_LIST, NBD_REP_SERVER, 4 + len + strlen(x->description));
	say32(h, (uint32_t)len);
	say(h, x->name, len);
	say(h, x->description, strlen(x->description));
}

static void info_text(struct haggle *h, uint32_t option, uint16_t info, const char *text)
{
	reply_head(h, option, NBD_REP_INFO, 2 + strlen(text));
	say16(h, info);
	say(h, text, strlen(text));
}

static void info_export(struct haggle *h, uint32_t option, const struct nbd_export_view *x)
{
	reply_head(h, option, NBD_REP_INFO, 12);
	say16(h, NBD_INFO_EXPORT);
	say64(h, x->size_bytes);
	say16(h, nbd_transmission_flags(x->read_only, h->structured));
}

static void info_block_size(struct haggle *h, uint32_t option)
{
	reply_head(h, option, NBD_REP_INFO, 14);
	say16(h, NBD_INFO_BLOCK_SIZE);
	say32(h, NBD_MIN_BLOCK_BYTES);
	say32(h, NBD_PREFERRED_BLOCK_BYTES);
	say32(h, NBD_MAX_BLOCK_BYTES);
}

static void info_or_go(struct haggle *h, struct nbd_server *srv, uint32_t option, struct cursor *c)
{
	struct string name = take_string(c);
	uint16_t n = take16(c), asked = 0;
	struct nbd_export_view x;

	for (unsigned i = 0; i < n && !c->bad; i++) {
		uint16_t info = take16(c);

		asked |= (uint16_t)(info <= NBD_INFO_BLOCK_SIZE ? 1u << info : 0);
	}
	if (c->bad || c->left) {
		invalid(h, option, "the lengths in the option do not fit its length");
		return;
	}
	if (!server_find(srv, name.at, name.len, &x)) {
		reply(h, option, NBD_REP_ERR_UNKNOWN, "no such export");
		return;
	}
	info_export(h, option, &x);
	if (asked & 1u << NBD_INFO_NAME)
		info_text(h, option, NBD_INFO_NAME, x.name);
	if (asked & 1u << NBD_INFO_DESCRIPTION)
		info_text(h, option, NBD_INFO_DESCRIPTION, x.description);
	if (asked & 1u << NBD_INFO_BLOCK_SIZE)
		info_block_size(h, option);
	ack(h, option);
	if (option == NBD_OPT_GO)
		begin_transmission(h, &x);
}

static void meta_context(struct haggle *h, struct nbd_server *srv, uint32_t option, struct cursor *c)
{
	bool set = option == NBD_OPT_SET_META_CONTEXT, hit = false;
	struct nbd_export_view x;
	struct string name;
	uint32_t n;

	if (set)
		h->block_status = false;
	if (!h->structured) {
		invalid(h, option, "structured replies come first");
		return;
	}
	name = take_string(c);
	n = take32(c);
	hit = !set && !n;
	/* Each query takes at least four bytes: the loop ends with the data. */
	for (uint32_t i = 0; i < n && !c->bad; i++) {
		struct string query = take_string(c);

		hit |= !c->bad && (is(query, context) || (!set && is(query, "base:")));
	}
	if (c->bad || c->left) {
		invalid(h, option, "the lengths in the option do not fit its length");
		return;
	}
	if (!server_find(srv, name.at, name.len, &x)) {
		reply(h, option, NBD_REP_ERR_UNKNOWN, "no such export");
		return;
	}
	if (hit) {
		reply_head(h, option, NBD_REP_META_CONTEXT, 4 + strlen(context));
		say32(h, set ? NBD_CONTEXT_ID : 0);
		say(h, context, strlen(context));
	}
	ack(h, option);
	if (set && hit) {
		h->block_status = true;
		memcpy(h->context_name, x.name, sizeof(h->context_name));
	}
}

static void structured_reply(struct haggle *h, uint32_t option, const struct cursor *c)
{
	if (c->left) {
		invalid(h, option, "this option has no data");
		return;
	}
	h->structured = true;
	ack(h, option);
}

static void obey(struct haggle *h, struct nbd_server *srv, uint32_t option, struct cursor *c)
{
	switch (option) {
	case NBD_OPT_EXPORT_NAME:
		export_name(h, srv, c);
		break;
	case NBD_OPT_ABORT:
		ack(h, option);
		h->state = HAGGLE_BYE;
		break;
	case NBD_OPT_LIST:
		if (c->left) {
			invalid(h, option, "this option has no data");
			break;
		}
		server_each(srv, list_one, h);
		ack(h, option);
		break;
	case NBD_OPT_INFO:
	case NBD_OPT_GO:
		info_or_go(h, srv, option, c);
		break;
	case NBD_OPT_STRUCTURED_REPLY:
		structured_reply(h, option, c);
		break;
	case NBD_OPT_LIST_META_CONTEXT:
	case NBD_OPT_SET_META_CONTEXT:
		meta_context(h, srv, option, c);
		break;
	case NBD_OPT_STARTTLS:
		reply(h, option, NBD_REP_ERR_UNSUP, "this server has no TLS: its socket is a local one");
		break;
	default:
		reply(h, option, NBD_REP_ERR_UNSUP, "unknown option");
		break;
	}
}

/* ---- the machine ---- */

static void consume(struct haggle *h, uint32_t n)
{
	h->in_bytes -= n;
	memmove(h->in, h->in + n, h->in_bytes);
}

/* Each step: true if it changed something. */

static bool step_flags(struct haggle *h)
{
	uint32_t flags;

	if (h->in_bytes < 4)
		return false;
	flags = be32_load(h->in);
	if (flags & ~(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) {
		h->broken = true;
		return false;
	}
	h->no_zeroes = (flags & NBD_FLAG_NO_ZEROES) != 0;
	h->state = HAGGLE_OPTION;
	consume(h, 4);
	return true;
}

static bool step_option(struct haggle *h, struct nbd_server *srv)
{
	uint32_t option, len;
	struct cursor c;

	if (h->in_bytes < OPTION_HEAD_BYTES)
		return false;
	option = be32_load(h->in + 8);
	len = be32_load(h->in + 12);
	if (be64_load(h->in) != NBD_OPT_MAGIC || len > HAGGLE_SKIP_BYTES) {
		h->broken = true;
		return false;
	}
	if (len > HAGGLE_OPTION_BYTES) {
		h->state = HAGGLE_SKIP;
		h->skip_bytes = len;
		h->skipped_option = option;
		consume(h, OPTION_HEAD_BYTES);
		return true;
	}
	if (h->in_bytes < OPTION_HEAD_BYTES + len)
		return false;
	c = (struct cursor){.at = h->in + OPTION_HEAD_BYTES, .left = len};
	obey(h, srv, option, &c);
	consume(h, OPTION_HEAD_BYTES + len);
	return true;
}

static bool step_skip(struct haggle *h)
{
	uint32_t n = (uint32_t)u64_min(h->skip_bytes, h->in_bytes);

	consume(h, n);
	h->skip_bytes -= n;
	if (h->skip_bytes)
		return false;
	h->state = HAGGLE_OPTION;
	if (h->skipped_option == NBD_OPT_EXPORT_NAME)
		h->broken = true;
	else
		reply(h, h->skipped_option, NBD_REP_ERR_TOO_BIG, "the option is too long");
	return true;
}

static bool step(struct haggle *h, struct nbd_server *srv)
{
	switch (h->state) {
	case HAGGLE_FLAGS:
		return step_flags(h);
	case HAGGLE_OPTION:
		return step_option(h, srv);
	case HAGGLE_SKIP:
		return step_skip(h);
	case HAGGLE_READY:
	case HAGGLE_BYE:
		break;
	}
	return false;
}

static bool flush(struct haggle *h)
{
	while (h->out_sent < h->out_bytes) {
		ssize_t n = send(h->fd, h->out + h->out_sent, h->out_bytes - h->out_sent,
				 MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN;
		h->out_sent += (size_t)n;
	}
	h->out_sent = h->out_bytes = 0;
	return true;
}

/* 1: something came; 0: nothing now; < 0: the client is gone. */
static int receive(struct haggle *h)
{
	ssize_t n;

	/* Room is there: a complete option would have been consumed. */
	n = recv(h->fd, h->in + h->in_bytes, sizeof(h->in) - h->in_bytes, MSG_DONTWAIT);
	if (n > 0) {
		h->in_bytes += (uint32_t)n;
		return 1;
	}
	return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
}

bool haggle_turn(struct haggle *h, struct nbd_server *srv)
{
	h->again = false;
	for (unsigned budget = 64; budget; budget--) {
		int res;

		if (!flush(h))
			return false;
		if (h->out_bytes || h->state == HAGGLE_READY)
			return true;
		if (h->state == HAGGLE_BYE)
			return false;
		if (step(h, srv))
			continue;
		if (h->broken)
			return false;
		res = receive(h);
		if (res <= 0)
			return res == 0;
	}
	h->again = true;
	return !h->broken;
}

short haggle_events(const struct haggle *h)
{
	if (h->out_bytes)
		return POLLOUT;
	return h->state == HAGGLE_READY ? 0 : POLLIN;
}

struct haggle *haggle_create(int fd, uint64_t deadline_ns)
{
	struct haggle *h = calloc(1, sizeof(*h));

	if (!h)
		return NULL;
	h->fd = fd;
	h->deadline_ns = deadline_ns;
	say64(h, NBD_MAGIC);
	say64(h, NBD_OPT_MAGIC);
	say16(h, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
	return h;
}

void haggle_free(struct haggle *h)
{
	if (h->fd >= 0)
		close(h->fd);
	free(h->out);
	free(h);
}
