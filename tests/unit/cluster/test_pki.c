/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The cluster's keys: what the files are, who may read them, and that nothing is lost by asking twice. */
#include <glib/gstdio.h>
#include <gnutls/x509.h>
#include <string.h>
#include <sys/stat.h>

#include "sfvmm/cluster/pki.h"
#include "sfvmm/wire/state_file.h"

#define DAY 86400

static const SfPkiOptions plain = { 0 };
static const char *const files[] = { "ca-cert.pem", "server-cert.pem", "server-key.pem", "client-cert.pem",
                                     "client-key.pem" };

static char *folder_new(void)
{
    return g_dir_make_tmp("sf-pki-XXXXXX", NULL);
}

static gnutls_x509_crt_t cert_of(const char *directory, const char *name)
{
    g_autofree char *path = g_build_filename(directory, name, NULL), *text = NULL;
    gnutls_datum_t data = { 0 };
    gnutls_x509_crt_t cert;
    gsize length;

    g_assert_true(g_file_get_contents(path, &text, &length, NULL));
    data.data = (unsigned char *)text;
    data.size = (unsigned)length;
    g_assert_cmpint(gnutls_x509_crt_init(&cert), ==, 0);
    g_assert_cmpint(gnutls_x509_crt_import(cert, &data, GNUTLS_X509_FMT_PEM), ==, 0);
    return cert;
}

/* It is signed by that CA, for a purpose, and for the names and addresses. */
static void check_leaf(const char *directory, const char *unit, const char *role, const char *purpose)
{
    g_autofree char *folder = g_build_filename(directory, "h1", unit, NULL),
                    *file = g_strconcat(role, "-cert.pem", NULL);
    g_autofree char *path = g_build_filename(folder, file, NULL);
    g_autoptr(SfCertificateInfo) info = sf_certificate_read(path, NULL);
    gnutls_x509_crt_t cert = cert_of(folder, file), ca = cert_of(folder, "ca-cert.pem");
    gnutls_typed_vdata_st want = { GNUTLS_DT_KEY_PURPOSE_OID, (unsigned char *)purpose, 0 };
    gnutls_x509_trust_list_t list;
    unsigned status = 1, usage, critical;

    g_assert_cmpint(gnutls_x509_trust_list_init(&list, 0), ==, 0);
    g_assert_cmpint(gnutls_x509_trust_list_add_cas(list, &ca, 1, 0), ==, 1);
    g_assert_cmpint(gnutls_x509_trust_list_verify_crt2(list, &cert, 1, &want, 1, 0, &status, NULL), ==, 0);
    g_assert_cmpuint(status, ==, 0);
    want.data = (unsigned char *)GNUTLS_KP_OCSP_SIGNING;
    g_assert_cmpint(gnutls_x509_trust_list_verify_crt2(list, &cert, 1, &want, 1, 0, &status, NULL), ==, 0);
    g_assert_cmpuint(status, !=, 0);

    g_assert_cmpstr(info->name, ==, "h1");
    g_assert_cmpstr(info->unit, ==, unit);
    g_assert_cmpint(gnutls_x509_crt_get_key_usage(cert, &usage, &critical), ==, 0);
    g_assert_cmpuint(usage & (GNUTLS_KEY_KEY_CERT_SIGN | GNUTLS_KEY_DIGITAL_SIGNATURE), ==,
                     GNUTLS_KEY_DIGITAL_SIGNATURE);
    g_assert_cmpint(gnutls_x509_crt_get_ca_status(cert, NULL), ==, 0);
    g_assert_cmpint(gnutls_x509_crt_check_hostname(cert, "h1"), !=, 0);
    g_assert_cmpint(gnutls_x509_crt_check_hostname(cert, "192.0.2.1"), !=, 0);
    g_assert_cmpint(gnutls_x509_crt_check_hostname(cert, "2001:db8::1"), !=, 0);
    g_assert_cmpint(gnutls_x509_crt_check_hostname(cert, "one.example"), !=, 0);
    g_assert_cmpint(gnutls_x509_crt_check_hostname(cert, "192.0.2.2"), ==, 0);
    gnutls_x509_trust_list_deinit(list, 1);
    gnutls_x509_crt_deinit(cert);
}

static void check_modes(const char *directory)
{
    for (guint i = 0; i < 2 * G_N_ELEMENTS(files); i++) {
        g_autofree char *path = g_build_filename(directory, "h1", i % 2 ? "host" : "pages", files[i / 2], NULL);
        GStatBuf status;
        g_assert_cmpint(g_stat(path, &status), ==, 0);
        g_assert_cmpuint(status.st_mode & 07777, ==, 0600);
    }
}

static void test_two_steps(gconstpointer data)
{
    const SfPkiOptions options = { .rsa = GPOINTER_TO_INT(data) };
    const char *const addresses[] = { "192.0.2.1", "2001:db8::1", "one.example", NULL };
    g_autofree char *folder = folder_new(), *directory = g_build_filename(folder, "deep", "pki", NULL);
    g_autoptr(GError) error = NULL;
    gnutls_x509_crt_t ca, server;
    unsigned bits;

    g_assert_true(sf_pki_make_ca(directory, &options, &error));
    g_assert_no_error(error);
    g_assert_true(sf_pki_make_host(directory, "h1", addresses, &options, &error));
    g_assert_no_error(error);
    for (guint i = 0; i < 2; i++) {
        check_leaf(directory, i ? "host" : "pages", "server", GNUTLS_KP_TLS_WWW_SERVER);
        check_leaf(directory, i ? "host" : "pages", "client", GNUTLS_KP_TLS_WWW_CLIENT);
    }
    check_modes(directory);
    ca = cert_of(directory, "ca-cert.pem");
    g_assert_cmpint(gnutls_x509_crt_get_ca_status(ca, NULL), ==, 1);
    g_assert_cmpint(gnutls_x509_crt_get_pk_algorithm(ca, &bits), ==, options.rsa ? GNUTLS_PK_RSA : GNUTLS_PK_ECDSA);
    g_assert_cmpint(gnutls_x509_crt_get_expiration_time(ca), >, time(NULL) + (SF_PKI_CA_DAYS - 1) * DAY);
    g_autofree char *host = g_build_filename(directory, "h1", "host", NULL);
    server = cert_of(host, "server-cert.pem");
    g_assert_cmpint(gnutls_x509_crt_get_expiration_time(server), <, time(NULL) + (SF_PKI_HOST_DAYS + 1) * DAY);
    g_assert_cmpint(gnutls_x509_crt_get_activation_time(server), <, time(NULL));
    gnutls_x509_crt_deinit(ca);
    gnutls_x509_crt_deinit(server);
    sf_state_remove_folder(folder);
}

static char *content_of(const char *directory, const char *name)
{
    g_autofree char *path = g_build_filename(directory, name, NULL);
    char *text;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    return text;
}

static void test_nothing_is_lost(void)
{
    const SfPkiOptions force = { .force = TRUE };
    g_autofree char *directory = folder_new();
    g_autoptr(GError) error = NULL;

    g_assert_false(sf_pki_make_host(directory, "h1", NULL, &plain, &error));
    g_assert_nonnull(strstr(error->message, "pki init"));
    g_clear_error(&error);
    g_assert_true(sf_pki_make_ca(directory, &plain, NULL));
    g_autofree char *key = content_of(directory, "ca-key.pem");
    g_assert_false(sf_pki_make_ca(directory, &plain, &error));
    g_assert_error(error, G_FILE_ERROR, G_FILE_ERROR_EXIST);
    g_clear_error(&error);
    g_autofree char *same = content_of(directory, "ca-key.pem");
    g_assert_cmpstr(key, ==, same);

    g_assert_true(sf_pki_make_host(directory, "h1", NULL, &plain, NULL));
    g_autofree char *cert = content_of(directory, "h1/host/server-cert.pem");
    g_assert_false(sf_pki_make_host(directory, "h1", NULL, &plain, &error));
    g_assert_error(error, G_FILE_ERROR, G_FILE_ERROR_EXIST);
    g_clear_error(&error);
    g_assert_true(sf_pki_make_host(directory, "h1", NULL, &force, NULL));
    g_autofree char *fresh = content_of(directory, "h1/host/server-cert.pem");
    g_assert_cmpstr(cert, !=, fresh);

    /* Half of a CA is not used: its key without its certificate, or with another one. */
    g_autofree char *cert_path = g_build_filename(directory, "ca-cert.pem", NULL);
    g_autofree char *other = folder_new(), *other_cert = NULL;
    g_assert_true(sf_pki_make_ca(other, &plain, NULL));
    other_cert = content_of(other, "ca-cert.pem");
    g_assert_true(g_file_set_contents(cert_path, other_cert, -1, NULL));
    g_assert_false(sf_pki_make_host(directory, "h2", NULL, &plain, &error));
    g_assert_nonnull(strstr(error->message, "belong together"));
    g_clear_error(&error);
    g_remove(cert_path);
    g_assert_false(sf_pki_make_ca(directory, &plain, &error));
    g_clear_error(&error);
    g_assert_true(sf_pki_make_ca(directory, &force, NULL));
    g_assert_true(sf_pki_make_host(directory, "h2", NULL, &plain, NULL));

    /* No half-made files are left. */
    g_auto(GStrv) left = sf_state_list(directory);
    for (char **name = left; *name; name++) {
        g_assert_null(strstr(*name, "new"));
    }
    sf_state_remove_folder(directory);
    sf_state_remove_folder(other);
}

static void test_bad_names(void)
{
    static const char *const names[] = { "",   "H1",  "-h",  ".h",       "a/b",
                                         "..", "a b", "h\n", "\xc3\xa9", "a123456789012345678901234567890123456789x" };
    static const char *const addresses[] = { "", "a b", "a/b", "*.example", "a@b", "\xc3\xa9" };
    g_autofree char *directory = folder_new();

    g_assert_true(sf_pki_make_ca(directory, &plain, NULL));
    for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autoptr(GError) error = NULL;
        g_assert_false(sf_pki_make_host(directory, names[i], NULL, &plain, &error));
        g_assert_nonnull(error);
    }
    for (guint i = 0; i < G_N_ELEMENTS(addresses); i++) {
        const char *const list[] = { addresses[i], NULL };
        g_autoptr(GError) error = NULL;
        g_assert_false(sf_pki_make_host(directory, "h1", list, &plain, &error));
        g_assert_nonnull(error);
    }
    sf_state_remove_folder(directory);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_data_func("/pki/ecdsa", GINT_TO_POINTER(FALSE), test_two_steps);
    g_test_add_data_func("/pki/rsa", GINT_TO_POINTER(TRUE), test_two_steps);
    g_test_add_func("/pki/nothing_is_lost", test_nothing_is_lost);
    g_test_add_func("/pki/bad_names", test_bad_names);
    return g_test_run();
}
