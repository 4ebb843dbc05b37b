/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What this host says of itself to others, and what others may do with it: choose, show, and refuse early. The last
 * word on whether a snapshot can run here is spoken here, when it comes.
 *
 *     {"qemu_version": "10.0.13", "accel": "tcg", "machine_types": ["pc-q35-10.0", ...],
 *      "cpu_models": ["qemu64", ...], "cpu_vendor": "GenuineIntel", "cpu_flags": ["aes", ...],
 *      "slots": 512, "memory": 20401094656, "draining": false}
 *
 * Main thread only.
 */
#ifndef SF_FACTS_H
#define SF_FACTS_H

#include "sfvmm/vm/launcher.h"

/*
 * Asks QEMU (some 0.2 s, in a process of its own) and the CPU: qemu_version, accel, machine_types, cpu_models (those
 * that the accelerator can run here with all their features), cpu_vendor and cpu_flags.
 */
void sf_facts_probe_async(SfLauncher *launcher, GAsyncReadyCallback callback, gpointer data);
JsonObject *sf_facts_probe_finish(GAsyncResult *result, GError **error); /* transfer full */

/* A member of facts that may be anything: NULL or 0 unless it is what it should be. Borrowed. */
const char *sf_facts_text(JsonObject *facts, const char *member);
gint64 sf_facts_integer(JsonObject *facts, const char *member);
gboolean sf_facts_flag(JsonObject *facts, const char *member);
gboolean sf_facts_has(JsonObject *facts, const char *member, const char *text); /* it is in that array of texts */
/* The texts of that array; an empty one unless it is one. At most FACTS_LIST_MAX. Transfer full. */
#define SF_FACTS_LIST_MAX 1024u
JsonArray *sf_facts_list(JsonObject *facts, const char *member);

#endif
