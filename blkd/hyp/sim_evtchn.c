/*
 * Event channels under simxen: two eventfds a channel. Ours is readable while the channel is pending; the
 * guest's is written to notify it. Whether the guest still listens is not our concern: simxen keeps the port,
 * or has closed it, and then nobody reads.
 *
 * The eventfds are non-blocking, but that flag is shared with the guest: one that clears it and fills the
 * counter can make our write wait. On Xen no guest can; here it would stop its own device thread, and the
 * simulator does not defend against it.
 */
#include "blkd/hyp/sim_priv.h"
#include "blkd/err.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct sim_evtchn {
	struct hyp_evtchn ch; /* ch.fd: our eventfd */
	int peer_fd;	      /* the guest's */
	uint32_t local_port;
	uint32_t domid;
};

int sim_bind(struct hyp *h, uint32_t domid, uint32_t remote_port, struct hyp_evtchn **out, struct err *e)
{
	struct sim_req req = {.magic = SIM_MAGIC, .op = SIM_EVTCHN_BIND, .domid = domid, .port = remote_port};
	struct sim *s = sim_of(h);
	struct sim_rsp rsp;
	struct sim_evtchn *ch = calloc(1, sizeof(*ch));
	int fds[2], rc;

	if (!ch)
		return err_set(e, -ENOMEM, "no memory for an event channel of domain %u", domid);
	pthread_mutex_lock(&s->lock);
	rc = sim_request(s, &req, &rsp, fds, 2);
	pthread_mutex_unlock(&s->lock);
	if (rc < 0) {
		free(ch);
		return err_set(e, rc, "event channel %u of domain %u: %s", remote_port, domid, strerror(-rc));
	}
	ch->ch = (struct hyp_evtchn){.hyp = h, .fd = fds[0]};
	ch->peer_fd = fds[1];
	ch->local_port = rsp.port;
	ch->domid = domid;
	*out = &ch->ch;
	return 0;
}

static struct sim_evtchn *evtchn_of(struct hyp_evtchn *ch)
{
	return (struct sim_evtchn *)ch;
}

void sim_unbind(struct hyp_evtchn *base)
{
	struct sim_evtchn *ch = evtchn_of(base);
	struct sim *s = sim_of(base->hyp);
	struct sim_req req = {.magic = SIM_MAGIC, .op = SIM_EVTCHN_CLOSE, .port = ch->local_port};
	struct sim_rsp rsp;
	int fds[2];

	close(base->fd);
	close(ch->peer_fd);
	pthread_mutex_lock(&s->lock);
	/* Nothing to do about a refusal: the guest has died, or simxen has. */
	(void)sim_request(s, &req, &rsp, fds, 0);
	pthread_mutex_unlock(&s->lock);
	free(ch);
}

int sim_notify(struct hyp_evtchn *base)
{
	struct sim_evtchn *ch = evtchn_of(base);
	const uint64_t one = 1;

	sim_count(&sim_counters_of(sim_of(base->hyp), ch->domid)->notifies, 1);
	/* EAGAIN: the count is at its maximum, so the guest's side is pending already. */
	if (write(ch->peer_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
		return -errno;
	return 0;
}

int sim_ack(struct hyp_evtchn *base)
{
	uint64_t n;

	if (read(base->fd, &n, sizeof(n)) < 0)
		return errno == EAGAIN ? 0 : -errno;
	sim_count(&sim_counters_of(sim_of(base->hyp), evtchn_of(base)->domid)->acks, 1);
	return 1;
}

/* An eventfd has no mask: what came since the ack is readable already. */
int sim_unmask(struct hyp_evtchn *base)
{
	(void)base;
	return 0;
}
