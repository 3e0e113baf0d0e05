/*
 * The backend's inside, shared by backend.c (control thread, watches, scan), xenbus.c (the handshake),
 * nodes.c (what is read from and written to xenstore), tasks.c (opening and closing images). All belongs to
 * the control thread, but for what says otherwise.
 *
 * A VBD lives from the appearance of its directory until it is gone and nothing of it is left: no connection,
 * no task, no device.
 */
#ifndef BLKD_BLKIF_BACKEND_PRIV_H
#define BLKD_BLKIF_BACKEND_PRIV_H

#include "blkd/blkif.h"
#include "blkd/blkif/ring.h"
#include "blkd/blkif/store.h"
#include "blkd/devtab.h"
#include "blkd/err.h"
#include "blkd/list.h"
#include "blkd/log.h"

#include <pthread.h>

enum { /* XenbusState, xen/io/xenbus.h */
       XB_UNKNOWN,
       XB_INITIALISING,
       XB_INIT_WAIT,
       XB_INITIALISED,
       XB_CONNECTED,
       XB_CLOSING,
       XB_CLOSED,
       XB_RECONFIGURING,
       XB_RECONFIGURED,
       XB_STATES
};

enum vbd_state {
	VBD_INITIALISING, /* waits for the toolstack's nodes */
	VBD_OPENING,	  /* a task opens the image */
	VBD_INIT_WAIT,	  /* ready; waits for the frontend */
	VBD_CONNECTED,
	VBD_CLOSING,   /* somebody wants to close; what is connected is still served */
	VBD_DETACHING, /* the device gives the connection back; then v->after_detach */
	VBD_CLOSED,    /* not connected, the image is open */
	VBD_RELEASING, /* a task closes the image */
	VBD_RELEASED,  /* the image is closed; waits for the directory to go, or to be made anew */
	VBD_STATES
};

enum { /* vbd.async: from other threads */
       ASYNC_DETACHED = BLKIF_EV_DETACHED,
       ASYNC_BROKEN = BLKIF_EV_BROKEN,
       ASYNC_TASK_DONE = 4,
};

struct vbd_config { /* as the toolstack wrote it; constant while the image is open */
	char params[300];
	const char *image; /* in params */
	char format[16];   /* for disk_opts; "": by suffix */
	bool writable, cdrom, removable, barrier, discard;
	enum write_mode write_mode;
};

struct task {
	struct list link; /* tasks' */
	void (*run)(struct task *);
	void (*done)(struct task *); /* on the task's thread, last */
	int result;
	struct err err;
};

struct tasks {
	pthread_mutex_t lock;
	pthread_cond_t wake;
	struct list queue;
	pthread_t threads[8];
	unsigned n_threads, n_idle;
	bool stop;
};

struct vbd {
	struct list link;
	struct blkif_backend *be;
	uint32_t domid, devid;
	char name[32]; /* "vbd-5-51712" */
	char dir[STORE_PATH_MAX], fe_dir[STORE_PATH_MAX];
	enum vbd_state state, after_detach;
	unsigned published; /* the XenbusState we wrote last; 0: none */
	/* what xenstore says, read at each step */
	unsigned fe, own;
	bool exists, online;
	/* */
	bool wake;		  /* something happened: step it */
	bool introduced, dead;	  /* its domain was seen by xenstored; was, and is gone */
	bool fe_connected;	  /* the frontend was seen Connected in this connection */
	bool detach_posted, mine; /* mine: blkif_plug() wrote it, so nobody else takes the directory away */
	uint64_t retry_ns;	  /* step it then; 0: none */
	uint64_t connects;
	unsigned async; /* ASYNC_*: atomic */
	struct vbd_config config;
	struct task task;
	bool task_running;
	struct devref *ref;
	struct blkif_conn *conn;
	struct blkif_connect connect; /* of conn; what the frontend said */
	char failure[512];
	struct blkif_vbd info; /* under be->lock: what blkif_each() shows; info_dev for its statistics */
	struct dev *info_dev;
	const struct blkif_conn *info_conn;
};

struct blkif_backend {
	struct blkif_opts opts; /* strings owned, defaults filled in */
	struct hyp *hyp;
	struct xs_handle *xs;
	char root[STORE_PATH_MAX]; /* /local/domain/0/backend/<kind> */
	pthread_t thread;
	struct tasks tasks;
	int wake_fd;	     /* eventfd: async flags, stop */
	unsigned stop_asked; /* atomic */
	unsigned notifying;  /* atomic: threads inside vbd_notify() */
	bool stopping;
	bool rescan, deaths, woken; /* to be done in this or the next round; woken: some vbd's wake is set */
	int first_failure;	    /* of a close */
	struct err first_err;
	pthread_mutex_t lock; /* the list's links and each vbd's info */
	struct list vbds;
	unsigned n_vbds;
};

/* ---- tasks.c: any thread ---- */
void tasks_init(struct tasks *);
/* run(task) on a helper thread, then done(task). Never blocks; if no thread can be made at all, it runs here.
 */
void tasks_post(struct tasks *, struct task *);
/* No task is queued or running. Ends the threads. */
void tasks_end(struct tasks *);

/* ---- nodes.c: control thread ---- */
/* The toolstack's nodes. 0; -EAGAIN: not all are there yet; else what is wrong with them. */
int nodes_read_config(struct vbd *, struct err *);
/* What a frontend may see before it connects. */
int nodes_write_offer(struct vbd *, struct err *);
/* The frontend's side: rings, channels, ABI. Validated completely; nothing is mapped yet. */
int nodes_read_frontend(struct vbd *, struct blkif_connect *, struct err *);
/* Features and size, and state Connected, in one transaction. -ECANCELED: the toolstack wants the device
 * closed meanwhile; -ENOENT: gone. */
int nodes_write_connected(struct vbd *, struct err *);
/* Our state, unless the toolstack wrote Closing, or took the directory away, since it was read: -ECANCELED,
 * -ENOENT. */
int nodes_write_state(struct vbd *, unsigned state);
/* Reads own state, online and the frontend's state into v. */
void nodes_read_states(struct vbd *);
/* Tells the operator (log), the toolstack (error nodes) and blkif_each(). */
void nodes_fail(struct vbd *, const struct err *);
void nodes_clear_failure(struct vbd *);
/* The image is closed: takes hotplug-status away, and the whole directory if it is ours. */
void nodes_write_released(struct vbd *);

/* ---- xenbus.c: control thread ---- */
extern const char *const vbd_state_names[VBD_STATES];
const char *xenbus_name(unsigned state);
/* Walks v on as far as it goes without waiting. True: nothing is left of it; the caller frees it. */
bool vbd_step(struct vbd *);

/* ---- backend.c ---- */
/* Any thread: sets async flags and wakes the control thread. */
void vbd_notify(struct vbd *, unsigned async);

#endif
