/*
 * The xenbus handshake of one VBD, as a table: what our state and the frontend's state, seen together, ask
 * for.
 *
 * Steps are driven by levels, not by events: each step reads what xenstore says now and does what the table
 * says about it, until it says "stay". So watch events may be lost in one another, repeated, or come in a
 * storm: a thousand of them are one step. Nothing waits here: what takes time (opening, closing, draining) is
 * a state of its own that its end moves on.
 *
 * Before the frontend, others have a say: a directory that is gone, made anew, of a dead domain, or a backend
 * that stops (leave); and the toolstack, which writes Closing on our own state node to detach. It wins over
 * anything we would write (nodes.c looks first), and the device is served until the frontend lets go: a guest
 * may keep its disk in use.
 *
 * Invariants: conn exists only in CONNECTED, CLOSING and DETACHING; ref from the end of OPENING to RELEASING;
 * in OPENING and RELEASING the task owns config and ref. Connections are made once per way through CONNECTED
 * and destroyed once, after the device gave them back, whatever the frontend does meanwhile (XSA-350).
 *
 * Sources: xen/io/blkif.h "STATE DIAGRAM", Linux blkback and blkfront, libxl's and xenopsd's waits (facts).
 */
#include "blkd/blkif/backend_priv.h"

#include "blkd/clock.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define STEPS_MAX	 16u	     /* of one vbd_step(): a bound, not a rhythm */
#define RETRY_MAILBOX_NS 1000000u    /* the device's mailbox was full */
#define RETRY_STORE_NS	 1000000000u /* xenstore refused us: quota, storms of transactions */

const char *const vbd_state_names[VBD_STATES] = {
    [VBD_INITIALISING] = "Initialising",
    [VBD_OPENING] = "Opening",
    [VBD_INIT_WAIT] = "InitWait",
    [VBD_CONNECTED] = "Connected",
    [VBD_CLOSING] = "Closing",
    [VBD_DETACHING] = "Detaching",
    [VBD_CLOSED] = "Closed",
    [VBD_RELEASING] = "Releasing",
    [VBD_RELEASED] = "Released",
};

const char *xenbus_name(unsigned state)
{
	static const char *const names[XB_STATES] = {"Unknown",	    "Initialising",  "InitWait",
						     "Initialised", "Connected",     "Closing",
						     "Closed",	    "Reconfiguring", "Reconfigured"};

	return state < XB_STATES ? names[state] : "Unknown";
}

enum action {
	STAY,
	CONNECT,   /* the frontend has its rings ready */
	SEEN,	   /* it took note that we are connected */
	CHECK_NEW, /* is it this connection's Initialised, or the next one's? */
	REINIT,	   /* it starts anew: give up what is connected, offer again */
	CLOSE,	   /* it begins to close: say so too */
	CLOSED,	   /* it has closed: give up what is connected */
	REOPEN,	   /* it starts anew after a close */
};

static const unsigned char on_frontend[VBD_STATES][XB_STATES] = {
    [VBD_INIT_WAIT] =
	{[XB_INITIALISED] = CONNECT, [XB_CONNECTED] = CONNECT, [XB_CLOSING] = CLOSE, [XB_CLOSED] = CLOSED},
    [VBD_CONNECTED] = {[XB_UNKNOWN] = CLOSED,
		       [XB_INITIALISING] = REINIT,
		       [XB_INITIALISED] = CHECK_NEW,
		       [XB_CONNECTED] = SEEN,
		       [XB_CLOSING] = CLOSE,
		       [XB_CLOSED] = CLOSED},
    [VBD_CLOSING] = {[XB_UNKNOWN] = CLOSED, [XB_INITIALISING] = CLOSED, [XB_CLOSED] = CLOSED},
    [VBD_CLOSED] = {[XB_INITIALISING] = REOPEN, [XB_INITIALISED] = REOPEN},
};

/* For blkif_each(). Before a state is written to xenstore: who waited for it there finds it here. */
static void show(struct vbd *v)
{
	const struct vbd_config *c = &v->config;
	struct blkif_vbd i = {.domid = v->domid,
			      .devid = v->devid,
			      .state = vbd_state_names[v->state],
			      .frontend = xenbus_name(v->fe),
			      .online = v->online,
			      .writable = c->writable,
			      .barrier = c->barrier,
			      .discard = c->discard,
			      .write_mode = c->write_mode,
			      .connects = v->connects};
	bool has_device = !v->task_running && v->ref; /* a running task owns ref */

	if (c->image)
		snprintf(i.image, sizeof(i.image), "%.255s", c->image);
	snprintf(i.format, sizeof(i.format), "%s", c->format);
	snprintf(i.failure, sizeof(i.failure), "%s", v->failure);
	if (v->conn) {
		i.queues = v->connect.n_queues;
		i.ring_pages = v->connect.pages;
		i.protocol = blkif_abi_name(v->connect.abi);
	}
	if (has_device)
		i.size_bytes = dev_size_bytes(v->ref->dev);
	pthread_mutex_lock(&v->be->lock);
	v->info = i;
	v->info_dev = has_device ? v->ref->dev : NULL;
	v->info_conn = v->conn;
	pthread_mutex_unlock(&v->be->lock);
}

/* ---- tasks ---- */

static struct vbd *vbd_of_task(struct task *t)
{
	return container_of(t, struct vbd, task);
}

static void task_done(struct task *t)
{
	vbd_notify(vbd_of_task(t), ASYNC_TASK_DONE);
}

static void open_image(struct task *t)
{
	struct vbd *v = vbd_of_task(t);
	const struct blkif_opts *b = &v->be->opts;
	const struct devtab_opts o = {.path = v->config.image,
				      .format = v->config.format[0] ? v->config.format : NULL,
				      .user = v->name,
				      .writable = v->config.writable,
				      .run_dir = b->run_dir,
				      .fence_wait_ms = b->fence_wait_ms,
				      .backing_flags = b->backing_flags,
				      .engine = b->engine,
				      .write_mode = v->config.write_mode,
				      .pool = b->pool,
				      .cache = b->cache,
				      .idle_commit_ms = b->idle_commit_ms};

	t->result = devtab_get(&o, &v->ref, &t->err);
}

static void close_image(struct task *t)
{
	struct vbd *v = vbd_of_task(t);

	t->result = devtab_put(v->ref, &t->err);
	v->ref = NULL;
}

static void start(struct vbd *v, void (*run)(struct task *), enum vbd_state state)
{
	v->state = state;
	v->task = (struct task){.run = run, .done = task_done};
	v->task_running = true;
	tasks_post(&v->be->tasks, &v->task);
}

/* What blkif_each() shows must let go of the device before a task may close it. */
static void forget_device(struct vbd *v)
{
	pthread_mutex_lock(&v->be->lock);
	v->info_dev = NULL;
	v->info_conn = NULL;
	pthread_mutex_unlock(&v->be->lock);
}

static void release(struct vbd *v)
{
	forget_device(v);
	start(v, close_image, VBD_RELEASING);
}

/* ---- moves ---- */

/* The toolstack made the directory anew before we saw it gone. */
static bool made_anew(const struct vbd *v)
{
	return v->exists && v->own == XB_INITIALISING && v->published > XB_INITIALISING;
}

static bool must_leave(const struct vbd *v)
{
	return !v->exists || v->dead || v->be->stopping || made_anew(v);
}

static void retry(struct vbd *v, uint64_t in_ns)
{
	v->retry_ns = clock_ns() + in_ns;
}

static void released(struct vbd *v)
{
	v->state = VBD_RELEASED;
	show(v);
	if (v->exists && !made_anew(v))
		nodes_write_released(v);
}

/* Before the image is open: the device is refused. */
static bool refuse(struct vbd *v, const struct err *e)
{
	nodes_fail(v, e);
	released(v);
	return true;
}

static bool offer(struct vbd *v)
{
	struct err e = ERR_INIT;
	int rc;

	v->state = VBD_INIT_WAIT;
	show(v);
	rc = nodes_write_offer(v, &e);
	if (rc == 0 || rc == -ECANCELED)
		return true;
	if (rc == -ENOENT) {
		v->exists = false;
		return true;
	}
	nodes_fail(v, &e);
	retry(v, RETRY_STORE_NS);
	return false;
}

static void enter_closing(struct vbd *v)
{
	v->state = VBD_CLOSING;
	if (v->published != XB_CLOSING && nodes_write_state(v, XB_CLOSING) < 0 && v->exists)
		retry(v, RETRY_STORE_NS);
}

static bool enter_closed(struct vbd *v)
{
	v->state = VBD_CLOSED;
	/* Going offline, Closed is said when the image is closed too: the toolstack may take it elsewhere
	 * then. */
	if (v->online && !must_leave(v) && nodes_write_state(v, XB_CLOSED) < 0 && v->exists)
		retry(v, RETRY_STORE_NS);
	return true;
}

static bool detach(struct vbd *v, enum vbd_state after)
{
	v->state = VBD_DETACHING;
	v->after_detach = after;
	return true;
}

static bool detaching(struct vbd *v)
{
	if (v->conn) {
		if (!v->detach_posted) {
			v->detach_posted = blkif_conn_detach(v->conn) == 0;
			if (!v->detach_posted)
				retry(v, RETRY_MAILBOX_NS);
		}
		return false;
	}
	if (v->after_detach == VBD_INIT_WAIT && v->exists && v->online && !v->dead && !v->be->stopping)
		return offer(v);
	if (v->after_detach == VBD_CLOSING) {
		enter_closing(v);
		return true;
	}
	return enter_closed(v);
}

static void conn_report(void *ctx, enum blkif_event ev)
{
	vbd_notify(ctx, (unsigned)ev);
}

/* The frontend's fault or the hypervisor's refusal: this attempt is over, the device is not. */
static bool connect_failed(struct vbd *v, const struct err *e)
{
	nodes_fail(v, e);
	enter_closing(v);
	return true;
}

static bool connect_frontend(struct vbd *v)
{
	struct err e = ERR_INIT;
	int rc = nodes_read_frontend(v, &v->connect, &e);

	if (rc < 0)
		return connect_failed(v, &e);
	v->connect.hyp = v->be->hyp;
	v->connect.domid = v->domid;
	v->connect.run_dir = v->be->opts.run_dir;
	v->connect.name = v->name;
	v->connect.report = conn_report;
	v->connect.report_ctx = v;
	v->connect.limits = (struct blkif_limits){.sectors = dev_size_bytes(v->ref->dev) / 512,
						  .writable = v->config.writable && dev_writable(v->ref->dev),
						  .barrier = v->config.barrier,
						  .discard = v->config.discard};
	rc = blkif_conn_create(&v->connect, &v->conn, &e);
	if (rc < 0)
		return connect_failed(v, &e);
	if (blkif_conn_attach(v->conn, v->ref->dev) < 0) {
		blkif_conn_destroy(v->conn, v->be->hyp);
		v->conn = NULL;
		retry(v, RETRY_MAILBOX_NS);
		return false;
	}
	v->detach_posted = v->fe_connected = false;
	v->connects++;
	v->state = VBD_CONNECTED;
	nodes_clear_failure(v);
	v->failure[0] = '\0';
	show(v);
	rc = nodes_write_connected(v, &e);
	if (rc == -ENOENT)
		v->exists = false;
	else if (rc < 0 && rc != -ECANCELED)
		nodes_fail(v, &e);
	if (rc < 0)
		return detach(v, VBD_CLOSING);
	log_info("%s: connected: %u queue(s) of %u page(s), %s", v->name, v->connect.n_queues,
		 v->connect.pages, blkif_abi_name(v->connect.abi));
	return true;
}

/* Initialised while we are Connected: the frontend has not looked yet, or it went through a whole restart
 * that we did not see. */
static bool is_new_connection(struct vbd *v)
{
	struct blkif_connect now;
	struct err e = ERR_INIT;

	if (v->fe_connected)
		return true;
	if (nodes_read_frontend(v, &now, &e) < 0)
		return false;
	return now.abi != v->connect.abi || now.pages != v->connect.pages ||
	       now.n_queues != v->connect.n_queues ||
	       memcmp(now.queue, v->connect.queue, sizeof(now.queue)) != 0;
}

static bool act(struct vbd *v, enum action a)
{
	switch (a) {
	case STAY:
		return false;
	case CONNECT:
		return connect_frontend(v);
	case SEEN:
		v->fe_connected = true;
		return false;
	case CHECK_NEW:
		return is_new_connection(v) ? detach(v, VBD_INIT_WAIT) : false;
	case REINIT:
		return detach(v, VBD_INIT_WAIT);
	case CLOSE:
		enter_closing(v);
		return true;
	case CLOSED:
		/* Restarting in the middle of a close: Closed first, then the table's REOPEN. */
		return v->conn ? detach(v, VBD_CLOSED) : enter_closed(v);
	case REOPEN:
		return v->online ? offer(v) : false;
	}
	return false;
}

/* ---- who decides before the frontend ---- */

static void take_async(struct vbd *v)
{
	unsigned async = __atomic_exchange_n(&v->async, 0, __ATOMIC_ACQUIRE);

	/* A break is told before the end of the same connection. */
	if ((async & ASYNC_BROKEN) && v->conn) {
		struct err e = ERR_INIT;

		err_set(&e, -EPROTO, "%s", v->conn->reason);
		nodes_fail(v, &e);
		if (v->state != VBD_DETACHING)
			detach(v, VBD_CLOSING);
	}
	if ((async & ASYNC_DETACHED) && v->conn) {
		forget_device(v);
		blkif_conn_destroy(v->conn, v->be->hyp);
		v->conn = NULL;
	}
	if (async & ASYNC_TASK_DONE)
		v->task_running = false;
}

static bool opened(struct vbd *v)
{
	if (v->task_running)
		return false;
	if (v->task.result < 0)
		return refuse(v, &v->task.err);
	if (v->failure[0])
		nodes_clear_failure(v);
	v->failure[0] = '\0';
	return offer(v);
}

static bool closed_image(struct vbd *v)
{
	if (v->task_running)
		return false;
	if (v->task.result < 0) {
		if (v->be->first_failure == 0) {
			v->be->first_failure = v->task.result;
			v->be->first_err = v->task.err;
		}
		nodes_fail(v, &v->task.err);
	}
	released(v);
	return true;
}

static bool initialising(struct vbd *v)
{
	struct err e = ERR_INIT;
	int rc;

	if (!v->online || v->own == XB_CLOSING) {
		released(v);
		return true;
	}
	if (!v->introduced && v->own > XB_INITIALISING) {
		/* What a backend once served, of a domain that is no more: a toolstack did not clean up. */
		v->dead = true;
		return true;
	}
	rc = nodes_read_config(v, &e);
	if (rc == -EAGAIN)
		return false;
	if (rc < 0)
		return refuse(v, &e);
	start(v, open_image, VBD_OPENING);
	return true;
}

/* Gives up, one after the other, whatever there is. */
static bool leave(struct vbd *v)
{
	if (v->conn) {
		if (v->be->stopping && v->published == XB_CONNECTED)
			nodes_write_state(v, XB_CLOSING);
		return detach(v, VBD_CLOSED);
	}
	if (v->ref) {
		release(v);
		return true;
	}
	if (v->state != VBD_RELEASED && !made_anew(v)) {
		released(v);
		return true;
	}
	if (!made_anew(v))
		return false;
	v->state = VBD_INITIALISING;
	v->published = 0;
	v->dead = false;
	v->introduced = xs_is_domain_introduced(v->be->xs, v->domid);
	v->failure[0] = '\0';
	return true;
}

/* Closing on our node, and not by us. */
static bool asked_to_close(struct vbd *v)
{
	if (v->own != XB_CLOSING || v->published == XB_CLOSING)
		return false;
	v->published = XB_CLOSING;
	switch (v->state) {
	case VBD_INIT_WAIT:
	case VBD_CONNECTED:
		v->state = VBD_CLOSING;
		return true;
	case VBD_CLOSED:
		return enter_closed(v);
	case VBD_RELEASED:
		released(v);
		return true;
	case VBD_INITIALISING:
	case VBD_OPENING:
	case VBD_CLOSING:
	case VBD_DETACHING:
	case VBD_RELEASING:
	case VBD_STATES:
		break;
	}
	return false;
}

static bool step(struct vbd *v)
{
	if (v->state == VBD_OPENING)
		return opened(v);
	if (v->state == VBD_RELEASING)
		return closed_image(v);
	if (v->state == VBD_DETACHING)
		return detaching(v);
	if (must_leave(v))
		return leave(v);
	if (v->state == VBD_INITIALISING)
		return initialising(v);
	if (asked_to_close(v))
		return true;
	if (!v->online && !v->conn && v->ref) {
		release(v);
		return true;
	}
	/* Writes that xenstore refused. */
	if (v->state == VBD_INIT_WAIT && v->published != XB_INIT_WAIT)
		return offer(v);
	if (v->state == VBD_CLOSED && v->published != XB_CLOSED)
		enter_closed(v);
	else if (v->state == VBD_CLOSING && v->published != XB_CLOSING)
		enter_closing(v);
	return act(v, on_frontend[v->state][v->fe]);
}

bool vbd_step(struct vbd *v)
{
	enum vbd_state before = v->state;
	unsigned i = 0;
	bool more;

	v->retry_ns = 0;
	do {
		take_async(v);
		nodes_read_states(v);
		more = step(v);
		if (v->state != before)
			log_debug("%s: %s -> %s (frontend %s)", v->name, vbd_state_names[before],
				  vbd_state_names[v->state], xenbus_name(v->fe));
		before = v->state;
	} while (more && ++i < STEPS_MAX);
	if (more)
		v->wake = true;
	show(v);
	return v->state == VBD_RELEASED && !v->task_running && (!v->exists || v->be->stopping);
}
