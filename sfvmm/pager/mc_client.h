/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mc_client: a host's multicast thread: takes pages that the origin sends to the group, whoever asked, puts them into
 * the store, and asks for what is wanted here, as mc_receiver decides.
 *
 * Other threads want pages (mc_client_want), and are told by a listener of their own when some have come or have to
 * be fetched by unicast.
 */
#ifndef SF_PAGER_MC_CLIENT_H
#define SF_PAGER_MC_CLIENT_H

#include "sfvmm/pager/mc_blob_in.h"
#include "sfvmm/pager/mc_receiver.h"
#include "sfvmm/pager/mc_seal.h"
#include "sfvmm/pager/page_store.h"

struct mc_client;

struct mc_client_options {
    int fd;             /* the receiver's socket (udp_group.h), taken */
    unsigned payload;   /* bytes of a datagram */
    unsigned receivers; /* that there will be about */
    struct mc_receiver_keys keys;
    void (*complete)(void *owner); /* no page is absent any more; may be told more than once */
    void (*changed)(enum mc_state state, const char *reason, void *owner); /* reason: static */
    void (*blob)(uint64_t id, bool whole, void *owner);
    void *owner;
};

/* NULL and errno; the socket is closed. options may be wiped afterwards. */
struct mc_client *mc_client_new(struct page_store *store, const struct mc_client_options *options);
bool mc_client_start(struct mc_client *client); /* false and errno */
void mc_client_free(struct mc_client *client);  /* ends the thread; after those of the listeners have ended */
void mc_client_store_is_set(struct mc_client *client);

/*
 * Before the snapshot is set: gathers this blob from the group into fd (a file of `total` bytes, taken), asking for
 * what is lost. blob() of the options tells once whether it is all there; a blob that is awaited already is given up
 * for it.
 */
void mc_client_await_blob(struct mc_client *client, int fd, uint32_t total, uint64_t id);

/* Any thread: only in MC_MULTICAST should pages be wanted; each change is told to all listeners. */
enum mc_state mc_client_state(const struct mc_client *client);

/* Any thread: pages that are wanted here. Page-aligned. What does not come is told to all listeners as fallen back. */
void mc_client_want(struct mc_client *client, unsigned block, uint64_t offset, uint64_t length,
                    enum mc_priority priority);

/* ---- listeners: one for each thread that waits; made by the control thread, before or after the start ---- */

struct mc_listener;

struct mc_fallen {
    unsigned block;
    uint64_t offset, length;
};

/* Lives as long as the client. NULL: no memory or descriptors. */
struct mc_listener *mc_client_listen(struct mc_client *client);

/* For the listener's thread. Readable when pages have come, if it has said that it waits, or fallen back. */
int mc_listener_fd(const struct mc_listener *listener);
void mc_listener_wait(struct mc_listener *listener, bool waits);
/* Takes the news: what has fallen back since the last call; free() it. n: how many; NULL and 0: nothing. */
struct mc_fallen *mc_listener_take(struct mc_listener *listener, unsigned *n);

struct mc_client_stats {
    struct mc_receiver_stats receiver;
    uint64_t forged, replayed; /* datagrams that were dropped */
    uint64_t overflows;        /* datagrams that found the socket's buffer full */
    uint64_t unwritten;        /* pages that the cache could not take */
    uint64_t blob_bytes;       /* of blobs that have come whole */
};
void mc_client_get_stats(struct mc_client *client, struct mc_client_stats *stats);

#endif
