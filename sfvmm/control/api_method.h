/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A method of the control protocol: its name, what carries it out, and its parameters, checked before it runs. */
#ifndef SF_API_METHOD_H
#define SF_API_METHOD_H

#include "sfvmm/control/server.h"

#define SF_API_PARAMS_MAX 16u

typedef enum { SF_API_TEXT, SF_API_INTEGER, SF_API_BOOLEAN, SF_API_ANY } SfApiType;

typedef struct {
    const char *name;
    SfApiType type;
    gboolean required;
} SfApiParam;

typedef struct {
    const char *name;
    void (*handle)(SfHost *host, JsonObject *params, SfCall *call);
    SfApiParam params[SF_API_PARAMS_MAX];
} SfApiMethod;

/* Before a handler runs: every parameter is one of the method's, of its type, and none is missing. */
gboolean sf_api_check_params(const SfApiMethod *method, JsonObject *params, GError **error);

/* For handlers. Parameters that are not there are NULL or what `fallback` says; texts are the request's. */
const char *sf_api_text(JsonObject *params, const char *name);
gboolean sf_api_flag(JsonObject *params, const char *name, gboolean fallback);
/* An integer within bounds, or FALSE and the call has been answered. */
gboolean sf_api_int(JsonObject *params, const char *name, gint64 min, gint64 max, gint64 fallback, gint64 *value,
                    SfCall *call);
/* What "vm" or "ticket" names, or NULL and the call has been answered. */
SfHostVm *sf_api_vm(SfHost *host, JsonObject *params, SfCall *call);
SfHostTicket *sf_api_ticket(SfHost *host, JsonObject *params, SfCall *call);

/* Answers. */
void sf_api_fail(SfCall *call, SfHostError code, const char *format, ...) G_GNUC_PRINTF(3, 4);
void sf_api_reply_empty(SfCall *call);
/* Of sf_host_run_async() and sf_host_adopt_async(), with the call as data: the VM. */
void sf_api_reply_started(GObject *source, GAsyncResult *result, gpointer call);
void sf_api_reply_with(SfCall *call, const char *member, JsonObject *object); /* takes object */

void sf_api_end_vm(SfHost *host, SfHostVm *hvm); /* at once, by an operator; api_vm.c */

/* Tables of the groups, each ends in a method without name. */
extern const SfApiMethod sf_api_vm_methods[];       /* vm.*, descriptor */
extern const SfApiMethod sf_api_ticket_methods[];   /* ticket.*, clone, join, complete, result, kill */
extern const SfApiMethod sf_api_cluster_methods[];  /* host.* */
extern const SfApiMethod sf_api_snapshot_methods[]; /* snapshot.* */
extern const SfApiMethod sf_api_domain_methods[];   /* domain.* */

#endif
