/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The methods of the control protocol, one handler each. */
#ifndef SF_API_H
#define SF_API_H

#include "sfvmm/control/server.h"

/* Carry out a request; the call is answered now or later. */
void sf_api_call(SfHost *host, const char *method, JsonObject *params, SfCall *call);

/* The code of the control protocol for an error of any part, and what the user can do (or NULL). */
const char *sf_api_error_code(const GError *error, const char **hint);

#endif
