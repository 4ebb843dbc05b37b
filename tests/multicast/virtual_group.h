/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * virtual_group: an origin and any number of receivers, the real ones (mc_sender, mc_receiver), on a virtual clock and
 * a virtual network. Nothing here waits: a run takes as long as its computing.
 *
 *                     link: rate, queue (what overflows is lost for all)
 *      mc_sender ====> switch ----- latency + jitter, loss of its own ----> mc_receiver 1 ... n
 *          ^                                                                   |
 *          +------------------- latency + jitter, request_loss ----------------+
 *
 * Each receiver has a clone that goes through a job: `job_pages` pages in an order that is the same for all, one after
 * the other, thinking between them; then it may want all the rest. What the receiver gives to unicast comes after
 * unicast_ns. Times are ns, rates bytes a second, probabilities ppm.
 */
#ifndef SF_VIRTUAL_GROUP_H
#define SF_VIRTUAL_GROUP_H

#include <glib.h>
#include "sfvmm/pager/mc_receiver.h"
#include "sfvmm/pager/mc_sender.h"

#define VG_MS 1000000ll
#define VG_S  1000000000ll

/* Of one receiver; all zero: an ordinary one. */
struct vg_behaviour {
    gint64 joins_at, leaves_at;       /* 0: at the beginning, never */
    gint64 stalls_from, stalls_until; /* takes and says nothing */
    guint32 loss;                     /* added to the group's */
    bool deaf;                        /* nothing of the group comes here */
    bool lies;                        /* asks for everything again and again, and reports that it lost it all */
};

struct vg_config {
    unsigned n, pages, job_pages;
    gint64 think_ns; /* mean, exponential */
    bool want_all;   /* after the job: completion */
    bool push;
    guint64 link_rate, link_queue; /* bytes/s; bytes of the queue before it */
    guint64 max_rate, min_rate;    /* of the sender */
    gint64 latency_ns, jitter_ns, unicast_ns;
    guint32 loss, request_loss; /* each receiver on its own */
    bool sealed;                /* through AEAD, each datagram on its own way: reordering and duplicates */
    bool verify;                /* content is compared */
    guint32 duplicates, forged; /* with sealed: of datagrams that arrive */
    unsigned max_pending, max_partial;
    bool knows_n; /* sender and receivers know beforehand how many there will be about */
    guint64 seed;
    gint64 give_up_ns; /* the run ends at this time at the latest */
    struct vg_behaviour (*behaviour)(unsigned receiver);
};

struct vg_result {
    struct mc_sender_stats sender;
    gint64 end_ns; /* all receivers that stay have what they want */
    bool complete;
    gint64 *job_ns;                      /* of each receiver, from joining; 0: has not finished. g_free() */
    struct mc_receiver_stats *receivers; /* g_free() */
    guint64 requests, request_bytes;
    unsigned peak_requests; /* that came in one VG_PEAK_NS */
    guint64 unicast_pages;  /* all receivers together */
    guint64 takes, wrong_pages;
    guint64 link_drops; /* datagrams */
};

#define VG_PEAK_NS (10 * VG_MS)

void vg_run(const struct vg_config *config, struct vg_result *result);
void vg_result_clear(struct vg_result *result);

#endif
