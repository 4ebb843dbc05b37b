/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/fork/result.h"

#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <glib/gstdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libsf/wire/guest_protocol.h"

#define RESULT_MODE 0600

static char *result_path(const char *directory, guint id, const char *suffix)
{
    return g_strdup_printf("%s/result-%u%s", directory, id, suffix);
}

static gboolean set_errno(GError **error, const char *path, const char *what)
{
    int saved = errno;

    g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(saved), "result \"%s\": can't %s: %s", path, what,
                g_strerror(saved));
    return FALSE;
}

static gboolean write_piece(const char *path, guint64 offset, const void *data, gsize length, GError **error)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | (offset ? 0 : O_TRUNC), RESULT_MODE);
    gsize done = 0;

    if (fd < 0) {
        return set_errno(error, path, "open it");
    }
    while (done < length) {
        ssize_t n = pwrite(fd, (const char *)data + done, length - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            set_errno(error, path, "write it; is the run directory full?");
            close(fd);
            return FALSE;
        }
        done += (gsize)n;
    }
    close(fd);
    return TRUE;
}

gboolean sf_result_write(const char *directory, guint id, guint64 offset, guint64 total, const void *data, gsize length,
                         guint64 *received, gboolean *whole, GError **error)
{
    g_autofree char *part = result_path(directory, id, ".part");
    g_autofree char *path = result_path(directory, id, "");

    *whole = FALSE;
    if (total > SF_GP_MAX_RESULT || offset > total || length > total - offset) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "result of clone %u: %" G_GUINT64_FORMAT " bytes at most, and pieces within it", id,
                    (guint64)SF_GP_MAX_RESULT);
        return FALSE;
    }
    if (offset == 0) {
        *received = 0;
    } else if (*received == 0 && offset + length == total && sf_result_length(directory, id) == total) {
        *whole = TRUE; /* its answer was lost in a restart */
        return TRUE;
    }
    if (offset > *received) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "result of clone %u: piece at %" G_GUINT64_FORMAT " came, %" G_GUINT64_FORMAT " was expected", id,
                    offset, *received);
        return FALSE;
    }
    if (offset + length < *received) {
        return TRUE;
    }
    if (!write_piece(part, offset, data, length, error)) {
        return FALSE;
    }
    *received = offset + length;
    if (*received == total) {
        if (g_rename(part, path) < 0) {
            return set_errno(error, path, "rename the finished file");
        }
        *received = 0;
        *whole = TRUE;
    }
    return TRUE;
}

GBytes *sf_result_read(const char *directory, guint id, guint64 offset, gsize length, GError **error)
{
    g_autofree char *path = result_path(directory, id, "");
    g_autofree char *data = NULL;
    gsize done = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        if (errno == ENOENT) {
            return g_bytes_new(NULL, 0);
        }
        set_errno(error, path, "open it");
        return NULL;
    }
    data = g_malloc(length);
    while (done < length) {
        ssize_t n = pread(fd, data + done, length - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            set_errno(error, path, "read it");
            close(fd);
            return NULL;
        }
        if (n == 0) {
            break;
        }
        done += (gsize)n;
    }
    close(fd);
    return g_bytes_new_take(g_steal_pointer(&data), done);
}

static guint64 file_size(const char *directory, guint id, const char *suffix)
{
    g_autofree char *path = result_path(directory, id, suffix);
    GStatBuf info;

    return g_stat(path, &info) == 0 ? (guint64)info.st_size : 0;
}

guint64 sf_result_length(const char *directory, guint id)
{
    return file_size(directory, id, "");
}

guint64 sf_result_pending(const char *directory, guint id)
{
    return file_size(directory, id, ".part");
}
