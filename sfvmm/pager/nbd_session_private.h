/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What nbd_session.c (negotiation, bytes) and nbd_job.c (requests) share. For these two alone. */
#ifndef SF_NBD_SESSION_PRIVATE_H
#define SF_NBD_SESSION_PRIVATE_H

#include "sfvmm/pager/nbd_decode.h"
#include "sfvmm/pager/nbd_export.h"
#include "sfvmm/pager/nbd_session.h"

/* A large read leaves in pieces of this size, so that no other request waits longer than for one of them. */
#define NBD_SLICE (64u * 1024)
/* Two slices and their chunk headers fit. A turn begins no piece of work when a slice is out. */
#define NBD_OUT_SIZE (2 * NBD_SLICE + 16 * 1024)
#define NBD_IN_SIZE  (16u * 1024) /* an option with all its data, or many requests */
#define NBD_MAX_JOBS 64           /* requests of one connection under way; more are not read from the socket */

enum nbd_job_step {
    NBD_JOB_SLICE, /* some of it was done, there is more */
    NBD_JOB_WAITS, /* for a fetch */
    NBD_JOB_DONE,
};

struct nbd_job {
    struct nbd_job *next; /* in the list of those that are ready, or of the free ones */
    struct nbd_request request;
    uint64_t at, end;        /* bytes of the export: what is left to do */
    bool begun;              /* a simple reply: its header is out, so its data must follow at once */
    int error;               /* of a fetch, errno */
    struct nbd_fetch *fetch; /* under way */
};

struct nbd_job_list {
    struct nbd_job *first, *last;
};

enum nbd_state {
    NBD_STATE_FLAGS, /* greeting sent */
    NBD_STATE_OPTIONS,
    NBD_STATE_HANDSHAKE, /* STARTTLS was granted */
    NBD_STATE_REQUESTS,
    NBD_STATE_OVER,
};

struct nbd_session {
    struct nbd_service *service;
    void *data;
    enum nbd_state state;
    bool no_zeroes, structured, known, held;
    bool told_held_out; /* the bound of waiting for the snapshot has passed */
    bool allocation;    /* base:allocation was chosen for the export `allocation_of` */
    char allocation_of[NBD_EXPORT_NAME_LEN];
    unsigned n_options;
    uint32_t skip; /* bytes of input to throw away */
    struct nbd_export export;

    struct tls_session *tls; /* set with STARTTLS */
    bool tls_ready;
    uint8_t *in, *out; /* plaintext; out grows from its first use to NBD_OUT_SIZE */
    size_t in_start, in_end, out_start, out_end;

    struct nbd_job *jobs; /* NBD_MAX_JOBS, made with the first request */
    struct nbd_job_list ready, free;
    uint64_t served;

    uint64_t since_start, since_input, since_output, since_held; /* service->now */
    char problem[256];
};

/* Room for n bytes at the end of out; it must be there. */
uint8_t *nbd_session_reserve(struct nbd_session *session, size_t n);

/* Ends the session; the first reason is kept. */
G_GNUC_PRINTF(2, 3)
void nbd_session_end(struct nbd_session *session, const char *format, ...);

/* nbd_job.c. Takes a request in: answers it, or makes a job of it. There must be a free job. */
void nbd_job_take(struct nbd_session *session, const struct nbd_request *request);
bool nbd_job_is_free(const struct nbd_session *session);
/* Works on the first ready job, if any. */
bool nbd_job_run(struct nbd_session *session);
void nbd_jobs_init(struct nbd_session *session);
void nbd_jobs_drop(struct nbd_session *session);

#endif
