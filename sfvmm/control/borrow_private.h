/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the files of borrow.h share: borrow.c, borrow_serve.c, borrow_reserve.c, borrow_place.c, borrow_report.c,
 * borrow_peer.c.
 */
#ifndef SF_BORROW_PRIVATE_H
#define SF_BORROW_PRIVATE_H

#include "sfvmm/control/borrow.h"
#include "sfvmm/control/host_private.h"
#include "sfvmm/vm/disk_server.h"

#define SF_BORROW_ORDER_MS 15000u /* kill, release */

/* The server of the frozen disks: started with the ticket, given the disks when they are frozen. */
typedef enum {
    SF_BORROW_DISKS_NONE,
    SF_BORROW_DISKS_STARTING,
    SF_BORROW_DISKS_STARTED,
    SF_BORROW_DISKS_ADDING,
    SF_BORROW_DISKS_READY,
    SF_BORROW_DISKS_FAILED,
} SfBorrowDisks;

/* What a ticket has that has places on other hosts. */
struct SfBorrow {
    SfHostTicket *ticket;
    guint wanted;                            /* places of the first grant */
    guint asking;                            /* reserve calls under way */
    GHashTable *asked;                       /* set of hosts that they are under way to: one at a time for each */
    char *reason;                            /* why a host took fewer than asked; the last one */
    GTask *task;                             /* of reserve_async */
    char *vm, *qemu_version, *machine, *cpu; /* of the subject; NULL after a restart: the VM is asked */
    char *uri;
    SfPager *server;
    gboolean shared;        /* the server is of a saved snapshot: other tickets use it too, and it ends with the last */
    guint port;             /* that it listens at */
    SfMulticast *multicast; /* NULL: pages go by unicast alone */
    gboolean no_multicast;  /* it could not be had, which has been logged */
    GHashTable *in_group;   /* set of hosts that have joined it, as they say */
    GBytes *descriptor;
    char *descriptor_digest; /* NULL: the descriptor has not been sent to the group */
    SfBorrowDisks disks_state;
    SfDiskServer *disks;
    guint disks_port;
    GPtrArray *waiting;   /* char *: hosts to order when the disks are served */
    GHashTable *fetches;  /* id -> of borrow_report.c */
    GHashTable *complete; /* set of hosts that have all of the memory */
};

void sf_borrow_new(SfHostTicket *ticket); /* the ticket's from now on */

/* The ticket that a peer speaks of, if it is one of ours that has clones; or NULL. */
SfHostTicket *sf_borrow_ticket(SfHost *host, const char *text);
GPtrArray *sf_borrow_hosts(SfHostTicket *ticket); /* of char *: the other hosts that have places of it */

/* What a call needs when it is answered. */
typedef struct {
    SfHost *host;
    guint64 ticket;
    char *peer;
    guint count; /* reserve: asked in all; result: the clone's id */
    gboolean then_place;
} SfBorrowCall;

SfBorrowCall *sf_borrow_call_new(SfHostTicket *ticket, const char *peer, guint count);
void sf_borrow_call_free(SfBorrowCall *call);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfBorrowCall, sf_borrow_call_free)
SfHostTicket *sf_borrow_call_ticket(const SfBorrowCall *call); /* NULL: it has gone */

JsonObject *sf_borrow_params(SfHostTicket *ticket);  /* with "ticket"; the caller's */
gboolean sf_borrow_is_definite(const GError *error); /* of a call: it was not carried out */
/* A call whose answer says nothing; a host that is not there is told by sync. Takes params. */
void sf_borrow_tell(SfHostTicket *ticket, const char *host, const char *method, JsonObject *params);
void sf_borrow_ignore_answer(GObject *source, GAsyncResult *result, gpointer data);

/* borrow_serve.c: memory. FALSE + error: it can't be served. */
gboolean sf_borrow_start_server(SfBorrow *borrow, GError **error);
gboolean sf_borrow_share_server(SfBorrow *borrow, SfPager *pager, GError **error); /* one that other tickets have too */
void sf_borrow_recover_server(SfHostTicket *ticket, const char *id, JsonObject *record);
void sf_borrow_allow_hosts(SfHost *host, SfPager *server); /* that tickets have places on, and no others */
void sf_borrow_withdraw_pages(SfBorrow *borrow);           /* no host of this ticket needs pages any more */
void sf_borrow_stop_pages(SfBorrow *borrow);
/* Disks: as they are before the fork (of SfDiskChain); as they were frozen. */
void sf_borrow_start_disk_server(SfHostTicket *ticket, GPtrArray *disks);
void sf_borrow_add_disks(SfHostTicket *ticket);

/* borrow_reserve.c */
void sf_borrow_note_subject(SfBorrow *borrow, const SfBorrowSubject *subject);
void sf_borrow_reserve_review(SfHostTicket *ticket); /* something it waits for is there: it may be done */
/* For all places that the ticket has there. then_place: its clones wait for it. */
void sf_borrow_ask(SfHostTicket *ticket, SfVmConfig *config, const char *host, gboolean then_place);

/* borrow_place.c */
void sf_borrow_order(SfHostTicket *ticket, const char *host); /* has the clones of a host placed that wait for it */
void sf_borrow_move_clones(SfHostTicket *ticket, const char *host, const char *reason); /* those that wait for it */
void sf_borrow_give_up(GPtrArray *clones, guint32 state, const char *reason); /* of SfClone; state: SF_GP_STATE_* */
GBytes *sf_borrow_descriptor(SfHostTicket *ticket, GError **error);           /* of its fork; the ticket's */
void sf_borrow_kill(gpointer host, SfClone *clone, const char *reason);       /* of SfForkRemote */

/* borrow_report.c */
void sf_borrow_take_reports(SfHostTicket *ticket, const char *host, JsonObject *answer); /* "clones" */
void sf_borrow_take_complete(SfHostTicket *ticket, const char *host);                    /* it has all of the memory */
void sf_borrow_fetch_free(gpointer fetch);

/* borrow_peer.c */
void sf_borrow_sync(SfHost *host, SfPeer *peer);
void sf_borrow_await_peer(SfHost *host, const char *name); /* it is not connected */

#endif
