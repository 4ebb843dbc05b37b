/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation: a clone's way onto its network.
 *
 *     NETWORK, IDENTITY -->   agent: MAC, addresses, names, hooks
 *                       <--   NETWORK|REPLY, IDENTITY|REPLY
 *     admit: the tap is put on the bridge, for this MAC and address alone
 *     set_link on: QEMU lets frames pass
 *     LINK -->                agent: announces the address
 *                       <--   LINK|REPLY; then sf_clone() returns in the clone, which is RUNNING for us
 *
 * Until the last answer the clone is STARTING, so after a restart of sfvmmd all of this is done again, and each step
 * may be done twice. An agent that does not know NETWORK leaves out its answer; its clone runs without link. A clone
 * that can't be connected is ended, like one that can't be made unique.
 */
#include "sfvmm/fork/fork_private.h"

#include "libsf/wire/message.h"

gboolean sf_clone_tell_network(SfClone *clone, GError **error)
{
    const SfForkNetwork *network = sf_fork_network(clone->fork);
    struct sf_gp_network value = { 0 };
    guint8 payload[SF_GP_NETWORK_LENGTH];

    if (!network) {
        return TRUE;
    }
    network->describe(network->owner, clone, &value);
    return sf_vm_guest_send(clone->vm, SF_GP_NETWORK, clone->id, payload, sf_gp_network_pack(payload, &value), error);
}

void sf_fork_clone_network_told(SfClone *clone)
{
    clone->network_told = TRUE;
}

static void connect_failed(SfClone *clone, const GError *error)
{
    g_autofree char *reason = g_strdup_printf("it could not be connected to its network: %s", error->message);

    sf_clone_fail(clone, reason);
}

static gboolean waits_for_link(const SfClone *clone)
{
    return clone->vm && clone->state == SF_GP_STATE_STARTING && clone->loaded != 0;
}

static void on_link(GObject *source, GAsyncResult *result, gpointer data)
{
    SfClone *clone = data;
    g_autoptr(SfFork) fork = clone->fork; /* the reference of the call */
    g_autoptr(GError) error = NULL;
    gboolean linked = sf_vm_link_finish(SF_VM(source), result, &error);

    if (!waits_for_link(clone) || clone->vm != SF_VM(source)) {
        return; /* it has ended meanwhile */
    }
    if (!linked || !sf_vm_guest_send(clone->vm, SF_GP_LINK, clone->id, NULL, 0, &error)) {
        connect_failed(clone, error);
    }
}

void sf_clone_connect(SfClone *clone)
{
    const SfForkNetwork *network = sf_fork_network(clone->fork);
    g_autoptr(GError) error = NULL;

    if (!network || !clone->network_told) {
        if (network) {
            g_message("ticket %016" G_GINT64_MODIFIER "x clone %u: its agent is too old to set addresses; it stays "
                      "without a link",
                      sf_fork_ticket(clone->fork), clone->id);
        }
        sf_clone_runs(clone);
        return;
    }
    if (!network->admit(network->owner, clone, &error)) {
        connect_failed(clone, error);
        return;
    }
    g_object_ref(clone->fork);
    sf_vm_link_async(clone->vm, on_link, clone);
}

void sf_fork_clone_linked(SfClone *clone)
{
    if (waits_for_link(clone)) {
        sf_clone_runs(clone);
    }
}
