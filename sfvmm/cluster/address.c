/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/cluster/address.h"

#include <string.h>

#include "sfvmm/cluster/peer.h"

#define ADDRESS_LENGTH 256u
#define LISTEN_BACKLOG 128
#define V4_IN_V6       "::ffff:"

/* NULL + error: it is no address. */
static GNetworkAddress *parse(const char *address, guint16 default_port, GError **error)
{
    GSocketConnectable *parsed = NULL;

    if (*address && strlen(address) <= ADDRESS_LENGTH && g_str_is_ascii(address) && !strpbrk(address, " \t/@\"\\")) {
        parsed = g_network_address_parse(address, default_port, NULL);
    }
    if (!parsed) {
        g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_FAILED,
                    "address \"%.64s\": ADDRESS, ADDRESS:PORT or [IPV6]:PORT is needed", address);
        return NULL;
    }
    return G_NETWORK_ADDRESS(parsed);
}

gboolean sf_address_is_valid(const char *address, GError **error)
{
    g_autoptr(GNetworkAddress) parsed = parse(address, SF_PEER_PORT, error);

    return parsed != NULL;
}

static gboolean take_port(GSocketService *service, GSocketAddress *address, guint *port, GError **error)
{
    g_autoptr(GSocketAddress) bound = NULL;

    if (!g_socket_listener_add_address(G_SOCKET_LISTENER(service), address, G_SOCKET_TYPE_STREAM, G_SOCKET_PROTOCOL_TCP,
                                       NULL, &bound, error)) {
        return FALSE;
    }
    *port = g_inet_socket_address_get_port(G_INET_SOCKET_ADDRESS(bound));
    return TRUE;
}

/* IPv6, which takes IPv4 too; or IPv4 where the kernel has nothing else. */
static gboolean take_port_everywhere(GSocketService *service, guint16 wanted, guint *port, GError **error)
{
    g_autoptr(GInetAddress) any6 = g_inet_address_new_any(G_SOCKET_FAMILY_IPV6);
    g_autoptr(GInetAddress) any4 = g_inet_address_new_any(G_SOCKET_FAMILY_IPV4);
    g_autoptr(GSocketAddress) address6 = g_inet_socket_address_new(any6, wanted);
    g_autoptr(GSocketAddress) address4 = g_inet_socket_address_new(any4, wanted);

    return take_port(service, address6, port, NULL) || take_port(service, address4, port, error);
}

static gboolean take_port_at(GSocketService *service, const char *ip, guint16 wanted, guint *port, GError **error)
{
    g_autoptr(GSocketAddress) address = g_inet_socket_address_new_from_string(ip, wanted);

    if (!address) {
        g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_FAILED, "an IP address of this host is needed");
        return FALSE;
    }
    return take_port(service, address, port, error);
}

GSocketService *sf_address_listen(const char *key, const char *text, guint16 default_port, guint *port, GError **error)
{
    const gboolean everywhere = *text == ':';
    g_autofree char *whole = everywhere ? g_strconcat("0.0.0.0", text, NULL) : g_strdup(text);
    g_autoptr(GNetworkAddress) address = parse(whole, default_port, error);
    g_autoptr(GSocketService) service = NULL;
    guint16 wanted;

    if (!address) {
        g_prefix_error(error, "%s: ", key);
        return NULL;
    }
    wanted = g_network_address_get_port(address);
    service = g_socket_service_new();
    g_socket_service_stop(service);
    g_socket_listener_set_backlog(G_SOCKET_LISTENER(service), LISTEN_BACKLOG);
    if (!(everywhere ? take_port_everywhere(service, wanted, port, error)
                     : take_port_at(service, g_network_address_get_hostname(address), wanted, port, error))) {
        g_prefix_error(error, "%s=%s: ", key, text);
        return NULL;
    }
    return g_steal_pointer(&service);
}

char *sf_address_ip_text(GSocketAddress *address)
{
    g_autoptr(GSocketAddress) owned G_GNUC_UNUSED = address;
    GInetAddress *ip =
        G_IS_INET_SOCKET_ADDRESS(address) ? g_inet_socket_address_get_address(G_INET_SOCKET_ADDRESS(address)) : NULL;
    g_autofree char *text = ip ? g_inet_address_to_string(ip) : g_strdup("");

    /* A socket that listens on all addresses shows IPv4 mapped into IPv6. */
    return g_strdup(g_str_has_prefix(text, V4_IN_V6) && strchr(text, '.') ? text + strlen(V4_IN_V6) : text);
}
