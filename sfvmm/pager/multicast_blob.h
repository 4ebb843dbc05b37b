/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * multicast_blob: a blob that goes over a snapshot's group before its pages, in sfvmmd. docs/multicast.md.
 *
 *     origin   sf_multicast_blob_send()               once, to whoever listens
 *     others   sf_multicast_blob_receive_async()      each has another way, when this one fails
 *
 * A blob has a digest: SHA-256, 64 lower-case hexadecimal digits, that both sides know beforehand. Here it is a name
 * only: who gets the bytes compares them with it. Main thread only.
 */
#ifndef SF_MULTICAST_BLOB_H
#define SF_MULTICAST_BLOB_H

#include "sfvmm/pager/pager.h"

#define SF_MULTICAST_BLOB_MAX SF_PAGER_MAX_BLOB /* bytes */

/* By the sf-pager that is the origin of a group. Whatever fails is logged: the receivers notice, too. */
void sf_multicast_blob_send(SfPager *server, const char *digest, GBytes *blob);

/*
 * By an sf-pager that is in a group and has no snapshot yet. Finishes in bounded time; the error says why nothing came.
 * Caller owns the bytes, and has to compare them with the digest.
 */
void sf_multicast_blob_receive_async(SfPager *pager, const char *digest, gsize length, GAsyncReadyCallback callback,
                                     gpointer data);
GBytes *sf_multicast_blob_receive_finish(GAsyncResult *result, GError **error);

#endif
