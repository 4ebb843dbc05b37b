/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The saved snapshots of this host. snapshot_save.c saves one, snapshot_clone.c makes clones of one, snapshot_remove.c
 * removes one.
 */
#include "sfvmm/control/snapshots_private.h"

#include <string.h>

#include "sfvmm/control/host_private.h"

#define STORE_FOLDER      "snapshots"
#define HOST_KEY          "sf-snapshots"
#define FAMILY_PREFIX     "saved-"
#define FAMILY_NAME_MAX   32u
#define FAMILY_SUM_DIGITS 16

static void snapshots_free(gpointer data)
{
    SfSnapshots *snapshots = data;

    sf_store_free(snapshots->store);
    g_free(snapshots);
}

SfSnapshots *sf_snapshots_of(SfHost *host)
{
    SfSnapshots *snapshots = g_object_get_data(G_OBJECT(host), HOST_KEY);

    if (!snapshots) {
        g_autofree char *directory = g_build_filename(sf_host_config(host)->state_directory, STORE_FOLDER, NULL);
        snapshots = g_new0(SfSnapshots, 1);
        snapshots->host = host;
        snapshots->store = sf_store_new(directory, sf_host_launcher(host));
        g_object_set_data_full(G_OBJECT(host), HOST_KEY, snapshots, snapshots_free);
    }
    return snapshots;
}

SfStore *sf_snapshots_store(SfSnapshots *snapshots)
{
    return snapshots->store;
}

/* Clones are called after their family: a long name would make theirs longer than the name of a host may be. */
char *sf_snapshots_family_name(const char *name)
{
    g_autofree char *sum = NULL;

    if (strlen(name) <= FAMILY_NAME_MAX) {
        return g_strconcat(FAMILY_PREFIX, name, NULL);
    }
    sum = g_compute_checksum_for_string(G_CHECKSUM_SHA256, name, -1);
    return g_strdup_printf(FAMILY_PREFIX "%.*s", FAMILY_SUM_DIGITS, sum);
}

SfFamily *sf_snapshots_family(SfSnapshots *snapshots, const char *name)
{
    g_autofree char *family = sf_snapshots_family_name(name);

    return sf_host_family(snapshots->host, family);
}

/* ---- described ---- */

JsonObject *sf_snapshots_describe_one(SfSnapshots *snapshots, const char *name)
{
    JsonObject *object = json_object_new();
    g_autoptr(GError) error = NULL;
    g_autoptr(SfSaved) saved = sf_store_read(snapshots->store, name, &error);

    json_object_set_string_member(object, "name", name);
    json_object_set_string_member(object, "state", saved ? "saved" : "damaged");
    json_object_set_boolean_member(object, "linked", sf_store_is_link(snapshots->store, name));
    json_object_set_boolean_member(object, "in_use", sf_snapshots_family(snapshots, name) != NULL);
    json_object_set_string_member(object, "reason", error ? error->message : "");
    if (saved) {
        json_object_set_string_member(object, "id", saved->id);
        json_object_set_string_member(object, "vm", saved->vm);
        json_object_set_int_member(object, "created", (gint64)saved->created);
        json_object_set_int_member(object, "memory",
                                   json_object_get_int_member_with_default(saved->machine, "memory", 0));
        json_object_set_int_member(object, "vcpus",
                                   json_object_get_int_member_with_default(saved->machine, "vcpus", 0));
        json_object_set_boolean_member(object, "agent", saved->agent);
        json_object_set_int_member(object, "disks", saved->disks->len);
        json_object_set_int_member(object, "bytes", (gint64)sf_saved_disk_usage(saved));
        json_object_set_string_member(object, "directory", saved->directory);
        json_object_set_string_member(object, "memory_uri", saved->memory_uri ? saved->memory_uri : "");
    }
    return object;
}

JsonArray *sf_snapshots_describe(SfSnapshots *snapshots)
{
    g_auto(GStrv) names = sf_store_names(snapshots->store);
    g_auto(GStrv) busy = sf_store_busy(snapshots->store);
    JsonArray *array = json_array_new();

    for (char **name = names; *name; name++) {
        json_array_add_object_element(array, sf_snapshots_describe_one(snapshots, *name));
    }
    for (char **name = busy; *name; name++) {
        JsonObject *object = json_object_new();
        json_object_set_string_member(object, "name", *name);
        json_object_set_string_member(object, "state", "saving");
        json_array_add_object_element(array, object);
    }
    return array;
}
