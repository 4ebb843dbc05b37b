/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What one sf-pager is told to be: each of these is an order in the ledger, but for the blobs of multicast. */
#include "sfvmm/pager/pager_private.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static void close_fds(int *fds, guint n)
{
    for (guint i = 0; i < n; i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
}

/* ---- who reads its pages ---- */

gboolean sf_pager_serve(SfPager *pager, int listen_fd, SfPagerSecurity security, const char *keys, GError **error)
{
    SfPagerRequest *request = sf_pager_request_new(SF_PAGER_DO_SERVE, NULL);
    int fds[2] = { listen_fd };
    guint n = 1;
    gboolean ok = FALSE;

    request->security = security;
    if (sf_pager_ledger_find(pager, SF_PAGER_DO_SERVE, NULL)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_EXISTS, "pager of %s: it serves already", pager->id);
    } else {
        ok = sf_pager_add_keys(pager, security, keys, TRUE, fds, &n, error);
    }
    if (ok) {
        ok = sf_pager_order(pager, request, fds, n, error);
    } else {
        sf_pager_request_free(request);
    }
    close_fds(fds, n);
    return ok;
}

guint sf_pager_port(SfPager *pager)
{
    const SfPagerOrder *entry = sf_pager_ledger_find(pager, SF_PAGER_DO_SERVE, NULL);
    struct sockaddr_storage address;
    socklen_t length = sizeof(address);

    if (!entry || getsockname(entry->fds[0], (struct sockaddr *)&address, &length) < 0) {
        return 0;
    }
    switch (address.ss_family) {
    case AF_INET6:
        return ntohs(((struct sockaddr_in6 *)&address)->sin6_port);
    case AF_INET:
        return ntohs(((struct sockaddr_in *)&address)->sin_port);
    default:
        return 0;
    }
}

gboolean sf_pager_allow(SfPager *pager, const char *const *names, GError **error)
{
    SfPagerRequest *request = sf_pager_request_new(SF_PAGER_DO_ALLOW, NULL);

    request->names = g_strdupv((GStrv)names);
    sf_pager_ledger_remove(pager, SF_PAGER_DO_ALLOW, NULL);
    return sf_pager_order(pager, request, NULL, 0, error);
}

/* ---- which pages ---- */

/* One block of the snapshot, and its descriptors, which stay the snapshot's. */
static void describe_block(const SfSnapshot *snapshot, guint index, SfPagerBlock *block, int *fds, guint *n)
{
    const SfBlock *from = &snapshot->blocks[index];

    memcpy(block->id, from->id, sizeof(block->id));
    block->length = from->length;
    block->is_cache = snapshot->cache != NULL;
    if (snapshot->cache) {
        const SfCachedBlock *cached = &snapshot->cache->blocks[index];
        block->n_present = cached->n_present;
        fds[(*n)++] = cached->memory;
        fds[(*n)++] = cached->present;
    } else {
        fds[(*n)++] = from->base;
    }
    block->n_layers = from->n_layers;
    for (guint i = 0; i < from->n_layers; i++) {
        block->n_extents[i] = from->layers[i].n_extents;
        fds[(*n)++] = from->layers[i].delta;
        fds[(*n)++] = from->layers[i].extents;
    }
}

gboolean sf_pager_set_snapshot(SfPager *pager, SfSnapshot *snapshot, GError **error)
{
    SfPagerRequest *request;
    int fds[SF_PAGER_MAX_FDS];
    guint n = 0;

    if (pager->snapshot || sf_pager_ledger_find(pager, SF_PAGER_DO_SNAPSHOT, NULL)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_EXISTS, "pager of %s: it has its snapshot already", pager->id);
        return FALSE;
    }
    request = sf_pager_request_new(SF_PAGER_DO_SNAPSHOT, pager->id);
    request->number = snapshot->state_length;
    request->n_blocks = snapshot->n_blocks;
    request->blocks = g_new0(SfPagerBlock, MAX(snapshot->n_blocks, 1));
    fds[n++] = snapshot->state;
    for (guint i = 0; i < snapshot->n_blocks; i++) {
        describe_block(snapshot, i, &request->blocks[i], fds, &n);
    }
    if (!sf_pager_order(pager, request, fds, n, error)) {
        return FALSE;
    }
    pager->snapshot = sf_snapshot_ref(snapshot);
    if (snapshot->cache) {
        pager->cache = sf_page_cache_ref(snapshot->cache);
    }
    return TRUE;
}

/* ---- where they come from ---- */

gboolean sf_pager_add_source(SfPager *pager, const SfPageSource *source, GError **error)
{
    SfPagerRequest *request = sf_pager_request_new(SF_PAGER_DO_SOURCE, source->uri);
    int fds[1];
    guint n = 0;
    gboolean ok;

    request->security = source->security;
    request->number = MIN(source->connections, SF_PAGER_MAX_CONNECTIONS);
    if (source->security == SF_PAGER_PSK) {
        request->user = g_strdup(source->user ? source->user : "");
    }
    if (strlen(source->uri) > SF_PAGER_MAX_TEXT || (request->user && !*request->user) ||
        !sf_pager_add_keys(pager, source->security, source->keys, FALSE, fds, &n, error)) {
        if (error && !*error) {
            g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                        "pager of %s: the page source has too long a URI, or a key without a user", pager->id);
        }
        sf_pager_request_free(request);
        return FALSE;
    }
    ok = sf_pager_order(pager, request, fds, n, error);
    close_fds(fds, n);
    return ok;
}

JsonObject *sf_pager_describe_sources(SfPager *pager)
{
    JsonObject *object = json_object_new();
    JsonArray *sources = json_array_new();

    for (guint i = 0; i < pager->ledger->len; i++) {
        const SfPagerRequest *request = ((const SfPagerOrder *)g_ptr_array_index(pager->ledger, i))->request;
        if (request->what == SF_PAGER_DO_SOURCE && request->security != SF_PAGER_PSK) {
            JsonObject *source = json_object_new();
            json_object_set_string_member(source, "uri", request->text);
            json_object_set_string_member(source, "security", request->security == SF_PAGER_X509 ? "tls" : "plain");
            json_array_add_object_element(sources, source);
        }
    }
    json_object_set_array_member(object, "sources", sources);
    json_object_set_boolean_member(object, "complete", !!(pager->prefetch & SF_PREFETCH_COMPLETE));
    return object;
}

gboolean sf_pager_add_described_sources(SfPager *pager, JsonObject *object, const char *keys, GError **error)
{
    JsonNode *node = json_object_get_member(object, "sources");
    JsonArray *array = node && JSON_NODE_HOLDS_ARRAY(node) ? json_node_get_array(node) : NULL;

    for (guint i = 0; array && i < json_array_get_length(array); i++) {
        JsonNode *element = json_array_get_element(array, i);
        JsonObject *source = JSON_NODE_HOLDS_OBJECT(element) ? json_node_get_object(element) : NULL;
        const char *uri = source ? sf_pager_text_of(source, "uri") : NULL;
        gboolean tls = source && g_strcmp0(sf_pager_text_of(source, "security"), "tls") == 0;
        SfPageSource page_source = { .uri = uri, .security = tls ? SF_PAGER_X509 : SF_PAGER_PLAIN, .keys = keys };
        if (uri && !sf_pager_add_source(pager, &page_source, error)) {
            return FALSE;
        }
    }
    return !sf_pager_flag_of(object, "complete") || sf_pager_complete(pager, error);
}

/* ---- multicast ---- */

gboolean sf_pager_set_multicast(SfPager *pager, const char *group, const SfPagerMulticast *multicast, int socket,
                                const void *keys, gsize length, GError **error)
{
    SfPagerRequest *request = sf_pager_request_new(SF_PAGER_DO_MULTICAST, group);
    int fds[] = { socket, memfd_create("sf-multicast", MFD_CLOEXEC) };
    gboolean ok = fds[1] >= 0 && write(fds[1], keys, length) == (ssize_t)length;

    request->multicast = *multicast;
    if (!ok) {
        sf_pager_fail_errno(pager, error, "keys of multicast");
        sf_pager_request_free(request);
    } else {
        ok = sf_pager_order(pager, request, fds, G_N_ELEMENTS(fds), error);
    }
    if (fds[1] >= 0) {
        close(fds[1]);
    }
    return ok;
}

gboolean sf_pager_get_multicast(SfPager *pager, const char **group, const SfPagerMulticast **multicast, const int **fds)
{
    const SfPagerOrder *entry = sf_pager_ledger_find(pager, SF_PAGER_DO_MULTICAST, NULL);

    if (entry) {
        *group = entry->request->text;
        *multicast = &entry->request->multicast;
        *fds = entry->fds;
    }
    return entry != NULL;
}

gboolean sf_pager_is_in_group(SfPager *pager)
{
    return sf_pager_ledger_find(pager, SF_PAGER_DO_MULTICAST, NULL) != NULL;
}

void sf_pager_blob_async(SfPager *pager, const char *digest, gsize length, int memfd, GAsyncReadyCallback callback,
                         gpointer data)
{
    g_autoptr(SfPagerRequest) request = sf_pager_request_new(SF_PAGER_DO_BLOB, digest);

    request->number = length;
    sf_pager_send_request(pager, request, &memfd, 1, g_task_new(pager, NULL, callback, data), NULL);
}

gboolean sf_pager_blob_finish(SfPager *pager, GAsyncResult *result, GError **error)
{
    g_autoptr(JsonObject) answer = g_task_propagate_pointer(G_TASK(result), error);

    return answer != NULL;
}

/* ---- what is fetched unasked ---- */

gboolean sf_pager_set_prefetch(SfPager *pager, SfPrefetch what, GError **error)
{
    SfPagerRequest *request = sf_pager_request_new(SF_PAGER_DO_PREFETCH, NULL);

    pager->prefetch = what;
    request->working_set = !!(what & SF_PREFETCH_WORKING_SET);
    request->neighbours = !!(what & SF_PREFETCH_NEIGHBOURS);
    request->complete = !!(what & SF_PREFETCH_COMPLETE);
    sf_pager_ledger_remove(pager, SF_PAGER_DO_PREFETCH, NULL);
    return sf_pager_order(pager, request, NULL, 0, error);
}

gboolean sf_pager_complete(SfPager *pager, GError **error)
{
    return sf_pager_set_prefetch(pager, pager->prefetch | SF_PREFETCH_COMPLETE, error);
}

gboolean sf_pager_set_working_set(SfPager *pager, const GArray *runs, GError **error)
{
    SfPagerRequest *request = sf_pager_request_new(SF_PAGER_DO_WORKING_SET, NULL);
    gsize size = MIN(runs->len, SF_PAGER_MAX_RUNS) * sizeof(struct sf_pager_run);
    int fd = memfd_create("sf-working-set", MFD_CLOEXEC);
    gboolean ok = fd >= 0 && pwrite(fd, runs->data, size, 0) == (ssize_t)size;

    request->number = size / sizeof(struct sf_pager_run);
    if (!ok) {
        sf_pager_fail_errno(pager, error, "the working set");
        sf_pager_request_free(request);
    } else {
        sf_pager_ledger_remove(pager, SF_PAGER_DO_WORKING_SET, NULL);
        ok = sf_pager_order(pager, request, &fd, 1, error);
    }
    if (fd >= 0) {
        close(fd);
    }
    return ok;
}

/* ---- whose faults it answers ---- */

gboolean sf_pager_attach(gpointer owner, const char *vm, pid_t pid, int uffd, const SfMappedBlock *blocks, guint n,
                         GError **error)
{
    SfPager *pager = owner;
    SfPagerRequest *request = sf_pager_request_new(SF_PAGER_DO_ATTACH, vm);

    request->number = pid;
    request->n_blocks = n;
    request->blocks = g_new0(SfPagerBlock, MAX(n, 1));
    for (guint i = 0; i < n; i++) {
        memcpy(request->blocks[i].id, blocks[i].id, sizeof(blocks[i].id));
        request->blocks[i].address = blocks[i].address;
        request->blocks[i].length = blocks[i].length;
    }
    return sf_pager_order(pager, request, &uffd, 1, error);
}

void sf_pager_detach(gpointer owner, const char *vm)
{
    SfPager *pager = owner;
    g_autoptr(SfPagerRequest) request = sf_pager_request_new(SF_PAGER_DO_DETACH, vm);

    if (sf_pager_ledger_find(pager, SF_PAGER_DO_ATTACH, vm)) {
        sf_pager_ledger_remove(pager, SF_PAGER_DO_ATTACH, vm);
        sf_pager_send_request(pager, request, NULL, 0, NULL, NULL);
    }
}
