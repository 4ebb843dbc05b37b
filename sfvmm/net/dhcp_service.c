/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Why a packet socket. The bridge may have no address (a cluster without a way out has no gateway), and its namespace's
 * filter drops what is for the namespace itself; a packet socket is before both. The kernel gives it requests alone
 * (a program of classic BPF), so that nothing else of the members wakes sfvmmd; how many of these come is bounded by
 * the cluster's filter (rules.c).
 *
 * An answer goes out by the bridge as if the gateway had sent it.
 */
#include "sfvmm/net/dhcp_service.h"

#include <arpa/inet.h>
#include <errno.h>
#include <glib-unix.h>
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "sfvmm/net/frame.h"
#include "sfvmm/net/netns.h"
#include "sfvmm/net/rules.h"

#define FRAME_MAX 2048u /* a request fits a packet of the cluster's MTU */
#define AT_ONCE   16u   /* requests in one turn of the main loop */

struct SfDhcpService {
    const char *bridge;
    SfDhcpSubnet subnet;
    const GPtrArray *members;
    int socket;
    guint source;
};

/* ---- the socket ---- */

/* IPv4 and UDP, no fragment, to port 67. */
static gboolean take_requests_alone(int socket)
{
    static struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 12),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SF_FRAME_IPV4, 0, 8),
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 23),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SF_FRAME_UDP, 0, 6),
        BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 20),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 0x1fff, 4, 0),
        BPF_STMT(BPF_LDX | BPF_B | BPF_MSH, 14),
        BPF_STMT(BPF_LD | BPF_H | BPF_IND, 16),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 67, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, FRAME_MAX),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    const struct sock_fprog filter = { G_N_ELEMENTS(program), program };

    return setsockopt(socket, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter)) == 0;
}

static gboolean fail(GError **error)
{
    g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "a socket for DHCP: %s", g_strerror(errno));
    return FALSE;
}

/* Bound only when it has its filter: what came before would not be looked at by it. */
static gboolean open_inside(gpointer data, GError **error)
{
    SfDhcpService *service = data;
    struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_protocol = htons(SF_FRAME_IPV4) };

    service->socket = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (service->socket < 0 || !take_requests_alone(service->socket)) {
        return fail(error);
    }
    address.sll_ifindex = (int)if_nametoindex(service->bridge);
    return address.sll_ifindex > 0 && bind(service->socket, (struct sockaddr *)&address, sizeof(address)) == 0
               ? TRUE
               : fail(error);
}

/* ---- requests ---- */

static const SfNetMember *member_by_mac(SfDhcpService *service, const guint8 *mac)
{
    for (guint i = 0; i < service->members->len; i++) {
        const SfNetMember *member = g_ptr_array_index(service->members, i);
        if (memcmp(member->mac, mac, SF_NET_MAC_LENGTH) == 0) {
            return member;
        }
    }
    return NULL;
}

/* An answer that can't be sent now is one that was lost: the client asks again. */
static void serve(SfDhcpService *service, const guint8 *frame, gsize length)
{
    const SfNetMember *member = length >= SF_FRAME_HEADER ? member_by_mac(service, frame + SF_FRAME_MAC) : NULL;
    guint8 answer[SF_DHCP_ANSWER_MAX];
    gsize size = member ? sf_dhcp_answer(&service->subnet, member->mac, member->address, frame, length, answer) : 0;

    if (size > 0 && send(service->socket, answer, size, 0) < 0) {
        g_debug("DHCP: %s", g_strerror(errno));
    }
}

static gboolean readable(int fd, G_GNUC_UNUSED GIOCondition condition, gpointer data)
{
    guint8 frame[FRAME_MAX];

    for (guint i = 0; i < AT_ONCE; i++) {
        ssize_t n = recv(fd, frame, sizeof(frame), 0);
        if (n < 0) {
            break;
        }
        serve(data, frame, (gsize)n);
    }
    return G_SOURCE_CONTINUE;
}

/* ---- life ---- */

SfDhcpService *sf_dhcp_service_new(int netns, const char *bridge, const SfDhcpSubnet *subnet, const GPtrArray *members,
                                   GError **error)
{
    g_autoptr(SfDhcpService) service = g_new0(SfDhcpService, 1);

    service->bridge = bridge;
    service->subnet = *subnet;
    service->members = members;
    service->socket = -1;
    if (!sf_netns_run(netns, open_inside, service, error)) {
        return NULL;
    }
    service->source = g_unix_fd_add(service->socket, G_IO_IN, readable, service);
    return g_steal_pointer(&service);
}

void sf_dhcp_service_free(SfDhcpService *service)
{
    if (service) {
        if (service->source) {
            g_source_remove(service->source);
        }
        if (service->socket >= 0) {
            close(service->socket);
        }
        g_free(service);
    }
}
