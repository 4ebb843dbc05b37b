/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * GnuTLS verifies the host's chain within the handshake: signed by the CA, valid now, for a server, and for the address
 * that was dialled. What is left for us is its kind (OU=host): the certificate for pages is in the hands of processes
 * that must not pass for sfvmmd. Our own certificate is looked at before anything is dialled, so that the wrong file is
 * named here and not as an alert from there.
 *
 * With TLS 1.3 our side of the handshake is over before the other side has looked at our certificate. If that is
 * refused, an alert comes in the place of the first answer.
 */
#include "sfvmm/client/tls.h"

#include <errno.h>
#include <gio/gio.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>

#include "sfvmm/wire/certificate.h"
#include "sfvmm/wire/tls.h"

#define SYSTEM_KEYS  "/etc/snowflock/keys"
#define RECORD_SIZE  (16u << 10)
#define HOST_MAX     255u /* of a DNS name */
#define DIAL_SECONDS 10u  /* to connect */
#define HANDSHAKE_MS 10000u
#define CERT_FILE    "client-cert.pem"
#define KEY_FILE     "client-key.pem"
#define CA_FILE      "ca-cert.pem"

struct SfClientTls {
    GSocketConnection *connection;
    gnutls_certificate_credentials_t credentials;
    gnutls_session_t session;
    gnutls_typed_vdata_st expected[2]; /* of the host's certificate; the session keeps the pointer */
    char *host, *name;
    guint16 port;
    const char *problem, *refusal;
};

G_GNUC_PRINTF(2, 3) static gboolean fail(GError **error, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    g_clear_error(error);
    if (error) {
        *error = g_error_new_valist(G_IO_ERROR, G_IO_ERROR_FAILED, format, args);
    }
    va_end(args);
    return FALSE;
}

gboolean sf_client_tls_is_address(const char *socket)
{
    return g_str_has_prefix(socket, SF_CLIENT_TLS_PREFIX);
}

static gboolean parse_address(SfClientTls *tls, const char *address, GError **error)
{
    const char *text = address + strlen(SF_CLIENT_TLS_PREFIX);
    g_autoptr(GSocketConnectable) parsed = NULL;

    if (*text && strlen(text) <= HOST_MAX && g_str_is_ascii(text) && !strpbrk(text, " \t/@?#\"\\")) {
        parsed = g_network_address_parse(text, SF_TLS_OPERATORS_PORT, NULL);
    }
    if (!parsed) {
        return fail(error, "\"%.300s\": it is not " SF_CLIENT_TLS_PREFIX "HOST[:PORT]", address);
    }
    tls->host = g_strdup(g_network_address_get_hostname(G_NETWORK_ADDRESS(parsed)));
    tls->port = g_network_address_get_port(G_NETWORK_ADDRESS(parsed));
    return TRUE;
}

/* ---- our certificate ---- */

/* The folder with our certificate below `keys`, or NULL. */
static char *find_below(const char *keys)
{
    g_autofree char *below = g_build_filename(keys, SF_CERTIFICATE_OPERATOR, NULL);
    g_autofree char *there = g_build_filename(below, CERT_FILE, NULL);
    g_autofree char *here = g_build_filename(keys, CERT_FILE, NULL);

    if (g_file_test(there, G_FILE_TEST_EXISTS)) {
        return g_steal_pointer(&below);
    }
    return g_file_test(here, G_FILE_TEST_EXISTS) ? g_strdup(keys) : NULL;
}

static char *find_keys(char **hint, GError **error)
{
    const char *chosen = g_getenv(SF_CLIENT_KEYS_ENV);
    g_autofree char *own = g_build_filename(g_get_user_config_dir(), "snowflock", "keys", NULL);
    char *folder = find_below(chosen && *chosen ? chosen : own);

    if (!folder && !(chosen && *chosen)) {
        folder = find_below(SYSTEM_KEYS);
    }
    if (!folder) {
        *hint = g_strdup("`sfctl pki operator NAME`, where the CA is, makes one; copy that folder here, or say with "
                         "SF_KEYS= where it is");
        if (chosen && *chosen) {
            fail(error, "no operator's certificate in \"%s\" (SF_KEYS)", chosen);
        } else {
            fail(error, "no operator's certificate in \"%s\" or \"" SYSTEM_KEYS "\"", own);
        }
    }
    return folder;
}

/* It must be one that a host will take. */
static gboolean check_own(SfClientTls *tls, const char *path, char **hint, GError **error)
{
    g_autoptr(SfCertificateInfo) info = sf_certificate_read(path, error);

    if (!info) {
        return FALSE;
    }
    if (strcmp(info->unit, SF_CERTIFICATE_OPERATOR) != 0 || !*info->name) {
        *hint = g_strdup("`sfctl pki operator NAME` makes one");
        return fail(error, "\"%s\": it is not the certificate of an operator (OU=%s)", path,
                    *info->unit ? info->unit : "none");
    }
    if (info->not_after <= time(NULL)) {
        *hint = g_strdup_printf("`sfctl pki operator %s --force` makes a new one", info->name);
        return fail(error, "\"%s\": it has expired", path);
    }
    tls->name = g_steal_pointer(&info->name);
    return TRUE;
}

static gboolean load_keys(SfClientTls *tls, char **hint, GError **error)
{
    g_autofree char *folder = find_keys(hint, error);
    g_autofree char *ca = folder ? g_build_filename(folder, CA_FILE, NULL) : NULL;
    g_autofree char *cert = folder ? g_build_filename(folder, CERT_FILE, NULL) : NULL;
    g_autofree char *key = folder ? g_build_filename(folder, KEY_FILE, NULL) : NULL;
    int result;

    if (!folder || !check_own(tls, cert, hint, error)) {
        return FALSE;
    }
    result = gnutls_certificate_allocate_credentials(&tls->credentials);
    if (result >= 0) {
        result = gnutls_certificate_set_x509_trust_file(tls->credentials, ca, GNUTLS_X509_FMT_PEM);
    }
    if (result <= 0) {
        return fail(error, "\"%s\": %s", ca, gnutls_strerror(result ? result : GNUTLS_E_NO_CERTIFICATE_FOUND));
    }
    result = gnutls_certificate_set_x509_key_file(tls->credentials, cert, key, GNUTLS_X509_FMT_PEM);
    return result >= 0 || fail(error, "\"%s\": %s", key, gnutls_strerror(result));
}

/* ---- the connection ---- */

static gboolean dial(SfClientTls *tls, char **hint, GError **error)
{
    g_autoptr(GSocketClient) client = g_socket_client_new();
    g_autoptr(GSocketConnectable) address = g_network_address_new(tls->host, tls->port);
    g_autoptr(GError) local = NULL;
    GSocket *socket;

    g_socket_client_set_enable_proxy(client, FALSE);
    g_socket_client_set_timeout(client, DIAL_SECONDS);
    tls->connection = g_socket_client_connect(client, address, NULL, &local);
    if (!tls->connection) {
        *hint = g_strdup("sfvmmd lets operators in at control-listen= of its sfvmmd.conf; is that set, and the port "
                         "open?");
        return fail(error, "no sfvmmd answers at %s port %u: %s", tls->host, tls->port, local->message);
    }
    socket = g_socket_connection_get_socket(tls->connection);
    g_socket_set_timeout(socket, 0);
    g_socket_set_keepalive(socket, TRUE);
    g_socket_set_option(socket, IPPROTO_TCP, TCP_NODELAY, 1, NULL);
    return TRUE;
}

/* Why the handshake failed, for people. */
static gboolean fail_handshake(SfClientTls *tls, int code, char **hint, GError **error)
{
    gnutls_datum_t text = { 0 };

    if (code == GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR &&
        gnutls_certificate_verification_status_print(gnutls_session_get_verify_cert_status(tls->session),
                                                     GNUTLS_CRT_X509, &text, 0) == 0) {
        *hint = g_strdup("its certificate must be of the CA in your keys, not expired, and have this address "
                         "(`sfctl pki host NAME --address ADDRESS`)");
        fail(error, "%s port %u: the host's certificate is refused: %s", tls->host, tls->port,
             g_strstrip((char *)text.data));
        gnutls_free(text.data);
        return FALSE;
    }
    if (code == GNUTLS_E_FATAL_ALERT_RECEIVED) {
        return fail(error, "%s port %u has ended TLS: %s", tls->host, tls->port,
                    gnutls_alert_get_name(gnutls_alert_get(tls->session)));
    }
    return fail(error, "%s port %u: TLS: %s", tls->host, tls->port, gnutls_strerror(code));
}

static gboolean check_host(SfClientTls *tls, GError **error)
{
    g_autofree char *name = NULL, *unit = NULL;

    sf_certificate_peer_subject(tls->session, &name, &unit);
    return g_strcmp0(unit, SF_CERTIFICATE_HOST) == 0 ||
           fail(error, "%s port %u: what answers is not the sfvmmd of a host (OU=%s)", tls->host, tls->port,
                unit ? unit : "none");
}

/* The result of GnuTLS, which is GNUTLS_E_TIMEDOUT when the other side takes too long. */
static int handshake(SfClientTls *tls, int fd)
{
    const gint64 deadline = g_get_monotonic_time() + HANDSHAKE_MS * G_TIME_SPAN_MILLISECOND;

    for (;;) {
        int result = gnutls_handshake(tls->session);
        gint64 left = (deadline - g_get_monotonic_time()) / G_TIME_SPAN_MILLISECOND;
        struct pollfd pollfd = { .fd = fd };
        if (result >= 0 || gnutls_error_is_fatal(result)) {
            return result;
        }
        if (left <= 0) {
            return GNUTLS_E_TIMEDOUT;
        }
        pollfd.events = gnutls_record_get_direction(tls->session) ? POLLOUT : POLLIN;
        poll(&pollfd, 1, (int)left);
    }
}

static gboolean shake_hands(SfClientTls *tls, char **hint, GError **error)
{
    GSocket *socket = g_socket_connection_get_socket(tls->connection);
    int result = gnutls_init(&tls->session, GNUTLS_CLIENT | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL | GNUTLS_NO_TICKETS);

    if (result >= 0) {
        result = gnutls_priority_set_direct(tls->session, SF_TLS_PRIORITIES, NULL);
    }
    if (result >= 0) {
        result = gnutls_credentials_set(tls->session, GNUTLS_CRD_CERTIFICATE, tls->credentials);
    }
    if (result < 0) {
        return fail_handshake(tls, result, hint, error);
    }
    tls->expected[0] = (gnutls_typed_vdata_st){ GNUTLS_DT_DNS_HOSTNAME, (unsigned char *)tls->host, 0 };
    tls->expected[1] =
        (gnutls_typed_vdata_st){ GNUTLS_DT_KEY_PURPOSE_OID, (unsigned char *)GNUTLS_KP_TLS_WWW_SERVER, 0 };
    gnutls_session_set_verify_cert2(tls->session, tls->expected, G_N_ELEMENTS(tls->expected), 0);
    gnutls_handshake_set_timeout(tls->session, GNUTLS_INDEFINITE_TIMEOUT); /* the time limit is ours */
    gnutls_transport_set_int(tls->session, g_socket_get_fd(socket));
    result = handshake(tls, g_socket_get_fd(socket));
    return result < 0 ? fail_handshake(tls, result, hint, error) : check_host(tls, error);
}

SfClientTls *sf_client_tls_connect(const char *address, char **hint, GError **error)
{
    SfClientTls *tls = g_new0(SfClientTls, 1);

    if (!parse_address(tls, address, error) || !load_keys(tls, hint, error) || !dial(tls, hint, error) ||
        !shake_hands(tls, hint, error)) {
        sf_client_tls_free(tls);
        return NULL;
    }
    return tls;
}

void sf_client_tls_free(SfClientTls *tls)
{
    if (!tls) {
        return;
    }
    if (tls->session) {
        gnutls_deinit(tls->session);
    }
    if (tls->credentials) {
        gnutls_certificate_free_credentials(tls->credentials);
    }
    g_clear_object(&tls->connection);
    g_free(tls->host);
    g_free(tls->name);
    g_free(tls);
}

int sf_client_tls_fd(const SfClientTls *tls)
{
    return g_socket_get_fd(g_socket_connection_get_socket(tls->connection));
}

gboolean sf_client_tls_pending(const SfClientTls *tls)
{
    return gnutls_record_check_pending(tls->session) > 0;
}

/* A result of GnuTLS as one of send() or recv(). */
static ssize_t take_result(SfClientTls *tls, ssize_t result)
{
    if (result >= 0) {
        return result;
    }
    if (result == GNUTLS_E_AGAIN || result == GNUTLS_E_INTERRUPTED) {
        errno = EAGAIN;
        return -1;
    }
    if (result == GNUTLS_E_FATAL_ALERT_RECEIVED) {
        tls->refusal = gnutls_alert_get_name(gnutls_alert_get(tls->session));
    }
    tls->problem = result == GNUTLS_E_PULL_ERROR || result == GNUTLS_E_PUSH_ERROR ? "the connection was reset"
                                                                                  : gnutls_strerror((int)result);
    errno = EPROTO;
    return -1;
}

ssize_t sf_client_tls_send(SfClientTls *tls, const char *data, size_t length)
{
    return take_result(tls, gnutls_record_send(tls->session, data, MIN(length, RECORD_SIZE)));
}

ssize_t sf_client_tls_receive(SfClientTls *tls, char *data, size_t size)
{
    return take_result(tls, gnutls_record_recv(tls->session, data, size));
}

const char *sf_client_tls_problem(const SfClientTls *tls)
{
    return tls->problem;
}

const char *sf_client_tls_refusal(const SfClientTls *tls)
{
    return tls->refusal;
}

const char *sf_client_tls_name(const SfClientTls *tls)
{
    return tls->name;
}
