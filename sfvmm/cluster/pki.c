/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * Keys and certificates are made in memory. The files of a host or operator are then written into a new folder beside
 * the place where they belong, and the folder gets its name in one rename(2): nobody ever sees half a host. A CA is two
 * files, first the key, then the certificate; each is linked to its name, which fails when the name is taken, so that
 * two runs at once can't mix their files, and an existing CA can't be lost.
 */
#include "sfvmm/cluster/pki.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CA_KEY          "ca-key.pem"
#define CA_CERT         "ca-cert.pem"
#define CA_NAME         "Snowflock CA"
#define RSA_BITS        3072u
#define SERIAL_BYTES    16u
#define CLOCK_SLACK     3600 /* seconds before now that a certificate is good already: clocks of hosts differ */
#define SECONDS_PER_DAY 86400
#define NAME_MAX_LENGTH 40u
#define TEXT_MAX        256u /* of a name in a certificate */
#define ADDRESSES_MAX   64u
#define FILE_MODE       0600
#define FOLDER_MODE     0700
#define PARENT_MODE     0755

typedef struct {
    gnutls_x509_privkey_t key;
    gnutls_x509_crt_t cert;
} Pair;

static void pair_clear(Pair *pair)
{
    if (pair->cert) {
        gnutls_x509_crt_deinit(pair->cert);
    }
    if (pair->key) {
        gnutls_x509_privkey_deinit(pair->key);
    }
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Pair, pair_clear)

/* TRUE: result is no error. */
static gboolean check(int result, const char *what, GError **error)
{
    if (result < 0) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "%s: %s", what, gnutls_strerror(result));
        return FALSE;
    }
    return TRUE;
}

gboolean sf_pki_name_is_valid(const char *name)
{
    gsize length = strlen(name);

    return length >= 1 && length <= NAME_MAX_LENGTH && g_ascii_isalnum(*name) &&
           strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789.-") == length;
}

char *sf_pki_default_directory(void)
{
    return geteuid() == 0 ? g_strdup("/etc/snowflock/pki")
                          : g_build_filename(g_get_user_config_dir(), "snowflock", "pki", NULL);
}

/* ---- certificates ---- */

static gboolean make_key(Pair *pair, gboolean rsa, GError **error)
{
    guint bits = rsa ? RSA_BITS : GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1);

    return check(gnutls_x509_privkey_init(&pair->key), "private key", error) &&
           check(gnutls_x509_privkey_generate(pair->key, rsa ? GNUTLS_PK_RSA : GNUTLS_PK_ECDSA, bits, 0), "private key",
                 error);
}

/* Version, serial, names, validity and key: what all our certificates have. unit NULL: none. */
static gboolean begin_cert(Pair *pair, const char *name, const char *unit, guint days, GError **error)
{
    guint8 serial[SERIAL_BYTES], id[TEXT_MAX];
    gsize id_length = sizeof(id);
    time_t now = time(NULL);

    if (!check(gnutls_rnd(GNUTLS_RND_NONCE, serial, sizeof(serial)), "serial number", error)) {
        return FALSE;
    }
    serial[0] = (serial[0] & 0x7f) | 0x40; /* positive, and always of the same length */
    return check(gnutls_x509_crt_init(&pair->cert), "certificate", error) &&
           check(gnutls_x509_crt_set_version(pair->cert, 3), "certificate", error) &&
           check(gnutls_x509_crt_set_serial(pair->cert, serial, sizeof(serial)), "certificate", error) &&
           check(gnutls_x509_crt_set_activation_time(pair->cert, now - CLOCK_SLACK), "certificate", error) &&
           check(gnutls_x509_crt_set_expiration_time(pair->cert, now + (time_t)days * SECONDS_PER_DAY), "certificate",
                 error) &&
           check(gnutls_x509_crt_set_dn_by_oid(pair->cert, GNUTLS_OID_X520_COMMON_NAME, 0, name, (guint)strlen(name)),
                 "certificate: name", error) &&
           (!unit || check(gnutls_x509_crt_set_dn_by_oid(pair->cert, GNUTLS_OID_X520_ORGANIZATIONAL_UNIT_NAME, 0, unit,
                                                         (guint)strlen(unit)),
                           "certificate: unit", error)) &&
           check(gnutls_x509_crt_set_key(pair->cert, pair->key), "certificate", error) &&
           check(gnutls_x509_crt_get_key_id(pair->cert, GNUTLS_KEYID_USE_SHA1, id, &id_length), "certificate", error) &&
           check(gnutls_x509_crt_set_subject_key_id(pair->cert, id, id_length), "certificate", error);
}

static gboolean sign(Pair *pair, const Pair *ca, GError **error)
{
    return check(gnutls_x509_crt_sign2(pair->cert, ca->cert, ca->key, GNUTLS_DIG_SHA256, 0), "certificate: signature",
                 error);
}

static gboolean make_ca(Pair *ca, const SfPkiOptions *options, GError **error)
{
    return make_key(ca, options->rsa, error) &&
           begin_cert(ca, CA_NAME, NULL, options->days ? options->days : SF_PKI_CA_DAYS, error) &&
           check(gnutls_x509_crt_set_basic_constraints(ca->cert, 1, 0), "certificate", error) &&
           check(gnutls_x509_crt_set_key_usage(ca->cert, GNUTLS_KEY_KEY_CERT_SIGN | GNUTLS_KEY_CRL_SIGN), "certificate",
                 error) &&
           sign(ca, ca, error);
}

static gboolean add_address(gnutls_x509_crt_t cert, const char *address, GError **error)
{
    struct in6_addr v6;
    struct in_addr v4;

    if (inet_pton(AF_INET, address, &v4) == 1) {
        return check(
            gnutls_x509_crt_set_subject_alt_name(cert, GNUTLS_SAN_IPADDRESS, &v4, sizeof(v4), GNUTLS_FSAN_APPEND),
            address, error);
    }
    if (inet_pton(AF_INET6, address, &v6) == 1) {
        return check(
            gnutls_x509_crt_set_subject_alt_name(cert, GNUTLS_SAN_IPADDRESS, &v6, sizeof(v6), GNUTLS_FSAN_APPEND),
            address, error);
    }
    return check(gnutls_x509_crt_set_subject_alt_name(cert, GNUTLS_SAN_DNSNAME, address, (guint)strlen(address),
                                                      GNUTLS_FSAN_APPEND),
                 address, error);
}

static gboolean make_leaf(Pair *leaf, const Pair *ca, const char *name, const char *unit, const char *const *addresses,
                          const char *purpose, const SfPkiOptions *options, GError **error)
{
    guint usage = GNUTLS_KEY_DIGITAL_SIGNATURE | (options->rsa ? GNUTLS_KEY_KEY_ENCIPHERMENT : 0);
    guint8 id[TEXT_MAX];
    gsize id_length = sizeof(id);

    if (!make_key(leaf, options->rsa, error) ||
        !begin_cert(leaf, name, unit, options->days ? options->days : SF_PKI_HOST_DAYS, error) ||
        !check(gnutls_x509_crt_set_basic_constraints(leaf->cert, 0, -1), "certificate", error) ||
        !check(gnutls_x509_crt_set_key_usage(leaf->cert, usage), "certificate", error) ||
        !check(gnutls_x509_crt_set_key_purpose_oid(leaf->cert, purpose, 0), "certificate", error) ||
        !check(gnutls_x509_crt_get_subject_key_id(ca->cert, id, &id_length, NULL), "certificate of the CA", error) ||
        !check(gnutls_x509_crt_set_authority_key_id(leaf->cert, id, id_length), "certificate", error)) {
        return FALSE;
    }
    if (strcmp(unit, SF_CERTIFICATE_OPERATOR) != 0 && !add_address(leaf->cert, name, error)) {
        return FALSE;
    }
    for (guint i = 0; addresses && addresses[i]; i++) {
        if (!add_address(leaf->cert, addresses[i], error)) {
            return FALSE;
        }
    }
    return sign(leaf, ca, error);
}

/* ---- files ---- */

static gboolean set_file_error(const char *path, const char *what, GError **error)
{
    int saved = errno;

    g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(saved), "\"%s\": %s: %s", path, what, g_strerror(saved));
    return FALSE;
}

static gboolean write_new_file(const char *path, const gnutls_datum_t *data, GError **error)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, FILE_MODE);
    gboolean done;

    if (fd < 0) {
        return set_file_error(path, "can't make it", error);
    }
    done = write(fd, data->data, data->size) == (ssize_t)data->size && fchmod(fd, FILE_MODE) == 0 && fsync(fd) == 0;
    if (!done) {
        set_file_error(path, "can't write it", error);
        unlink(path);
    }
    close(fd);
    return done;
}

/* The new file gets its name in one step. Without replace, an existing one of this name is an error. */
static gboolean put_file(const char *folder, const char *name, const gnutls_datum_t *data, gboolean replace,
                         GError **error)
{
    g_autofree char *path = g_build_filename(folder, name, NULL);
    g_autofree char *fresh = g_strdup_printf("%s.%d.new", path, (int)getpid());
    gboolean done;

    unlink(fresh);
    if (!write_new_file(fresh, data, error)) {
        return FALSE;
    }
    done = (replace ? rename(fresh, path) : link(fresh, path)) == 0 || set_file_error(path, "can't make it", error);
    unlink(fresh);
    return done;
}

static gboolean export_and_put(const Pair *pair, gboolean key, const char *folder, const char *name, gboolean replace,
                               GError **error)
{
    gnutls_datum_t pem = { 0 };
    gboolean done;

    if (!check(key ? gnutls_x509_privkey_export2_pkcs8(pair->key, GNUTLS_X509_FMT_PEM, NULL, GNUTLS_PKCS_PLAIN, &pem)
                   : gnutls_x509_crt_export2(pair->cert, GNUTLS_X509_FMT_PEM, &pem),
               name, error)) {
        return FALSE;
    }
    done = put_file(folder, name, &pem, replace, error);
    gnutls_memset(pem.data, 0, pem.size);
    gnutls_free(pem.data);
    return done;
}

static gboolean load_key(const char *path, gnutls_x509_privkey_t *key, GError **error)
{
    gnutls_datum_t data = { 0 };
    gboolean done;

    if (!sf_certificate_load_file(path, &data, error)) {
        return FALSE;
    }
    done = check(gnutls_x509_privkey_init(key), path, error) &&
           check(gnutls_x509_privkey_import2(*key, &data, GNUTLS_X509_FMT_PEM, NULL, 0), path, error);
    gnutls_memset(data.data, 0, data.size);
    g_free(data.data);
    return done;
}

static gboolean same_key(const Pair *pair)
{
    guint8 of_cert[TEXT_MAX], of_key[TEXT_MAX];
    gsize cert_length = sizeof(of_cert), key_length = sizeof(of_key);

    return gnutls_x509_crt_get_key_id(pair->cert, GNUTLS_KEYID_USE_SHA256, of_cert, &cert_length) == 0 &&
           gnutls_x509_privkey_get_key_id(pair->key, GNUTLS_KEYID_USE_SHA256, of_key, &key_length) == 0 &&
           cert_length == key_length && memcmp(of_cert, of_key, key_length) == 0;
}

static gboolean load_ca(const char *directory, Pair *ca, GError **error)
{
    g_autofree char *cert = g_build_filename(directory, CA_CERT, NULL);
    g_autofree char *key = g_build_filename(directory, CA_KEY, NULL);

    if (!g_file_test(cert, G_FILE_TEST_EXISTS)) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_NOENT,
                    "\"%s\": no CA there; make one with `sfctl pki init --dir %s`", directory, directory);
        return FALSE;
    }
    ca->cert = sf_certificate_load(cert, error);
    if (!ca->cert || !load_key(key, &ca->key, error)) {
        return FALSE;
    }
    if (!same_key(ca)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                    "\"%s\": %s and %s don't belong together; a CA made anew (`sfctl pki init --force`) needs new "
                    "certificates for all hosts",
                    directory, CA_KEY, CA_CERT);
        return FALSE;
    }
    if (gnutls_x509_crt_get_expiration_time(ca->cert) <= time(NULL)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED,
                    "\"%s\": the CA has expired; make another one with `sfctl pki init --force`", cert);
        return FALSE;
    }
    return TRUE;
}

static gboolean make_folder(const char *path, GError **error)
{
    return g_mkdir(path, FOLDER_MODE) == 0 || set_file_error(path, "can't make the folder", error);
}

/* Only what we have made: folders of files. */
static void remove_folder(const char *path)
{
    const char *const units[] = { SF_CERTIFICATE_HOST, SF_CERTIFICATE_PAGES, SF_CERTIFICATE_OPERATOR };

    for (guint i = 0; i < G_N_ELEMENTS(units); i++) {
        g_autofree char *unit = g_build_filename(path, units[i], NULL);
        g_autoptr(GDir) folder = g_dir_open(unit, 0, NULL);
        const char *name;
        while (folder && (name = g_dir_read_name(folder))) {
            g_autofree char *file = g_build_filename(unit, name, NULL);
            unlink(file);
        }
        rmdir(unit);
    }
    rmdir(path);
}

/* ---- the steps ---- */

static gboolean check_options(const SfPkiOptions *options, GError **error)
{
    if (options->days > SF_PKI_DAYS_MAX) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT, "validity: at most %u days", SF_PKI_DAYS_MAX);
        return FALSE;
    }
    return TRUE;
}

gboolean sf_pki_make_ca(const char *directory, const SfPkiOptions *options, GError **error)
{
    g_autofree char *cert = g_build_filename(directory, CA_CERT, NULL);
    g_autofree char *key = g_build_filename(directory, CA_KEY, NULL);
    g_autofree char *parent = g_path_get_dirname(directory);
    g_auto(Pair) ca = { 0 };

    if (!check_options(options, error)) {
        return FALSE;
    }
    if (!options->force && (g_file_test(cert, G_FILE_TEST_EXISTS) || g_file_test(key, G_FILE_TEST_EXISTS))) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_EXIST,
                    "\"%s\": there is a CA already, and without it no host's certificate is good any more; --force "
                    "replaces it",
                    directory);
        return FALSE;
    }
    if (g_mkdir_with_parents(parent, PARENT_MODE) < 0 || (mkdir(directory, FOLDER_MODE) < 0 && errno != EEXIST)) {
        return set_file_error(directory, "can't make the folder", error);
    }
    return make_ca(&ca, options, error) && export_and_put(&ca, TRUE, directory, CA_KEY, options->force, error) &&
           export_and_put(&ca, FALSE, directory, CA_CERT, options->force, error);
}

/* A certificate for one purpose, and its key: ROLE-cert.pem, ROLE-key.pem. */
static gboolean put_pair(const char *folder, const char *role, const Pair *ca, const char *name, const char *unit,
                         const char *const *addresses, const SfPkiOptions *options, GError **error)
{
    const char *purpose = strcmp(role, "server") == 0 ? GNUTLS_KP_TLS_WWW_SERVER : GNUTLS_KP_TLS_WWW_CLIENT;
    g_autofree char *key = g_strconcat(role, "-key.pem", NULL), *cert = g_strconcat(role, "-cert.pem", NULL);
    g_auto(Pair) leaf = { 0 };

    return make_leaf(&leaf, ca, name, unit, addresses, purpose, options, error) &&
           export_and_put(&leaf, TRUE, folder, key, FALSE, error) &&
           export_and_put(&leaf, FALSE, folder, cert, FALSE, error);
}

/* The files of one kind: the CA's certificate and two pairs; an operator serves nobody, so has one. */
static gboolean put_unit(const char *party, const Pair *ca, const char *name, const char *unit,
                         const char *const *addresses, const SfPkiOptions *options, GError **error)
{
    g_autofree char *folder = g_build_filename(party, unit, NULL);

    return make_folder(folder, error) && export_and_put(ca, FALSE, folder, CA_CERT, FALSE, error) &&
           (strcmp(unit, SF_CERTIFICATE_OPERATOR) == 0 ||
            put_pair(folder, "server", ca, name, unit, addresses, options, error)) &&
           put_pair(folder, "client", ca, name, unit, addresses, options, error);
}

/* Gives the finished folder its name. With replace, what was there is removed after that. */
static gboolean name_folder(const char *fresh, const char *folder, gboolean replace, GError **error)
{
    if (renameat2(AT_FDCWD, fresh, AT_FDCWD, folder, RENAME_NOREPLACE) == 0) {
        return TRUE;
    }
    if (errno == EEXIST && replace) {
        if (renameat2(AT_FDCWD, fresh, AT_FDCWD, folder, RENAME_EXCHANGE) == 0) {
            remove_folder(fresh); /* the old one */
            return TRUE;
        }
    } else if (errno == EEXIST) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_EXIST,
                    "\"%s\": there are certificates of this name already; --force replaces them", folder);
        return FALSE;
    }
    return set_file_error(folder, "can't make the folder", error);
}

static gboolean check_name(const char *what, const char *name, GError **error)
{
    if (sf_pki_name_is_valid(name)) {
        return TRUE;
    }
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                "%s \"%s\": a name is made of a-z, 0-9, dots and hyphens, at most %u, and does not begin with a dot or "
                "hyphen",
                what, name, NAME_MAX_LENGTH);
    return FALSE;
}

/* --force replaces certificates of the same kind: an operator's must not take the place of a host's. */
static gboolean check_kind(const char *folder, const char *unit, const char *name, GError **error)
{
    g_autofree char *of_kind = g_build_filename(folder, unit, NULL);

    if (!g_file_test(folder, G_FILE_TEST_EXISTS) || g_file_test(of_kind, G_FILE_TEST_IS_DIR)) {
        return TRUE;
    }
    g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_EXIST,
                "\"%s\": what has the name \"%s\" is of another kind than \"%s\"; choose another name", folder, name,
                unit);
    return FALSE;
}

/* DIRECTORY/NAME with certificates of these kinds, at most two. */
static gboolean make_party(const char *directory, const char *name, const char *const units[2],
                           const char *const *addresses, const SfPkiOptions *options, GError **error)
{
    g_autofree char *folder = g_build_filename(directory, name, NULL);
    g_autofree char *fresh = g_strdup_printf("%s/.%s.%d.new", directory, name, (int)getpid());
    g_auto(Pair) ca = { 0 };

    if (!check_options(options, error) || !load_ca(directory, &ca, error) ||
        !check_kind(folder, units[0], name, error)) {
        return FALSE;
    }
    remove_folder(fresh);
    if (!make_folder(fresh, error)) {
        return FALSE;
    }
    if (!put_unit(fresh, &ca, name, units[0], addresses, options, error) ||
        (units[1] && !put_unit(fresh, &ca, name, units[1], addresses, options, error)) ||
        !name_folder(fresh, folder, options->force, error)) {
        remove_folder(fresh);
        return FALSE;
    }
    return TRUE;
}

gboolean sf_pki_make_host(const char *directory, const char *name, const char *const *addresses,
                          const SfPkiOptions *options, GError **error)
{
    const char *const units[] = { SF_CERTIFICATE_HOST, SF_CERTIFICATE_PAGES };

    if (!check_name("host", name, error)) {
        return FALSE;
    }
    for (guint i = 0; addresses && addresses[i]; i++) {
        if (i >= ADDRESSES_MAX || !*addresses[i] || strlen(addresses[i]) >= TEXT_MAX || !g_str_is_ascii(addresses[i]) ||
            strpbrk(addresses[i], " /@\"\\*")) {
            g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                        "host \"%s\": address \"%.64s\" is no IP address and no DNS name", name, addresses[i]);
            return FALSE;
        }
    }
    return make_party(directory, name, units, addresses, options, error);
}

gboolean sf_pki_make_operator(const char *directory, const char *name, const SfPkiOptions *options, GError **error)
{
    const char *const units[] = { SF_CERTIFICATE_OPERATOR, NULL };

    return check_name("operator", name, error) && make_party(directory, name, units, NULL, options, error);
}
