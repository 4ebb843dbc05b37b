/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/cluster/ticket.h"

#include <errno.h>
#include <gio/gio.h>
#include <string.h>
#include <sys/random.h>

SfTicket *sf_ticket_new(guint64 id, const char *vm, guint granted, guint32 request)
{
    SfTicket *ticket = g_new0(SfTicket, 1);

    ticket->id = id;
    ticket->vm = g_strdup(vm);
    ticket->granted = granted;
    ticket->request = request;
    ticket->created = g_get_monotonic_time();
    return ticket;
}

void sf_ticket_free(SfTicket *ticket)
{
    if (!ticket) {
        return;
    }
    g_free(ticket->vm);
    g_free(ticket);
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
    return object;
}

SfTicket *sf_ticket_from_json(JsonObject *object, GError **error)
{
    const char *id_text = json_object_get_string_member_with_default(object, "ticket", "");
    const char *vm = json_object_get_string_member_with_default(object, "vm", "");
    gint64 granted = json_object_get_int_member_with_default(object, "granted", 0);
    gint64 reserved = json_object_get_int_member_with_default(object, "reserved", 0);
    SfTicket *ticket;
    guint64 id;

    if (!sf_ticket_id_from_text(id_text, &id) || !*vm || granted < 1 || granted > G_MAXUINT16 || reserved < 0) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "ticket \"%s\": record is damaged", id_text);
        return NULL;
    }
    ticket =
        sf_ticket_new(id, vm, (guint)granted, (guint32)json_object_get_int_member_with_default(object, "request", 0));
    ticket->reserved = (guint64)reserved;
    ticket->created = json_object_get_int_member_with_default(object, "created", ticket->created);
    ticket->used = json_object_get_boolean_member_with_default(object, "used", FALSE);
    return ticket;
}
