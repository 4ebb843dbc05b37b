/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where the pages of a snapshot are fetched from by other hosts: URIs that one host names to another (docs/peers.md).
 * Texts in, texts out; any thread.
 */
#ifndef SF_PAGE_URI_H
#define SF_PAGE_URI_H

#include "sfvmm/wire/pager_message.h"

#define SF_PAGE_URI_MAX 1024u /* bytes */

/* ip: as sf_peer_remote_ip() has it. Between brackets, if it is one of IPv6. Caller frees. */
char *sf_page_uri_ip(const char *ip);

/* "nbds", or "nbd" without encryption. */
const char *sf_page_uri_scheme(SfPagerSecurity security);

/* The export of `snapshot` at an sf-pager of another host; "{block}" stands for the block. Caller frees. */
char *sf_page_uri_of_host(const char *ip, guint port, SfPagerSecurity security, const char *snapshot);

/* "s-" and 16 hexadecimal digits. */
gboolean sf_page_uri_snapshot_is_valid(const char *snapshot);

/*
 * May another host be sent there? TCP, encrypted as pages are in this cluster, without a query (which could name files
 * of that host); no loopback address, unless the other host, at `peer_ip`, is reached by one itself.
 */
gboolean sf_page_uri_is_portable(const char *uri, SfPagerSecurity security, const char *peer_ip);

#endif
