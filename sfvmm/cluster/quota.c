/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What somebody has is a SfQuota too: what is used of each bound. Who has nothing is in no table. */
#include "sfvmm/cluster/quota.h"

struct SfQuotas {
    SfQuotaRules rules;
    GHashTable *vms;   /* char * -> SfQuota *, used */
    GHashTable *users; /* GUINT_TO_POINTER(uid) -> SfQuota *, used */
};

static const SfQuota nothing;

SfQuotas *sf_quotas_new(const SfQuotaRules *rules)
{
    SfQuotas *quotas = g_new0(SfQuotas, 1);

    quotas->rules = *rules;
    quotas->vms = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    quotas->users = g_hash_table_new_full(NULL, NULL, NULL, g_free);
    return quotas;
}

void sf_quotas_free(SfQuotas *quotas)
{
    if (quotas) {
        g_hash_table_unref(quotas->vms);
        g_hash_table_unref(quotas->users);
        g_free(quotas);
    }
}

/* ---- room ---- */

/* Who asks: "vm" or "user", as the keys of sfvmmd.conf end. */
typedef struct {
    const char *kind, *name;
    const SfQuota *quota, *used;
    gboolean own; /* it has a group of its own in sfvmmd.conf */
} Side;

static Side side_of(const char *kind, const char *name, const SfQuota *common, GHashTable *own, GHashTable *used,
                    gconstpointer key)
{
    const SfQuota *quota = own ? g_hash_table_lookup(own, key) : NULL;
    const SfQuota *uses = g_hash_table_lookup(used, key);

    return (Side){ kind, name, quota ? quota : common, uses ? uses : &nothing, quota != NULL };
}

static guint64 left(guint64 quota, guint64 used)
{
    return quota == 0 ? G_MAXUINT64 : quota > used ? quota - used : 0;
}

/* Makes *room smaller if that bound leaves less, and says so. */
static void narrow(const Side *side, const char *what, guint64 quota, guint64 clones, guint *room, char **why)
{
    if (clones >= *room) {
        return;
    }
    *room = (guint)clones;
    g_free(*why);
    *why = side->own ? g_strdup_printf("%s \"%s\" may have %" G_GUINT64_FORMAT "%s (%s in [%s %s] of sfvmmd.conf)",
                                       side->kind, side->name, quota, what[0] == 'm' ? " MiB" : "", what, side->kind,
                                       side->name)
                     : g_strdup_printf("each %s may have %" G_GUINT64_FORMAT "%s (%s-per-%s in sfvmmd.conf)",
                                       side->kind, quota, what[0] == 'm' ? " MiB" : "", what, side->kind);
}

static void narrow_by(const Side *side, guint64 each, guint *room, char **why)
{
    const SfQuota *quota = side->quota, *used = side->used;

    narrow(side, "clones", quota->clones, left(quota->clones, used->clones), room, why);
    narrow(side, "memory", quota->memory >> 20, left(quota->memory, used->memory) / MAX(each, 1), room, why);
    if (left(quota->tickets, used->tickets) == 0) {
        narrow(side, "tickets", quota->tickets, 0, room, why);
    }
}

guint sf_quotas_room(SfQuotas *quotas, const char *vm, guint32 user, guint64 each, guint count, char **why)
{
    const SfQuotaRules *rules = &quotas->rules;
    g_autofree char *uid = g_strdup_printf("%u", user);
    const Side sides[] = {
        side_of("vm", vm, &rules->vm, rules->own_vm, quotas->vms, vm),
        side_of("user", uid, &rules->user, rules->own_user, quotas->users, GUINT_TO_POINTER(user)),
    };
    guint room = count;

    *why = NULL;
    for (guint i = 0; i < G_N_ELEMENTS(sides); i++) {
        narrow_by(&sides[i], each, &room, why);
    }
    return room;
}

/* ---- books ---- */

static void add(SfQuota *used, guint clones, guint64 each, guint tickets)
{
    used->clones += clones;
    used->memory += clones * each;
    used->tickets += tickets;
}

/* TRUE: nothing is left. */
static gboolean subtract(SfQuota *used, guint clones, guint64 each, guint tickets)
{
    used->clones -= MIN(used->clones, clones);
    used->memory -= MIN(used->memory, clones * each);
    used->tickets -= MIN(used->tickets, tickets);
    return used->clones == 0 && used->tickets == 0;
}

void sf_quotas_book(SfQuotas *quotas, const char *vm, guint32 user, guint clones, guint64 each, guint tickets)
{
    SfQuota *of_vm = g_hash_table_lookup(quotas->vms, vm);
    SfQuota *of_user = g_hash_table_lookup(quotas->users, GUINT_TO_POINTER(user));

    if (!of_vm) {
        of_vm = g_new0(SfQuota, 1);
        g_hash_table_insert(quotas->vms, g_strdup(vm), of_vm);
    }
    if (!of_user) {
        of_user = g_new0(SfQuota, 1);
        g_hash_table_insert(quotas->users, GUINT_TO_POINTER(user), of_user);
    }
    add(of_vm, clones, each, tickets);
    add(of_user, clones, each, tickets);
}

void sf_quotas_unbook(SfQuotas *quotas, const char *vm, guint32 user, guint clones, guint64 each, guint tickets)
{
    SfQuota *of_vm = g_hash_table_lookup(quotas->vms, vm);
    SfQuota *of_user = g_hash_table_lookup(quotas->users, GUINT_TO_POINTER(user));

    if (of_vm && subtract(of_vm, clones, each, tickets)) {
        g_hash_table_remove(quotas->vms, vm);
    }
    if (of_user && subtract(of_user, clones, each, tickets)) {
        g_hash_table_remove(quotas->users, GUINT_TO_POINTER(user));
    }
}
