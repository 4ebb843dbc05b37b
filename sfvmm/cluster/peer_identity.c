/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * GnuTLS verifies the other side's chain within the handshake: signed by our CA, valid now, for the purpose (a client's
 * certificate can't serve and the other way round). What is left for us is the kind (OU) and the name (CN). Addresses
 * in certificates play no part here: who is dialled must have the *name* that was asked for, wherever it is.
 */
#include "sfvmm/cluster/peer_identity.h"

#include <string.h>

#include "sfvmm/cluster/peer.h"
#include "sfvmm/cluster/pki.h"
#include "sfvmm/wire/tls.h"

#define WARN_SECONDS (30 * G_TIME_SPAN_DAY / G_TIME_SPAN_SECOND)

struct SfPeerIdentity {
    gnutls_certificate_credentials_t server, client;
    gnutls_priority_t priorities;
};

static gboolean check(int result, const char *what, GError **error)
{
    if (result < 0) {
        g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_IDENTITY, "\"%s\": %s", what, gnutls_strerror(result));
        return FALSE;
    }
    return TRUE;
}

/* A certificate of ours must be one that others will take. */
static gboolean check_own(const char *path, const char *name, GError **error)
{
    g_autoptr(SfCertificateInfo) info = sf_certificate_read(path, error);
    gint64 now = g_get_real_time() / G_USEC_PER_SEC;

    if (!info) {
        return FALSE;
    }
    if (strcmp(info->name, name) != 0 || strcmp(info->unit, SF_CERTIFICATE_HOST) != 0) {
        g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_IDENTITY,
                    "\"%s\": it is for \"%s\" (OU %s), and this host is \"%s\"; make one with `sfctl pki host %s`, or "
                    "set name= "
                    "in group [cluster] of sfvmmd.conf",
                    path, info->name, *info->unit ? info->unit : "none", name, name);
        return FALSE;
    }
    if (info->not_after <= now) {
        g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_IDENTITY,
                    "\"%s\": it has expired; make a new one with `sfctl pki host %s --force`", path, name);
        return FALSE;
    }
    if (info->not_after - now < WARN_SECONDS) {
        g_warning("\"%s\" expires within 30 days; make a new one with `sfctl pki host %s --force`", path, name);
    }
    return TRUE;
}

static gboolean load(gnutls_certificate_credentials_t *credentials, const char *directory, const char *role,
                     const char *name, GError **error)
{
    g_autofree char *ca = g_build_filename(directory, "ca-cert.pem", NULL);
    g_autofree char *cert_name = g_strconcat(role, "-cert.pem", NULL), *key_name = g_strconcat(role, "-key.pem", NULL);
    g_autofree char *cert = g_build_filename(directory, cert_name, NULL);
    g_autofree char *key = g_build_filename(directory, key_name, NULL);

    return check_own(cert, name, error) && check(gnutls_certificate_allocate_credentials(credentials), role, error) &&
           check(gnutls_certificate_set_x509_trust_file(*credentials, ca, GNUTLS_X509_FMT_PEM), ca, error) &&
           check(gnutls_certificate_set_x509_key_file(*credentials, cert, key, GNUTLS_X509_FMT_PEM), key, error);
}

SfPeerIdentity *sf_peer_identity_load(const char *directory, const char *name, GError **error)
{
    SfPeerIdentity *identity = g_new0(SfPeerIdentity, 1);

    if (!load(&identity->server, directory, "server", name, error) ||
        !load(&identity->client, directory, "client", name, error) ||
        !check(gnutls_priority_init(&identity->priorities, SF_TLS_PRIORITIES, NULL), "TLS 1.3", error)) {
        sf_peer_identity_free(identity);
        return NULL;
    }
    return identity;
}

void sf_peer_identity_free(SfPeerIdentity *identity)
{
    if (!identity) {
        return;
    }
    if (identity->server) {
        gnutls_certificate_free_credentials(identity->server);
    }
    if (identity->client) {
        gnutls_certificate_free_credentials(identity->client);
    }
    if (identity->priorities) {
        gnutls_priority_deinit(identity->priorities);
    }
    g_free(identity);
}

gnutls_session_t sf_peer_identity_session(SfPeerIdentity *identity, gboolean server, int fd, GError **error)
{
    /* The purpose that the other side's certificate must have. The session keeps the pointer. */
    static gnutls_typed_vdata_st of_client = { GNUTLS_DT_KEY_PURPOSE_OID, (unsigned char *)GNUTLS_KP_TLS_WWW_CLIENT,
                                               0 };
    static gnutls_typed_vdata_st of_server = { GNUTLS_DT_KEY_PURPOSE_OID, (unsigned char *)GNUTLS_KP_TLS_WWW_SERVER,
                                               0 };
    gnutls_session_t session = NULL;

    if (!check(gnutls_init(&session, (server ? GNUTLS_SERVER : GNUTLS_CLIENT) | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL |
                                         GNUTLS_NO_TICKETS),
               "TLS session", error)) {
        return NULL;
    }
    if (!check(gnutls_priority_set(session, identity->priorities), "TLS session", error) ||
        !check(gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, server ? identity->server : identity->client),
               "TLS session", error)) {
        gnutls_deinit(session);
        return NULL;
    }
    gnutls_session_set_verify_cert2(session, server ? &of_client : &of_server, 1, 0);
    if (server) {
        gnutls_certificate_server_set_request(session, GNUTLS_CERT_REQUIRE);
    }
    gnutls_handshake_set_timeout(session, GNUTLS_INDEFINITE_TIMEOUT); /* the link has its own */
    gnutls_transport_set_int(session, fd);
    return session;
}

char *sf_peer_identity_name(gnutls_session_t session, const char *unit, GError **error)
{
    g_autofree char *name = NULL, *its_unit = NULL;

    if (!sf_certificate_peer_subject(session, &name, &its_unit)) {
        g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_IDENTITY, "it has shown no certificate");
        return NULL;
    }
    if (g_strcmp0(its_unit, unit) != 0) {
        const char *article = strcmp(unit, SF_CERTIFICATE_OPERATOR) == 0 ? "an" : "a";
        g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_IDENTITY, "its certificate is not that of %s %s (OU=%s)",
                    article, unit, unit);
        return NULL;
    }
    if (!name || !sf_pki_name_is_valid(name)) {
        g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_IDENTITY, "the name in its certificate is not one of \"%s\"",
                    unit);
        return NULL;
    }
    return g_steal_pointer(&name);
}

void sf_peer_identity_set_error(gnutls_session_t session, int code, GError **error)
{
    guint status = gnutls_session_get_verify_cert_status(session);
    gnutls_datum_t text = { 0 };

    if (code == GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR &&
        gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0) == 0) {
        g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_IDENTITY, "%s", g_strstrip((char *)text.data));
        gnutls_free(text.data);
    } else if (code == GNUTLS_E_NO_CERTIFICATE_FOUND || code == GNUTLS_E_CERTIFICATE_REQUIRED) {
        g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_IDENTITY, "it has shown no certificate");
    } else if (code == GNUTLS_E_FATAL_ALERT_RECEIVED) {
        const char *alert = gnutls_alert_get_name(gnutls_alert_get(session));
        g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_IDENTITY, "it has ended TLS: %s",
                    alert ? alert : "unknown alert");
    } else {
        g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_PROTOCOL, "TLS: %s", gnutls_strerror(code));
    }
}
