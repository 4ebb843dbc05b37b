/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The sf-pager that an earlier sfvmmd has left: pager.json --> pidfd, connection, recall 0, 1, 2 ... --> ledger.
 *
 * It blocks for some ms: nothing can be done with its clones before. Events that come meanwhile are kept until the main
 * loop runs, when those who took it over listen to them.
 *
 * One that nobody takes over is ended: sfvmmd was killed between its start and the record of its ticket.
 */
#include "sfvmm/pager/pager_private.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sfvmm/process/process.h"
#include "sfvmm/wire/state_file.h"

#define ANSWER_SECONDS 10 /* an adopted process has to answer one question */

/* One question to an adopted process, in a blocking manner. */
static SfPagerPacket *ask(SfPager *pager, SfPagerRequest *request, GError **error)
{
    g_autoptr(JsonObject) object = NULL;

    request->id = ++pager->last_id;
    object = sf_pager_request_format(request);
    if (!sf_pager_send(pager->socket, object, NULL, 0, error)) {
        return NULL;
    }
    for (;;) {
        GPollFD poll = { .fd = pager->socket, .events = G_IO_IN };
        if (g_poll(&poll, 1, ANSWER_SECONDS * 1000) <= 0) {
            g_set_error(error, G_IO_ERROR, G_IO_ERROR_TIMED_OUT, "pager of %s: no answer for %d s", pager->id,
                        ANSWER_SECONDS);
            return NULL;
        }
        g_autoptr(SfPagerPacket) packet = sf_pager_receive(pager->socket, error);
        if (!packet) {
            return NULL;
        }
        if (sf_pager_text_of(packet->object, "event")) {
            g_queue_push_tail(&pager->early, json_object_ref(packet->object));
        } else if ((gint64)sf_pager_int_of(packet->object, "id") == request->id) {
            return g_steal_pointer(&packet);
        }
    }
}

/* FALSE without error: that was the last. */
static gboolean recall(SfPager *pager, guint index, GError **error)
{
    g_autoptr(SfPagerRequest) question = sf_pager_request_new(SF_PAGER_DO_RECALL, NULL);
    g_autoptr(SfPagerPacket) packet = NULL;
    SfPagerOrder *entry;

    question->number = index;
    packet = ask(pager, question, error);
    if (!packet || sf_pager_flag_of(packet->object, "last")) {
        return FALSE;
    }
    JsonNode *node = json_object_get_member(packet->object, "message");
    SfPagerRequest *request = node && JSON_NODE_HOLDS_OBJECT(node)
                                  ? sf_pager_request_parse(json_node_get_object(node), packet->n_fds, error)
                                  : NULL;
    if (!request) {
        g_prefix_error(error, "pager of %s: recalled order %u: ", pager->id, index);
        return FALSE;
    }
    entry = g_new0(SfPagerOrder, 1);
    entry->request = request;
    entry->n_fds = packet->n_fds;
    memcpy(entry->fds, packet->fds, packet->n_fds * sizeof(int));
    packet->n_fds = 0;
    g_ptr_array_add(pager->ledger, entry);
    return TRUE;
}

/* Where the descriptors of a block begin in the order `snapshot`. */
static guint next_block_fds(const SfPagerBlock *block, guint at)
{
    return at + 1 + !!block->is_cache + 2 * block->n_layers;
}

static gboolean rebuild_cache(SfPager *pager, GError **error)
{
    const SfPagerOrder *entry = sf_pager_ledger_find(pager, SF_PAGER_DO_SNAPSHOT, NULL);
    SfCachedBlock blocks[SF_QC_MAX_BLOCKS] = { 0 };
    guint at = 1, n = 0;

    for (guint i = 0; entry && i < entry->request->n_blocks; i++) {
        const SfPagerBlock *block = &entry->request->blocks[i];
        if (block->is_cache) {
            memcpy(blocks[n].id, block->id, sizeof(block->id));
            blocks[n].length = block->length;
            blocks[n].n_present = block->n_present;
            blocks[n].memory = fcntl(entry->fds[at], F_DUPFD_CLOEXEC, 0);
            blocks[n].present = fcntl(entry->fds[at + 1], F_DUPFD_CLOEXEC, 0);
            n++;
        }
        at = next_block_fds(block, at);
    }
    if (n > 0) {
        pager->cache = sf_page_cache_new_from_fds(blocks, n, error);
    }
    return n == 0 || pager->cache;
}

static gboolean pager_adopt(SfPager *pager, GError **error)
{
    g_autofree char *path = sf_pager_path(pager, SF_PAGER_FILE_JSON);
    g_autoptr(JsonObject) object = sf_state_read(path, error);
    g_autoptr(GError) failure = NULL;
    int pidfd;

    if (!object) {
        return FALSE;
    }
    pager->binary = g_strdup(sf_pager_text_of(object, "binary"));
    pager->uid = sf_pager_int_of(object, "uid");
    pager->gid = sf_pager_int_of(object, "gid");
    pager->pid = sf_pager_int_of(object, "pid");
    pager->start_time = sf_pager_int_of(object, "start_time");
    pager->fault_seconds = sf_pager_int_of(object, "fault_seconds");
    pidfd = sf_process_open(pager->pid, pager->start_time);
    if (!pager->binary || pidfd < 0) {
        pager->pid = 0;
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND, "pager of %s: it ended while sfvmmd was not running",
                    pager->id);
        return FALSE;
    }
    sf_pager_watch_process(pager, pidfd);
    if (!sf_pager_connect(pager, error)) {
        return FALSE;
    }
    for (guint i = 0; recall(pager, i, &failure); i++) {
    }
    if (failure) {
        g_propagate_error(error, g_steal_pointer(&failure));
        return FALSE;
    }
    return rebuild_cache(pager, error);
}

/* When those who took it over have connected to its signals. */
static gboolean on_early(gpointer data)
{
    g_autoptr(SfPager) pager = g_object_ref(SF_PAGER(data));
    JsonObject *object;

    pager->early_source = 0;
    while ((object = g_queue_pop_head(&pager->early))) {
        sf_pager_handle_event(pager, sf_pager_text_of(object, "event"), object);
        json_object_unref(object);
    }
    return G_SOURCE_REMOVE;
}

SfPager *sf_pager_adopt(const char *run_directory, const char *snapshot, GError **error)
{
    g_autoptr(SfPager) pager = sf_pager_new(run_directory, snapshot);
    const SfPagerOrder *prefetch;

    if (!pager_adopt(pager, error)) {
        sf_pager_stop(pager);
        return NULL;
    }
    pager->early_source = g_idle_add(on_early, pager);
    prefetch = sf_pager_ledger_find(pager, SF_PAGER_DO_PREFETCH, NULL);
    if (prefetch) {
        pager->prefetch = (prefetch->request->working_set ? SF_PREFETCH_WORKING_SET : 0) |
                          (prefetch->request->neighbours ? SF_PREFETCH_NEIGHBOURS : 0) |
                          (prefetch->request->complete ? SF_PREFETCH_COMPLETE : 0);
    }
    return g_steal_pointer(&pager);
}

/* A pidfd of the process on record; -1: there is none, or it has ended. */
static int open_recorded(const char *run_directory, const char *snapshot)
{
    g_autofree char *path = g_build_filename(run_directory, SF_PAGER_FOLDER, snapshot, SF_PAGER_FILE_JSON, NULL);
    g_autoptr(JsonObject) object = sf_state_read(path, NULL);

    return object ? sf_process_open((pid_t)sf_pager_int_of(object, "pid"), sf_pager_int_of(object, "start_time")) : -1;
}

gboolean sf_pager_is_running(const char *run_directory, const char *snapshot)
{
    int pidfd = open_recorded(run_directory, snapshot);

    if (pidfd >= 0) {
        close(pidfd);
    }
    return pidfd >= 0;
}

void sf_pagers_sweep(const char *run_directory, SfPagerIsUsed is_used, gpointer data)
{
    g_autofree char *folder = g_build_filename(run_directory, SF_PAGER_FOLDER, NULL);
    g_auto(GStrv) ids = sf_state_list(folder);

    for (char **id = ids; *id; id++) {
        g_autofree char *path = g_build_filename(folder, *id, NULL);
        int pidfd;
        if (is_used(*id, data)) {
            continue;
        }
        pidfd = open_recorded(run_directory, *id);
        if (pidfd >= 0) {
            g_message("pager of %s: its ticket has gone; it is ended", *id);
            syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
            close(pidfd);
        }
        sf_state_remove_folder(path);
    }
}
