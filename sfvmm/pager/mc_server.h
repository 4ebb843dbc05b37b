/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mc_server: the origin's multicast thread: takes requests of receivers, sends pages of the store to the group, as
 * mc_sender decides.
 *
 * All calls from the control thread; they are orders to the thread and return at once.
 */
#ifndef SF_PAGER_MC_SERVER_H
#define SF_PAGER_MC_SERVER_H

#include <sys/socket.h>
#include "sfvmm/pager/mc_seal.h"
#include "sfvmm/pager/mc_sender.h"
#include "sfvmm/pager/page_store.h"

struct mc_server;

struct mc_server_options {
    int fd;                        /* the origin's socket (udp_group.h), taken */
    struct sockaddr_storage group; /* that it sends to */
    socklen_t group_length;
    unsigned payload;            /* bytes of a datagram */
    unsigned receivers;          /* that are expected */
    uint64_t min_rate, max_rate; /* bytes a second; 0: mc_sender's defaults */
    bool push;
    uint8_t master[MC_KEY_LENGTH];
};

/* NULL and errno; the socket is closed. options may be wiped afterwards. */
struct mc_server *mc_server_new(struct page_store *store, const struct mc_server_options *options);
bool mc_server_start(struct mc_server *server); /* false and errno */
void mc_server_free(struct mc_server *server);  /* ends the thread */

void mc_server_store_is_set(struct mc_server *server);
/* What push begins with; copied. */
void mc_server_set_working_set(struct mc_server *server, const struct sf_pager_run *runs, unsigned n);
/* Sent to all when the store is set; as mc_sender_set_blob(). */
void mc_server_set_blob(struct mc_server *server, uint8_t *bytes, uint32_t total, uint64_t id);

struct mc_server_stats {
    struct mc_sender_stats sender;
    uint64_t forged, replayed; /* requests that were dropped */
    uint64_t overflows;        /* requests that found the socket's buffer full */
    uint64_t dropped;          /* datagrams that the kernel did not send */
    bool offload;              /* UDP_SEGMENT is in use */
};
void mc_server_get_stats(struct mc_server *server, struct mc_server_stats *stats);

#endif
