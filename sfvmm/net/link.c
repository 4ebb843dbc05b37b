/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * A netlink socket belongs for ever to the namespace that it was opened in. So SfLinks opens its socket on a visit
 * there and works with it from outside. Only what goes by files (/dev/net/tun, /proc/sys/net) needs a visit each time.
 */
#include "sfvmm/net/link.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/neighbour.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netlink/netlink.h>
#include <netlink/route/addr.h>
#include <netlink/route/link.h>
#include <netlink/route/link/bridge.h>
#include <netlink/route/link/veth.h>
#include <netlink/route/link/vxlan.h>
#include <netlink/route/neighbour.h>
#include <netlink/route/nexthop.h>
#include <netlink/route/route.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "sfvmm/net/netns.h"

#define IPV4_BITS 32

typedef struct rtnl_link Link;
typedef struct rtnl_addr Address;
typedef struct rtnl_route Route;
typedef struct nl_addr Bytes;
typedef struct rtnl_neigh Neighbour;
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Link, rtnl_link_put)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Address, rtnl_addr_put)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Route, rtnl_route_put)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Bytes, nl_addr_put)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Neighbour, rtnl_neigh_put)

struct SfLinks {
    int netns; /* a duplicate; -1: that of the process */
    struct nl_sock *socket;
};

static gboolean fail_errno(GError **error, const char *what)
{
    g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "%s: %s", what, g_strerror(errno));
    return FALSE;
}

/* code: of libnl, 0 or negative. */
static gboolean check(int code, const char *what, const char *name, GError **error)
{
    if (code < 0) {
        g_set_error(error, G_IO_ERROR, code == -NLE_EXIST ? G_IO_ERROR_EXISTS : G_IO_ERROR_FAILED, "%s %s: %s", what,
                    name, nl_geterror(code));
    }
    return code >= 0;
}

static gboolean connect_inside(gpointer data, GError **error)
{
    SfLinks *links = data;

    return check(nl_connect(links->socket, NETLINK_ROUTE), "netlink", "socket", error);
}

SfLinks *sf_links_new(int netns, GError **error)
{
    g_autoptr(SfLinks) links = g_new0(SfLinks, 1);

    links->netns = netns < 0 ? -1 : fcntl(netns, F_DUPFD_CLOEXEC, 0);
    links->socket = nl_socket_alloc();
    if (netns >= 0 && links->netns < 0) {
        fail_errno(error, "a network namespace");
        return NULL;
    }
    return sf_netns_run(netns, connect_inside, links, error) ? g_steal_pointer(&links) : NULL;
}

void sf_links_free(SfLinks *links)
{
    if (links) {
        nl_socket_free(links->socket);
        if (links->netns >= 0) {
            close(links->netns);
        }
        g_free(links);
    }
}

static Link *find(SfLinks *links, const char *name, GError **error)
{
    Link *link = NULL;

    return check(rtnl_link_get_kernel(links->socket, 0, name, &link), "network device", name, error) ? link : NULL;
}

static int find_index(SfLinks *links, const char *name, GError **error)
{
    g_autoptr(Link) link = find(links, name, error);

    return link ? rtnl_link_get_ifindex(link) : 0;
}

gboolean sf_links_exists(SfLinks *links, const char *name)
{
    return find_index(links, name, NULL) > 0;
}

int sf_links_peer(SfLinks *links, const char *name)
{
    g_autoptr(Link) link = find(links, name, NULL);

    return link ? rtnl_link_get_link(link) : 0;
}

char *sf_links_name_of(SfLinks *links, int index)
{
    g_autoptr(Link) link = NULL;

    return rtnl_link_get_kernel(links->socket, index, NULL, &link) == 0 ? g_strdup(rtnl_link_get_name(link)) : NULL;
}

gboolean sf_links_add_bridge(SfLinks *links, const char *name, guint mtu, GError **error)
{
    g_autoptr(Link) bridge = rtnl_link_bridge_alloc();

    rtnl_link_set_name(bridge, name);
    rtnl_link_set_mtu(bridge, mtu);
    rtnl_link_set_flags(bridge, IFF_UP);
    return check(rtnl_link_add(links->socket, bridge, NLM_F_CREATE | NLM_F_EXCL), "bridge", name, error);
}

gboolean sf_links_add_veth(SfLinks *links, const char *name, const char *peer, int peer_netns, GError **error)
{
    g_autoptr(Link) here = rtnl_link_veth_alloc();
    g_autoptr(Link) there = rtnl_link_veth_get_peer(here); /* a reference */

    rtnl_link_set_name(here, name);
    rtnl_link_set_name(there, peer);
    rtnl_link_set_ns_fd(there, peer_netns);
    return check(rtnl_link_add(links->socket, here, NLM_F_CREATE | NLM_F_EXCL), "network device", name, error);
}

/* ---- tunnels ---- */

gboolean sf_links_add_tunnel(SfLinks *links, const SfTunnel *tunnel, GError **error)
{
    g_autoptr(Link) link = rtnl_link_vxlan_alloc();

    rtnl_link_set_name(link, tunnel->name);
    if (tunnel->netns >= 0) {
        rtnl_link_set_ns_fd(link, tunnel->netns);
    }
    rtnl_link_set_mtu(link, tunnel->mtu);
    rtnl_link_vxlan_set_id(link, tunnel->number);
    rtnl_link_vxlan_set_port(link, tunnel->port);
    rtnl_link_vxlan_set_learning(link, 1);
    if (tunnel->ipv6) {
        const struct in6_addr any = IN6ADDR_ANY_INIT;
        g_autoptr(Bytes) local = nl_addr_build(AF_INET6, &any, sizeof(any));
        rtnl_link_vxlan_set_local(link, local);
    }
    return check(rtnl_link_add(links->socket, link, NLM_F_CREATE | NLM_F_EXCL), "tunnel", tunnel->name, error);
}

gboolean sf_links_get_tunnel(SfLinks *links, const char *name, SfTunnel *tunnel)
{
    g_autoptr(Link) link = find(links, name, NULL);
    uint32_t port;

    if (!link || !rtnl_link_is_vxlan(link) || rtnl_link_vxlan_get_id(link, &tunnel->number) < 0 ||
        rtnl_link_vxlan_get_port(link, &port) < 0) {
        return FALSE;
    }
    tunnel->port = (guint16)port;
    return TRUE;
}

/* In a tunnel's table, all that is for no known member goes to the entries of this MAC. */
static Neighbour *end_of_tunnel(SfLinks *links, const char *name, const char *ip, GError **error)
{
    static const guint8 none[ETH_ALEN] = { 0 };
    g_autoptr(Neighbour) entry = rtnl_neigh_alloc();
    g_autoptr(Bytes) mac = nl_addr_build(AF_LLC, none, sizeof(none));
    g_autoptr(Bytes) end = NULL;
    int index = find_index(links, name, error);
    struct nl_addr *parsed = NULL;

    if (index == 0 || !check(nl_addr_parse(ip, AF_UNSPEC, &parsed), "the address", ip, error)) {
        return NULL;
    }
    end = parsed;
    rtnl_neigh_set_ifindex(entry, index);
    rtnl_neigh_set_lladdr(entry, mac);
    rtnl_neigh_set_dst(entry, end); /* before the family, which is not the address's */
    rtnl_neigh_set_family(entry, AF_BRIDGE);
    rtnl_neigh_set_flags(entry, NTF_SELF);
    rtnl_neigh_set_state(entry, NUD_PERMANENT | NUD_NOARP);
    return g_steal_pointer(&entry);
}

gboolean sf_links_add_end(SfLinks *links, const char *name, const char *ip, GError **error)
{
    g_autoptr(Neighbour) entry = end_of_tunnel(links, name, ip, error);

    return entry && check(rtnl_neigh_add(links->socket, entry, NLM_F_CREATE | NLM_F_APPEND), "an end of", name, error);
}

gboolean sf_links_remove_end(SfLinks *links, const char *name, const char *ip, GError **error)
{
    g_autoptr(Neighbour) entry = end_of_tunnel(links, name, ip, error);

    return entry && check(rtnl_neigh_delete(links->socket, entry, 0), "an end of", name, error);
}

/* ---- taps ---- */

typedef struct {
    const char *name;
    int fd;
} Tap;

static gboolean open_tap_inside(gpointer data, GError **error)
{
    Tap *tap = data;
    struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };

    g_strlcpy(request.ifr_name, tap->name, sizeof(request.ifr_name));
    tap->fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    if (tap->fd < 0) {
        return fail_errno(error, "/dev/net/tun");
    }
    if (ioctl(tap->fd, TUNSETIFF, &request) < 0) {
        fail_errno(error, tap->name);
        close(tap->fd);
        return FALSE;
    }
    return TRUE;
}

static gboolean set_mtu_and_up(SfLinks *links, const char *name, guint mtu, GError **error)
{
    g_autoptr(Link) link = find(links, name, error);
    g_autoptr(Link) change = rtnl_link_alloc();

    if (!link) {
        return FALSE;
    }
    if (mtu) {
        rtnl_link_set_mtu(change, mtu);
    }
    rtnl_link_set_flags(change, IFF_UP);
    return check(rtnl_link_change(links->socket, link, change, 0), "network device", name, error);
}

int sf_links_open_tap(SfLinks *links, const char *name, guint mtu, GError **error)
{
    Tap tap = { name, -1 };

    if (!sf_netns_run(links->netns, open_tap_inside, &tap, error)) {
        return -1;
    }
    if (!set_mtu_and_up(links, name, mtu, error)) {
        close(tap.fd);
        return -1;
    }
    return tap.fd;
}

char *sf_links_tap_name(int tap, GError **error)
{
    struct ifreq request = { 0 };

    if (ioctl(tap, TUNGETIFF, &request) < 0) {
        fail_errno(error, "the name of a tap");
        return NULL;
    }
    if (strspn(request.ifr_name, G_CSET_a_2_z G_CSET_A_2_Z G_CSET_DIGITS "_.-") != strlen(request.ifr_name)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "network device %s: its name has odd characters",
                    request.ifr_name);
        return NULL;
    }
    return g_strdup(request.ifr_name);
}

static gboolean move(SfLinks *from, const char *name, int netns, GError **error)
{
    g_autoptr(Link) link = find(from, name, error);
    g_autoptr(Link) change = rtnl_link_alloc();

    if (!link) {
        return FALSE;
    }
    rtnl_link_set_ns_fd(change, netns);
    return check(rtnl_link_change(from->socket, link, change, 0), "network device", name, error);
}

gboolean sf_links_take_tap(SfLinks *links, int tap, const char *name, guint mtu, GError **error)
{
    int netns = sf_netns_of_tap(tap, error);
    g_autoptr(SfLinks) from = netns < 0 ? NULL : sf_links_new(netns, error);

    if (netns >= 0) {
        close(netns);
    }
    return from && move(from, name, links->netns, error) && set_mtu_and_up(links, name, mtu, error);
}

/* ---- changes ---- */

gboolean sf_links_set_up(SfLinks *links, const char *name, GError **error)
{
    return set_mtu_and_up(links, name, 0, error);
}

gboolean sf_links_set_mac(SfLinks *links, const char *name, const guint8 *mac, GError **error)
{
    g_autoptr(Link) link = find(links, name, error);
    g_autoptr(Link) change = rtnl_link_alloc();
    g_autoptr(Bytes) address = nl_addr_build(AF_LLC, mac, ETH_ALEN);

    if (!link) {
        return FALSE;
    }
    rtnl_link_set_addr(change, address);
    return check(rtnl_link_change(links->socket, link, change, 0), "network device", name, error);
}

gboolean sf_links_enslave(SfLinks *links, const char *name, const char *bridge, GError **error)
{
    int port = find_index(links, name, error);
    int master = port > 0 ? find_index(links, bridge, error) : 0;

    return master > 0 && check(rtnl_link_enslave_ifindex(links->socket, master, port), "network device", name, error);
}

gboolean sf_links_delete(SfLinks *links, const char *name, GError **error)
{
    g_autoptr(Link) link = find(links, name, error);

    return link && check(rtnl_link_delete(links->socket, link), "network device", name, error);
}

static Bytes *ipv4(guint32 address, guint prefix)
{
    guint32 network = htonl(address);
    Bytes *result = nl_addr_build(AF_INET, &network, sizeof(network));

    nl_addr_set_prefixlen(result, (int)prefix);
    return result;
}

gboolean sf_links_add_address(SfLinks *links, const char *name, guint32 address, guint prefix, GError **error)
{
    g_autoptr(Address) entry = rtnl_addr_alloc();
    g_autoptr(Bytes) local = ipv4(address, prefix);
    int index = find_index(links, name, error);

    if (index == 0) {
        return FALSE;
    }
    rtnl_addr_set_ifindex(entry, index);
    rtnl_addr_set_local(entry, local);
    return check(rtnl_addr_add(links->socket, entry, 0), "an address of", name, error);
}

gboolean sf_links_add_default_route(SfLinks *links, const char *name, guint32 gateway, GError **error)
{
    g_autoptr(Route) route = rtnl_route_alloc();
    g_autoptr(Bytes) any = ipv4(0, 0);
    g_autoptr(Bytes) via = ipv4(gateway, IPV4_BITS);
    struct rtnl_nexthop *hop;
    int index = find_index(links, name, error);

    if (index == 0) {
        return FALSE;
    }
    hop = rtnl_route_nh_alloc(); /* the route takes it */
    rtnl_route_nh_set_ifindex(hop, index);
    rtnl_route_nh_set_gateway(hop, via);
    rtnl_route_set_dst(route, any);
    rtnl_route_add_nexthop(route, hop);
    return check(rtnl_route_add(links->socket, route, 0), "the default route by", name, error);
}

typedef struct {
    const char *key;
    const char *value;
} Sysctl;

static gboolean sysctl_inside(gpointer data, GError **error)
{
    const Sysctl *sysctl = data;
    g_autofree char *path = g_build_filename("/proc/sys", sysctl->key, NULL);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    gboolean ok;

    if (fd < 0) {
        return errno == ENOENT || fail_errno(error, path);
    }
    ok = write(fd, sysctl->value, strlen(sysctl->value)) > 0 || fail_errno(error, path);
    close(fd);
    return ok;
}

gboolean sf_links_sysctl(SfLinks *links, const char *key, const char *value, GError **error)
{
    Sysctl sysctl = { key, value };

    return sf_netns_run(links->netns, sysctl_inside, &sysctl, error);
}
