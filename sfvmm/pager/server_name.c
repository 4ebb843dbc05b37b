/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a TLS client calls its server.
 *
 * libnbd hands the host of a URI to GnuTLS as the server's name (SNI), also where that is an address. RFC 6066, 3
 * allows no addresses there, and a GnuTLS server ends the handshake when it reads one of IPv6, which no DNS name looks
 * like. libnbd has no switch for it, so the executable's definition of the function stands before the library's.
 *
 * Who the server is does not hang on it: its certificate is compared with the URI's host, which libnbd sets apart.
 */
#include <dlfcn.h>
#include <gio/gio.h>
#include <gnutls/gnutls.h>

typedef int NameSet(gnutls_session_t, gnutls_server_name_type_t, const void *, size_t);

/* As GnuTLS has it, but an address is not sent. */
G_MODULE_EXPORT int gnutls_server_name_set(gnutls_session_t session, gnutls_server_name_type_t type, const void *name,
                                           size_t length)
{
    g_autofree char *text = g_strndup(name, length);
    NameSet *next = (NameSet *)dlsym(RTLD_NEXT, "gnutls_server_name_set");

    if (g_hostname_is_ip_address(text)) {
        return GNUTLS_E_SUCCESS;
    }
    return next ? next(session, type, name, length) : GNUTLS_E_UNIMPLEMENTED_FEATURE;
}
