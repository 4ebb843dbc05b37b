/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/control/working_sets.h"

#include <string.h>

#include "sfvmm/wire/pager_message.h"

GBytes *sf_working_set_pack(const GArray *runs)
{
    guint n = MIN(runs->len, SF_WORKING_SET_RUNS_MAX);
    struct sf_pager_run *packed = g_new(struct sf_pager_run, n + 1);

    for (guint i = 0; i < n; i++) {
        const struct sf_pager_run *run = &g_array_index(runs, struct sf_pager_run, i);
        packed[i] =
            (struct sf_pager_run){ GUINT32_TO_LE(run->block), GUINT32_TO_LE(run->pages), GUINT64_TO_LE(run->offset) };
    }
    return g_bytes_new_take(packed, n * sizeof(*packed));
}

static gboolean fits(const struct sf_pager_run *run, const SfSnapshot *snapshot)
{
    return run->block < snapshot->n_blocks && run->pages > 0 && run->offset % SF_PAGE_SIZE == 0 &&
           run->offset < snapshot->blocks[run->block].length &&
           run->pages <= (snapshot->blocks[run->block].length - run->offset) / SF_PAGE_SIZE;
}

GArray *sf_working_set_unpack(GBytes *bytes, const SfSnapshot *snapshot)
{
    GArray *runs = g_array_new(FALSE, FALSE, sizeof(struct sf_pager_run));
    gsize length = 0;
    const guchar *data = g_bytes_get_data(bytes, &length);

    for (gsize at = 0; at + sizeof(struct sf_pager_run) <= length && runs->len < SF_WORKING_SET_RUNS_MAX;
         at += sizeof(struct sf_pager_run)) {
        struct sf_pager_run run;
        memcpy(&run, data + at, sizeof(run));
        run = (struct sf_pager_run){ GUINT32_FROM_LE(run.block), GUINT32_FROM_LE(run.pages),
                                     GUINT64_FROM_LE(run.offset) };
        if (!snapshot || fits(&run, snapshot)) {
            g_array_append_val(runs, run);
        }
    }
    return runs;
}

void sf_working_set_to_json(GBytes *bytes, JsonObject *object, const char *member)
{
    g_autofree char *text = g_base64_encode(g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes));

    json_object_set_string_member(object, member, text);
}

GBytes *sf_working_set_from_json(JsonObject *object, const char *member)
{
    JsonNode *node = json_object_get_member(object, member);
    const char *text = node && json_node_get_value_type(node) == G_TYPE_STRING ? json_node_get_string(node) : NULL;
    gsize length = 0;
    guchar *data;

    if (!text || !*text || strlen(text) > SF_WORKING_SET_TEXT_MAX) {
        return NULL;
    }
    data = g_base64_decode(text, &length);
    return g_bytes_new_take(data, length);
}
