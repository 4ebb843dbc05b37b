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

/* Tables of the groups, each ends in a method without name. */
extern const SfApiMethod sf_api_cluster_methods[];  /* host.* */
extern const SfApiMethod sf_api_snapshot_methods[]; /* snapshot.* */
extern const SfApiMethod sf_api_domain_methods[];   /* domain.* */

#endif
