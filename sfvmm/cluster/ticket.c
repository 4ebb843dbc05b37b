/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/cluster/ticket.h"

#include <errno.h>
#include <gio/gio.h>
#include <string.h>
#include <sys/random.h>

SfPlace *sf_place_new(const char *host, guint count)
{
    SfPlace *place = g_new0(SfPlace, 1);

    place->host = g_strdup(host);
    place->count = count;
    return place;
}

void sf_place_free(SfPlace *place)
{
    if (place) {
        g_free(place->host);
        g_free(place);
    }
}

gboolean sf_place_is_local(const SfPlace *place)
{
    return !*place->host;
}

SfTicket *sf_ticket_new(guint64 id, const char *vm, guint granted, guint32 request)
{
    SfTicket *ticket = g_new0(SfTicket, 1);

    ticket->id = id;
    ticket->vm = g_strdup(vm);
    ticket->granted = granted;
    ticket->request = request;
    ticket->avoid = SF_AVOID_ALL;
    ticket->created = g_get_monotonic_time();
    ticket->places = g_ptr_array_new_with_free_func((GDestroyNotify)sf_place_free);
    ticket->refused_by = g_ptr_array_new_with_free_func(g_free);
    ticket->allotted = g_ptr_array_new_with_free_func((GDestroyNotify)sf_place_free);
    return ticket;
}

void sf_ticket_free(SfTicket *ticket)
{
    if (!ticket) {
        return;
    }
    g_ptr_array_unref(ticket->places);
    g_ptr_array_unref(ticket->refused_by);
    g_ptr_array_unref(ticket->allotted);
    g_free(ticket->allocation);
    g_free(ticket->revoked);
    g_free(ticket->origin);
    g_free(ticket->vm);
    g_free(ticket);
}

void sf_places_add(GPtrArray *places, const char *host, gint count)
{
    for (guint i = 0; i < places->len; i++) {
        SfPlace *place = g_ptr_array_index(places, i);
        if (strcmp(place->host, host) != 0) {
            continue;
        }
        if (count < 0 && (guint)-count >= place->count) {
            g_ptr_array_remove_index(places, i);
        } else {
            place->count += (guint)count;
        }
        return;
    }
    if (count > 0) {
        g_ptr_array_insert(places, *host ? -1 : 0, sf_place_new(host, (guint)count));
    }
}

guint sf_places_count_at(GPtrArray *places, const char *host)
{
    for (guint i = 0; i < places->len; i++) {
        const SfPlace *place = g_ptr_array_index(places, i);
        if (strcmp(place->host, host) == 0) {
            return place->count;
        }
    }
    return 0;
}

void sf_ticket_add_place(SfTicket *ticket, const char *host, gint count)
{
    sf_places_add(ticket->places, host, count);
}

guint sf_ticket_count_at(const SfTicket *ticket, const char *host)
{
    return sf_places_count_at(ticket->places, host);
}

gboolean sf_ticket_is_local(const SfTicket *ticket)
{
    return sf_ticket_count_at(ticket, "") == ticket->granted;
}

guint64 sf_ticket_random_id(void)
{
    guint64 id = 0;

    while (id == 0) {
        if (getrandom(&id, sizeof(id), 0) != sizeof(id)) {
            g_error("getrandom: %s", g_strerror(errno));
        }
    }
    return id;
}

char *sf_ticket_id_to_text(guint64 id)
{
    return g_strdup_printf("%016" G_GINT64_MODIFIER "x", id);
}

gboolean sf_ticket_id_from_text(const char *text, guint64 *id)
{
    if (strlen(text) != SF_TICKET_ID_DIGITS) {
        return FALSE;
    }
    *id = 0;
    for (const char *digit = text; *digit; digit++) {
        if (!g_ascii_isxdigit(*digit) || g_ascii_isupper(*digit)) {
            return FALSE;
        }
        *id = *id << 4 | (guint)g_ascii_xdigit_value(*digit);
    }
    return *id != 0;
}

/* A member of that type, else NULL. */
static JsonNode *value_of(JsonObject *object, const char *member, GType type)
{
    JsonNode *node = object ? json_object_get_member(object, member) : NULL;

    return node && JSON_NODE_HOLDS_VALUE(node) && json_node_get_value_type(node) == type ? node : NULL;
}

static const char *text_of(JsonObject *object, const char *member)
{
    JsonNode *node = value_of(object, member, G_TYPE_STRING);

    return node ? json_node_get_string(node) : NULL;
}

/* -1: it is no integer, or negative. */
static gint64 integer_of(JsonObject *object, const char *member)
{
    JsonNode *node = value_of(object, member, G_TYPE_INT64);

    return node ? MAX(json_node_get_int(node), -1) : -1;
}

static JsonArray *places_to_json(GPtrArray *places)
{
    JsonArray *array = json_array_new();

    for (guint i = 0; i < places->len; i++) {
        const SfPlace *place = g_ptr_array_index(places, i);
        JsonObject *object = json_object_new();
        json_object_set_string_member(object, "host", place->host);
        json_object_set_int_member(object, "count", place->count);
        json_array_add_object_element(array, object);
    }
    return array;
}

JsonObject *sf_ticket_to_json(const SfTicket *ticket)
{
    JsonObject *object = json_object_new();
    g_autofree char *id = sf_ticket_id_to_text(ticket->id);

    json_object_set_string_member(object, "ticket", id);
    json_object_set_string_member(object, "vm", ticket->vm);
    json_object_set_int_member(object, "granted", ticket->granted);
    json_object_set_int_member(object, "request", ticket->request);
    json_object_set_int_member(object, "reserved", (gint64)ticket->reserved);
    json_object_set_int_member(object, "created", ticket->created);
    json_object_set_boolean_member(object, "used", ticket->used);
    json_object_set_string_member(object, "avoid", sf_avoid_to_text(ticket->avoid));
    json_object_set_array_member(object, "places", places_to_json(ticket->places));
    if (ticket->refused_by->len > 0) {
        JsonArray *hosts = json_array_new();
        for (guint i = 0; i < ticket->refused_by->len; i++) {
            json_array_add_string_element(hosts, g_ptr_array_index(ticket->refused_by, i));
        }
        json_object_set_array_member(object, "refused_by", hosts);
    }
    if (ticket->origin) {
        json_object_set_string_member(object, "origin", ticket->origin);
    }
    json_object_set_int_member(object, "user", ticket->user);
    if (ticket->allocation) {
        json_object_set_string_member(object, "allocation", ticket->allocation);
        json_object_set_array_member(object, "allotted", places_to_json(ticket->allotted));
    }
    if (ticket->revoked) {
        json_object_set_string_member(object, "revoked", ticket->revoked);
    }
    return object;
}

/* The places of a list in a record, `most` of them at most; returns how many, 0: it is damaged. */
static guint read_places(JsonNode *node, guint most, GPtrArray *places)
{
    JsonArray *array = node && JSON_NODE_HOLDS_ARRAY(node) ? json_node_get_array(node) : NULL;
    guint sum = 0;

    for (guint i = 0; array && i < json_array_get_length(array); i++) {
        JsonNode *item = json_array_get_element(array, i);
        JsonObject *place = JSON_NODE_HOLDS_OBJECT(item) ? json_node_get_object(item) : NULL;
        const char *host = text_of(place, "host");
        gint64 count = integer_of(place, "count");
        if (!host || count < 1 || count > (gint64)(most - sum) || sf_places_count_at(places, host) > 0) {
            return 0;
        }
        sf_places_add(places, host, (gint)count);
        sum += (guint)count;
    }
    return sum;
}

/* What a record says of a ticket's places; one without them (of an earlier version) is of this host. */
static gboolean places_from_json(SfTicket *ticket, JsonObject *object)
{
    JsonNode *node = json_object_get_member(object, "places");

    if (!node) {
        sf_ticket_add_place(ticket, "", (gint)ticket->granted);
        return TRUE;
    }
    return read_places(node, ticket->granted, ticket->places) == ticket->granted;
}

/* What its scheduler gave for it, which may be more than it uses. */
static gboolean allocation_from_json(SfTicket *ticket, JsonObject *object)
{
    ticket->allocation = g_strdup(text_of(object, "allocation"));
    ticket->revoked = g_strdup(text_of(object, "revoked"));
    return !ticket->allocation ||
           read_places(json_object_get_member(object, "allotted"), G_MAXUINT16, ticket->allotted) > 0;
}

static void refused_from_json(SfTicket *ticket, JsonObject *object)
{
    JsonNode *node = json_object_get_member(object, "refused_by");
    JsonArray *array = node && JSON_NODE_HOLDS_ARRAY(node) ? json_node_get_array(node) : NULL;

    for (guint i = 0; array && i < json_array_get_length(array); i++) {
        JsonNode *item = json_array_get_element(array, i);
        if (JSON_NODE_HOLDS_VALUE(item) && json_node_get_value_type(item) == G_TYPE_STRING) {
            g_ptr_array_add(ticket->refused_by, json_node_dup_string(item));
        }
    }
}

SfTicket *sf_ticket_from_json(JsonObject *object, GError **error)
{
    const char *id_text = text_of(object, "ticket"), *vm = text_of(object, "vm");
    gint64 granted = integer_of(object, "granted"), reserved = integer_of(object, "reserved");
    gint64 request = integer_of(object, "request"), created = integer_of(object, "created");
    JsonNode *used = value_of(object, "used", G_TYPE_BOOLEAN);
    g_autoptr(SfTicket) ticket = NULL;
    guint64 id;

    if (!id_text || !sf_ticket_id_from_text(id_text, &id) || !vm || !*vm || granted < 1 || granted > G_MAXUINT16) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "ticket \"%s\": record is damaged",
                    id_text ? id_text : "?");
        return NULL;
    }
    ticket = sf_ticket_new(id, vm, (guint)granted, (guint32)CLAMP(request, 0, G_MAXUINT32));
    ticket->reserved = (guint64)MAX(reserved, 0);
    ticket->created = created >= 0 ? created : ticket->created;
    ticket->used = used && json_node_get_boolean(used);
    ticket->origin = g_strdup(text_of(object, "origin"));
    ticket->user = (guint32)CLAMP(integer_of(object, "user"), 0, G_MAXUINT32);
    if (text_of(object, "avoid") && !sf_avoid_parse(text_of(object, "avoid"), &ticket->avoid, error)) {
        return NULL;
    }
    refused_from_json(ticket, object);
    if (!places_from_json(ticket, object) || !allocation_from_json(ticket, object)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "ticket \"%s\": its record of places is damaged",
                    id_text);
        return NULL;
    }
    return g_steal_pointer(&ticket);
}
