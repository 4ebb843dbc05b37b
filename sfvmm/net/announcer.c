/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/net/announcer.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "sfvmm/net/frame.h"
#include "sfvmm/net/netns.h"

struct SfAnnouncer {
    const char *device;
    int socket;
};

/* Bound to no protocol: it sends alone, nothing is kept for it. */
static gboolean open_inside(gpointer data, GError **error)
{
    SfAnnouncer *announcer = data;
    struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(announcer->device) };

    announcer->socket = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (announcer->socket < 0 || address.sll_ifindex == 0 ||
        bind(announcer->socket, (struct sockaddr *)&address, sizeof(address)) < 0) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "a socket for announcements: %s",
                    g_strerror(errno));
        return FALSE;
    }
    return TRUE;
}

SfAnnouncer *sf_announcer_new(int netns, const char *device, GError **error)
{
    g_autoptr(SfAnnouncer) announcer = g_new0(SfAnnouncer, 1);

    announcer->device = device;
    announcer->socket = -1;
    return sf_netns_run(netns, open_inside, announcer, error) ? g_steal_pointer(&announcer) : NULL;
}

void sf_announcer_free(SfAnnouncer *announcer)
{
    if (announcer) {
        if (announcer->socket >= 0) {
            close(announcer->socket);
        }
        g_free(announcer);
    }
}

/* A request for the own address, to all. */
void sf_announcer_tell(SfAnnouncer *announcer, const SfNetMember *member)
{
    guint8 frame[SF_FRAME_ARP_BYTES] = { 0 }, *arp = frame + SF_FRAME_HEADER;

    memset(frame, 0xff, SF_FRAME_MAC);
    memcpy(frame + SF_FRAME_MAC, member->mac, SF_FRAME_MAC);
    sf_frame_put16(frame + 2 * SF_FRAME_MAC, SF_FRAME_ARP);
    memcpy(arp, SF_FRAME_ARP_FIXED, sizeof(SF_FRAME_ARP_FIXED) - 1);
    sf_frame_put16(arp + 6, SF_FRAME_ARP_REQUEST);
    memcpy(arp + 8, member->mac, SF_FRAME_MAC);
    sf_frame_put32(arp + 14, member->address);
    sf_frame_put32(arp + 24, member->address);
    if (send(announcer->socket, frame, sizeof(frame), 0) < 0) {
        g_debug("announcing %s: %s", member->device, g_strerror(errno));
    }
}
