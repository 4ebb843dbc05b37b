/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfLinks: the network devices of one namespace, by netlink. Addresses are IPv4, in host byte order. Each call is done
 * when it returns; an error names the device. One thread at a time.
 */
#ifndef SF_LINK_H
#define SF_LINK_H

#include <gio/gio.h>

typedef struct SfLinks SfLinks;

SfLinks *sf_links_new(int netns, GError **error); /* -1: the caller's namespace */
void sf_links_free(SfLinks *links);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfLinks, sf_links_free)

gboolean sf_links_add_bridge(SfLinks *links, const char *name, guint mtu, GError **error);

/* A cable: `name` here, `peer` in another namespace. G_IO_ERROR_EXISTS: one of the names is taken. */
gboolean sf_links_add_veth(SfLinks *links, const char *name, const char *peer, int peer_netns, GError **error);

/*
 * A tap for a QEMU: returns its descriptor (O_CLOEXEC, for frames with a virtio-net header), -1 + error. The device
 * goes with the last descriptor. It is up, and in no bridge.
 */
int sf_links_open_tap(SfLinks *links, const char *name, guint mtu, GError **error);

/*
 * A tap that somebody else has opened, in whichever namespace it is: it is in this one from now on, under its name, up,
 * and in no bridge. The name is the kernel's, to be freed, and fit for a filter's text; NULL + error.
 */
char *sf_links_tap_name(int tap, GError **error);
gboolean sf_links_take_tap(SfLinks *links, int tap, const char *name, guint mtu, GError **error);

/*
 * A tunnel to the same network on other hosts: frames in UDP packets of the caller's namespace, the device in another
 * one. It reaches nobody until it has ends. G_IO_ERROR_EXISTS: the number is in use, with this port.
 */
typedef struct {
    const char *name;
    int netns;      /* -1: the caller's */
    guint32 number; /* VNI, 24 bits */
    guint16 port;   /* UDP, of all ends */
    gboolean ipv6;  /* between the hosts */
    guint mtu;      /* of frames in it */
} SfTunnel;
gboolean sf_links_add_tunnel(SfLinks *links, const SfTunnel *tunnel, GError **error);
/* Those of a tunnel that is there: number and port, the rest is not touched. FALSE: there is none of that name. */
gboolean sf_links_get_tunnel(SfLinks *links, const char *name, SfTunnel *tunnel);

/* One more end, an IP address: it gets what is for all, and what is for members that were heard from there. */
gboolean sf_links_add_end(SfLinks *links, const char *name, const char *ip, GError **error);
gboolean sf_links_remove_end(SfLinks *links, const char *name, const char *ip, GError **error);

gboolean sf_links_set_mac(SfLinks *links, const char *name, const guint8 *mac, GError **error);
gboolean sf_links_set_up(SfLinks *links, const char *name, GError **error);
gboolean sf_links_enslave(SfLinks *links, const char *name, const char *bridge, GError **error);
gboolean sf_links_delete(SfLinks *links, const char *name, GError **error);
gboolean sf_links_exists(SfLinks *links, const char *name);
int sf_links_peer(SfLinks *links, const char *name); /* index of a cable's other end, in its namespace; 0: none */
char *sf_links_name_of(SfLinks *links, int index);   /* to be freed; NULL: no such device */
gboolean sf_links_add_address(SfLinks *links, const char *name, guint32 address, guint prefix, GError **error);
gboolean sf_links_add_default_route(SfLinks *links, const char *name, guint32 gateway, GError **error);

/* "net/ipv4/ip_forward" = "1" in the namespace. A key that this kernel does not have is no error. */
gboolean sf_links_sysctl(SfLinks *links, const char *key, const char *value, GError **error);

#endif
