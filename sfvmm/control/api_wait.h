/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A call that is answered later: it ends with a signal of what it waits for, or with the caller's timeout. Whoever ends
 * it answers the call, then frees the wait.
 */
#ifndef SF_API_WAIT_H
#define SF_API_WAIT_H

#include "sfvmm/control/server.h"

#define SF_API_TIMEOUT_MAX_MS   (24 * 3600 * 1000)
#define SF_API_WAIT_WATCHES_MAX 4u

/* An object whose signal may end a wait. */
typedef struct {
    GObject *object;
    gulong handler;
} SfApiWatch;

typedef struct {
    SfCall *call;
    GObject *object; /* what is waited for: a VM or a fork */
    SfApiWatch watches[SF_API_WAIT_WATCHES_MAX];
    guint n_watches;
    guint timer;
    SfHost *host;   /* outlives all calls */
    guint64 ticket; /* by its id: it may be released meanwhile */
    SfHostVm *hvm;
    const SfLateCommits *commits;
    gboolean answered, release;
    char *what; /* for the timeout's message */
} SfApiWait;

/* Takes what. timeout_ms 0: none. The caller says which signals end it. */
SfApiWait *sf_api_wait_new(SfCall *call, gpointer object, gint64 timeout_ms, char *what);
SfApiWait *sf_api_wait_new_for_ticket(SfCall *call, SfHostTicket *ticket, gint64 timeout_ms,
                                      char *what); /* something of its fork */
void sf_api_wait_free(SfApiWait *wait);

/* The callback's data is the wait. */
void sf_api_wait_watch(SfApiWait *wait, gpointer object, const char *signal, GCallback callback);

/* The ticket; NULL: it has been released, and the call has ended with that. */
SfHostTicket *sf_api_wait_ticket(SfApiWait *wait);

/* Answers when the ticket's clones run (until "resumed") or are unique ("answered"; NULL: if they have an agent). */
void sf_api_wait_for_clones(SfCall *call, SfHostTicket *ticket, gint64 timeout_ms, const char *until);

#endif
