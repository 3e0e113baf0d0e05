/* The list of domains, and what happens at birth and death; see domain.h. */
#include "sim/simxen/domain.h"
#include "sim/simxen/hypside.h"
#include "sim/simxen/xs.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static struct domain dom0 = {
    .introduced = true, .target = NO_TARGET, .mem_fd = -1, .grants_fd = -1, .xs_listen.fd = -1};
static const char *directory;
static uint32_t last_domid;

static void xs_client_waits(struct source *s, uint32_t events)
{
	(void)events;
	xs_accept(container_of(s, struct domain, xs_listen));
}

static int open_door(struct domain *d, const char *name)
{
	char path[4096];
	int rc;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	rc = listen_at(path, SOCK_STREAM);
	if (rc < 0)
		return rc;
	d->xs_listen = (struct source){.fd = rc, .ready = xs_client_waits};
	rc = loop_add(&d->xs_listen, EPOLLIN);
	if (rc < 0) {
		close(d->xs_listen.fd);
		d->xs_listen.fd = -1;
		unlink(path);
		return rc;
	}
	d->xs_path = must_strdup(path);
	return 0;
}

static void close_door(struct domain *d)
{
	if (d->xs_path)
		unlink(d->xs_path);
	free(d->xs_path);
	d->xs_path = NULL;
	loop_del(&d->xs_listen);
}

void domains_init(const char *dir)
{
	int rc;

	directory = dir;
	rc = open_door(&dom0, "socket");
	if (rc < 0) {
		fprintf(stderr, "simxen: cannot listen at %s/socket: %s\n", dir, strerror(-rc));
		exit(1);
	}
}

struct domain *domain_find(uint32_t domid)
{
	struct domain *d = &dom0;

	while (d && d->domid != domid)
		d = d->next;
	return d;
}

struct domain *domain_first_above(uint32_t domid, uint32_t *count)
{
	struct domain *d = dom0.next, *first;

	while (d && d->domid <= domid)
		d = d->next;
	first = d;
	for (*count = 0; d; d = d->next)
		++*count;
	return first;
}

/* The next free id behind the last one given, as toolstacks count: an id is used again as late as possible.
 */
static uint32_t free_domid(void)
{
	for (uint32_t i = 1; i < DOMID_LIMIT; i++) {
		uint32_t domid = (last_domid + i - 1) % (DOMID_LIMIT - 1) + 1;

		if (!domain_find(domid))
			return domid;
	}
	return 0;
}

int domain_birth(uint32_t domid, struct domain **out)
{
	struct domain *d, **at = &dom0.next;
	int rc;

	if (domid == SIM_NEW_DOMAIN) {
		domid = free_domid();
		if (domid == 0)
			return -ENOSPC;
		last_domid = domid;
	}
	if (domid == 0 || domid >= DOMID_LIMIT)
		return -EINVAL;
	if (domain_find(domid))
		return -EEXIST;
	d = must_alloc(sizeof(*d));
	d->domid = domid;
	d->target = NO_TARGET;
	d->mem_fd = d->grants_fd = d->xs_listen.fd = -1;
	while (*at && (*at)->domid < domid)
		at = &(*at)->next;
	d->next = *at;
	*at = d;
	tree_make_home(d);
	rc = domain_introduce(d);
	if (rc < 0) {
		domain_death(d);
		return rc;
	}
	*out = d;
	return 0;
}

int domain_introduce(struct domain *d)
{
	char name[32];
	int rc;

	if (d->introduced)
		return 0;
	snprintf(name, sizeof(name), "xs-dom%u", d->domid);
	rc = open_door(d, name);
	if (rc < 0)
		return rc;
	d->introduced = true;
	watch_fire_special("@introduceDomain");
	return 0;
}

void domain_release(struct domain *d)
{
	if (!d->introduced)
		return;
	d->introduced = false;
	close_door(d);
	xs_conns_doom(d);
	tree_forget_domain(d);
	watch_fire_special("@releaseDomain");
}

void domain_death(struct domain *d)
{
	struct domain **at = &dom0.next;

	mem_release(d);
	evtchn_close_all(d);
	while (*at != d)
		at = &(*at)->next;
	*at = d->next;
	for (struct domain *other = &dom0; other; other = other->next)
		if (other->target == d->domid)
			other->target = NO_TARGET;
	if (d->introduced)
		domain_release(d);
	else
		tree_forget_domain(d);
	free(d);
}

void domains_remove_sockets(void)
{
	for (struct domain *d = &dom0; d; d = d->next)
		close_door(d);
}
