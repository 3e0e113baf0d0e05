/*
 * Event channels: a guest allocates a port, a backend binds to it, either closes it.
 *
 * Both eventfds are made with the port and live as long as it, because the guest keeps its descriptors
 * whoever is bound. What the guest sends while nobody is bound is dropped: the backend's side is emptied at a
 * bind, and then set pending, as Xen does ("we may have lost notifications").
 */
#include "sim/simxen/hypside.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

int evtchn_alloc(struct domain *d, uint32_t for_domid, struct evtchn **out)
{
	struct evtchn *ch;

	if (for_domid >= DOMID_LIMIT)
		return -EINVAL;
	if (d->nports >= MAX_PORTS_PER_GUEST)
		return -ENOSPC;
	ch = must_alloc(sizeof(*ch));
	ch->guest_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ch->peer_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (ch->guest_fd < 0 || ch->peer_fd < 0) {
		int rc = -errno;

		if (ch->guest_fd >= 0)
			close(ch->guest_fd);
		free(ch);
		return rc;
	}
	ch->dom = d;
	ch->for_domid = for_domid;
	ch->port = ++d->next_port; /* port 0 is never valid; ports are not used again */
	ch->next = d->ports;
	d->ports = ch;
	d->nports++;
	*out = ch;
	return 0;
}

static void unbind(struct evtchn *ch)
{
	struct evtchn **at;

	if (!ch->bound)
		return;
	at = &ch->bound->bound;
	while (*at != ch)
		at = &(*at)->bound_next;
	*at = ch->bound_next;
	ch->bound->nbound--;
	ch->bound = NULL;
}

static bool local_port_taken(const struct hyp_conn *c, uint32_t port)
{
	for (const struct evtchn *ch = c->bound; ch; ch = ch->bound_next)
		if (ch->local_port == port)
			return true;
	return false;
}

int evtchn_bind(struct hyp_conn *c, uint32_t domid, uint32_t port, struct evtchn **out)
{
	struct domain *d = domain_find(domid);
	struct evtchn *ch;
	uint64_t n = 1;
	int rc;

	if (!d || domid == 0)
		return -ESRCH;
	for (ch = d->ports; ch && ch->port != port; ch = ch->next)
		;
	if (!ch || ch->for_domid != 0)
		return -EINVAL;
	if (ch->bound)
		return -EBUSY;
	if (c->nbound >= MAX_BOUND)
		return -ENOSPC;
	if (read(ch->peer_fd, &n, sizeof(n)) < 0 && errno != EAGAIN)
		return -errno;
	n = 1;
	rc = write(ch->peer_fd, &n, sizeof(n)) < 0 && errno != EAGAIN ? -errno : 0;
	if (rc < 0)
		return rc;
	do
		ch->local_port = ++c->next_local_port;
	while (ch->local_port == 0 || local_port_taken(c, ch->local_port));
	ch->bound = c;
	ch->bound_next = c->bound;
	c->bound = ch;
	c->nbound++;
	*out = ch;
	return 0;
}

/* `at` is where the guest's list points at the channel. */
static void destroy(struct evtchn **at)
{
	struct evtchn *ch = *at;

	unbind(ch);
	*at = ch->next;
	ch->dom->nports--;
	close(ch->guest_fd);
	close(ch->peer_fd);
	free(ch);
}

int evtchn_close_guest(struct domain *d, uint32_t port)
{
	for (struct evtchn **at = &d->ports; *at; at = &(*at)->next) {
		if ((*at)->port == port) {
			destroy(at);
			return 0;
		}
	}
	return -EINVAL;
}

int evtchn_close_local(struct hyp_conn *c, uint32_t local_port)
{
	for (struct evtchn *ch = c->bound; ch; ch = ch->bound_next) {
		if (ch->local_port == local_port) {
			unbind(ch);
			return 0;
		}
	}
	return -EINVAL;
}

void evtchn_unbind_all(struct hyp_conn *c)
{
	while (c->bound)
		unbind(c->bound);
}

void evtchn_close_all(struct domain *d)
{
	while (d->ports)
		destroy(&d->ports);
}
