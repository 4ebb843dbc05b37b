/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfClient: one connection to sfvmmd's control socket, for programs that ask and wait: sfctl and the virsh commands.
 * docs/control-protocol.md has the protocol. A client belongs to one thread.
 */
#ifndef SF_CLIENT_H
#define SF_CLIENT_H

#include <glib.h>
#include <json-glib/json-glib.h>

#define SF_CLIENT_SOCKET_ENV      "SF_SOCKET"
#define SF_CLIENT_SYSTEM_SOCKET   "/run/snowflock/control.sock"
#define SF_CLIENT_USER_SOCKET     "snowflock/control.sock"   /* below $XDG_RUNTIME_DIR */
#define SF_CLIENT_ANSWER_MAX      (16u << 20)                 /* bytes of an answer or event that we take */
#define SF_CLIENT_EVENTS_MAX      4096u /* events kept while a call waits; the oldest goes first */

#define SF_CLIENT_ERROR (sf_client_error_quark())
GQuark sf_client_error_quark(void);
typedef enum {
    SF_CLIENT_ERROR_NO_DAEMON, /* nobody listens at the socket, or we may not connect */
    SF_CLIENT_ERROR_LOST,      /* the connection ended before the answer */
    SF_CLIENT_ERROR_PROTOCOL,  /* the peer sent what is not the protocol; the connection is closed */
    SF_CLIENT_ERROR_TIMEOUT,   /* no answer in time; the daemon may still do what was asked */
    SF_CLIENT_ERROR_CANCELLED, /* the tick function said so */
    SF_CLIENT_ERROR_REPLY, /* the daemon answered with an error: see sf_client_error_code(), sf_client_error_hint() */
} SfClientError;

typedef struct SfClient SfClient;

/* The socket of the daemon that this user talks to by default. Caller frees. */
char *sf_client_default_socket(void);

/* socket: path, "tls://HOST[:PORT]" for another host (tls.h), or NULL for the default. Never fails; does not connect
 * yet.
 */
SfClient *sf_client_new(const char *socket);
void sf_client_free(SfClient *client);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfClient, sf_client_free)

const char *sf_client_socket(const SfClient *client);

/* It is the sfvmmd of another host: files and times that it speaks of are of there. */
gboolean sf_client_is_remote(const SfClient *client);

/* Connects, if not connected yet. */
gboolean sf_client_connect(SfClient *client, GError **error);

/* For poll(), to wait for events and other things at once; -1: not connected. */
int sf_client_fd(const SfClient *client);

/*
 * One request and its answer. Connects first when needed.
 * params: transfer full, NULL means none. timeout_ms: for the answer, -1 means no limit.
 * Returns the "result" object; the caller unrefs it. NULL + error.
 */
JsonObject *sf_client_call(SfClient *client, const char *method, JsonObject *params, int timeout_ms, GError **error);

/* The last error, as the daemon (or this library) gave it. NULL: none. Valid until the next call. */
const char *sf_client_error_code(const SfClient *client);
const char *sf_client_error_hint(const SfClient *client);

/*
 * The next event, after `subscribe`; waits up to timeout_ms (-1: for ever, 0: only what is here).
 * *name and *data are the caller's. An event has no data member: *data is an empty object.
 */
gboolean sf_client_next_event(SfClient *client, int timeout_ms, char **name, JsonObject **data, GError **error);

/*
 * Called from the waiting calls above every interval_ms and after each signal, with the ms waited so far.
 * Returning FALSE ends the wait with SF_CLIENT_ERROR_CANCELLED. NULL: none.
 */
typedef gboolean (*SfClientTick)(guint waited_ms, gpointer data);
void sf_client_set_tick(SfClient *client, SfClientTick tick, guint interval_ms, gpointer data);

#endif
