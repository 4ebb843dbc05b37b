/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Keys for one sf-pager: its user can't read those of sfvmmd. What it needs of them is copied into a directory of its
 * own below the run directory, and given as a descriptor.
 */
#include "sfvmm/pager/pager_private.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define KEY_BYTES_MAX (1 << 20)
#define MODE_KEY      0400

static gboolean copy_key(SfPager *pager, const char *from, int directory, const char *name, GError **error)
{
    g_autofree char *bytes = NULL;
    gsize length;
    int fd;
    gboolean ok;

    if (!g_file_get_contents(from, &bytes, &length, error)) {
        return FALSE;
    }
    fd = openat(directory, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, MODE_KEY);
    ok = fd >= 0 && length <= KEY_BYTES_MAX && write(fd, bytes, length) == (ssize_t)length &&
         (geteuid() != 0 || fchown(fd, pager->uid, pager->gid) == 0);
    explicit_bzero(bytes, length);
    if (!ok) {
        sf_pager_fail_errno(pager, error, name);
    }
    if (fd >= 0) {
        close(fd);
    }
    return ok;
}

/*
 * A directory that sf-pager's user can read. names: of the files, NULL-terminated; from: the directory they are in, or
 * the one file. An open descriptor of it; -1 + error.
 */
static int copy_keys(SfPager *pager, const char *from, const char *const *names, gboolean is_directory, GError **error)
{
    g_autofree char *path = NULL;
    int directory = -1;

    if (!from) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT, "pager of %s: no keys are given", pager->id);
        return -1;
    }
    do { /* those of an earlier sfvmmd are there still */
        g_autofree char *name = g_strdup_printf("tls-%u", pager->n_keys++);
        g_free(path);
        path = sf_pager_path(pager, name);
        errno = 0;
    } while (mkdir(path, SF_PAGER_MODE_DIRECTORY) < 0 && errno == EEXIST);
    if (errno == 0) {
        directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    }
    if (directory < 0) {
        sf_pager_fail_errno(pager, error, path);
        return -1;
    }
    for (; *names; names++) {
        g_autofree char *file = is_directory ? g_build_filename(from, *names, NULL) : g_strdup(from);
        if (!copy_key(pager, file, directory, *names, error)) {
            close(directory);
            return -1;
        }
    }
    if (geteuid() == 0 && fchown(directory, pager->uid, pager->gid) < 0) {
        sf_pager_fail_errno(pager, error, path);
        close(directory);
        return -1;
    }
    return directory;
}

/* Appends the descriptor of what `security` needs; nothing for PLAIN. */
gboolean sf_pager_add_keys(SfPager *pager, SfPagerSecurity security, const char *keys, gboolean server, int *fds,
                           guint *n_fds, GError **error)
{
    static const char *const server_files[] = { "ca-cert.pem", "server-cert.pem", "server-key.pem", NULL };
    static const char *const client_files[] = { "ca-cert.pem", "client-cert.pem", "client-key.pem", NULL };
    static const char *const psk_files[] = { SF_PAGER_KEYS_FILE, NULL };
    int fd;

    if (security == SF_PAGER_PLAIN) {
        return TRUE;
    }
    fd = security == SF_PAGER_PSK ? copy_keys(pager, keys, psk_files, FALSE, error)
                                  : copy_keys(pager, keys, server ? server_files : client_files, TRUE, error);
    if (fd < 0) {
        return FALSE;
    }
    fds[(*n_fds)++] = fd;
    return TRUE;
}
