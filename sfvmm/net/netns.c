/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/net/netns.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define OWN_NETNS "/proc/thread-self/ns/net"

static gboolean fail_errno(GError **error, const char *what)
{
    g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "%s: %s", what, g_strerror(errno));
    return FALSE;
}

typedef struct {
    int netns;
    SfNetnsFunc *inside;
    gpointer data;
    GError *error;
} Visit;

static gpointer visit_thread(gpointer data)
{
    Visit *visit = data;

    if (visit->netns >= 0 && setns(visit->netns, CLONE_NEWNET) < 0) {
        fail_errno(&visit->error, "entering a network namespace");
        return NULL;
    }
    return GINT_TO_POINTER(visit->inside(visit->data, &visit->error));
}

gboolean sf_netns_run(int netns, SfNetnsFunc *inside, gpointer data, GError **error)
{
    Visit visit = { netns, inside, data, NULL };
    gboolean ok = GPOINTER_TO_INT(g_thread_join(g_thread_new("sf-netns", visit_thread, &visit)));

    if (visit.error) {
        g_propagate_error(error, visit.error);
    }
    return ok;
}

static gboolean make_netns(gpointer data, GError **error)
{
    int *fd = data;

    if (unshare(CLONE_NEWNET) < 0) {
        return fail_errno(error, "a new network namespace (CAP_SYS_ADMIN is needed)");
    }
    *fd = open(OWN_NETNS, O_RDONLY | O_CLOEXEC);
    return *fd >= 0 || fail_errno(error, OWN_NETNS);
}

int sf_netns_new(GError **error)
{
    int fd = -1;

    return sf_netns_run(-1, make_netns, &fd, error) ? fd : -1;
}

static gboolean open_socket(gpointer data, GError **error)
{
    int *fd = data;

    *fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    return *fd >= 0 || fail_errno(error, "a socket");
}

int sf_netns_pin(int netns, GError **error)
{
    int fd = -1;

    return sf_netns_run(netns, open_socket, &fd, error) ? fd : -1;
}

/* Where the device is, which may have left the namespace that it was opened in; kernels before 5.8 can't tell. */
int sf_netns_of_tap(int tap, GError **error)
{
    int fd = ioctl(tap, TUNGETDEVNETNS);

    if (fd < 0 && (errno == EINVAL || errno == ENOTTY)) {
        fd = ioctl(tap, SIOCGSKNS);
    }
    if (fd < 0) {
        fail_errno(error, "the network namespace of a tap");
        return -1;
    }
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    return fd;
}
