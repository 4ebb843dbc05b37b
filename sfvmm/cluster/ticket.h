/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfTicket: the right of one VM to fork once into `granted` clones. A resource manager grants it, the fork uses it,
 * and its release gives the slots back. The id is random: knowing it is the right to use it from within the VM that it
 * was granted to.
 *
 * Its clones have places: so many on this host, so many on each of others.
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
#include "sfvmm/wire/avoid.h"

#define SF_TICKET_ID_DIGITS 16u

/* So many clones on one host. */
typedef struct {
    char *host; /* name; "": this host, however it is called */
    guint count;
} SfPlace;

SfPlace *sf_place_new(const char *host, guint count);
void sf_place_free(SfPlace *place);
gboolean sf_place_is_local(const SfPlace *place);

typedef struct {
    guint64 id;            /* never 0 */
    char *vm;              /* the VM that may fork */
    guint granted;         /* clones, at least 1 */
    guint32 request;       /* the agent's request id, 0: asked for by an operator */
    guint64 reserved;      /* bytes of host memory set aside for each clone */
    gint64 created;        /* CLOCK_MONOTONIC, us (g_get_monotonic_time) */
    gboolean used;         /* the fork has begun */
    guint avoid;           /* SF_AVOID_*: what its clones on other hosts do not fetch */
    GPtrArray *places;     /* of SfPlace, one per host, this one first; the counts add up to `granted`. Owned */
    GPtrArray *refused_by; /* char *: hosts that took none of it when asked; they are not offered again. Owned */
    char *origin;          /* host whose VM this is, when we only lend it places; NULL: the VM is ours */
    guint32 user;          /* uid of who started the VM; of no meaning with an origin */
    char *allocation;      /* what the resource manager's scheduler calls what it gave for it; NULL: it has none */
    GPtrArray *allotted;   /* of SfPlace: what that is, at least what `places` use. Empty without one. Owned */
    char *revoked;         /* why the scheduler took it back; NULL: it has not */
} SfTicket;

/* Without places; add them up to `granted`. */
SfTicket *sf_ticket_new(guint64 id, const char *vm, guint granted, guint32 request);
void sf_ticket_free(SfTicket *ticket);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfTicket, sf_ticket_free)

/* More (or, when negative, fewer) clones on a host; a place without clones is removed. */
void sf_ticket_add_place(SfTicket *ticket, const char *host, gint count);
guint sf_ticket_count_at(const SfTicket *ticket, const char *host); /* 0: none; "": this host */
gboolean sf_ticket_is_local(const SfTicket *ticket);                /* all its clones are on this host */

/* The same for a list of places of its own. */
void sf_places_add(GPtrArray *places, const char *host, gint count);
guint sf_places_count_at(GPtrArray *places, const char *host);

/* A fresh random id from getrandom(2). */
guint64 sf_ticket_random_id(void);

/* The id as people and JSON write it: 16 hexadecimal digits. Caller frees. */
char *sf_ticket_id_to_text(guint64 id);
gboolean sf_ticket_id_from_text(const char *text, guint64 *id);

JsonObject *sf_ticket_to_json(const SfTicket *ticket);
SfTicket *sf_ticket_from_json(JsonObject *object, GError **error);

#endif
