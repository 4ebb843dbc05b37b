/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Addresses of hosts as people write them, and the ports that this host listens on. Main thread only. */
#ifndef SF_ADDRESS_H
#define SF_ADDRESS_H

#include <gio/gio.h>

/* ADDRESS, ADDRESS:PORT or [IPV6]:PORT; error (SF_PEER_ERROR_FAILED) when it is none of them. */
gboolean sf_address_is_valid(const char *address, GError **error);

/*
 * Takes a TCP port: "ADDRESS[:PORT]" of this host, "[V6]:PORT", or ":PORT" for all addresses. key: of sfvmmd.conf, for
 * errors. *port: the one taken. Nothing is accepted before g_socket_service_start(). Caller unrefs. NULL + error.
 */
GSocketService *sf_address_listen(const char *key, const char *text, guint16 default_port, guint *port, GError **error);

/* The IP address as text, of IPv4 as such also where the socket is one of IPv6; "" for none. Takes address. */
char *sf_address_ip_text(GSocketAddress *address);

#endif
