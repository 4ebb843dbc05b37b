/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What one sf-pager is asked: its working set, and its statistics. Of pages that came unasked and that no clone has
 * mapped, samples tell how many there are.
 */
#include "sfvmm/pager/pager_private.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define SAMPLES        1024         /* pages that are looked at for what was fetched in vain */
#define PAGEMAP_MAPPED (3ull << 62) /* present, or swapped out */

static void ask_async(SfPager *pager, SfPagerDo what, GAsyncReadyCallback callback, gpointer data)
{
    g_autoptr(SfPagerRequest) request = sf_pager_request_new(what, NULL);

    sf_pager_send_request(pager, request, NULL, 0, g_task_new(pager, NULL, callback, data), NULL);
}

void sf_pager_working_set_async(SfPager *pager, GAsyncReadyCallback callback, gpointer data)
{
    ask_async(pager, SF_PAGER_DO_RECORDED, callback, data);
}

GArray *sf_pager_working_set_finish(SfPager *pager, GAsyncResult *result, GError **error)
{
    g_autoptr(JsonObject) answer = g_task_propagate_pointer(G_TASK(result), error);
    int fd = GPOINTER_TO_INT(g_object_get_data(G_OBJECT(result), "fd")) - 1;
    g_autoptr(GArray) runs = g_array_new(FALSE, FALSE, sizeof(struct sf_pager_run));
    gsize n = answer ? sf_pager_int_of(answer, "n") : 0;
    gboolean ok = answer && fd >= 0 && n <= SF_PAGER_MAX_RUNS;

    if (ok) {
        g_array_set_size(runs, n);
        ok = pread(fd, runs->data, n * sizeof(struct sf_pager_run), 0) == (ssize_t)(n * sizeof(struct sf_pager_run));
    }
    if (fd >= 0) {
        close(fd);
    }
    if (!ok && answer) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "pager of %s: its working set can't be read",
                    pager->id);
    }
    return ok ? g_steal_pointer(&runs) : NULL;
}

void sf_pager_stats_async(SfPager *pager, GAsyncReadyCallback callback, gpointer data)
{
    ask_async(pager, SF_PAGER_DO_STATS, callback, data);
}

/* ---- pages that came unasked, and who has mapped them ---- */

typedef struct {
    guint block;
    guint64 page;
} Sample;

/* At most SAMPLES of the set bits, evenly spread; *n_set: how many there are. */
static GArray *take_samples(const SfPageCache *cache, int fd, guint64 *n_set)
{
    GArray *samples = g_array_new(FALSE, FALSE, sizeof(Sample));
    guint64 step = 0;

    for (guint pass = 0; pass < 2; pass++) { /* the first one counts */
        off_t at = 0;
        guint64 seen = 0;
        for (guint i = 0; i < cache->n_blocks; i++) {
            guint64 n = (cache->blocks[i].length / SF_PAGE_SIZE + 63) / 64;
            g_autofree guint64 *words = g_new0(guint64, n);
            if (pread(fd, words, n * sizeof(*words), at) != (ssize_t)(n * sizeof(*words))) {
                return samples;
            }
            at += n * sizeof(*words);
            for (guint64 j = 0; j < n; j++) {
                for (guint64 word = words[j]; word; word &= word - 1, seen++) {
                    Sample sample = { i, j * 64 + __builtin_ctzll(word) };
                    if (pass == 1 && seen % step == 0) {
                        g_array_append_val(samples, sample);
                    }
                }
            }
        }
        *n_set = seen;
        step = seen / SAMPLES + 1;
    }
    return samples;
}

/* Has this clone mapped the page, or a copy of it? */
static gboolean has_mapped(int pagemap, const SfPagerRequest *attach, const char *block, guint64 page)
{
    for (guint i = 0; i < attach->n_blocks; i++) {
        guint64 entry = 0, address = attach->blocks[i].address + page * SF_PAGE_SIZE;
        if (strcmp(attach->blocks[i].id, block) == 0 &&
            pread(pagemap, &entry, sizeof(entry), address / SF_PAGE_SIZE * sizeof(entry)) == sizeof(entry)) {
            return (entry & PAGEMAP_MAPPED) != 0;
        }
    }
    return FALSE;
}

/* Bytes that came unasked and that no clone has mapped: of the samples, as a part of all. */
static guint64 estimate_unused(SfPager *pager, int fd)
{
    guint64 n_set = 0;
    g_autoptr(GArray) samples = take_samples(pager->cache, fd, &n_set);
    guint left = samples->len;

    for (guint i = 0; i < pager->ledger->len && left > 0; i++) {
        const SfPagerOrder *attach = g_ptr_array_index(pager->ledger, i);
        g_autofree char *path = g_strdup_printf("/proc/%" G_GUINT64_FORMAT "/pagemap", attach->request->number);
        int pagemap = attach->request->what == SF_PAGER_DO_ATTACH ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        for (guint j = 0; pagemap >= 0 && j < left;) {
            Sample *sample = &g_array_index(samples, Sample, j);
            if (has_mapped(pagemap, attach->request, pager->cache->blocks[sample->block].id, sample->page)) {
                *sample = g_array_index(samples, Sample, --left); /* it is used: not looked at any more */
            } else {
                j++;
            }
        }
        if (pagemap >= 0) {
            close(pagemap);
        }
    }
    return samples->len ? n_set * SF_PAGE_SIZE / samples->len * left : 0;
}

/* ---- statistics ---- */

/* A reference, or NULL. */
static JsonObject *object_of(JsonObject *object, const char *member)
{
    JsonNode *node = json_object_get_member(object, member);

    return node && JSON_NODE_HOLDS_OBJECT(node) ? json_node_dup_object(node) : NULL;
}

gboolean sf_pager_stats_finish(SfPager *pager, GAsyncResult *result, SfPagerStats *stats, GError **error)
{
    g_autoptr(JsonObject) answer = g_task_propagate_pointer(G_TASK(result), error);
    int fd = GPOINTER_TO_INT(g_object_get_data(G_OBJECT(result), "fd")) - 1;

    memset(stats, 0, sizeof(*stats));
    if (fd >= 0 && answer && pager->cache) {
        stats->prefetched_unused = estimate_unused(pager, fd);
    }
    if (fd >= 0) {
        close(fd);
    }
    if (!answer) {
        return FALSE;
    }
#define GET(member) stats->member = sf_pager_int_of(answer, #member)
    GET(faults);
    GET(demand_faults);
    GET(fetched_bytes);
    GET(demand_bytes);
    GET(prefetched_bytes);
    GET(resident_bytes);
    GET(served_bytes);
    GET(fault_ns_median);
    GET(fault_ns_p99);
    GET(sources);
    GET(sources_up);
    GET(clones);
#undef GET
    stats->prefetched_unused = MIN(stats->prefetched_unused, stats->prefetched_bytes); /* which counts whole reads */
    stats->complete = sf_pager_flag_of(answer, "complete");
    g_clear_pointer(&pager->multicast_stats, json_object_unref);
    pager->multicast_stats = object_of(answer, "multicast");
    return TRUE;
}

JsonObject *sf_pager_multicast_stats(SfPager *pager)
{
    return pager->multicast_stats;
}
