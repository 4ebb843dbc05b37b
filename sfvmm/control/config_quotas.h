/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The quotas of sfvmmd.conf: keys for each VM and each user in [sfvmmd], and groups [vm NAME] and [user NAME] for those
 * that have their own.
 */
#ifndef SF_CONFIG_QUOTAS_H
#define SF_CONFIG_QUOTAS_H

#include "sfvmm/cluster/quota.h"

/* A group of somebody's own quotas: the name behind "vm " or "user "; NULL: it is none. Borrows of group. */
const char *sf_config_quotas_vm(const char *group);
const char *sf_config_quotas_user(const char *group);

/* Own quotas: what their groups don't say is as for everybody, rules->vm and rules->user. Makes the tables. path: of
 * the file, for errors. */
gboolean sf_config_quotas_read(SfQuotaRules *rules, GKeyFile *file, const char *path, GError **error);
void sf_config_quotas_clear(SfQuotaRules *rules); /* the tables */

/* A user's name or number. */
gboolean sf_config_find_user(const char *name, guint32 *uid);

/* The number of MiB that a key has, as bytes; unchanged when it is not there. */
gboolean sf_config_read_mib(GKeyFile *file, const char *path, const char *group, const char *key, guint64 *bytes,
                            GError **error);

#endif
