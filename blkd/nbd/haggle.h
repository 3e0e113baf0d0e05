/*
 * One client between accept() and the transmission phase: option haggling. Control thread only; nothing
 * blocks.
 */
#ifndef BLKD_NBD_HAGGLE_H
#define BLKD_NBD_HAGGLE_H

#include "blkd/nbd/server.h"

enum {
	HAGGLE_OPTION_BYTES = 8 << 10, /* of an option's data; longer ones are refused, not stored */
	HAGGLE_SKIP_BYTES = 1 << 20,   /* longer still: the client is sent away */
	HAGGLE_IN_BYTES = 16 + HAGGLE_OPTION_BYTES,
};

enum haggle_state {
	HAGGLE_FLAGS,  /* the client's flags are expected */
	HAGGLE_OPTION, /* an option is */
	HAGGLE_SKIP,   /* the data of one that is too long */
	HAGGLE_READY,  /* transmission begins when the answers are out */
	HAGGLE_BYE,    /* closed when the answers are out */
};

struct haggle {
	int fd;
	enum haggle_state state;
	uint64_t deadline_ns;
	bool no_zeroes, structured, block_status;
	char export_name[NBD_NAME_MAX + 1];  /* READY: which */
	char context_name[NBD_NAME_MAX + 1]; /* block_status: for which */
	uint32_t skip_bytes, skipped_option;
	uint32_t in_bytes;
	unsigned char in[HAGGLE_IN_BYTES];
	unsigned char *out; /* grows with what there is to say, which is our own */
	size_t out_bytes, out_sent, out_room;
	bool again;  /* its turn was up, not its input */
	bool broken; /* no memory for an answer, or the protocol was broken */
};

/* Takes fd (non-blocking) over; the greeting is the first answer. NULL: no memory, fd stays the caller's. */
struct haggle *haggle_create(int fd, uint64_t deadline_ns);
void haggle_free(struct haggle *); /* closes fd, unless it is -1 */

/* Reads, answers, writes, as far as it goes without waiting. false: it is over, free it. */
bool haggle_turn(struct haggle *, struct nbd_server *);
/* POLLIN or POLLOUT: what it waits for. 0: READY, and all was sent. */
short haggle_events(const struct haggle *);

#endif
