/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfQuotas: how much users and VMs may have of all hosts together, and have. A user is the one who started the VM; its
 * tickets and clones count for it and for its user, whoever asks for them.
 *
 * It only counts; who asks when is the resource manager's matter. Main thread only.
 */
#ifndef SF_QUOTA_H
#define SF_QUOTA_H

#include <glib.h>

/* Upper bounds, each of them counts. 0: no bound. */
typedef struct {
    guint clones;   /* of all tickets */
    guint64 memory; /* bytes that these clones together may be expected to use privately */
    guint tickets;  /* that have, or may still get, living clones */
} SfQuota;

/* What each VM and each user may have. */
typedef struct {
    SfQuota vm, user;
    GHashTable *own_vm;   /* char * (VM) -> SfQuota *: what these have instead; borrowed. NULL: none has its own */
    GHashTable *own_user; /* GUINT_TO_POINTER(uid) -> SfQuota *, likewise */
} SfQuotaRules;

typedef struct SfQuotas SfQuotas;

SfQuotas *sf_quotas_new(const SfQuotaRules *rules);
void sf_quotas_free(SfQuotas *quotas);

/*
 * How many more clones, with `each` bytes of memory, one more ticket of this VM may have: at most count. *why (caller
 * frees) is the quota that leaves fewer and who has it, NULL when none does.
 */
guint sf_quotas_room(SfQuotas *quotas, const char *vm, guint32 user, guint64 each, guint count, char **why);

/* So many clones and tickets more. */
void sf_quotas_book(SfQuotas *quotas, const char *vm, guint32 user, guint clones, guint64 each, guint tickets);
/* Or fewer. */
void sf_quotas_unbook(SfQuotas *quotas, const char *vm, guint32 user, guint clones, guint64 each, guint tickets);

#endif
