/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of lend.h share: lend.c, lend_fit.c, lend_reserve.c, lend_place.c, lend_report.c, lend_origin.c. */
#ifndef SF_LEND_PRIVATE_H
#define SF_LEND_PRIVATE_H

#include "sfvmm/control/host_private.h"
#include "sfvmm/control/lend.h"
#include "sfvmm/descriptor/descriptor.h"
#include "sfvmm/vm/disk_server.h"

typedef struct SfLendPlacing SfLendPlacing; /* lend_place.c */

/* What a ticket has that was lent. */
struct SfLend {
    SfHostTicket *ticket;
    guint record_timer; /* GSource id, 0: none */
    gboolean answer_recorded;
    SfLendPlacing *placing; /* a "place" that is under way; NULL: none, or done */
    SfDiskServer *disks;    /* through which clones here read their disks; NULL: they have none */
};

SfLend *sf_lend_new(SfHostTicket *ticket); /* the ticket's from now on */

/* The ticket that the peer speaks of, lent to it; NULL + error. */
SfHostTicket *sf_lend_ticket(SfHost *host, const char *origin, JsonObject *params, GError **error);

/* The parameters of "reserve"; texts, objects and arrays are the request's. */
typedef struct {
    const char *vm, *qemu_version, *machine, *config_hash, *security;
    const char *snapshot; /* whose name the origin's exports have; NULL: the ticket's */
    const char *uri;      /* where the memory is as well, and is fetched first; NULL: at the origin alone */
    JsonArray *cpu_flags; /* of texts; empty: the CPU does not matter */
    gint64 count, port, disks_port;
    JsonObject *multicast; /* of multicast_group.h; NULL: no invitation */
    JsonObject *object;    /* all of them, the request's */
    SfVmConfig *config;    /* owned */
} SfLendReserve;

/* lend_fit.c: what this host can run. FALSE + SF_PEER_ERROR_REFUSED: not that, and why. */
gboolean sf_lend_fits(SfHost *host, const SfLendReserve *params, GError **error);
/* Is it the snapshot of the VM that places were reserved for, and can it run here? */
gboolean sf_lend_fits_descriptor(SfHostTicket *ticket, const SfDescriptor *descriptor, GError **error);
gboolean sf_lend_refuse(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3); /* always FALSE */

/* lend_reserve.c: each answers the request, now or later. */
void sf_lend_reserve(SfHost *host, SfPeerRequest *request);
void sf_lend_reserve_release(SfHost *host, SfPeerRequest *request); /* if "reserve" is under way: it fails. No answer */

/* lend_place.c */
void sf_lend_place(SfHost *host, SfPeerRequest *request);

/* lend_report.c */
JsonArray *sf_lend_reports(SfHostTicket *ticket); /* of all clones here; the caller's */
void sf_lend_record_later(SfLend *lend);          /* the first clone's working set is recorded, and told */
void sf_lend_result(SfHost *host, SfPeerRequest *request);

/* lend_origin.c */
void sf_lend_tell_origin(SfHostTicket *ticket, const char *event, JsonObject *data); /* takes data */
void sf_lend_watch_pager(SfPager *pager, SfHost *host); /* whose memory comes from the origin */
void sf_lend_await_origin(SfHostTicket *ticket);        /* it is not connected */
void sf_lend_sync(SfHost *host, SfPeerRequest *request);

#endif
