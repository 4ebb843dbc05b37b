/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What agents ask for (libsf/wire/guest_protocol.h), carried out on the host. A guest may use the tickets of its own
 * VM and speak for the clone that it is; nothing else. The frames were checked by the guest channel, the structs are
 * checked here.
 */
#ifndef SF_GUEST_API_H
#define SF_GUEST_API_H

#include "sfvmm/control/host.h"

typedef struct SfGuestApi SfGuestApi;

SfGuestApi *sf_guest_api_new(SfHost *host);
void sf_guest_api_free(SfGuestApi *api);

#endif
