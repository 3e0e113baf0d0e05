/*
 * A client in the transmission phase: a transport of its export's device. Inside of blkd/nbd/.
 *
 * A command is what the client sent. It is carried out in parts of at most REQ_MAX_BYTES; each part is a
 * slot, which has the request for the device and, afterwards, one piece of the answer. A slot is free, in use
 * (being filled from the socket, or the device's), or on the list of answers until the socket took it.
 *
 * Everything belongs to the device's thread from conn_attach() on.
 */
#ifndef BLKD_NBD_CONN_H
#define BLKD_NBD_CONN_H

#include "blkd/dev.h"
#include "blkd/nbd/proto.h"

#include <stdbool.h>
#include <stdint.h>

enum {
	NBD_SLOTS = 128,		/* parts in flight or unsent, a connection */
	NBD_HELD_BYTES = 8 << 20,	/* of buffers that they hold */
	NBD_RX_WINDOW_BYTES = 64 << 10, /* asked of the socket at once, besides a payload */
	NBD_RX_BYTES = REQ_MAX_BYTES + NBD_RX_WINDOW_BYTES,
	NBD_STATUS_EXTENTS = 256,   /* in one answer to BLOCK_STATUS */
	NBD_ANSWER_HEAD_BYTES = 32, /* the longest: a chunk of a hole */
};

struct nbd_cmd {
	struct list link; /* free commands */
	struct nbd_request r;
	uint32_t issued_bytes; /* handed out in parts so far */
	uint32_t queued_bytes; /* ordered: answered so far */
	unsigned parts;	       /* handed out, not ended */
	uint32_t error;	       /* enum nbd_error; the first stays */
	bool ordered;	       /* READ in several parts without structured replies: see tx.c */
	bool streaming;	       /* ordered: its answer has begun before its end was known */
	struct list ended;     /* ordered: slots whose turn has not come */
};

struct nbd_slot {
	struct blkreq req;
	struct list link; /* free; answers; its command's ended */
	struct nbd_cmd *cmd;
	uint32_t held_bytes; /* counted in the connection's */
	/* the answer */
	uint8_t head_bytes;
	unsigned char head[NBD_ANSWER_HEAD_BYTES];
	const void *data; /* req.buf, or the stash */
	uint32_t data_bytes;
};

struct nbd_conn {
	struct transport transport;
	struct dev *dev;
	int fd;
	struct io_poll in, out;
	struct nbd_session session;

	/* from the socket: rx.c */
	unsigned char *rx; /* NBD_RX_BYTES of address space */
	uint32_t rx_start, rx_end;
	bool drained;	     /* the socket gave less than was asked for: look again when it is readable */
	uint32_t skip_bytes; /* payload of a refused write, to be thrown away */
	struct nbd_cmd *cmd; /* not all of it is handed out */
	struct nbd_slot *filling; /* its payload comes straight from the socket */
	uint32_t filled_bytes;
	bool stalled; /* no slot, or the bytes are used up: goes on when a slot comes free */

	/* to the socket: tx.c */
	struct list answers;
	uint32_t sent_bytes;	  /* of the first answer */
	unsigned char *stash;	  /* REQ_MAX_BYTES of address space, after rx */
	struct nbd_slot *stashed; /* its data is there */
	struct nbd_slot *reserve; /* holds the device's last buffer */

	struct list free_slots, free_cmds;
	unsigned used; /* slots not free */
	uint32_t held_bytes;
	bool ending;	 /* nothing more is read: in flight is answered, then closed */
	bool dead;	 /* nothing is sent any more either */
	bool leaving;	 /* dev_detach was called */
	const char *why; /* dead for breaking the protocol */

	/* the server's */
	struct list link;
	void (*gone)(void *owner, struct nbd_conn *); /* device thread, last: frees it */
	void *owner;

	struct nbd_cmd cmds[NBD_SLOTS];
	struct nbd_slot slots[NBD_SLOTS];
};

/* conn.c. Control thread. Takes the descriptor over on success; rest: bytes that were read beyond the
 * handshake. */
struct nbd_conn *conn_create(int fd, const struct nbd_session *, const void *rest, uint32_t rest_bytes);
void conn_free(struct nbd_conn *); /* closes the descriptor */
/* Device thread. */
void conn_attach(struct dev *, void *conn);
void conn_end(struct nbd_conn *);		   /* answer what is in flight, then leave */
void conn_die(struct nbd_conn *, const char *why); /* drop answers, leave; why: NULL, or what it broke */
void conn_leave_if_idle(struct nbd_conn *);

/* rx.c */
unsigned nbd_fetch(struct transport *, struct blkreq **reqs, unsigned max);

/* tx.c */
struct nbd_slot *slot_get(struct nbd_conn *, struct nbd_cmd *);
void slot_put(struct nbd_conn *, struct nbd_slot *);
bool slot_buf_get(struct nbd_conn *, struct nbd_slot *, uint32_t len_bytes);
void slot_buf_put(struct nbd_conn *, struct nbd_slot *);
void part_ended(struct nbd_conn *, struct nbd_slot *, enum nbd_error);
void part_is_hole(struct nbd_conn *, struct nbd_slot *);
void ordered_advance(struct nbd_conn *, struct nbd_cmd *);
void tx_send(struct nbd_conn *);

#endif
