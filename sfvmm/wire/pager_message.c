/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * Requests are described by a table: which members each has, of which kind, and how many descriptors go with it.
 * parse() takes exactly these members, format() writes them; so what one side writes the other understands, and
 * nothing else.
 */
#include "sfvmm/wire/pager_message.h"

#include <string.h>
#include "sfvmm/wire/json_line.h"
#include "sfvmm/wire/packet.h"
#include "sfvmm/wire/page_run.h"
#include "sfvmm/wire/qemu_message.h"

#define NUMBER_MAX    (G_MAXINT64 / 2)
#define DIGEST_DIGITS 64u /* of SHA-256 */

enum {
    HAS_TEXT = 1,       /* under the name of `text` */
    HAS_SECURITY = 2,   /* and its descriptor */
    HAS_NUMBER = 4,     /* under the name of `number` */
    HAS_BLOCKS = 8,
    HAS_ADDRESSES = 16, /* the blocks are where they lie in QEMU */
    HAS_NAMES = 32,
    HAS_FLAGS = 64,
    HAS_MULTICAST = 128,
};

static const struct {
    const char *name;
    guint has;
    const char *text, *number;
    guint n_fds; /* besides those of security and blocks */
    guint64 number_max;
} kinds[SF_PAGER_N_DO] = {
    [SF_PAGER_DO_SERVE] = { "serve", HAS_SECURITY, NULL, NULL, 1, 0 },
    [SF_PAGER_DO_SNAPSHOT] = { "snapshot", HAS_TEXT | HAS_NUMBER | HAS_BLOCKS, "snapshot", "state_length", 1,
                               SF_QC_MAX_STATE },
    [SF_PAGER_DO_SOURCE] = { "source", HAS_TEXT | HAS_NUMBER | HAS_SECURITY, "uri", "connections", 0,
                             SF_PAGER_MAX_CONNECTIONS },
    [SF_PAGER_DO_ATTACH] = { "attach", HAS_TEXT | HAS_NUMBER | HAS_BLOCKS | HAS_ADDRESSES, "vm", "pid", 1, G_MAXINT32 },
    [SF_PAGER_DO_DETACH] = { "detach", HAS_TEXT, "vm", NULL, 0, 0 },
    [SF_PAGER_DO_ALLOW] = { "allow", HAS_NAMES, NULL, NULL, 0, 0 },
    [SF_PAGER_DO_PREFETCH] = { "prefetch", HAS_FLAGS, NULL, NULL, 0, 0 },
    [SF_PAGER_DO_WORKING_SET] = { "working-set", HAS_NUMBER, NULL, "n", 1, SF_PAGER_MAX_RUNS },
    [SF_PAGER_DO_MULTICAST] = { "multicast", HAS_TEXT | HAS_MULTICAST, "group", NULL, 2, 0 },
    [SF_PAGER_DO_BLOB] = { "blob", HAS_TEXT | HAS_NUMBER, "digest", "length", 1, SF_PAGER_MAX_BLOB },
    [SF_PAGER_DO_RECORDED] = { "recorded", 0, NULL, NULL, 0, 0 },
    [SF_PAGER_DO_STATS] = { "stats", 0, NULL, NULL, 0, 0 },
    [SF_PAGER_DO_RECALL] = { "recall", HAS_NUMBER, NULL, "index", 0, G_MAXINT32 },
};

static const char *const securities[SF_PAGER_N_SECURITY] = { "plain", "x509", "psk" };

/* ---- packets ---- */

static const SfPacketKind pager_packet = { "pager channel", "the other side", SF_PAGER_MAX_MESSAGE, SF_PAGER_MAX_FDS };

void sf_pager_packet_free(SfPagerPacket *packet)
{
    if (packet) {
        sf_packet_close_fds(packet->fds, packet->n_fds);
        g_clear_pointer(&packet->object, json_object_unref);
        g_free(packet);
    }
}

SfPagerPacket *sf_pager_receive(int socket, GError **error)
{
    g_autofree char *bytes = g_malloc(SF_PAGER_MAX_MESSAGE);
    g_autoptr(SfPagerPacket) packet = g_new0(SfPagerPacket, 1);
    gsize length = sf_packet_receive(&pager_packet, socket, bytes, packet->fds, &packet->n_fds, error);

    if (length == 0) {
        return NULL;
    }
    packet->object = sf_json_line_parse(bytes, length, error);
    return packet->object ? g_steal_pointer(&packet) : NULL;
}

gboolean sf_pager_send(int socket, JsonObject *object, const int *fds, guint n_fds, GError **error)
{
    gsize length;
    g_autofree char *text = sf_json_line_format(object, &length);

    return sf_packet_send(&pager_packet, socket, text, length, fds, n_fds, error);
}

/* ---- parsing ---- */

G_GNUC_PRINTF(2, 3) static gboolean invalid(GError **error, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "pager channel: %s", text);
    return FALSE;
}

static gboolean get_int(JsonObject *object, const char *member, guint64 min, guint64 max, guint64 *value,
                        GError **error)
{
    JsonNode *node = json_object_get_member(object, member);

    if (!node || !JSON_NODE_HOLDS_VALUE(node) || json_node_get_value_type(node) != G_TYPE_INT64 ||
        json_node_get_int(node) < 0 || (guint64)json_node_get_int(node) < min ||
        (guint64)json_node_get_int(node) > max) {
        return invalid(error, "\"%s\" is missing, no integer or out of bounds", member);
    }
    *value = json_node_get_int(node);
    return TRUE;
}

static const char *text_of(JsonNode *node)
{
    const char *text = node && JSON_NODE_HOLDS_VALUE(node) && json_node_get_value_type(node) == G_TYPE_STRING
                           ? json_node_get_string(node)
                           : NULL;

    return text && *text && strlen(text) <= SF_PAGER_MAX_TEXT ? text : NULL;
}

static const char *get_text(JsonObject *object, const char *member, GError **error)
{
    const char *text = text_of(json_object_get_member(object, member));

    if (!text) {
        invalid(error, "\"%s\" is missing, no text, empty or too long", member);
    }
    return text;
}

static JsonArray *get_array(JsonObject *object, const char *member, guint max, GError **error)
{
    JsonNode *node = json_object_get_member(object, member);

    if (!node || !JSON_NODE_HOLDS_ARRAY(node) || json_array_get_length(json_node_get_array(node)) > max) {
        invalid(error, "\"%s\" is missing, no array or too long", member);
        return NULL;
    }
    return json_node_get_array(node);
}

static gboolean get_flag(JsonObject *object, const char *member, gboolean *value, GError **error)
{
    JsonNode *node = json_object_get_member(object, member);

    if (!node || !JSON_NODE_HOLDS_VALUE(node) || json_node_get_value_type(node) != G_TYPE_BOOLEAN) {
        return invalid(error, "\"%s\" is missing or no boolean", member);
    }
    *value = json_node_get_boolean(node);
    return TRUE;
}

static gboolean parse_security(JsonObject *object, SfPagerRequest *request, GError **error)
{
    const char *name = get_text(object, "security", error);

    if (!name) {
        return FALSE;
    }
    for (guint i = 0; i < SF_PAGER_N_SECURITY; i++) {
        if (strcmp(securities[i], name) == 0) {
            request->security = i;
            if (i == SF_PAGER_PSK && request->what == SF_PAGER_DO_SOURCE) {
                request->user = g_strdup(get_text(object, "user", error));
                return request->user != NULL;
            }
            return TRUE;
        }
    }
    return invalid(error, "security \"%.64s\" is unknown", name);
}

static gboolean parse_layers(JsonObject *object, SfPagerBlock *block, GError **error)
{
    JsonArray *layers = get_array(object, "layers", SF_QC_MAX_LAYERS, error);
    guint64 present;

    if (!layers || !get_flag(object, "cache", &block->is_cache, error) ||
        !get_int(object, "n_present", 0, block->is_cache ? SF_QC_MAX_EXTENTS : 0, &present, error)) {
        return FALSE;
    }
    block->n_present = present;
    block->n_layers = json_array_get_length(layers);
    for (guint i = 0; i < block->n_layers; i++) {
        JsonNode *node = json_array_get_element(layers, i);
        if (!JSON_NODE_HOLDS_VALUE(node) || json_node_get_value_type(node) != G_TYPE_INT64 ||
            json_node_get_int(node) < 0 || json_node_get_int(node) > SF_QC_MAX_EXTENTS) {
            return invalid(error, "\"layers\" of block %s", block->id);
        }
        block->n_extents[i] = json_node_get_int(node);
    }
    return TRUE;
}

static gboolean parse_block(JsonNode *node, SfPagerRequest *request, guint index, GError **error)
{
    SfPagerBlock *block = &request->blocks[index];
    gboolean attach = kinds[request->what].has & HAS_ADDRESSES;
    JsonObject *object = JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
    const char *id = object ? get_text(object, "id", error) : NULL;

    if (!object) {
        return invalid(error, "a block is no object");
    }
    if (!id || !get_int(object, "length", SF_PAGE_SIZE, SF_QC_MAX_LENGTH, &block->length, error)) {
        return FALSE;
    }
    if (strlen(id) >= sizeof(block->id) || block->length % SF_PAGE_SIZE) {
        return invalid(error, "block %.64s of %" G_GUINT64_FORMAT " bytes", id, block->length);
    }
    strcpy(block->id, id);
    for (guint i = 0; i < index; i++) {
        if (strcmp(request->blocks[i].id, id) == 0) {
            return invalid(error, "block %s twice", id);
        }
    }
    if (attach) {
        return get_int(object, "address", 0, NUMBER_MAX, &block->address, error) &&
               (block->address % SF_PAGE_SIZE == 0 || invalid(error, "the address of block %s", id));
    }
    return parse_layers(object, block, error);
}

static gboolean parse_blocks(JsonObject *object, SfPagerRequest *request, GError **error)
{
    JsonArray *blocks = get_array(object, "blocks", SF_QC_MAX_BLOCKS, error);

    if (!blocks) {
        return FALSE;
    }
    request->n_blocks = json_array_get_length(blocks);
    request->blocks = g_new0(SfPagerBlock, MAX(request->n_blocks, 1));
    for (guint i = 0; i < request->n_blocks; i++) {
        if (!parse_block(json_array_get_element(blocks, i), request, i, error)) {
            return FALSE;
        }
    }
    return request->n_blocks > 0 || invalid(error, "no blocks");
}

static gboolean parse_names(JsonObject *object, SfPagerRequest *request, GError **error)
{
    JsonArray *names = get_array(object, "names", SF_PAGER_MAX_NAMES, error);
    g_autoptr(GPtrArray) texts = g_ptr_array_new_with_free_func(g_free);

    for (guint i = 0; names && i < json_array_get_length(names); i++) {
        const char *name = text_of(json_array_get_element(names, i));
        if (!name) {
            return invalid(error, "a name is no text, empty or too long");
        }
        g_ptr_array_add(texts, g_strdup(name));
    }
    g_ptr_array_add(texts, NULL);
    request->names = names ? (GStrv)g_ptr_array_free(g_steal_pointer(&texts), FALSE) : NULL;
    return names != NULL;
}

static gboolean parse_multicast(JsonObject *object, SfPagerMulticast *multicast, GError **error)
{
    return get_flag(object, "origin", &multicast->origin, error) &&
           get_flag(object, "push", &multicast->push, error) &&
           get_int(object, "port", 1, G_MAXUINT16, &multicast->port, error) &&
           get_int(object, "payload", 1, G_MAXUINT16, &multicast->payload, error) &&
           get_int(object, "receivers", 0, G_MAXUINT16, &multicast->receivers, error) &&
           get_int(object, "min_rate", 0, NUMBER_MAX, &multicast->min_rate, error) &&
           get_int(object, "max_rate", 0, NUMBER_MAX, &multicast->max_rate, error);
}

static gboolean parse_members(JsonObject *object, SfPagerRequest *request, GError **error)
{
    guint has = kinds[request->what].has;
    guint64 id;

    if (!get_int(object, "id", 1, NUMBER_MAX, &id, error)) {
        return FALSE;
    }
    request->id = id;
    if (has & HAS_TEXT) {
        request->text = g_strdup(get_text(object, kinds[request->what].text, error));
    }
    return (!(has & HAS_TEXT) || request->text) &&
           (!(has & HAS_NUMBER) || get_int(object, kinds[request->what].number, 0, kinds[request->what].number_max,
                                           &request->number, error)) &&
           (!(has & HAS_SECURITY) || parse_security(object, request, error)) &&
           (!(has & HAS_BLOCKS) || parse_blocks(object, request, error)) &&
           (!(has & HAS_NAMES) || parse_names(object, request, error)) &&
           (!(has & HAS_MULTICAST) || parse_multicast(object, &request->multicast, error)) &&
           (!(has & HAS_FLAGS) || (get_flag(object, "working_set", &request->working_set, error) &&
                                   get_flag(object, "neighbours", &request->neighbours, error) &&
                                   get_flag(object, "complete", &request->complete, error)));
}

SfPagerRequest *sf_pager_request_parse(JsonObject *object, guint n_fds, GError **error)
{
    g_autoptr(SfPagerRequest) request = g_new0(SfPagerRequest, 1);
    const char *what = get_text(object, "do", error);

    if (!what) {
        return NULL;
    }
    while (request->what < SF_PAGER_N_DO && strcmp(kinds[request->what].name, what) != 0) {
        request->what++;
    }
    if (request->what == SF_PAGER_N_DO) {
        invalid(error, "an order \"%.64s\" is unknown", what);
        return NULL;
    }
    if (!parse_members(object, request, error)) {
        return NULL;
    }
    if (sf_pager_request_n_fds(request) != n_fds) {
        invalid(error, "%s with %u descriptors, %u expected", what, n_fds, sf_pager_request_n_fds(request));
        return NULL;
    }
    return g_steal_pointer(&request);
}

void sf_pager_request_free(SfPagerRequest *request)
{
    if (request) {
        g_free(request->text);
        g_free(request->user);
        g_strfreev(request->names);
        g_free(request->blocks);
        g_free(request);
    }
}

gboolean sf_pager_blob_id(const char *digest, guint64 *id)
{
    g_autofree char *first = strlen(digest) == DIGEST_DIGITS ? g_strndup(digest, DIGEST_DIGITS / 4) : NULL;

    return first && g_ascii_string_to_unsigned(first, 16, 0, G_MAXUINT64, id, NULL);
}

guint sf_pager_request_n_fds(const SfPagerRequest *request)
{
    guint has = kinds[request->what].has;
    guint n = kinds[request->what].n_fds + ((has & HAS_SECURITY) && request->security != SF_PAGER_PLAIN);

    for (guint i = 0; (has & HAS_BLOCKS) && !(has & HAS_ADDRESSES) && i < request->n_blocks; i++) {
        n += 1 + !!request->blocks[i].is_cache + 2 * request->blocks[i].n_layers;
    }
    return n;
}

/* ---- formatting ---- */

static JsonObject *format_block(const SfPagerBlock *block, gboolean attach)
{
    JsonObject *object = json_object_new();

    json_object_set_string_member(object, "id", block->id);
    json_object_set_int_member(object, "length", block->length);
    if (attach) {
        json_object_set_int_member(object, "address", block->address);
        return object;
    }
    JsonArray *layers = json_array_new();
    for (guint i = 0; i < block->n_layers; i++) {
        json_array_add_int_element(layers, block->n_extents[i]);
    }
    json_object_set_boolean_member(object, "cache", block->is_cache);
    json_object_set_int_member(object, "n_present", block->n_present);
    json_object_set_array_member(object, "layers", layers);
    return object;
}

static void format_multicast(const SfPagerMulticast *multicast, JsonObject *object)
{
    json_object_set_boolean_member(object, "origin", multicast->origin);
    json_object_set_boolean_member(object, "push", multicast->push);
    json_object_set_int_member(object, "port", multicast->port);
    json_object_set_int_member(object, "payload", multicast->payload);
    json_object_set_int_member(object, "receivers", multicast->receivers);
    json_object_set_int_member(object, "min_rate", multicast->min_rate);
    json_object_set_int_member(object, "max_rate", multicast->max_rate);
}

JsonObject *sf_pager_request_format(const SfPagerRequest *request)
{
    JsonObject *object = json_object_new();
    guint has = kinds[request->what].has;

    json_object_set_int_member(object, "id", request->id);
    json_object_set_string_member(object, "do", kinds[request->what].name);
    if (has & HAS_TEXT) {
        json_object_set_string_member(object, kinds[request->what].text, request->text);
    }
    if (has & HAS_NUMBER) {
        json_object_set_int_member(object, kinds[request->what].number, request->number);
    }
    if (has & HAS_SECURITY) {
        json_object_set_string_member(object, "security", securities[request->security]);
        if (request->user) {
            json_object_set_string_member(object, "user", request->user);
        }
    }
    if (has & HAS_BLOCKS) {
        JsonArray *blocks = json_array_new();
        for (guint i = 0; i < request->n_blocks; i++) {
            json_array_add_object_element(blocks, format_block(&request->blocks[i], has & HAS_ADDRESSES));
        }
        json_object_set_array_member(object, "blocks", blocks);
    }
    if (has & HAS_NAMES) {
        JsonArray *names = json_array_new();
        for (guint i = 0; request->names && request->names[i]; i++) {
            json_array_add_string_element(names, request->names[i]);
        }
        json_object_set_array_member(object, "names", names);
    }
    if (has & HAS_MULTICAST) {
        format_multicast(&request->multicast, object);
    }
    if (has & HAS_FLAGS) {
        json_object_set_boolean_member(object, "working_set", request->working_set);
        json_object_set_boolean_member(object, "neighbours", request->neighbours);
        json_object_set_boolean_member(object, "complete", request->complete);
    }
    return object;
}
