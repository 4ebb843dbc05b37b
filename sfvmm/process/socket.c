/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/process/socket.h"

#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define MASK_OTHERS 0177 /* of the file mode of a new socket */

/* By a short way: through an open descriptor of the folder, which is the caller's. -1 + error. */
static int address_of(const char *folder, const char *file, struct sockaddr_un *address)
{
    int directory = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);

    *address = (struct sockaddr_un){ .sun_family = AF_UNIX };
    g_snprintf(address->sun_path, sizeof(address->sun_path), "/proc/self/fd/%d/%s", directory, file);
    return directory;
}

/* Ends what was begun with an address; takes directory. fd, or -1 + error, when it has failed with errno. */
static int finish(const char *folder, const char *file, int directory, int fd, gboolean ok, GError **error)
{
    int saved = errno;

    if (directory >= 0) {
        close(directory);
    }
    if (ok) {
        return fd;
    }
    if (fd >= 0) {
        close(fd);
    }
    g_set_error(error, G_IO_ERROR, g_io_error_from_errno(saved), "%s/%s: %s", folder, file, g_strerror(saved));
    return -1;
}

int sf_socket_listen(const char *folder, const char *file, int type, int backlog, GError **error)
{
    struct sockaddr_un address;
    int directory = address_of(folder, file, &address);
    int fd = directory < 0 ? -1 : socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    mode_t mask = umask(MASK_OTHERS);
    gboolean ok = fd >= 0 && (unlink(address.sun_path) == 0 || errno == ENOENT) &&
                  bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0 && listen(fd, backlog) == 0;

    umask(mask);
    return finish(folder, file, directory, fd, ok, error);
}

int sf_socket_connect(const char *folder, const char *file, int type, GError **error)
{
    struct sockaddr_un address;
    int directory = address_of(folder, file, &address);
    int fd = directory < 0 ? -1 : socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    gboolean ok = fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0;

    return finish(folder, file, directory, fd, ok, error);
}

gboolean sf_socket_pair(int type, int pair[2], GError **error)
{
    int saved;

    if (socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, pair) == 0) {
        return TRUE;
    }
    saved = errno;
    g_set_error(error, G_IO_ERROR, g_io_error_from_errno(saved), "no pair of sockets: %s", g_strerror(saved));
    return FALSE;
}
