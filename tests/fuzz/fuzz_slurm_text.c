/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What Slurm's commands print, each parser on all of it. What is taken keeps its bounds. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "sfvmm/cluster/slurm_text.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_nodes(GPtrArray *nodes, const GError *error, guint least)
{
    if ((nodes != NULL) == (error != NULL) || (nodes && nodes->len > SF_SLURM_NODES_MAX)) {
        abort();
    }
    for (guint i = 0; nodes && i < nodes->len; i++) {
        const SfSlurmNode *node = g_ptr_array_index(nodes, i);
        if (!*node->name || strpbrk(node->name, "[], /\n") || node->cpus < least || node->cpus > SF_SLURM_CPUS_MAX) {
            abort();
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autofree char *text = g_strndup((const char *)data, size);
    g_autofree char *complaint = sf_slurm_parse_complaint(text);
    g_autoptr(GError) of_job = NULL, of_queue = NULL, of_idle = NULL;
    g_autoptr(GPtrArray) nodes = sf_slurm_parse_nodes(text, 1, &of_job);
    g_autoptr(GPtrArray) queue = sf_slurm_parse_queue(text, &of_queue);
    g_autoptr(GPtrArray) idle = sf_slurm_parse_idle(text, &of_idle);

    if (sf_slurm_parse_grant(text) > G_MAXUINT32 || !g_utf8_validate(complaint, -1, NULL) || strchr(complaint, '\n') ||
        (queue != NULL) == (of_queue != NULL)) {
        abort();
    }
    check_nodes(nodes, of_job, 1);
    check_nodes(idle, of_idle, 0);
    return 0;
}
