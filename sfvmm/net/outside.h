/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfOutside: the gateway of a cluster without privileges. What members send to it goes out by ordinary sockets of this
 * process (libslirp), if the policy lets it pass. One thread.
 */
#ifndef SF_OUTSIDE_H
#define SF_OUTSIDE_H

#include <gio/gio.h>
#include <poll.h>

typedef struct {
    guint32 gateway; /* IPv4, host byte order, in the members' subnet of `prefix` */
    guint prefix;
    const guint8 *mac;   /* the gateway's */
    const GArray *rules; /* of SfNetRule; outlives the object */
    gpointer owner;
    /* MAC of the member that has an address; NULL: none may talk that has it. */
    const guint8 *(*mac_of)(gpointer owner, guint32 address);
    /* A whole frame for a member. */
    void (*deliver)(gpointer owner, const guint8 *frame, gsize length);
} SfOutsideOptions;

typedef struct SfOutside SfOutside;

SfOutside *sf_outside_new(const SfOutsideOptions *options, GError **error);
void sf_outside_free(SfOutside *outside);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfOutside, sf_outside_free)

/*
 * A frame of a member that may send it (sf_frame_may_pass()): to the gateway's MAC, or to all. What is not for the
 * gateway is left alone.
 */
void sf_outside_input(SfOutside *outside, const guint8 *frame, gsize length, gint64 now);

/* Before poll(): adds its descriptors, and makes *timeout (ms, -1: none) shorter if need be. Then, after it. */
void sf_outside_prepare(SfOutside *outside, GArray *pollfds, int *timeout);
void sf_outside_dispatch(SfOutside *outside, GArray *pollfds, gboolean failed);

#endif
