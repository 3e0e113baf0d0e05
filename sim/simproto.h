/*
 * The hypervisor protocol of simxen: what a process says to the stand-in for Xen to get guest memory, grants
 * and event channels.
 *
 * simxen listens on three kinds of unix sockets in its directory (DIR):
 *
 *   DIR/socket      SOCK_STREAM, xenstore wire protocol (xen/io/xs_wire.h), domain 0, privileged.
 *                   XENSTORED_PATH points here.
 *
 *   DIR/xs-dom<N>   the same protocol as domain N, unprivileged; made when the domain is born, removed when
 *                   it dies.
 *
 *   DIR/hyp         SOCK_SEQPACKET, this protocol: one sim_req, answered by one sim_rsp, strictly in turn.
 *
 * A connection to DIR/hyp is one domain's: its first message is HELLO. The domain that HELLO gives birth to
 * dies when that connection closes (a killed guest is a destroyed domain). A connection for domain 0 is a
 * backend; its end is what the end of a process is for Xen: its channels fall back to "unbound" (the guest's
 * port stays, notifications are dropped), its mappings are gone.
 *
 * Memory. Guest pages are one memfd, created by simxen and sealed with F_SEAL_SHRINK | F_SEAL_GROW |
 * F_SEAL_SEAL, so that a mapping of it can never fault. A backend that gets the fd by MAP verifies seals and
 * size before mmap().
 *
 * Grants. The table is an array of struct sim_grant in another memfd: simxen writes it, a backend has a
 * read-only mapping. A grant is looked up at each use, as Xen does: an entry revoked is an entry that fails.
 *
 * Channels. An event channel is two eventfds, one a side. Notify = write 1 to the peer's; pending = one's own
 * is readable; reading it clears it. A bind sets the binder's side pending ("We may have lost
 * notifications").
 *
 * All integers are native-endian: both ends live on one host. This header is the whole contract: blkd/hyp and
 * sim/ each implement their side of it and share no code.
 */
#ifndef SIM_SIMPROTO_H
#define SIM_SIMPROTO_H

#include <stdint.h>

#define SIM_MAGIC      0x53494d58u /* "SIMX" */
#define SIM_PAGE_BYTES 4096u
#define SIM_MAX_PAGES  (1u << 20) /* 4 GiB a guest */
#define SIM_GRANTS     65536u /* entries of a domain's table; grefs 0..7 are reserved as on Xen, never valid */

enum sim_op {
	/* domid: 0 = backend in domain 0; SIM_NEW_DOMAIN = a new guest; other = a new guest with that id.
	 * rsp.domid */
	SIM_HELLO = 1,
	/* guest: count pages. Once. rsp carries fd[0] = the memfd, read-write */
	SIM_MEM_CREATE,
	/* guest: count entries from gref: pages page.. for domain `domid`, flags. Replaces what was there */
	SIM_GRANT,
	/* guest: count entries from gref */
	SIM_REVOKE,
	/* guest: an unbound port that `domid` may bind. rsp.port; fd[0] = wait on it, fd[1] = write to it to
	 * notify */
	SIM_EVTCHN_ALLOC,
	/* backend: bind (domid, port). rsp.port = ours; fd[0] = wait, fd[1] = notify. -EBUSY: is bound */
	SIM_EVTCHN_BIND,
	/* either: port (one's own). The other side falls back to unbound */
	SIM_EVTCHN_CLOSE,
	/* backend: domain `domid`. rsp.count = its pages; fd[0] = its memfd, fd[1] = its grant table,
	 * read-only. -ESRCH: no such domain, or no memory yet */
	SIM_MAP,
	/* backend connection as toolstack: end domain `domid` (its hyp connection is shut down) */
	SIM_DOMAIN_DESTROY,
	/* rsp.count domains above `domid`; rsp.domid = the next one, or 0 */
	SIM_DOMAIN_LIST,
};

#define SIM_NEW_DOMAIN	   0xffffffffu
#define SIM_GRANT_VALID	   1u
#define SIM_GRANT_READONLY 2u

struct sim_grant {
	uint32_t page;
	uint16_t domid; /* who may use it */
	uint16_t flags; /* SIM_GRANT_*. Last (release) on grant, first on revoke: read it with acquire */
};

struct sim_req {
	uint32_t magic, op;
	uint32_t domid, gref, page, count, port, flags;
};

struct sim_rsp {
	uint32_t magic, op;
	int32_t error; /* 0 or -errno; no fds come with an error */
	uint32_t domid, count, port;
	uint32_t nfds, pad;
};

_Static_assert(sizeof(struct sim_grant) == 8, "grant entry");
_Static_assert(sizeof(struct sim_req) == 32 && sizeof(struct sim_rsp) == 32, "messages");

#endif
