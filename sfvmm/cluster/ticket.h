/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfTicket: the right of one VM to fork once into `granted` clones. A resource manager grants it, the fork uses it,
 * and its release gives the slots back. The id is random: knowing it is the right to use it from within the VM that it
 * was granted to.
 *
 *     granted --> used --> released
 *        \---------------> released   (expired, or its VM ended, before it forked)
 *
 * Main thread only.
 */
#ifndef SF_TICKET_H
#define SF_TICKET_H

#include <glib.h>
#include <json-glib/json-glib.h>

#define SF_TICKET_ID_DIGITS 16u

typedef struct {
    guint64 id;       /* never 0 */
    char *vm;         /* the VM that may fork */
    guint granted;    /* clones, at least 1 */
    guint32 request;  /* the agent's request id, 0: asked for by an operator */
    guint64 reserved; /* bytes of host memory set aside for each clone */
    gint64 created;   /* CLOCK_MONOTONIC, us (g_get_monotonic_time) */
    gboolean used;    /* the fork has begun */
} SfTicket;

SfTicket *sf_ticket_new(guint64 id, const char *vm, guint granted, guint32 request);
void sf_ticket_free(SfTicket *ticket);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfTicket, sf_ticket_free)

/* A fresh random id from getrandom(2). */
guint64 sf_ticket_random_id(void);

/* The id as people and JSON write it: 16 hexadecimal digits. Caller frees. */
char *sf_ticket_id_to_text(guint64 id);
gboolean sf_ticket_id_from_text(const char *text, guint64 *id);

JsonObject *sf_ticket_to_json(const SfTicket *ticket);
SfTicket *sf_ticket_from_json(JsonObject *object, GError **error);

#endif
