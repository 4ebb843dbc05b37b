/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What this host can run: before places are lent, a VM is compared with the QEMU and the CPU of this host; before a
 * shell is touched, the descriptor of its snapshot with what places were lent for.
 */
#include "sfvmm/control/lend_private.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "sfvmm/control/cluster.h"
#include "sfvmm/control/facts.h"

static JsonObject *own_facts(SfHost *host)
{
    return sf_cluster_facts(sf_cluster_of(host));
}

gboolean sf_lend_refuse(GError **error, const char *format, ...)
{
    va_list args;
    g_autofree char *text = NULL;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error_literal(error, SF_PEER_ERROR, SF_PEER_ERROR_REFUSED, text);
    return FALSE;
}

/* NULL + error while it is not known. */
static const char *own_qemu_version(SfHost *host, GError **error)
{
    const char *version = sf_facts_text(own_facts(host), "qemu_version");

    if (!version) {
        sf_lend_refuse(error, "this host does not know its own QEMU yet");
    }
    return version;
}

/* Each of the features that guests see there must be here. */
static gboolean has_cpu_flags(SfHost *host, JsonArray *wanted, GError **error)
{
    g_autoptr(JsonArray) own = sf_facts_list(own_facts(host), "cpu_flags");
    g_autoptr(GHashTable) flags = g_hash_table_new(g_str_hash, g_str_equal);

    for (guint i = 0; i < json_array_get_length(own); i++) {
        g_hash_table_add(flags, (gpointer)json_array_get_string_element(own, i));
    }
    for (guint i = 0; i < json_array_get_length(wanted); i++) {
        const char *flag = json_node_get_string(json_array_get_element(wanted, i));
        if (!flag || !g_hash_table_contains(flags, flag)) {
            return sf_lend_refuse(error, "the CPU here lacks \"%.64s\", which the other host's has", flag ? flag : "");
        }
    }
    return TRUE;
}

gboolean sf_lend_fits(SfHost *host, const SfLendReserve *params, GError **error)
{
    const char *version = own_qemu_version(host, error);
    g_autofree char *hash = NULL;

    if (!version) {
        return FALSE;
    }
    if (strcmp(version, params->qemu_version) != 0) {
        return sf_lend_refuse(error, "QEMU here has version %s, not %s", version, params->qemu_version);
    }
    if (!sf_facts_has(own_facts(host), "machine_types", params->machine)) {
        return sf_lend_refuse(error, "QEMU here has no machine type %.64s", params->machine);
    }
    if (strcmp(params->config->accel, "kvm") == 0 && access("/dev/kvm", R_OK | W_OK) < 0) {
        return sf_lend_refuse(error, "/dev/kvm can't be used here: %s", g_strerror(errno));
    }
    hash = sf_vm_config_hash(params->config, version);
    if (strcmp(hash, params->config_hash) != 0) {
        return sf_lend_refuse(error, "the configuration is not what its hash says");
    }
    return strcmp(params->config->accel, "kvm") != 0 || has_cpu_flags(host, params->cpu_flags, error);
}

/* A shell of the family says what the snapshot must fit. */
static void note_shell(SfVm *shell, gpointer data)
{
    *(SfVm **)data = shell;
}

static gboolean fits_shell(SfFamily *family, const SfDescriptor *descriptor, GError **error)
{
    SfVm *shell = NULL;

    sf_shell_pool_foreach(family->pool, note_shell, &shell);
    if (!shell) {
        return TRUE; /* none is ready: same version, same configuration, so it will */
    }
    if (strcmp(sf_vm_machine(shell), descriptor->machine) != 0) {
        return sf_lend_refuse(error, "the machine type here is %s, not %s", sf_vm_machine(shell), descriptor->machine);
    }
    if (strcmp(sf_vm_cpu(shell), descriptor->cpu) != 0) {
        return sf_lend_refuse(error, "the CPU model here is %s, not %s", sf_vm_cpu(shell), descriptor->cpu);
    }
    return TRUE;
}

/* Is it the snapshot of the VM that places were reserved for, and can it run here? */
gboolean sf_lend_fits_descriptor(SfHostTicket *ticket, const SfDescriptor *descriptor, GError **error)
{
    const SfVmConfig *config = ticket->family->config;
    const char *version = own_qemu_version(ticket->host, error);
    g_autofree char *id = g_strdup_printf(SF_FORK_SNAPSHOT_FORMAT, ticket->grant->id);
    g_autofree char *hash = NULL;
    guint64 memory = 0;

    if (!version) {
        return FALSE;
    }
    hash = sf_vm_config_hash(config, version);
    if (strcmp(descriptor->qemu_version, version) != 0) {
        return sf_lend_refuse(error, "QEMU here has version %s, not %s", version, descriptor->qemu_version);
    }
    if (strcmp(descriptor->id, id) != 0 || strcmp(descriptor->config_hash, hash) != 0 ||
        strcmp(descriptor->accel, config->accel) != 0 || descriptor->memory != config->memory ||
        descriptor->vcpus != config->vcpus) {
        return sf_lend_refuse(error, "the descriptor is of another machine than places were reserved for");
    }
    for (guint i = 0; i < descriptor->blocks->len; i++) {
        memory += ((const SfDescriptorBlock *)g_ptr_array_index(descriptor->blocks, i))->length;
    }
    if (memory > config->memory) {
        return sf_lend_refuse(error, "the descriptor has more memory than the machine");
    }
    return fits_shell(ticket->family, descriptor, error);
}
