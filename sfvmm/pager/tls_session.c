/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * GnuTLS reads and writes through two functions; here they work on two buffers, so the owner decides when bytes move
 * and one reply leaves with one system call, however many TLS records it is.
 *
 *     socket -> tls_session_input -> [in] -> pull -> GnuTLS -> tls_session_read  -> plaintext
 *     socket <- tls_session_output <- [out] <- push <- GnuTLS <- tls_session_write <- plaintext
 *
 * TLS 1.3 only: no renegotiation, no downgrade, client certificates are encrypted, and no session tickets (a ticket
 * would let a client in without another look at its certificate). Ciphers are those with hardware help first. Long
 * connections are rekeyed by GnuTLS itself before the limits of AES-GCM.
 *
 * The peer's certificate is checked after the handshake, not in a callback: the client learns "bad certificate" by an
 * alert either way, and the reason can be said in one place.
 */
#include "sfvmm/pager/tls_session.h"

#include <errno.h>
#include <gio/gio.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <string.h>

#include "sfvmm/wire/certificate.h"

/* One record is at most 16 KiB and some; a handshake message (a chain of certificates) may be several. */
#define INPUT_SIZE     (32 * 1024)
#define HANDSHAKE_MAX  (64 * 1024)  /* bytes of one handshake message */
#define OUTPUT_KEPT    (256 * 1024) /* an output buffer that has grown beyond is given back when it is empty */
#define NAME_MAX_BYTES 256
#define PSK_FILE_MAX   (256 * 1024)
#define PSK_KEY_MAX    64 /* bytes */
#define PRIORITY_COMMON                                                                                                \
    "NONE:+VERS-TLS1.3:+AES-128-GCM:+AES-256-GCM:+CHACHA20-POLY1305:+AEAD:+SHA256:+SHA384:+GROUP-X25519:"              \
    "+GROUP-SECP256R1:+GROUP-SECP384R1:+SIGN-ALL:%SERVER_PRECEDENCE"
#define PRIORITY_X509 PRIORITY_COMMON ":+CTYPE-X509:+ECDHE-RSA:+ECDHE-ECDSA"
#define PRIORITY_PSK  PRIORITY_COMMON ":+ECDHE-PSK:+DHE-PSK"

struct psk_key {
    guint8 bytes[PSK_KEY_MAX];
    guint length;
};

struct tls_credentials {
    gnutls_certificate_credentials_t x509; /* or */
    gnutls_psk_server_credentials_t psk;
    gnutls_priority_t priority;
    GHashTable *keys; /* of PSK: user -> struct psk_key */
    char *unit;
};

struct tls_session {
    const struct tls_credentials *credentials;
    gnutls_session_t gnutls;
    uint8_t *in; /* INPUT_SIZE; bytes in_start .. in_end have not been pulled */
    size_t in_start, in_end;
    GByteArray *out; /* bytes from out_start on have not been sent */
    size_t out_start;
    bool ready;
    char peer[NAME_MAX_BYTES];
    char problem[256];
};

/* ---- Credentials ---- */

static bool fail(GError **error, const char *what, const char *path, int code)
{
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "%s %s can't be used: %s", what, path, gnutls_strerror(code));
    return false;
}

static bool set_priority(struct tls_credentials *credentials, const char *priority, GError **error)
{
    int code = gnutls_priority_init(&credentials->priority, priority, NULL);

    return code == GNUTLS_E_SUCCESS ? true : fail(error, "TLS priority", priority, code);
}

static bool load_x509(struct tls_credentials *credentials, const char *directory, GError **error)
{
    g_autofree char *ca = g_build_filename(directory, "ca-cert.pem", NULL);
    g_autofree char *crl = g_build_filename(directory, "ca-crl.pem", NULL);
    g_autofree char *certificate = g_build_filename(directory, "server-cert.pem", NULL);
    g_autofree char *key = g_build_filename(directory, "server-key.pem", NULL);
    int code = gnutls_certificate_allocate_credentials(&credentials->x509);

    if (code < 0) {
        return fail(error, "TLS directory", directory, code);
    }
    code = gnutls_certificate_set_x509_trust_file(credentials->x509, ca, GNUTLS_X509_FMT_PEM);
    if (code <= 0) {
        return fail(error, "CA certificate", ca, code < 0 ? code : GNUTLS_E_NO_CERTIFICATE_FOUND);
    }
    if (g_file_test(crl, G_FILE_TEST_EXISTS)) {
        code = gnutls_certificate_set_x509_crl_file(credentials->x509, crl, GNUTLS_X509_FMT_PEM);
        if (code < 0) {
            return fail(error, "list of revoked certificates", crl, code);
        }
    }
    code = gnutls_certificate_set_x509_key_file(credentials->x509, certificate, key, GNUTLS_X509_FMT_PEM);
    return code >= 0 ? true : fail(error, "server certificate with its key", certificate, code);
}

struct tls_credentials *tls_credentials_new_x509(const char *directory, const char *unit, GError **error)
{
    struct tls_credentials *credentials = g_new0(struct tls_credentials, 1);

    credentials->unit = g_strdup(unit);
    if (!load_x509(credentials, directory, error) || !set_priority(credentials, PRIORITY_X509, error)) {
        tls_credentials_free(credentials);
        return NULL;
    }
    return credentials;
}

static int hex_digit(char c)
{
    return g_ascii_isxdigit(c) ? g_ascii_xdigit_value(c) : -1;
}

/* USER:HEXKEY */
static bool add_key(GHashTable *keys, const char *line)
{
    g_autofree struct psk_key *key = g_new0(struct psk_key, 1);
    const char *colon = strchr(line, ':');
    gsize digits = colon ? strlen(colon + 1) : 0;

    if (!colon || colon == line || colon - line >= NAME_MAX_BYTES || digits == 0 || digits % 2 != 0 ||
        digits / 2 > PSK_KEY_MAX) {
        return false;
    }
    for (gsize i = 0; i < digits / 2; i++) {
        int high = hex_digit(colon[1 + 2 * i]), low = hex_digit(colon[2 + 2 * i]);
        if (high < 0 || low < 0) {
            return false;
        }
        key->bytes[i] = (guint8)(high << 4 | low);
    }
    key->length = (guint)(digits / 2);
    g_hash_table_replace(keys, g_strndup(line, (gsize)(colon - line)), g_steal_pointer(&key));
    return true;
}

static void free_key(gpointer key)
{
    gnutls_memset(key, 0, sizeof(struct psk_key));
    g_free(key);
}

static bool load_keys(struct tls_credentials *credentials, const char *file, GError **error)
{
    g_autofree char *text = NULL;
    gsize length;

    if (!g_file_get_contents(file, &text, &length, error)) {
        return false;
    }
    g_auto(GStrv) lines = g_strsplit(text, "\n", 0);
    gnutls_memset(text, 0, length);
    credentials->keys = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, free_key);
    for (char **line = lines; *line && length <= PSK_FILE_MAX; line++) {
        bool ok = **line == '\0' || **line == '#' || add_key(credentials->keys, *line);
        gnutls_memset(*line, 0, strlen(*line));
        if (!ok) {
            g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                        "key file %s: line %d is not USER:HEXKEY with at most %d bytes of key", file,
                        (int)(line - lines) + 1, PSK_KEY_MAX);
            return false;
        }
    }
    if (g_hash_table_size(credentials->keys) == 0) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "key file %s holds no key (make one with psktool)",
                    file);
        return false;
    }
    return true;
}

static int find_key(gnutls_session_t gnutls, const char *user, gnutls_datum_t *key)
{
    const struct tls_session *session = gnutls_session_get_ptr(gnutls);
    const struct psk_key *found = g_hash_table_lookup(session->credentials->keys, user);

    if (!found) {
        return -1;
    }
    key->data = gnutls_malloc(found->length);
    if (!key->data) {
        return -1;
    }
    memcpy(key->data, found->bytes, found->length);
    key->size = found->length;
    return 0;
}

struct tls_credentials *tls_credentials_new_psk(const char *file, GError **error)
{
    struct tls_credentials *credentials = g_new0(struct tls_credentials, 1);
    int code = gnutls_psk_allocate_server_credentials(&credentials->psk);

    if (code < 0) {
        fail(error, "key file", file, code);
    }
    if (code < 0 || !load_keys(credentials, file, error) || !set_priority(credentials, PRIORITY_PSK, error)) {
        tls_credentials_free(credentials);
        return NULL;
    }
    gnutls_psk_set_server_credentials_function(credentials->psk, find_key);
    return credentials;
}

void tls_credentials_free(struct tls_credentials *credentials)
{
    if (!credentials) {
        return;
    }
    if (credentials->x509) {
        gnutls_certificate_free_credentials(credentials->x509);
    }
    if (credentials->psk) {
        gnutls_psk_free_server_credentials(credentials->psk);
    }
    if (credentials->priority) {
        gnutls_priority_deinit(credentials->priority);
    }
    g_clear_pointer(&credentials->keys, g_hash_table_unref);
    g_free(credentials->unit);
    g_free(credentials);
}

/* ---- Buffers ---- */

static ssize_t pull(gnutls_transport_ptr_t pointer, void *bytes, size_t n)
{
    struct tls_session *session = pointer;
    size_t there = session->in_end - session->in_start;

    if (there == 0) {
        gnutls_transport_set_errno(session->gnutls, EAGAIN);
        return -1;
    }
    n = MIN(n, there);
    memcpy(bytes, session->in + session->in_start, n);
    session->in_start += n;
    if (session->in_start == session->in_end) {
        session->in_start = session->in_end = 0;
    }
    return (ssize_t)n;
}

static ssize_t push(gnutls_transport_ptr_t pointer, const void *bytes, size_t n)
{
    struct tls_session *session = pointer;

    g_byte_array_append(session->out, bytes, (guint)n);
    return (ssize_t)n;
}

static int pull_timeout(gnutls_transport_ptr_t pointer, unsigned milliseconds)
{
    const struct tls_session *session = pointer;

    return session->in_end > session->in_start;
}

struct tls_session *tls_session_new(const struct tls_credentials *credentials)
{
    struct tls_session *session = g_new0(struct tls_session, 1);
    int code = gnutls_init(&session->gnutls, GNUTLS_SERVER | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL | GNUTLS_NO_TICKETS);

    session->credentials = credentials;
    session->in = g_malloc(INPUT_SIZE);
    session->out = g_byte_array_new();
    if (code >= 0) {
        code = gnutls_priority_set(session->gnutls, credentials->priority);
    }
    if (code >= 0) {
        code = credentials->x509 ? gnutls_credentials_set(session->gnutls, GNUTLS_CRD_CERTIFICATE, credentials->x509)
                                 : gnutls_credentials_set(session->gnutls, GNUTLS_CRD_PSK, credentials->psk);
    }
    if (code < 0) {
        tls_session_free(session);
        return NULL;
    }
    if (credentials->x509) {
        gnutls_certificate_server_set_request(session->gnutls, GNUTLS_CERT_REQUIRE);
    }
    gnutls_session_set_ptr(session->gnutls, session);
    gnutls_handshake_set_max_packet_length(session->gnutls, HANDSHAKE_MAX);
    gnutls_transport_set_ptr(session->gnutls, session);
    gnutls_transport_set_pull_function(session->gnutls, pull);
    gnutls_transport_set_push_function(session->gnutls, push);
    gnutls_transport_set_pull_timeout_function(session->gnutls, pull_timeout);
    return session;
}

void tls_session_free(struct tls_session *session)
{
    if (session) {
        if (session->gnutls) {
            gnutls_deinit(session->gnutls);
        }
        g_byte_array_unref(session->out);
        g_free(session->in);
        g_free(session);
    }
}

size_t tls_session_space(const struct tls_session *session)
{
    return INPUT_SIZE - (session->in_end - session->in_start);
}

void tls_session_input(struct tls_session *session, const uint8_t *bytes, size_t n)
{
    g_assert(n <= tls_session_space(session));
    if (n > INPUT_SIZE - session->in_end) {
        memmove(session->in, session->in + session->in_start, session->in_end - session->in_start);
        session->in_end -= session->in_start;
        session->in_start = 0;
    }
    memcpy(session->in + session->in_end, bytes, n);
    session->in_end += n;
}

const uint8_t *tls_session_output(const struct tls_session *session, size_t *n)
{
    *n = session->out->len - session->out_start;
    return session->out->data + session->out_start;
}

void tls_session_sent(struct tls_session *session, size_t n)
{
    session->out_start += n;
    g_assert(session->out_start <= session->out->len);
    if (session->out_start < session->out->len) {
        return;
    }
    if (session->out_start > OUTPUT_KEPT) {
        g_byte_array_unref(session->out);
        session->out = g_byte_array_new();
    }
    g_byte_array_set_size(session->out, 0);
    session->out_start = 0;
}

/* ---- The peer ---- */

G_GNUC_PRINTF(2, 3)
static bool problem(struct tls_session *session, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    g_vsnprintf(session->problem, sizeof(session->problem), format, args);
    va_end(args);
    return false;
}

const char *tls_session_problem(const struct tls_session *session)
{
    return session->problem;
}

const char *tls_session_peer(const struct tls_session *session)
{
    return session->peer;
}

static bool check_subject(struct tls_session *session, gnutls_x509_crt_t certificate)
{
    g_autofree char *name = NULL, *unit = NULL;

    sf_certificate_subject(certificate, &name, &unit);
    if (!name || g_strlcpy(session->peer, name, sizeof(session->peer)) >= sizeof(session->peer)) {
        session->peer[0] = '\0';
        return problem(session, "its certificate has no name (CN), or one that is too long");
    }
    if (session->credentials->unit && g_strcmp0(unit, session->credentials->unit) != 0) {
        return problem(session, "the certificate of %s is not one for %s (OU)", session->peer,
                       session->credentials->unit);
    }
    return true;
}

static bool check_certificate(struct tls_session *session)
{
    gnutls_typed_vdata_st purpose = { .type = GNUTLS_DT_KEY_PURPOSE_OID, .data = (void *)GNUTLS_KP_TLS_WWW_CLIENT };
    gnutls_x509_crt_t certificate;
    unsigned status, n;
    int code = gnutls_certificate_verify_peers(session->gnutls, &purpose, 1, &status);

    if (code < 0) {
        return problem(session, "its certificate can't be verified: %s", gnutls_strerror(code));
    }
    if (status != 0) {
        gnutls_datum_t text = { NULL, 0 };
        gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0);
        problem(session, "its certificate is refused: %s", text.data ? (char *)text.data : "unknown reason");
        gnutls_free(text.data);
        return false;
    }
    const gnutls_datum_t *chain = gnutls_certificate_get_peers(session->gnutls, &n);
    if (!chain || n == 0 || gnutls_x509_crt_init(&certificate) < 0) {
        return problem(session, "it sent no certificate");
    }
    code = gnutls_x509_crt_import(certificate, &chain[0], GNUTLS_X509_FMT_DER);
    bool ok = code < 0 ? problem(session, "its certificate can't be read: %s", gnutls_strerror(code))
                       : check_subject(session, certificate);
    gnutls_x509_crt_deinit(certificate);
    return ok;
}

static bool check_peer(struct tls_session *session)
{
    if (gnutls_protocol_get_version(session->gnutls) != GNUTLS_TLS1_3) {
        return problem(session, "it does not speak TLS 1.3");
    }
    if (session->credentials->x509) {
        return check_certificate(session);
    }
    const char *user = gnutls_psk_server_get_username(session->gnutls);
    if (!user || strlen(user) >= sizeof(session->peer)) {
        return problem(session, "its key has no name");
    }
    g_strlcpy(session->peer, user, sizeof(session->peer));
    return true;
}

/* ---- Handshake and records ---- */

int tls_session_handshake(struct tls_session *session)
{
    int code;

    do {
        code = gnutls_handshake(session->gnutls);
    } while (code == GNUTLS_E_WARNING_ALERT_RECEIVED);
    if (code == GNUTLS_E_AGAIN || code == GNUTLS_E_INTERRUPTED) {
        return 0;
    }
    if (code < 0) {
        bool alert = code == GNUTLS_E_FATAL_ALERT_RECEIVED;
        gnutls_alert_send_appropriate(session->gnutls, code);
        problem(session, "TLS handshake: %s%s%s", gnutls_strerror(code), alert ? " " : "",
                alert ? gnutls_alert_get_name(gnutls_alert_get(session->gnutls)) : "");
        return -1;
    }
    if (!check_peer(session)) {
        gnutls_alert_send(session->gnutls, GNUTLS_AL_FATAL, GNUTLS_A_BAD_CERTIFICATE);
        return -1;
    }
    session->ready = true;
    return 1;
}

int tls_session_read(struct tls_session *session, uint8_t *bytes, size_t n)
{
    ssize_t got;

    do {
        got = gnutls_record_recv(session->gnutls, bytes, n);
    } while (got == GNUTLS_E_WARNING_ALERT_RECEIVED || got == GNUTLS_E_INTERRUPTED);
    if (got > 0) {
        return (int)got;
    }
    if (got == GNUTLS_E_AGAIN) {
        return 0;
    }
    if (got < 0) {
        problem(session, "TLS: %s", gnutls_strerror((int)got));
        gnutls_alert_send_appropriate(session->gnutls, (int)got);
    } else {
        session->problem[0] = '\0'; /* close_notify: in good order */
    }
    return -1;
}

bool tls_session_pending(const struct tls_session *session)
{
    return session->in_end > session->in_start || gnutls_record_check_pending(session->gnutls) > 0;
}

bool tls_session_write(struct tls_session *session, const uint8_t *bytes, size_t n)
{
    while (n > 0) {
        ssize_t sent = gnutls_record_send(session->gnutls, bytes, n);
        if (sent <= 0) {
            return problem(session, "TLS: %s", gnutls_strerror((int)sent));
        }
        bytes += sent;
        n -= (size_t)sent;
    }
    return true;
}

void tls_session_bye(struct tls_session *session)
{
    if (session->ready) {
        gnutls_bye(session->gnutls, GNUTLS_SHUT_WR);
    }
}
