/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One connection of the page server as bytes: what the client sent goes in, what it gets comes out. No socket, no
 * thread, no clock of its own: nbd_server.c moves the bytes, fuzz and unit tests do without it. All calls on a session
 * and on its service come from one thread, but for `landed`.
 */
#ifndef SF_NBD_SESSION_H
#define SF_NBD_SESSION_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "sfvmm/pager/page_store.h"
#include "sfvmm/pager/tls_session.h"

struct nbd_session;
struct nbd_fetch;

/* Bounds in seconds. */
struct nbd_bounds {
    unsigned hello;   /* from the first byte to the end of the TLS handshake (plain: of the first option) */
    unsigned message; /* for the rest of a message that has begun */
    unsigned output;  /* for a client to take a byte of what it asked for */
    unsigned pending; /* for which a snapshot that is only announced is waited for */
};

/* What all connections share. */
struct nbd_service {
    struct page_store *store;
    const char *snapshot;                      /* id: exports are SNAPSHOT/..., also before the store has content */
    const struct tls_credentials *credentials; /* NULL: plain */
    struct nbd_bounds bounds;
    uint64_t now; /* seconds of CLOCK_MONOTONIC, kept up by the owner */
    bool (*allowed)(void *owner, const char *peer);
    /* A fetch has ended: called by the memtap thread, which must only pass it to the sessions' thread. */
    void (*landed)(void *owner, struct nbd_fetch *fetch);
    void *owner;
};

enum nbd_turn {
    NBD_TURN_IDLE, /* until there is input, or the output has been sent, or a fetch lands */
    NBD_TURN_MORE, /* run it again when the output has been sent */
    NBD_TURN_OVER, /* send the output, then close */
};

struct nbd_session *nbd_session_new(struct nbd_service *service);
void nbd_session_free(struct nbd_session *session); /* its fetches may still be under way */

/* Input: at most nbd_session_space() bytes. None while that is 0. */
size_t nbd_session_space(const struct nbd_session *session);
void nbd_session_input(struct nbd_session *session, const uint8_t *bytes, size_t n);

/* Works on what is there, up to one slice of output (64 KiB); does nothing while output waits to be sent. */
enum nbd_turn nbd_session_run(struct nbd_session *session);

/* Output; stays where it is until sent() or run(). */
const uint8_t *nbd_session_output(const struct nbd_session *session, size_t *n);
void nbd_session_sent(struct nbd_session *session, size_t n);

/* Once a second or so: false when a bound has passed; then close it. */
bool nbd_session_tick(struct nbd_session *session);

bool nbd_session_is_known(const struct nbd_session *session);   /* has proved who it is; plain: has said something */
bool nbd_session_is_serving(const struct nbd_session *session); /* negotiated: requests come, which must be quick */
bool nbd_session_is_held(const struct nbd_session *session); /* waits for the snapshot: run it then, and after a tick */
const char *nbd_session_peer(const struct nbd_session *session);    /* "" unless TLS told it */
const char *nbd_session_problem(const struct nbd_session *session); /* why it is over; "" in good order */

/* Bytes of pages in replies so far. */
uint64_t nbd_session_served(const struct nbd_session *session);

/* In the sessions' thread: takes note of it and frees it. The session to run, or NULL when it has gone. */
struct nbd_session *nbd_fetch_land(struct nbd_fetch *fetch);
struct nbd_fetch **nbd_fetch_link(struct nbd_fetch *fetch); /* for a list of the owner */

/* The owner's own pointer. */
void nbd_session_set_data(struct nbd_session *session, void *data);
void *nbd_session_data(const struct nbd_session *session);

#endif
