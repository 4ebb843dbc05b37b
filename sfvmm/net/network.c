/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What both kinds have in common: network_bridge.c is the kernel's, network_switch.c that of an ordinary user. */
#include "sfvmm/net/network.h"

#include <string.h>
#include "sfvmm/net/network_kind.h"
#include "sfvmm/net/policy.h"

/* ---- addresses ---- */

guint32 sf_network_host_bits(guint prefix)
{
    return prefix == 0 ? G_MAXUINT32 : ~(G_MAXUINT32 << (32 - prefix));
}

guint32 sf_network_gateway_address(guint32 address, guint prefix)
{
    return (address | sf_network_host_bits(prefix)) - 1;
}

gboolean sf_network_address_is_usable(guint32 address, guint prefix)
{
    guint32 host = address & sf_network_host_bits(prefix);

    return prefix >= 1 && prefix <= 30 && host != 0 && host != sf_network_host_bits(prefix) &&
           address != sf_network_gateway_address(address, prefix);
}

guint32 sf_network_gateway(const SfNetwork *network)
{
    return network->has_gateway ? sf_network_gateway_address(network->address, network->prefix) : 0;
}

/* ---- life ---- */

static const SfNetworkKind *kind_of(const SfNetworkOptions *options)
{
    return options->place ? &sf_network_switch : &sf_network_bridge;
}

void sf_network_init(SfNetwork *network, const SfNetworkKind *kind, const SfNetworkOptions *options)
{
    network->kind = kind;
    network->name = g_strdup(options->name);
    network->address = options->address;
    network->prefix = options->prefix;
    network->rate = options->rate;
    network->outside =
        options->outside ? g_array_copy((GArray *)options->outside) : g_array_new(FALSE, FALSE, sizeof(SfNetRule));
    network->lent = options->lent;
    memcpy(network->gateway_mac, options->gateway_mac, SF_NET_MAC_LENGTH);
    network->own = TRUE;
}

static gboolean named(gboolean ok, const char *name, GError **error)
{
    if (!ok) {
        g_prefix_error(error, "network of \"%s\": ", name);
    }
    return ok;
}

SfNetwork *sf_network_new(const SfNetworkOptions *options, GError **error)
{
    SfNetwork *network = kind_of(options)->new (options, error);

    named(network != NULL, options->name, error);
    return network;
}

SfNetwork *sf_network_adopt(const SfNetworkOptions *options, int tap, GError **error)
{
    SfNetwork *network = kind_of(options)->adopt(options, tap, error);

    named(network != NULL, options->name, error);
    return network;
}

gboolean sf_network_settle(SfNetwork *network, GError **error)
{
    return named(network->kind->settle(network, error), network->name, error);
}

void sf_network_free(SfNetwork *network)
{
    if (network) {
        network->kind->free(network);
        g_array_unref(network->outside);
        g_free(network->name);
        g_free(network);
    }
}

void sf_network_leave(SfNetwork *network)
{
    if (network) {
        network->own = FALSE;
        sf_network_free(network);
    }
}

void sf_network_sweep(const SfNetworkPlace *place, const char *const *live)
{
    if (place) {
        sf_network_switch_sweep(place->directory, live);
    } else {
        sf_network_bridge_sweep();
    }
}

/* ---- other hosts ---- */

gboolean sf_network_span(SfNetwork *network, guint32 number, guint port, const char *const *hosts, GError **error)
{
    return named(network->kind->span(network, number, port, hosts, error), network->name, error);
}

guint32 sf_network_number(const SfNetwork *network)
{
    return network->kind->number(network);
}

/* ---- members ---- */

int sf_network_open_port(SfNetwork *network, char **device, GError **error)
{
    int port = network->kind->open_port(network, device, error);

    named(port >= 0, network->name, error);
    return port;
}

static gboolean takes_taps(const SfNetwork *network, GError **error)
{
    if (!network->kind->plug) {
        g_set_error_literal(
            error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
            "without root, or with cluster-kind=switch in sfvmmd.conf, a libvirt domain can't be in it");
        return FALSE;
    }
    return TRUE;
}

int sf_network_pin(SfNetwork *network, GError **error)
{
    int pin = takes_taps(network, error) ? network->kind->pin(network, error) : -1;

    named(pin >= 0, network->name, error);
    return pin;
}

gboolean sf_network_plug(SfNetwork *network, int tap, char **device, GError **error)
{
    return named(takes_taps(network, error) && network->kind->plug(network, tap, device, error), network->name, error);
}

gboolean sf_network_admit(SfNetwork *network, const char *device, const guint8 *mac, guint32 address, GError **error)
{
    return named(network->kind->admit(network, device, mac, address, error), network->name, error);
}

void sf_network_dismiss(SfNetwork *network, const char *device)
{
    network->kind->dismiss(network, device);
}
