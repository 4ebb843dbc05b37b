/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The control socket: JSON lines, as docs/control-protocol.md describes them. A connection's requests are answered in
 * any order; one that reads slowly stops being served, one that subscribes and does not read is closed. Main thread
 * only.
 */
#ifndef SF_SERVER_H
#define SF_SERVER_H

#include "sfvmm/control/host.h"

typedef struct SfServer SfServer;

/* One request, until it is answered by exactly one of reply() and fail(), which free it. */
typedef struct SfCall SfCall;
void sf_call_reply(SfCall *call, JsonObject *result); /* takes result */
void sf_call_fail(SfCall *call, const GError *error);
guint32 sf_call_user(SfCall *call);   /* uid of who has sent it */
void sf_call_subscribe(SfCall *call); /* events go to its connection from now on */

/*
 * Serve the host on a listening socket: `fd` of systemd when it is not negative, else a new one at config->socket,
 * which must not be served by another sfvmmd.
 */
SfServer *sf_server_new(SfHost *host, int fd, GError **error);

/* Serve a connection that came another way: a stream socket, and the uid that whoever is behind it counts as. Takes fd.
 */
void sf_server_take(SfServer *server, int fd, guint32 user);

void sf_server_free(SfServer *server);

#endif
