/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/control/networks.h"

#include <string.h>
#include <unistd.h>

#include "libsf/wire/message.h"
#include "sfvmm/control/host_private.h"
#include "sfvmm/control/networks_hosts.h"
#include "sfvmm/net/policy.h"

G_STATIC_ASSERT(SF_VM_CLUSTER_MTU == SF_NET_MTU);

struct SfNetworks {
    SfHost *host;         /* not owned */
    GHashTable *networks; /* key_of() a family -> SfNetwork */
    char *directory;      /* of sf-switches */
    SfNetworkPlace place; /* of these; program NULL: networks are bridges */
    SfForkNetwork for_forks;
};

/* Of a VM of this host its name; of another's ORIGIN:VM, though its family may have more (lend_reserve.c). To be freed.
 */
static char *key_of(const char *family)
{
    const char *colon = strchr(family, ':');
    const char *end = colon ? strchr(colon + 1, ':') : NULL;

    return end ? g_strndup(family, (gsize)(end - family)) : g_strdup(family);
}

static SfNetwork *network_of_key(SfNetworks *networks, const char *family)
{
    g_autofree char *key = key_of(family);

    return g_hash_table_lookup(networks->networks, key);
}

/* The name of a VM begins with that of its family: NAME, NAME-shell-N, NAME-TICKET4-ID. */
static SfNetwork *network_of_name(SfNetworks *networks, const char *vm)
{
    g_autofree char *name = g_strdup(vm);
    char *dash;

    for (;;) {
        SfNetwork *network = network_of_key(networks, name);
        if (network || sf_host_family(networks->host, name) || !(dash = strrchr(name, '-'))) {
            return network;
        }
        *dash = '\0';
    }
}

SfNetwork *sf_networks_network(SfNetworks *networks, const SfFamily *family)
{
    return network_of_key(networks, family->name);
}

static gboolean is_lent(const char *family)
{
    return strchr(family, ':') != NULL;
}

gboolean sf_networks_is_lent(const SfFamily *family)
{
    return is_lent(family->name);
}

/* ---- taps ---- */

static SfNetwork *network_for(SfNetworks *networks, const char *vm, GError **error)
{
    SfNetwork *network = network_of_name(networks, vm);

    if (!network) {
        g_set_error(error, SF_HOST_ERROR, SF_HOST_ERROR_FAILED, "VM \"%s\": its cluster's network is gone", vm);
    }
    return network;
}

static int open_tap(gpointer owner, const char *vm, char **device, GError **error)
{
    SfNetwork *network = network_for(owner, vm, error);

    return network ? sf_network_open_port(network, device, error) : -1;
}

static gboolean open_for_domain(gpointer owner, const char *vm, const SfVmConfig *config, GError **error)
{
    return sf_networks_open(owner, vm, config, error);
}

static int pin(gpointer owner, const char *vm, GError **error)
{
    SfNetwork *network = network_for(owner, vm, error);

    return network ? sf_network_pin(network, error) : -1;
}

static gboolean plug(gpointer owner, const char *vm, int tap, char **device, GError **error)
{
    SfNetwork *network = network_for(owner, vm, error);

    return network && sf_network_plug(network, tap, device, error);
}

/* ---- networks ---- */

static const SfNetworkPlace *place_of(const SfNetworks *networks)
{
    return networks->place.program ? &networks->place : NULL;
}

static gboolean options_of(SfNetworks *networks, const char *family, const SfVmConfig *config,
                           SfNetworkOptions *options, GArray **outside, GError **error)
{
    const SfDaemonConfig *daemon = sf_host_config(networks->host);

    *outside = sf_net_policy_parse((const char *const *)config->outside, error);
    *options = (SfNetworkOptions){
        .name = family,
        .address = config->address,
        .prefix = config->prefix,
        .outside = *outside,
        .links = daemon->network.links,
        .links_prefix = daemon->network.links_prefix,
        .rate = (guint64)daemon->network.rate << 10,
        .lent = is_lent(family),
        .place = place_of(networks),
    };
    sf_gp_mac_of_address(options->gateway_mac, sf_network_gateway_address(config->address, config->prefix));
    return *outside != NULL;
}

gboolean sf_networks_open(SfNetworks *networks, const char *family, const SfVmConfig *config, GError **error)
{
    g_autoptr(GArray) outside = NULL;
    SfNetworkOptions options;
    SfNetwork *network;

    if (!sf_vm_config_has_cluster(config) || network_of_key(networks, family)) {
        return TRUE;
    }
    if (g_hash_table_size(networks->networks) >= sf_host_config(networks->host)->network.clusters) {
        g_set_error(error, SF_HOST_ERROR, SF_HOST_ERROR_QUOTA,
                    "VM \"%s\": this host has as many cluster networks as it may (clusters in sfvmmd.conf)", family);
        return FALSE;
    }
    if (!options_of(networks, family, config, &options, &outside, error)) {
        return FALSE;
    }
    network = sf_network_new(&options, error);
    if (network) {
        g_hash_table_insert(networks->networks, key_of(family), network);
    }
    return network != NULL;
}

void sf_networks_close(SfNetworks *networks, const char *family)
{
    g_autofree char *key = key_of(family);
    g_autoptr(GList) families = sf_host_families(networks->host);

    for (GList *item = families; item; item = item->next) {
        g_autofree char *other = key_of(((const SfFamily *)item->data)->name);
        if (strcmp(other, key) == 0) {
            return;
        }
    }
    g_hash_table_remove(networks->networks, key);
}

/* ---- addresses ---- */

guint32 sf_networks_address(SfHostVm *hvm)
{
    const SfVmConfig *config = hvm->family->config;
    SfHostTicket *ticket = hvm->ticket ? sf_host_ticket(hvm->host, hvm->ticket, NULL) : NULL;

    if (!sf_vm_config_has_cluster(config)) {
        return 0;
    }
    if (!hvm->ticket) {
        return config->address;
    }
    return ticket && ticket->first_address ? ticket->first_address + hvm->id - 1 : 0;
}

static gboolean is_same_network(const SfFamily *one, const SfFamily *other)
{
    g_autofree char *a = key_of(one->name);
    g_autofree char *b = key_of(other->name);

    return strcmp(a, b) == 0;
}

/* The last address of a range of this family that has one of first..last; 0: all are free. */
static guint32 taken_until(SfHost *host, SfFamily *family, guint32 first, guint32 last)
{
    g_autoptr(GList) tickets = sf_host_tickets(host);

    if (first <= family->config->address && family->config->address <= last) {
        return family->config->address;
    }
    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        guint32 end = ticket->first_address + ticket->grant->granted - 1;
        if (is_same_network(ticket->family, family) && ticket->first_address && ticket->fork &&
            !sf_fork_is_done(ticket->fork) && ticket->first_address <= last && first <= end) {
            return end;
        }
    }
    return 0;
}

/* The first free range from `from` to `last`; 0: there is none. */
static guint32 find_range(SfHost *host, SfFamily *family, guint32 from, guint32 last, guint count)
{
    guint32 first = from, end;

    while (first <= last && last - first >= count - 1) {
        end = taken_until(host, family, first, first + count - 1);
        if (!end) {
            return first;
        }
        first = end + 1;
    }
    return 0;
}

gboolean sf_networks_reserve(SfNetworks *networks, SfHostTicket *ticket, SfHostVm *parent, GError **error)
{
    SfFamily *family = ticket->family;
    guint count = ticket->grant->granted;
    guint32 first, last, own;

    if (!sf_vm_config_has_cluster(family->config)) {
        return TRUE;
    }
    own = sf_networks_address(parent);
    if (sf_networks_range(family, &first, &last)) {
        ticket->first_address =
            own >= first && own < last ? find_range(networks->host, family, own + 1, last, count) : 0;
        ticket->first_address =
            ticket->first_address ? ticket->first_address : find_range(networks->host, family, first, last, count);
    }
    if (!ticket->first_address) {
        g_set_error(
            error, SF_HOST_ERROR, SF_HOST_ERROR_FAILED,
            "VM \"%s\": the subnet of its cluster has no %u free addresses in a row for this host; start it with a "
            "larger one (address)",
            ticket->grant->vm, ticket->grant->granted);
    }
    return ticket->first_address != 0;
}

/* ---- members ---- */

static gboolean admit(SfNetworks *networks, SfFamily *family, SfVm *vm, guint32 address, GError **error)
{
    SfNetwork *network = sf_networks_network(networks, family);
    guint8 mac[SF_GP_MAC_LENGTH];

    if (!network || !sf_vm_tap(vm)) {
        g_set_error(error, SF_HOST_ERROR, SF_HOST_ERROR_FAILED, "VM \"%s\": its cluster's network is gone",
                    sf_vm_name(vm));
        return FALSE;
    }
    sf_gp_mac_of_address(mac, address);
    return sf_network_admit(network, sf_vm_tap(vm), mac, address, error);
}

gboolean sf_networks_admit(SfNetworks *networks, SfHostVm *hvm, GError **error)
{
    guint32 address = sf_networks_address(hvm);

    return !address || admit(networks, hvm->family, hvm->vm, address, error);
}

void sf_networks_dismiss(SfNetworks *networks, SfHostVm *hvm)
{
    SfNetwork *network = sf_networks_network(networks, hvm->family);

    if (network && sf_vm_tap(hvm->vm)) {
        sf_network_dismiss(network, sf_vm_tap(hvm->vm));
    }
}

static SfHostTicket *ticket_of(SfNetworks *networks, const SfClone *clone)
{
    return sf_host_ticket(networks->host, sf_fork_ticket(clone->fork), NULL);
}

static gboolean admit_clone(gpointer owner, const SfClone *clone, GError **error)
{
    SfHostTicket *ticket = ticket_of(owner, clone);

    return !ticket || admit(owner, ticket->family, clone->vm, ticket->first_address + clone->id - 1, error);
}

/* ---- what agents are told ---- */

guint32 sf_networks_parent_address(const SfHostTicket *ticket)
{
    SfHostVm *parent = ticket->grant->origin ? NULL : sf_host_vm(ticket->host, ticket->grant->vm, NULL);

    if (ticket->parent_address) {
        return ticket->parent_address;
    }
    return parent ? sf_networks_address(parent) : ticket->family->config->address;
}

static void describe_common(SfNetworks *networks, const SfFamily *family, struct sf_gp_network *value)
{
    value->prefix = family->config->prefix;
    value->gateway = sf_network_gateway(sf_networks_network(networks, family));
}

static void describe_fork(const SfHostTicket *ticket, struct sf_gp_network *value)
{
    value->ticket = ticket->grant->id;
    value->count = sf_fork_total(ticket->fork);
    value->first = ticket->first_address;
    sf_gp_text_set(value->name, sizeof(value->name), "%s", sf_fork_parent_name(ticket->fork));
}

static void describe_clone(gpointer owner, const SfClone *clone, struct sf_gp_network *value)
{
    SfHostTicket *ticket = ticket_of(owner, clone);

    if (!ticket) {
        return; /* being released: the clone is about to be killed */
    }
    describe_common(owner, ticket->family, value);
    describe_fork(ticket, value);
    value->id = clone->id;
    value->parent = sf_networks_parent_address(ticket);
    value->address = ticket->first_address + clone->id - 1;
}

const SfForkNetwork *sf_networks_of_fork(SfNetworks *networks, SfHostTicket *ticket)
{
    return ticket->first_address && sf_networks_network(networks, ticket->family) ? &networks->for_forks : NULL;
}

static SfHostTicket *newest_fork_of(SfHostVm *hvm)
{
    g_autoptr(GList) tickets = sf_host_tickets(hvm->host);

    for (GList *item = g_list_last(tickets); item; item = item->prev) {
        SfHostTicket *ticket = item->data;
        if (ticket->first_address && ticket->fork && sf_host_ticket_is_of(ticket, sf_vm_name(hvm->vm))) {
            return ticket;
        }
    }
    return NULL;
}

/* request: any but 0; the agent answers with it. */
static gboolean tell(SfNetworks *networks, SfHostVm *hvm, guint32 request)
{
    SfHostTicket *fork = newest_fork_of(hvm);
    struct sf_gp_network value = { .address = sf_networks_address(hvm) };
    SfHostTicket *own = hvm->ticket ? sf_host_ticket(hvm->host, hvm->ticket, NULL) : NULL;
    guint8 payload[SF_GP_NETWORK_LENGTH];
    g_autoptr(GError) error = NULL;

    if (!value.address || !sf_networks_network(networks, hvm->family)) {
        return FALSE;
    }
    describe_common(networks, hvm->family, &value);
    if (fork || !own) {
        value.parent = value.address;
        sf_gp_text_set(value.name, sizeof(value.name), "%s", sf_vm_name(hvm->vm));
    } else {
        value.parent = sf_networks_parent_address(own);
        value.id = hvm->id;
    }
    if (fork || own) {
        describe_fork(fork ? fork : own, &value);
    }
    if (!sf_vm_guest_send(hvm->vm, SF_GP_NETWORK, request, payload, sf_gp_network_pack(payload, &value), &error)) {
        g_debug("VM \"%s\": its agent is not told its addresses: %s", sf_vm_name(hvm->vm), error->message);
        return FALSE;
    }
    return TRUE;
}

void sf_networks_tell(SfNetworks *networks, SfHostVm *hvm)
{
    tell(networks, hvm, MAX(hvm->id, 1));
}

/* No clone's id is so large. */
static guint32 request_before_fork(SfFork *fork)
{
    return (guint32)sf_fork_ticket(fork) | 1u << 31;
}

static gboolean tell_parent(gpointer owner, SfFork *fork)
{
    SfNetworks *networks = owner;
    SfHostVm *parent = sf_host_vm_of(networks->host, sf_fork_parent(fork));

    return parent && parent->hears_network && tell(networks, parent, request_before_fork(fork));
}

void sf_networks_told(SfHostVm *hvm, guint32 request)
{
    SfHostTicket *fork = newest_fork_of(hvm);

    hvm->hears_network = TRUE;
    if (fork && request == request_before_fork(fork->fork)) {
        sf_fork_parent_told(fork->fork);
    }
}

/* ---- after a restart ---- */

/* A bridge is found by a VM's tap. */
static SfNetwork *adopt_by(const SfNetworkOptions *options, SfVm *vm, GError **error)
{
    int tap = options->place ? -1 : sf_vm_borrow_tap(vm, error);
    SfNetwork *network = options->place || tap >= 0 ? sf_network_adopt(options, tap, error) : NULL;

    if (tap >= 0) {
        close(tap);
    }
    return network;
}

void sf_networks_adopt(SfNetworks *networks, const char *family, const SfVmConfig *config, SfVm *vm)
{
    g_autoptr(GArray) outside = NULL;
    g_autoptr(GError) error = NULL;
    SfNetworkOptions options;
    SfNetwork *network;

    if (!sf_vm_tap(vm) || network_of_key(networks, family)) {
        return;
    }
    network = options_of(networks, family, config, &options, &outside, &error) ? adopt_by(&options, vm, &error) : NULL;
    if (network) {
        g_hash_table_insert(networks->networks, key_of(family), network);
    } else {
        g_warning("family \"%s\": its network is not found again, its forks will have none: %s", family,
                  error->message);
    }
}

void sf_networks_settle(SfNetworks *networks)
{
    g_autofree const char **live = (const char **)g_hash_table_get_keys_as_array(networks->networks, NULL);
    GHashTableIter iter;
    SfNetwork *network;

    g_hash_table_iter_init(&iter, networks->networks);
    while (g_hash_table_iter_next(&iter, NULL, (gpointer *)&network)) {
        g_autoptr(GError) error = NULL;
        if (!sf_network_settle(network, &error)) {
            g_warning("%s", error->message);
        }
    }
    sf_network_sweep(place_of(networks), live);
}

SfNetworks *sf_networks_new(SfHost *host, SfLauncher *launcher)
{
    SfNetworks *networks = g_new0(SfNetworks, 1);
    const SfDaemonConfig *config = sf_host_config(host);
    const SfTapProvider provider = { networks, open_tap, open_for_domain, pin, plug };

    networks->host = host;
    networks->networks = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, (GDestroyNotify)sf_network_free);
    networks->directory = g_build_filename(config->launcher.run_directory, "net", NULL);
    if (!config->network.bridge) {
        networks->place = (SfNetworkPlace){ config->network.switch_program, networks->directory, config->pager_uid,
                                            config->pager_gid };
    }
    networks->for_forks = (SfForkNetwork){ networks, tell_parent, describe_clone, admit_clone };
    sf_launcher_set_taps(launcher, &provider);
    return networks;
}

void sf_networks_free(SfNetworks *networks)
{
    g_hash_table_unref(networks->networks);
    g_free(networks->directory);
    g_free(networks);
}
