/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The way in for operators: who gets through with which certificate, and what passes both ways. */
#include <glib-unix.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "sfvmm/cluster/operators.h"
#include "sfvmm/cluster/pki.h"
#include "sfvmm/wire/state_file.h"

#define DAY       86400
#define USER      1234u
#define WORD      "hello"
#define LONG_SIZE (1u << 20) /* bytes: more than fits anywhere at once */

static char *pki;

/* Somebody who connects, with the certificate in PKI/FOLDER (NULL: none), says a word and reads to the end. */
typedef struct {
    const char *folder;
    guint port;
    GString *heard;
    gint done;
} Caller;

static gpointer call(gpointer data)
{
    Caller *caller = data;
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((guint16)caller->port) };
    g_autofree char *folder = caller->folder ? g_build_filename(pki, caller->folder, NULL) : NULL;
    g_autofree char *cert = folder ? g_build_filename(folder, "client-cert.pem", NULL) : NULL;
    g_autofree char *key = folder ? g_build_filename(folder, "client-key.pem", NULL) : NULL;
    gnutls_certificate_credentials_t credentials;
    gnutls_session_t session;
    char chunk[4096];
    gssize n;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    g_assert_cmpint(connect(fd, (struct sockaddr *)&address, sizeof(address)), ==, 0);
    gnutls_certificate_allocate_credentials(&credentials);
    if (folder) {
        g_assert_cmpint(gnutls_certificate_set_x509_key_file(credentials, cert, key, GNUTLS_X509_FMT_PEM), ==, 0);
    }
    gnutls_init(&session, GNUTLS_CLIENT | GNUTLS_NO_SIGNAL);
    gnutls_priority_set_direct(session, "NORMAL", NULL);
    gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials);
    gnutls_transport_set_int(session, fd);
    if (gnutls_handshake(session) == 0 && gnutls_record_send(session, WORD, strlen(WORD)) > 0) {
        while ((n = gnutls_record_recv(session, chunk, sizeof(chunk))) > 0) {
            g_string_append_len(caller->heard, chunk, n);
        }
    }
    gnutls_deinit(session);
    gnutls_certificate_free_credentials(credentials);
    close(fd);
    g_atomic_int_set(&caller->done, TRUE);
    return NULL;
}

/* The server: takes the word, answers with something long and hangs up. */
static gpointer serve(gpointer data)
{
    int fd = GPOINTER_TO_INT(data);
    g_autofree char *answer = g_strnfill(LONG_SIZE, 'x');
    char word[sizeof(WORD)];
    gsize sent = 0;

    g_assert_cmpint(recv(fd, word, strlen(WORD), MSG_WAITALL), ==, (gssize)strlen(WORD));
    while (sent < LONG_SIZE) {
        gssize n = send(fd, answer + sent, LONG_SIZE - sent, MSG_NOSIGNAL);
        g_assert_cmpint(n, >, 0);
        sent += (gsize)n;
    }
    close(fd);
    return NULL;
}

static void on_accept(int fd, guint32 user, gpointer owner)
{
    g_assert_cmpuint(user, ==, USER);
    g_assert_true(g_unix_set_fd_nonblocking(fd, FALSE, NULL));
    g_ptr_array_add(owner, g_thread_new("server", serve, GINT_TO_POINTER(fd)));
}

/* PKI/alice/expired: alice's certificate, but of long ago. */
static void make_expired(void)
{
    static const char *const names[] = { "ca-cert.pem", "ca-key.pem", "alice/operator/client-cert.pem",
                                         "alice/operator/client-key.pem" };
    g_autofree char *folder = g_build_filename(pki, "alice", "expired", NULL);
    g_autofree char *cert_path = g_build_filename(folder, "client-cert.pem", NULL);
    g_autofree char *key_path = g_build_filename(folder, "client-key.pem", NULL);
    gnutls_datum_t data[G_N_ELEMENTS(names)], out;
    gnutls_x509_crt_t issuer, cert;
    gnutls_x509_privkey_t issuer_key;

    for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *path = g_build_filename(pki, names[i], NULL);
        gsize length;
        g_assert_true(g_file_get_contents(path, (char **)&data[i].data, &length, NULL));
        data[i].size = (guint)length;
    }
    gnutls_x509_crt_init(&issuer);
    gnutls_x509_crt_init(&cert);
    gnutls_x509_privkey_init(&issuer_key);
    g_assert_cmpint(gnutls_x509_crt_import(issuer, &data[0], GNUTLS_X509_FMT_PEM), ==, 0);
    g_assert_cmpint(gnutls_x509_privkey_import2(issuer_key, &data[1], GNUTLS_X509_FMT_PEM, NULL, 0), ==, 0);
    g_assert_cmpint(gnutls_x509_crt_import(cert, &data[2], GNUTLS_X509_FMT_PEM), ==, 0);
    gnutls_x509_crt_set_activation_time(cert, time(NULL) - 2 * DAY);
    gnutls_x509_crt_set_expiration_time(cert, time(NULL) - DAY);
    g_assert_cmpint(gnutls_x509_crt_sign2(cert, issuer, issuer_key, GNUTLS_DIG_SHA256, 0), ==, 0);
    g_assert_cmpint(gnutls_x509_crt_export2(cert, GNUTLS_X509_FMT_PEM, &out), ==, 0);
    g_assert_cmpint(g_mkdir_with_parents(folder, 0700), ==, 0);
    g_assert_true(g_file_set_contents(cert_path, (char *)out.data, out.size, NULL));
    g_assert_true(g_file_set_contents(key_path, (char *)data[3].data, data[3].size, NULL));
    gnutls_free(out.data);
    gnutls_x509_crt_deinit(issuer);
    gnutls_x509_crt_deinit(cert);
    gnutls_x509_privkey_deinit(issuer_key);
    for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
        g_free(data[i].data);
    }
}

static void test_who_gets_in(void)
{
    static const struct {
        const char *folder;
        gboolean in;
    } cases[] = {
        { "alice/operator", TRUE }, { "alice/expired", FALSE }, { "bob/operator", FALSE },
        { "h1/host", FALSE },       { "h1/pages", FALSE },      { NULL, FALSE },
    };
    g_autofree char *directory = g_build_filename(pki, "h1", "host", NULL);
    g_autoptr(GHashTable) users = g_hash_table_new(g_str_hash, g_str_equal);
    g_autoptr(GPtrArray) servers = g_ptr_array_new();
    g_autoptr(GError) error = NULL;
    SfOperators *operators;

    g_hash_table_insert(users, (char *)"alice", GUINT_TO_POINTER(USER));
    operators = sf_operators_new(&(SfOperatorsOptions){ "h1", "127.0.0.1:0", directory, users }, &error);
    g_assert_no_error(error);
    sf_operators_start(operators, on_accept, servers);
    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        Caller caller = { .folder = cases[i].folder,
                          .port = sf_operators_port(operators),
                          .heard = g_string_new(NULL) };
        GThread *thread = g_thread_new("caller", call, &caller);
        while (!g_atomic_int_get(&caller.done)) {
            g_main_context_iteration(NULL, FALSE);
        }
        g_thread_join(thread);
        g_test_message("%s", cases[i].folder ? cases[i].folder : "no certificate");
        g_assert_cmpuint(caller.heard->len, ==, cases[i].in ? LONG_SIZE : 0);
        g_string_free(caller.heard, TRUE);
    }
    g_assert_cmpuint(servers->len, ==, 1);
    g_thread_join(g_ptr_array_index(servers, 0));
    sf_operators_free(operators);
}

/* An operator's certificate takes no host's place, nor the other way round, however it is asked for. */
static void test_names(void)
{
    const SfPkiOptions force = { .force = TRUE };
    g_autoptr(GError) error = NULL;

    g_assert_false(sf_pki_make_operator(pki, "h1", &force, &error));
    g_assert_error(error, G_FILE_ERROR, G_FILE_ERROR_EXIST);
    g_clear_error(&error);
    g_assert_false(sf_pki_make_host(pki, "bob", NULL, &force, &error));
    g_assert_error(error, G_FILE_ERROR, G_FILE_ERROR_EXIST);
    g_assert_true(sf_pki_make_operator(pki, "bob", &force, NULL));
}

int main(int argc, char **argv)
{
    const SfPkiOptions plain = { 0 };
    int status;

    g_test_init(&argc, &argv, NULL);
    pki = g_dir_make_tmp("sf-pki-XXXXXX", NULL);
    g_assert_true(sf_pki_make_ca(pki, &plain, NULL));
    g_assert_true(sf_pki_make_host(pki, "h1", NULL, &plain, NULL));
    g_assert_true(sf_pki_make_operator(pki, "alice", &plain, NULL));
    g_assert_true(sf_pki_make_operator(pki, "bob", &plain, NULL));
    make_expired();
    g_test_add_func("/operators/who_gets_in", test_who_gets_in);
    g_test_add_func("/operators/names", test_names);
    status = g_test_run();
    sf_state_remove_folder(pki);
    g_free(pki);
    return status;
}
