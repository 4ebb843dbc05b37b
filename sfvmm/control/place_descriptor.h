/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How the descriptor of a snapshot gets to the hosts of a ticket (docs/peers.md, docs/multicast.md):
 *
 *     "place" has it                                        a host that is not in the ticket's multicast group
 *     "place" has its length and digest                     the others; it goes to all of them at once
 *         --> by the group, whole and as its digest says    placed
 *         --> else: "descriptor" is asked of the origin     placed
 *
 * What has come is compared with the digest before anybody looks at it. Main thread only.
 */
#ifndef SF_PLACE_DESCRIPTOR_H
#define SF_PLACE_DESCRIPTOR_H

#include "sfvmm/control/host.h"

/* ---- origin ---- */

/* Into params of "place", or the answer to "descriptor": all of it. */
void sf_place_descriptor_add(JsonObject *object, GBytes *descriptor);

/*
 * To the group that server sends to; once, before "place" goes to the first host that is in it. Its digest; caller
 * frees.
 */
char *sf_place_descriptor_send(SfPager *server, GBytes *descriptor);
/* Into params of "place", for a host that is in the group. */
void sf_place_descriptor_add_digest(JsonObject *params, GBytes *descriptor, const char *digest);
gboolean sf_place_descriptor_can_be_sent(GBytes *descriptor); /* it is not too long for that */

/* ---- the others ---- */

/* The descriptor of "place", from params or from elsewhere, unchecked but for the digest. In bounded time. */
void sf_place_descriptor_get_async(SfHostTicket *ticket, JsonObject *params, GAsyncReadyCallback callback,
                                   gpointer data);
GBytes *sf_place_descriptor_get_finish(GAsyncResult *result, GError **error);

#endif
