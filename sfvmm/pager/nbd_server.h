/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The NBD page server of sf-pager: serves the pages of one snapshot to other hosts and to NBD tools, in a thread of its
 * own. docs/memory-on-demand.md lists what it speaks; nbd_export.h names the exports.
 *
 * A client may connect and negotiate before the snapshot exists: what names an export of it (INFO, GO,
 * SET_META_CONTEXT) is answered when page_store_set() has been called, or after `pending` seconds with
 * NBD_REP_ERR_SHUTDOWN (libnbd: ESHUTDOWN). An export that this snapshot does not have is NBD_REP_ERR_UNKNOWN (ENOENT),
 * a client that is not allowed gets NBD_REP_ERR_POLICY (libnbd 1.14 has ENOTSUP for it).
 */
#ifndef SF_NBD_SERVER_H
#define SF_NBD_SERVER_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include "sfvmm/pager/page_store.h"

struct nbd_server;

/* With a limit of 0 its default holds. */
struct nbd_server_limits {
    unsigned connections;          /* 256 in all */
    unsigned connections_per_peer; /* 64 of one name */
    unsigned hello;                /* 20 s: to connect, and show a certificate */
    unsigned message;              /* 30 s: to finish a message, once begun */
    unsigned output;               /* 60 s: to take something of the replies */
    unsigned pending;              /* 900 s: that a snapshot which is only announced is waited for */
};

struct nbd_server_options {
    int listen_fd;             /* listening stream socket, taken in every case */
    const char *snapshot;      /* its id, known before the store has content */
    const char *tls_directory; /* ca-cert.pem, server-cert.pem, server-key.pem: client certificates of this CA; or */
    const char *psk_file;      /* lines USER:HEXKEY; or neither: plain, on unix sockets and loopback addresses only */
    const char *tls_unit;      /* with tls_directory: the OU that client certificates must have; NULL: any */
    struct nbd_server_limits limits;
};

struct nbd_server_stats {
    uint64_t served_bytes; /* of pages */
    unsigned connections;
    uint64_t refused; /* connections closed for a reason */
};

/*
 * Opens all files and the ring; serves nobody yet. From the control thread, which the store's when_set callbacks run
 * in. NULL + error says what is missing.
 */
struct nbd_server *nbd_server_new(struct page_store *store, const struct nbd_server_options *options, GError **error);

/*
 * Starts the thread. From here it uses: io_uring_enter, io_uring_register (once), recv and accept by the ring; send,
 * shutdown, close, setsockopt, pread64, lseek, read, write, futex, memory, getrandom, clock_gettime, exit.
 */
bool nbd_server_start(struct nbd_server *server, GError **error);

/* Ends the thread and all connections. */
void nbd_server_stop(struct nbd_server *server);
/* After stop, and after the store's last fetch has come back. */
void nbd_server_free(struct nbd_server *server);

/*
 * Who may list and read, from now on: names of client certificates (CN) or of keys. n 0: nobody. Connections of others
 * are closed. Plain servers do not ask. Any thread.
 */
void nbd_server_allow(struct nbd_server *server, const char *const *names, unsigned n);

void nbd_server_get_stats(const struct nbd_server *server, struct nbd_server_stats *stats); /* any thread */

#endif
