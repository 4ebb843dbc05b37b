/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/pager/multicast_group.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>
#include "sfvmm/pager/mc_seal.h"

#define DEFAULT_RANGE4 "239.195.0.0/16"    /* of organisation-local scope */
#define DEFAULT_RANGE6 "ff15::5f00:0:0/96" /* transient, of site-local scope */
#define BYTES_PER_MBIT 125000u
#define RECEIVER_MAX   1024u /* mc_server listens to no others */
#define PAYLOAD_MIN    SF_UDP_GROUP_PAYLOAD_MIN

struct SfMulticast {
    char *local_ip; /* of the link */
    SfUdpAddress group;
    guint origin_port, payload, expected; /* expected: receivers */
    guint8 master[MC_KEY_LENGTH];
    GHashTable *receivers; /* name of a host -> its number */
    guint last_receiver;
};

void sf_multicast_config_init(SfMulticastConfig *config)
{
    *config = (SfMulticastConfig){ .mode = SF_MULTICAST_AUTO, .port = SF_UDP_GROUP_PORT, .hops = 1 };
    sf_udp_range_parse(DEFAULT_RANGE4, &config->v4, NULL);
    sf_udp_range_parse(DEFAULT_RANGE6, &config->v6, NULL);
}

/* ---- origin ---- */

/* The same text for the same address. */
static char *normal_ip(const char *ip)
{
    SfUdpAddress address;

    return ip && sf_udp_address_parse(ip, 0, &address) ? sf_udp_address_text(&address) : g_strdup(ip);
}

static SfMulticast *multicast_alloc(const char *local_ip)
{
    SfMulticast *multicast = g_new0(SfMulticast, 1);

    multicast->local_ip = normal_ip(local_ip);
    multicast->receivers = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    return multicast;
}

void sf_multicast_free(SfMulticast *multicast)
{
    if (multicast) {
        explicit_bzero(multicast->master, sizeof(multicast->master));
        g_hash_table_unref(multicast->receivers);
        g_free(multicast->local_ip);
        g_free(multicast);
    }
}

static gboolean order_server(SfMulticast *multicast, const SfMulticastConfig *config, SfPager *server, guint receivers,
                             const SfUdpSocket *made, GError **error)
{
    g_autofree char *group = sf_udp_address_text(&multicast->group);
    SfPagerMulticast order = { .origin = TRUE,
                               .port = sf_udp_address_port(&multicast->group),
                               .payload = made->payload,
                               .receivers = receivers,
                               .min_rate = (guint64)config->min_mbit * BYTES_PER_MBIT,
                               .max_rate = (guint64)config->max_mbit * BYTES_PER_MBIT,
                               .push = config->push };

    if (getrandom(multicast->master, sizeof(multicast->master), 0) != sizeof(multicast->master)) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "multicast: no key: %s", g_strerror(errno));
        return FALSE;
    }
    return sf_pager_set_multicast(server, group, &order, made->fd, multicast->master, sizeof(multicast->master), error);
}

/* At the first port that is free. */
static gboolean open_origin(SfMulticast *multicast, const SfMulticastConfig *config, guint64 number, SfUdpSocket *made,
                            GError **error)
{
    SfUdpAddress local;
    gboolean ok = FALSE;

    for (guint port = config->origin_first; !ok && port <= config->origin_last; port++) {
        g_clear_error(error);
        if (!sf_udp_address_parse(multicast->local_ip, (guint16)port, &local)) {
            g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT, "multicast: \"%s\" is no address",
                        multicast->local_ip);
            return FALSE;
        }
        sf_udp_range_choose(local.any.sa_family == AF_INET6 ? &config->v6 : &config->v4, number, config->port,
                            &multicast->group);
        ok = sf_udp_group_open_origin(&local, &multicast->group, config->hops, made, error);
    }
    return ok;
}

SfMulticast *sf_multicast_new(const SfMulticastConfig *config, SfPager *server, guint64 number, const char *local_ip,
                              guint receivers, GError **error)
{
    g_autoptr(SfMulticast) multicast = multicast_alloc(local_ip);
    SfUdpSocket made;
    gboolean ok;

    if (!open_origin(multicast, config, number, &made, error)) {
        return NULL;
    }
    multicast->origin_port = made.port;
    multicast->payload = made.payload;
    multicast->expected = receivers;
    ok = order_server(multicast, config, server, receivers, &made, error);
    close(made.fd);
    return ok ? g_steal_pointer(&multicast) : NULL;
}

SfMulticast *sf_multicast_recover(SfPager *server, guint last_receiver)
{
    g_autoptr(SfMulticast) multicast = NULL;
    const SfPagerMulticast *order;
    const char *group;
    const int *fds;
    SfUdpAddress local = { 0 };
    socklen_t length = sizeof(local);

    if (!sf_pager_get_multicast(server, &group, &order, &fds) || !order->origin ||
        getsockname(fds[0], &local.any, &length) < 0) {
        return NULL;
    }
    g_autofree char *local_ip = sf_udp_address_text(&local);
    multicast = multicast_alloc(local_ip);
    multicast->origin_port = sf_udp_address_port(&local);
    multicast->payload = (guint)order->payload;
    multicast->expected = (guint)order->receivers;
    multicast->last_receiver = last_receiver;
    if (!sf_udp_address_parse(group, (guint16)order->port, &multicast->group) ||
        pread(fds[1], multicast->master, sizeof(multicast->master), 0) != sizeof(multicast->master)) {
        return NULL;
    }
    return g_steal_pointer(&multicast);
}

static void set_base64(JsonObject *object, const char *member, const guint8 *bytes)
{
    g_autofree char *text = g_base64_encode(bytes, MC_KEY_LENGTH);

    json_object_set_string_member(object, member, text);
    explicit_bzero(text, strlen(text));
}

/* The same host gets the same number: it may be asked for more places. 0: there are no more. */
static guint number_of(SfMulticast *multicast, const char *host)
{
    guint number = GPOINTER_TO_UINT(g_hash_table_lookup(multicast->receivers, host));

    if (number == 0 && multicast->last_receiver < RECEIVER_MAX) {
        number = ++multicast->last_receiver;
        g_hash_table_insert(multicast->receivers, g_strdup(host), GUINT_TO_POINTER(number));
    }
    return number;
}

JsonObject *sf_multicast_invite(SfMulticast *multicast, const char *host, const char *local_ip)
{
    g_autofree char *link = normal_ip(local_ip);
    guint number = g_strcmp0(link, multicast->local_ip) == 0 ? number_of(multicast, host) : 0;
    struct mc_receiver_keys keys;
    JsonObject *object;

    if (number == 0 || !mc_keys_derive(multicast->master, (guint16)number, &keys)) {
        return NULL;
    }
    g_autofree char *group = sf_udp_address_text(&multicast->group);
    g_autofree char *tag = g_strdup_printf("%016" G_GINT64_MODIFIER "x", (guint64)keys.tag);
    object = json_object_new();
    json_object_set_string_member(object, "group", group);
    json_object_set_int_member(object, "port", sf_udp_address_port(&multicast->group));
    json_object_set_int_member(object, "origin_port", multicast->origin_port);
    json_object_set_int_member(object, "payload", multicast->payload);
    json_object_set_int_member(object, "receiver", number);
    json_object_set_int_member(object, "receivers", multicast->expected);
    json_object_set_string_member(object, "tag", tag);
    set_base64(object, "data_key", keys.data);
    set_base64(object, "request_key", keys.request);
    mc_keys_wipe(&keys);
    return object;
}

guint sf_multicast_last_receiver(const SfMulticast *multicast)
{
    return multicast ? multicast->last_receiver : 0;
}

/* ---- the others ---- */

static gboolean wrong(GError **error, const char *member)
{
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "multicast: \"%s\" of the invitation is missing or wrong",
                member);
    return FALSE;
}

static gboolean get_number(JsonObject *object, const char *member, gint64 min, gint64 max, guint *value, GError **error)
{
    gint64 number = json_object_get_int_member_with_default(object, member, -1);

    *value = (guint)number;
    return (number >= min && number <= max) || wrong(error, member);
}

static const char *get_text(JsonObject *object, const char *member, GError **error)
{
    const char *text = json_object_get_string_member_with_default(object, member, NULL);

    if (!text) {
        wrong(error, member);
    }
    return text;
}

static gboolean get_key(JsonObject *object, const char *member, guint8 key[MC_KEY_LENGTH], GError **error)
{
    const char *text = get_text(object, member, error);
    gsize length = 0;
    g_autofree guchar *bytes = text ? g_base64_decode(text, &length) : NULL;
    gboolean ok = bytes && length == MC_KEY_LENGTH;

    if (ok) {
        memcpy(key, bytes, length);
    }
    if (bytes) {
        explicit_bzero(bytes, length);
    }
    return ok || (text && wrong(error, member));
}

static gboolean parse_keys(JsonObject *invitation, struct mc_receiver_keys *keys, GError **error)
{
    const char *tag = get_text(invitation, "tag", error);
    guint receiver;
    guint64 value;

    if (!tag || !get_number(invitation, "receiver", 1, RECEIVER_MAX, &receiver, error) ||
        !get_key(invitation, "data_key", keys->data, error) ||
        !get_key(invitation, "request_key", keys->request, error)) {
        return FALSE;
    }
    if (!g_ascii_string_to_unsigned(tag, 16, 0, G_MAXUINT64, &value, NULL)) {
        return wrong(error, "tag");
    }
    keys->receiver = (guint16)receiver;
    keys->tag = value;
    return TRUE;
}

/* With keys that are wiped afterwards. */
static gboolean join(SfPager *pager, JsonObject *invitation, struct mc_receiver_keys *keys, const SfUdpAddress *local,
                     const char *origin_ip, GError **error)
{
    const char *group_ip = get_text(invitation, "group", error);
    guint port, origin_port, payload, receivers;
    SfPagerMulticast order = { 0 };
    SfUdpAddress group, origin;
    SfUdpSocket made;
    gboolean ok;

    if (!group_ip || !get_number(invitation, "port", 1, G_MAXUINT16, &port, error) ||
        !get_number(invitation, "origin_port", 1, G_MAXUINT16, &origin_port, error) ||
        !get_number(invitation, "payload", PAYLOAD_MIN, G_MAXUINT16, &payload, error) ||
        !get_number(invitation, "receivers", 0, G_MAXUINT16, &receivers, error) ||
        !parse_keys(invitation, keys, error)) {
        return FALSE;
    }
    if (!sf_udp_address_parse(group_ip, (guint16)port, &group) ||
        !sf_udp_address_parse(origin_ip, (guint16)origin_port, &origin)) {
        return wrong(error, "group");
    }
    if (!sf_udp_group_open_receiver(local, &group, &origin, &made, error)) {
        return FALSE;
    }
    if (made.payload < payload) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
                    "multicast: this link takes datagrams of %u bytes, the origin sends %u: give both the same MTU",
                    made.payload, payload);
    }
    g_message("multicast: group %s, receive buffer of %u bytes", group_ip, made.buffer);
    order.port = port;
    order.payload = payload;
    order.receivers = receivers;
    ok =
        made.payload >= payload && sf_pager_set_multicast(pager, group_ip, &order, made.fd, keys, sizeof(*keys), error);
    close(made.fd);
    return ok;
}

gboolean sf_multicast_join(SfPager *pager, JsonObject *invitation, const char *local_ip, const char *origin_ip,
                           GError **error)
{
    struct mc_receiver_keys keys = { 0 };
    SfUdpAddress local;
    gboolean ok;

    if (!local_ip || !origin_ip || !sf_udp_address_parse(local_ip, 0, &local)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_CONNECTED, "multicast: the origin is not connected");
        return FALSE;
    }
    ok = join(pager, invitation, &keys, &local, origin_ip, error);
    mc_keys_wipe(&keys);
    return ok;
}
