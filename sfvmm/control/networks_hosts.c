/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * The number of a cluster (its VNI) is a random one that the origin chooses when a first other host gets places, and
 * keeps for the family's life. Where it is in use already, that host refuses: its clones go elsewhere.
 *
 * Addresses. The origin gives its own forks addresses from that half of the subnet where the first VM is. From the
 * other half each lender gets a slice, for forks that its clones make there: so none needs to ask another one. Which
 * host has which slice is for the family's life too. A small subnet has no slices: clones elsewhere don't fork.
 *
 * Hosts reach each other by the addresses by which the origin reaches them.
 *
 *     RUNDIR/families/NAME.json  "network": {number, hosts: [by slice]}  or, of a lender, {number, port, first, count}
 */
#include "sfvmm/control/networks_hosts.h"

#include "sfvmm/cluster/peer_params.h"
#include "sfvmm/control/host_private.h"
#include "sfvmm/net/network.h"

#define NUMBER_MAX    0xffffffu /* 24 bits */
#define NUMBERS_TRIED 8u
#define SLICES        64
#define SLICED_PREFIX 24u /* longer ones are not sliced */
#define TELL_MS       15000u
#define HOSTS_MAX     1024u
#define IP_MAX        45u /* characters of an IP address */

static gboolean refuse(GError **error, const char *text)
{
    g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_REFUSED, "cluster network: %s", text);
    return FALSE;
}

static gint64 record_int(const SfFamily *family, const char *member)
{
    return family->network ? json_object_get_int_member_with_default(family->network, member, 0) : 0;
}

static SfNetwork *network_of(SfHost *host, const SfFamily *family)
{
    return sf_networks_network(sf_host_networks(host), family);
}

/* ---- addresses ---- */

static guint32 hosts_of(const SfVmConfig *config)
{
    return G_MAXUINT32 >> config->prefix;
}

/* The half of the subnet that has the first VM (other FALSE), or has not. */
static guint32 half_of(const SfVmConfig *config, gboolean other)
{
    guint32 half = (hosts_of(config) >> 1) + 1;
    guint32 own = config->address & ~hosts_of(config);

    return own | ((config->address & half) ^ (other ? half : 0));
}

static guint32 slice_size(const SfVmConfig *config)
{
    return config->prefix > SLICED_PREFIX ? 0 : ((hosts_of(config) >> 1) + 1) / SLICES;
}

gboolean sf_networks_range(const SfFamily *family, guint32 *first, guint32 *last)
{
    const SfVmConfig *config = family->config;
    gboolean sliced = config->prefix <= SLICED_PREFIX;

    if (sf_networks_is_lent(family)) {
        *first = (guint32)record_int(family, "first");
        *last = *first + (guint32)record_int(family, "count") - 1;
    } else {
        *first = sliced ? half_of(config, FALSE) : config->address & ~hosts_of(config);
        *last = *first + (sliced ? hosts_of(config) >> 1 : hosts_of(config));
    }
    while (*first <= *last && !sf_network_address_is_usable(*first, config->prefix)) {
        ++*first; /* the subnet's own */
    }
    while (*first <= *last && !sf_network_address_is_usable(*last, config->prefix)) {
        --*last; /* the gateway's, and that of all */
    }
    return *first <= *last && (!sf_networks_is_lent(family) || record_int(family, "count") > 0);
}

/* Which slice a host has, from now on; G_MAXUINT: none is left. */
static guint slice_of(SfHost *host, SfFamily *family, const char *name)
{
    JsonArray *hosts = json_object_get_array_member(family->network, "hosts");
    guint n = json_array_get_length(hosts);

    for (guint i = 0; i < n; i++) {
        if (strcmp(json_array_get_string_element(hosts, i), name) == 0) {
            return i;
        }
    }
    json_array_add_string_element(hosts, name);
    sf_host_family_save(host, family);
    return n;
}

/* ---- the origin ---- */

/* Names of the other hosts that tickets of the family have places on, each with one of these tickets. */
static GHashTable *hosts_of_family(SfHost *host, const SfFamily *family)
{
    GHashTable *hosts = g_hash_table_new(g_str_hash, g_str_equal);
    g_autoptr(GList) tickets = sf_host_tickets(host);

    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        for (guint i = 0; ticket->family == family && !ticket->grant->origin && i < ticket->grant->places->len; i++) {
            const SfPlace *place = g_ptr_array_index(ticket->grant->places, i);
            if (!sf_place_is_local(place)) {
                g_hash_table_insert(hosts, place->host, ticket);
            }
        }
    }
    return hosts;
}

static SfPeer *peer_of(SfHost *host, const char *name)
{
    SfPeer *peer = sf_host_peer(host, name);

    return peer && sf_peer_is_up(peer) && sf_peer_remote_ip(peer) ? peer : NULL;
}

static GPtrArray *ips_of(SfHost *host, GHashTable *hosts, const char *but)
{
    GPtrArray *ips = g_ptr_array_new_with_free_func(g_free);
    GHashTableIter iter;
    const char *name;

    g_hash_table_iter_init(&iter, hosts);
    while (g_hash_table_iter_next(&iter, (gpointer *)&name, NULL)) {
        SfPeer *peer = peer_of(host, name);
        if (peer && g_strcmp0(name, but) != 0) {
            g_ptr_array_add(ips, g_strdup(sf_peer_remote_ip(peer)));
        }
    }
    g_ptr_array_add(ips, NULL);
    return ips;
}

static gboolean span(SfHost *host, SfFamily *family, GPtrArray *ips, GError **error)
{
    return sf_network_span(network_of(host, family), (guint32)record_int(family, "number"),
                           sf_host_config(host)->network.port, (const char *const *)ips->pdata, error);
}

/* A number that no cluster of this host has; the tunnel is laid. */
static gboolean choose_number(SfHost *host, SfFamily *family, SfPeer *first, GError **error)
{
    g_autoptr(GPtrArray) ips = g_ptr_array_new();

    g_ptr_array_add(ips, (gpointer)sf_peer_remote_ip(first));
    g_ptr_array_add(ips, NULL);
    for (guint i = 0; i < NUMBERS_TRIED; i++) {
        g_autoptr(GError) local = NULL;
        JsonObject *record = json_object_new();
        json_object_set_int_member(record, "number", 1 + (gint64)(g_random_int() % NUMBER_MAX));
        json_object_set_array_member(record, "hosts", json_array_new());
        g_clear_pointer(&family->network, json_object_unref);
        family->network = record;
        if (span(host, family, ips, &local)) {
            sf_host_family_save(host, family);
            return TRUE;
        }
        g_clear_pointer(&family->network, json_object_unref);
        if (!g_error_matches(local, G_IO_ERROR, G_IO_ERROR_EXISTS)) {
            g_propagate_error(error, g_steal_pointer(&local));
            return FALSE;
        }
    }
    return refuse(error, "no number is free");
}

void sf_networks_invite(SfHostTicket *ticket, SfPeer *peer, JsonObject *params)
{
    SfFamily *family = ticket->family;
    const SfVmConfig *config = family->config;
    g_autoptr(GError) error = NULL;
    JsonObject *network;
    guint slice;

    if (!network_of(ticket->host, family) || !peer || !sf_peer_is_up(peer)) {
        return;
    }
    if (!family->network && !choose_number(ticket->host, family, peer, &error)) {
        g_warning("ticket %016" G_GINT64_MODIFIER "x: %s", ticket->grant->id, error->message);
        return;
    }
    slice = slice_of(ticket->host, family, sf_peer_name(peer));
    network = json_object_new();
    json_object_set_int_member(network, "number", record_int(family, "number"));
    json_object_set_int_member(network, "port", sf_host_config(ticket->host)->network.port);
    json_object_set_int_member(network, "first", half_of(config, TRUE) + (gint64)slice_size(config) * (slice % SLICES));
    json_object_set_int_member(network, "count", slice < SLICES ? slice_size(config) : 0);
    json_object_set_object_member(params, "network", network);
}

void sf_networks_add_place(const SfHostTicket *ticket, JsonObject *params)
{
    if (ticket->first_address) {
        json_object_set_int_member(params, "first_address", ticket->first_address);
        json_object_set_int_member(params, "parent_address", sf_networks_parent_address(ticket));
    }
}

static void on_told(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autofree char *family = data;
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) answer = sf_peer_call_finish(result, &error);

    if (!answer) {
        g_message("network of \"%s\", between hosts: %s", family, error->message); /* told again when it is back */
    }
}

static void tell(SfHost *host, const SfFamily *family, const SfHostTicket *ticket, GHashTable *hosts, const char *name)
{
    SfPeer *peer = peer_of(host, name);
    g_autoptr(GPtrArray) ips = ips_of(host, hosts, name);
    g_autofree char *id = sf_ticket_id_to_text(ticket->grant->id);
    JsonObject *params = json_object_new();
    JsonArray *others = json_array_new();

    for (guint i = 0; ips->pdata[i]; i++) {
        json_array_add_string_element(others, g_ptr_array_index(ips, i));
    }
    json_object_set_string_member(params, "ticket", id);
    json_object_set_array_member(params, "hosts", others);
    if (peer) {
        sf_peer_call_async(peer, "network", params, TELL_MS, on_told, g_strdup(family->name));
    } else {
        json_object_unref(params);
    }
}

void sf_networks_spread(SfHost *host, SfFamily *family)
{
    g_autoptr(GHashTable) hosts = NULL;
    g_autoptr(GPtrArray) ips = NULL;
    g_autoptr(GError) error = NULL;
    GHashTableIter iter;
    const char *name;
    SfHostTicket *ticket;

    if (!family->network || sf_networks_is_lent(family) || !network_of(host, family)) {
        return;
    }
    hosts = hosts_of_family(host, family);
    ips = ips_of(host, hosts, NULL);
    if (!span(host, family, ips, &error)) {
        g_warning("%s", error->message);
    }
    g_hash_table_iter_init(&iter, hosts);
    while (g_hash_table_iter_next(&iter, (gpointer *)&name, (gpointer *)&ticket)) {
        tell(host, family, ticket, hosts, name);
    }
}

void sf_networks_spread_all(SfHost *host)
{
    g_autoptr(GList) families = sf_host_families(host);

    for (GList *item = families; item; item = item->next) {
        sf_networks_spread(host, item->data);
    }
}

/* ---- a lender ---- */

/* What an invitation must be; the range is one of the subnet. */
static JsonObject *checked_record(const SfVmConfig *config, JsonObject *network, GError **error)
{
    gint64 number, port, first, count;
    JsonObject *record;

    if (!sf_peer_param_int(network, "number", 1, NUMBER_MAX, &number, error) ||
        !sf_peer_param_int(network, "port", 1, G_MAXUINT16, &port, error) ||
        !sf_peer_param_int(network, "first", 0, G_MAXUINT32, &first, error) ||
        !sf_peer_param_int(network, "count", 0, hosts_of(config), &count, error)) {
        return NULL;
    }
    if (((guint32)first ^ config->address) & ~hosts_of(config) ||
        ((guint32)(first + MAX(count, 1) - 1) ^ config->address) & ~hosts_of(config)) {
        sf_peer_param_bad(error, "first", "the first of a range within the subnet");
        return NULL;
    }
    record = json_object_new();
    json_object_set_int_member(record, "number", number);
    json_object_set_int_member(record, "port", port);
    json_object_set_int_member(record, "first", first);
    json_object_set_int_member(record, "count", count);
    return record;
}

static gboolean span_lent(SfHost *host, const SfFamily *family, const char *const *ips, GError **error)
{
    return sf_network_span(network_of(host, family), (guint32)record_int(family, "number"),
                           (guint)record_int(family, "port"), ips, error);
}

/* A first end is enough to know that the number is free here. */
static gboolean make_part(SfHost *host, SfFamily *family, SfPeer *origin, GError **error)
{
    const char *ips[] = { sf_peer_remote_ip(origin), NULL };
    g_autoptr(GError) local = NULL;

    if (sf_networks_open(sf_host_networks(host), family->name, family->config, &local) &&
        (sf_network_number(network_of(host, family)) || span_lent(host, family, ips, &local))) {
        return TRUE;
    }
    return refuse(error, local->message);
}

gboolean sf_networks_accept(SfHost *host, SfFamily *family, SfPeer *origin, JsonObject *params, GError **error)
{
    JsonNode *node = json_object_get_member(params, "network");
    SfNetwork *network = network_of(host, family);
    JsonObject *record;

    if (!sf_vm_config_has_cluster(family->config)) {
        return TRUE;
    }
    if (!node || !JSON_NODE_HOLDS_OBJECT(node)) {
        return refuse(error, "its origin has none that spans hosts");
    }
    record = checked_record(family->config, json_node_get_object(node), error);
    if (!record) {
        return FALSE;
    }
    if (network && sf_network_number(network) &&
        sf_network_number(network) != (guint32)json_object_get_int_member(record, "number")) {
        json_object_unref(record);
        return refuse(error, "that of an earlier VM of this name is still here");
    }
    g_clear_pointer(&family->network, json_object_unref);
    family->network = record;
    sf_host_family_save(host, family);
    return make_part(host, family, origin, error);
}

gboolean sf_networks_take_place(SfHostTicket *ticket, JsonObject *params, GError **error)
{
    const SfVmConfig *config = ticket->family->config;
    gint64 first, parent;

    if (!sf_vm_config_has_cluster(config)) {
        return TRUE;
    }
    if (!sf_peer_param_int(params, "first_address", 1, G_MAXUINT32, &first, error) ||
        !sf_peer_param_int(params, "parent_address", 1, G_MAXUINT32, &parent, error)) {
        return FALSE;
    }
    if ((((guint32)first ^ config->address) | ((guint32)parent ^ config->address)) & ~hosts_of(config)) {
        return sf_peer_param_bad(error, "first_address", "an address of the subnet, as parent_address");
    }
    ticket->first_address = (guint32)first;
    ticket->parent_address = (guint32)parent;
    return TRUE;
}

/* Those of the origin's list, and the origin. */
static GPtrArray *checked_hosts(JsonObject *params, SfPeer *origin, GError **error)
{
    g_autoptr(GPtrArray) ips = g_ptr_array_new_with_free_func(g_free);
    JsonArray *array;

    if (!sf_peer_param_array(params, "hosts", HOSTS_MAX, &array, error)) {
        return NULL;
    }
    g_ptr_array_add(ips, g_strdup(sf_peer_remote_ip(origin)));
    for (guint i = 0; i < json_array_get_length(array); i++) {
        JsonNode *item = json_array_get_element(array, i);
        const char *text = json_node_get_value_type(item) == G_TYPE_STRING ? json_node_get_string(item) : "";
        g_autoptr(GInetAddress) address = strlen(text) <= IP_MAX ? g_inet_address_new_from_string(text) : NULL;
        if (!address) {
            sf_peer_param_bad(error, "hosts", "an array of IP addresses");
            return NULL;
        }
        g_ptr_array_add(ips, g_inet_address_to_string(address));
    }
    g_ptr_array_add(ips, NULL);
    return g_steal_pointer(&ips);
}

gboolean sf_networks_take_hosts(SfHostTicket *ticket, SfPeer *origin, JsonObject *params, GError **error)
{
    g_autoptr(GPtrArray) ips = NULL;
    g_autoptr(GError) local = NULL;

    if (!network_of(ticket->host, ticket->family) || !record_int(ticket->family, "number")) {
        return refuse(error, "there is none of this VM here");
    }
    ips = checked_hosts(params, origin, error);
    if (!ips) {
        return FALSE;
    }
    return span_lent(ticket->host, ticket->family, (const char *const *)ips->pdata, &local) ||
           refuse(error, local->message);
}
