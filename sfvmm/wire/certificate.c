/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/wire/certificate.h"

#include <string.h>

#define TEXT_MAX 256u        /* bytes of a part that we look at */
#define FILE_MAX (64u << 10) /* bytes; ours have some 2 KiB */

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

gboolean sf_certificate_load_file(const char *path, gnutls_datum_t *data, GError **error)
{
    g_autofree char *text = NULL;
    gsize length;

    if (!g_file_get_contents(path, &text, &length, error)) {
        return FALSE;
    }
    if (length == 0 || length > FILE_MAX) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "\"%s\": no key or certificate", path);
        return FALSE;
    }
    data->data = (unsigned char *)g_steal_pointer(&text);
    data->size = (guint)length;
    return TRUE;
}

gnutls_x509_crt_t sf_certificate_load(const char *path, GError **error)
{
    gnutls_datum_t data = { 0 };
    gnutls_x509_crt_t certificate = NULL;
    int result;

    if (!sf_certificate_load_file(path, &data, error)) {
        return NULL;
    }
    result = gnutls_x509_crt_init(&certificate);
    if (result >= 0) {
        result = gnutls_x509_crt_import(certificate, &data, GNUTLS_X509_FMT_PEM);
    }
    g_free(data.data);
    if (result < 0) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "\"%s\": %s", path, gnutls_strerror(result));
        g_clear_pointer(&certificate, gnutls_x509_crt_deinit);
    }
    return certificate;
}

SfCertificateInfo *sf_certificate_read(const char *path, GError **error)
{
    gnutls_x509_crt_t certificate = sf_certificate_load(path, error);
    SfCertificateInfo *info;

    if (!certificate) {
        return NULL;
    }
    info = g_new0(SfCertificateInfo, 1);
    sf_certificate_subject(certificate, &info->name, &info->unit);
    info->name = info->name ? info->name : g_strdup("");
    info->unit = info->unit ? info->unit : g_strdup("");
    info->not_after = gnutls_x509_crt_get_expiration_time(certificate);
    gnutls_x509_crt_deinit(certificate);
    return info;
}

void sf_certificate_info_free(SfCertificateInfo *info)
{
    if (info) {
        g_free(info->name);
        g_free(info->unit);
        g_free(info);
    }
}
