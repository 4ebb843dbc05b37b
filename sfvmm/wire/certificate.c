/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/wire/certificate.h"

#include <string.h>

#define TEXT_MAX 256u /* bytes of a part that we look at */

char *sf_certificate_part(gnutls_x509_crt_t certificate, const char *oid)
{
    char text[TEXT_MAX], more[TEXT_MAX];
    gsize length = sizeof(text), more_length = sizeof(more);

    if (gnutls_x509_crt_get_dn_by_oid(certificate, oid, 0, 0, text, &length) < 0 || length == 0 ||
        memchr(text, '\0', length) ||
        gnutls_x509_crt_get_dn_by_oid(certificate, oid, 1, 0, more, &more_length) !=
            GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE) {
        return NULL;
    }
    return g_strndup(text, length);
}

void sf_certificate_subject(gnutls_x509_crt_t certificate, char **name, char **unit)
{
    *name = sf_certificate_part(certificate, GNUTLS_OID_X520_COMMON_NAME);
    *unit = sf_certificate_part(certificate, GNUTLS_OID_X520_ORGANIZATIONAL_UNIT_NAME);
}

gboolean sf_certificate_peer_subject(gnutls_session_t session, char **name, char **unit)
{
    const gnutls_datum_t *chain;
    gnutls_x509_crt_t certificate;
    guint n = 0;

    *name = *unit = NULL;
    chain = gnutls_certificate_type_get2(session, GNUTLS_CTYPE_PEERS) == GNUTLS_CRT_X509
                ? gnutls_certificate_get_peers(session, &n)
                : NULL;
    if (!chain || n == 0 || gnutls_x509_crt_init(&certificate) < 0) {
        return FALSE;
    }
    if (gnutls_x509_crt_import(certificate, &chain[0], GNUTLS_X509_FMT_DER) == 0) {
        sf_certificate_subject(certificate, name, unit);
    }
    gnutls_x509_crt_deinit(certificate);
    return TRUE;
}
