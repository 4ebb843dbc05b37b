/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/pager/multicast.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>
#include "sfvmm/pager/mc_client.h"
#include "sfvmm/pager/mc_server.h"

_Static_assert(SF_PAGER_MAX_BLOB <= MC_BLOB_MAX, "what is ordered fits into datagrams");

struct Multicast {
    struct mc_server *server; /* at the origin */
    struct mc_client *client; /* elsewhere */
    char *group;              /* address and port, as text */
};

static gboolean fail(GError **error, const char *what, int code)
{
    g_set_error(error, G_IO_ERROR, g_io_error_from_errno(code), "multicast: %s: %s", what, g_strerror(code));
    return FALSE;
}

static gboolean read_keys(int fd, void *keys, gsize length, GError **error)
{
    return pread(fd, keys, length, 0) == (ssize_t)length || fail(error, "its keys can't be read", EINVAL);
}

/* The group's address with its port. */
static gboolean group_address(const SfPagerRequest *request, struct mc_server_options *options, GError **error)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)&options->group;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&options->group;

    if (inet_pton(AF_INET, request->text, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(request->multicast.port);
        options->group_length = sizeof(*v4);
        return TRUE;
    }
    if (inet_pton(AF_INET6, request->text, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons(request->multicast.port);
        options->group_length = sizeof(*v6);
        return TRUE;
    }
    return fail(error, request->text, EINVAL);
}

/* ---- origin ---- */

static gboolean start_server(Multicast *multicast, const MulticastParts *parts, const SfPagerRequest *request,
                             int socket, int keys, GError **error)
{
    const SfPagerMulticast *order = &request->multicast;
    struct mc_server_options options = { .payload = order->payload,
                                         .receivers = order->receivers,
                                         .min_rate = order->min_rate,
                                         .max_rate = order->max_rate,
                                         .push = order->push };

    if (!read_keys(keys, options.master, sizeof(options.master), error) || !group_address(request, &options, error)) {
        return FALSE;
    }
    options.fd = fcntl(socket, F_DUPFD_CLOEXEC, 0);
    if (options.fd < 0) {
        return fail(error, "no more descriptors", errno);
    }
    multicast->server = mc_server_new(parts->store, &options);
    explicit_bzero(options.master, sizeof(options.master));
    return (multicast->server && mc_server_start(multicast->server)) || fail(error, "no thread", errno);
}

/* ---- receiver ---- */

static void on_changed(enum mc_state state, const char *reason, void *owner)
{
    static const char *const names[] = { "looked for", "in use", "not in use" };

    g_message("multicast: %s: %s", names[state], reason ? reason : "");
}

static gboolean start_client(Multicast *multicast, const MulticastParts *parts, const SfPagerRequest *request,
                             int socket, int keys, GError **error)
{
    struct mc_client_options options = { .payload = request->multicast.payload,
                                         .receivers = request->multicast.receivers,
                                         .complete = parts->complete,
                                         .changed = on_changed,
                                         .blob = parts->blob,
                                         .owner = parts->owner };
    struct mc_listener *listeners[2] = { NULL };

    if (!read_keys(keys, &options.keys, sizeof(options.keys), error)) {
        return FALSE;
    }
    options.fd = fcntl(socket, F_DUPFD_CLOEXEC, 0);
    if (options.fd < 0) {
        return fail(error, "no more descriptors", errno);
    }
    multicast->client = mc_client_new(parts->store, &options);
    mc_keys_wipe(&options.keys);
    for (guint i = 0; multicast->client && i < G_N_ELEMENTS(listeners); i++) {
        listeners[i] = mc_client_listen(multicast->client);
    }
    if (!multicast->client || !listeners[1] || !mc_client_start(multicast->client)) {
        return fail(error, "no thread", errno);
    }
    memtap_set_multicast(parts->memtap, multicast->client, listeners[0]);
    prefetch_set_multicast(parts->prefetch, multicast->client, listeners[1]);
    return TRUE;
}

/* ---- both ---- */

Multicast *multicast_new(const MulticastParts *parts, const SfPagerRequest *request, int socket, int keys,
                         GError **error)
{
    Multicast *multicast = g_new0(Multicast, 1);
    gboolean ok = request->multicast.payload >= MC_PAYLOAD_MIN || fail(error, "its datagrams are too small", EINVAL);

    multicast->group = g_strdup_printf("%s port %u", request->text, (guint)request->multicast.port);
    ok = ok && (request->multicast.origin ? start_server(multicast, parts, request, socket, keys, error)
                                          : start_client(multicast, parts, request, socket, keys, error));
    if (!ok) {
        multicast_free(multicast);
        return NULL;
    }
    if (page_store_is_set(parts->store)) {
        multicast_store_is_set(multicast);
    }
    return multicast;
}

void multicast_free(Multicast *multicast)
{
    if (multicast) {
        mc_server_free(multicast->server);
        mc_client_free(multicast->client);
        g_free(multicast->group);
        g_free(multicast);
    }
}

void multicast_store_is_set(Multicast *multicast)
{
    if (multicast->server) {
        mc_server_store_is_set(multicast->server);
    } else {
        mc_client_store_is_set(multicast->client);
    }
}

void multicast_set_working_set(Multicast *multicast, const struct sf_pager_run *runs, guint n)
{
    if (multicast->server) {
        mc_server_set_working_set(multicast->server, runs, n);
    }
}

static gboolean send_blob(struct mc_server *server, int file, uint32_t total, uint64_t id, GError **error)
{
    uint8_t *bytes = malloc(total);

    if (!bytes || pread(file, bytes, total, 0) != (ssize_t)total) {
        free(bytes);
        return fail(error, "the blob can't be read", EINVAL);
    }
    mc_server_set_blob(server, bytes, total, id);
    return TRUE;
}

gboolean multicast_blob(Multicast *multicast, const SfPagerRequest *request, int file, GError **error)
{
    uint32_t total = (uint32_t)request->number;
    guint64 id;
    int copy;

    if (!sf_pager_blob_id(request->text, &id) || total == 0) {
        return fail(error, request->text, EINVAL);
    }
    if (multicast->server) {
        return send_blob(multicast->server, file, total, id, error);
    }
    copy = fcntl(file, F_DUPFD_CLOEXEC, 0);
    if (copy < 0) {
        return fail(error, "no more descriptors", errno);
    }
    mc_client_await_blob(multicast->client, copy, total, id);
    return TRUE;
}

static void add_server_stats(struct mc_server *server, JsonObject *object)
{
    struct mc_server_stats stats;

    mc_server_get_stats(server, &stats);
    json_object_set_int_member(object, "bytes", stats.sender.bytes);
    json_object_set_int_member(object, "datagrams", stats.sender.datagrams);
    json_object_set_int_member(object, "receivers", stats.sender.receivers);
    json_object_set_int_member(object, "asked", stats.sender.pages_asked);
    json_object_set_int_member(object, "sent", stats.sender.pages_demand + stats.sender.pages_prefetch);
    json_object_set_int_member(object, "pushed", stats.sender.pages_push);
    json_object_set_int_member(object, "repeated", stats.sender.pages_again);
    json_object_set_int_member(object, "suppressed", stats.sender.suppressed);
    json_object_set_int_member(object, "chunks", stats.sender.chunks);
    json_object_set_int_member(object, "rate", stats.sender.rate);
    json_object_set_int_member(object, "loss_ppm", stats.sender.loss_ppm);
    json_object_set_int_member(object, "dismissed", stats.sender.dismissed);
    json_object_set_int_member(object, "forged", stats.forged + stats.replayed);
    json_object_set_int_member(object, "overflows", stats.overflows);
}

static void add_client_stats(struct mc_client *client, JsonObject *object)
{
    static const char *const states[] = { "probing", "multicast", "unicast" };
    struct mc_client_stats stats;

    mc_client_get_stats(client, &stats);
    json_object_set_string_member(object, "state", states[stats.receiver.state]);
    json_object_set_string_member(object, "reason", stats.receiver.reason ? stats.receiver.reason : "");
    json_object_set_int_member(object, "bytes", stats.receiver.bytes);
    json_object_set_int_member(object, "datagrams", stats.receiver.datagrams);
    json_object_set_int_member(object, "missing", stats.receiver.missing);
    json_object_set_int_member(object, "asked", stats.receiver.pages_asked);
    json_object_set_int_member(object, "unasked", stats.receiver.pages_unasked);
    json_object_set_int_member(object, "known", stats.receiver.pages_known);
    json_object_set_int_member(object, "again", stats.receiver.again);
    json_object_set_int_member(object, "suppressed", stats.receiver.suppressed);
    json_object_set_int_member(object, "fallen_back", stats.receiver.fallen_back);
    json_object_set_int_member(object, "blob_bytes", stats.blob_bytes);
    json_object_set_int_member(object, "loss_ppm", stats.receiver.loss_ppm);
    json_object_set_int_member(object, "forged", stats.forged + stats.replayed);
    json_object_set_int_member(object, "overflows", stats.overflows);
}

JsonObject *multicast_stats(Multicast *multicast)
{
    JsonObject *object = json_object_new();

    json_object_set_string_member(object, "group", multicast->group);
    json_object_set_boolean_member(object, "origin", multicast->server != NULL);
    if (multicast->server) {
        add_server_stats(multicast->server, object);
    } else {
        add_client_stats(multicast->client, object);
    }
    return object;
}
