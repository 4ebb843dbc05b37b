/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Whom a certificate of the cluster's CA is for: a name (CN) and its kind (OU). What one kind may do no other may: who
 * takes a certificate checks its kind, besides the chain. Any thread.
 */
#ifndef SF_CERTIFICATE_H
#define SF_CERTIFICATE_H

#include <gio/gio.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>

#define SF_CERTIFICATE_HOST     "host"     /* sfvmmds show it to each other, and to operators */
#define SF_CERTIFICATE_PAGES    "pages"    /* page sources and those who read from them */
#define SF_CERTIFICATE_OPERATOR "operator" /* who may use a host's control protocol from elsewhere */

/* A file of PEM, of a size that a key or a certificate has. Caller frees data->data. */
gboolean sf_certificate_load_file(const char *path, gnutls_datum_t *data, GError **error);

/* The certificate in a file of PEM, not verified; NULL + error. Caller owns (gnutls_x509_crt_deinit). */
gnutls_x509_crt_t sf_certificate_load(const char *path, GError **error);

/* What a certificate file says of itself. Not verified. */
typedef struct {
    char *name;       /* CN, "" if none */
    char *unit;       /* OU, "" if none */
    gint64 not_after; /* seconds since the epoch */
} SfCertificateInfo;

SfCertificateInfo *sf_certificate_read(const char *path, GError **error);
void sf_certificate_info_free(SfCertificateInfo *info);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfCertificateInfo, sf_certificate_info_free)

/* The subject's value of this kind, when it has exactly one, and that is text; else NULL. Caller frees. */
char *sf_certificate_part(gnutls_x509_crt_t certificate, const char *oid);

/* Name and kind of a certificate, each NULL if it has none. Caller frees both. */
void sf_certificate_subject(gnutls_x509_crt_t certificate, char **name, char **unit);

/* The same of who is at the other end of a session, whose chain the handshake has verified. FALSE: it has shown none.
 */
gboolean sf_certificate_peer_subject(gnutls_session_t session, char **name, char **unit);

#endif
