/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/store/sha256.h"

#include <errno.h>
#include <fcntl.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK        (1u << 20) /* bytes */
#define DIGEST_BYTES 32u

struct SfSha256 {
    gnutls_hash_hd_t hash;
};

SfSha256 *sf_sha256_new(void)
{
    SfSha256 *sum = g_new0(SfSha256, 1);
    int error = gnutls_hash_init(&sum->hash, GNUTLS_DIG_SHA256);

    if (error < 0) {
        g_error("SHA-256: %s", gnutls_strerror(error)); /* no memory, or a policy that forbids it */
    }
    return sum;
}

void sf_sha256_update(SfSha256 *sum, const void *data, gsize length)
{
    gnutls_hash(sum->hash, data, length);
}

void sf_sha256_zeros(SfSha256 *sum, guint64 length)
{
    static const guint8 zeros[CHUNK];

    while (length > 0) {
        gsize n = MIN(length, CHUNK);
        gnutls_hash(sum->hash, zeros, n);
        length -= n;
    }
}

char *sf_sha256_finish(SfSha256 *sum)
{
    guint8 digest[DIGEST_BYTES];
    GString *text = g_string_sized_new(2 * DIGEST_BYTES);

    gnutls_hash_deinit(sum->hash, digest);
    g_free(sum);
    for (guint i = 0; i < DIGEST_BYTES; i++) {
        g_string_append_printf(text, "%02x", digest[i]);
    }
    return g_string_free(text, FALSE);
}

void sf_sha256_free(SfSha256 *sum)
{
    if (sum) {
        gnutls_hash_deinit(sum->hash, NULL);
        g_free(sum);
    }
}

static gboolean add_file(SfSha256 *sum, int fd, guint64 size)
{
    g_autofree guint8 *buffer = g_malloc(CHUNK);
    guint64 done = 0;

    while (done < size) {
        off_t data = lseek(fd, (off_t)done, SEEK_DATA);
        off_t hole = data < 0 ? (off_t)size : lseek(fd, data, SEEK_HOLE);
        if (data < 0) {
            data = errno == ENXIO ? (off_t)size : (off_t)done; /* only a hole is left, or holes can't be told here */
        }
        if (hole < 0) {
            hole = (off_t)size;
        }
        sf_sha256_zeros(sum, (guint64)data - done);
        for (done = (guint64)data; done < (guint64)hole;) {
            ssize_t n = pread(fd, buffer, MIN(CHUNK, (guint64)hole - done), (off_t)done);
            if (n <= 0) {
                errno = n < 0 ? errno : EIO;
                return FALSE;
            }
            sf_sha256_update(sum, buffer, (gsize)n);
            done += (guint64)n;
        }
    }
    return TRUE;
}

char *sf_sha256_of_bytes(GBytes *bytes)
{
    SfSha256 *sum = sf_sha256_new();
    gsize length;
    const void *data = g_bytes_get_data(bytes, &length);

    sf_sha256_update(sum, data, length);
    return sf_sha256_finish(sum);
}

char *sf_sha256_of_file(const char *path, guint64 *size, GError **error)
{
    g_autoptr(SfSha256) sum = sf_sha256_new();
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    struct stat st;
    gboolean ok = fd >= 0 && fstat(fd, &st) == 0;

    if (ok && !S_ISREG(st.st_mode)) {
        ok = FALSE;
        errno = EINVAL;
    }
    ok = ok && add_file(sum, fd, (guint64)st.st_size);
    if (!ok) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "\"%s\" can't be read: %s", path,
                    g_strerror(errno));
    } else if (size) {
        *size = (guint64)st.st_size;
    }
    if (fd >= 0) {
        close(fd);
    }
    return ok ? sf_sha256_finish(g_steal_pointer(&sum)) : NULL;
}

char *sf_sha256_of_fd(int fd, guint64 length, GError **error)
{
    g_autoptr(SfSha256) sum = sf_sha256_new();

    if (!add_file(sum, fd, length)) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "it can't be read: %s", g_strerror(errno));
        return NULL;
    }
    return sf_sha256_finish(g_steal_pointer(&sum));
}
