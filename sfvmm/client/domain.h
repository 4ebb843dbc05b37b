/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Domains of libvirt as VMs of sfvmmd, from the other end: what sfctl and the virsh commands share. */
#ifndef SF_CLIENT_DOMAIN_H
#define SF_CLIENT_DOMAIN_H

#include "sfvmm/client/client.h"

/*
 * `clone` of a VM, or of a domain that runs and is no VM yet: that is taken first (domain.adopt). params as for
 * `clone`, with "vm"; transfer full. uri: libvirt's, NULL: the daemon's default. Returns the result; the caller unrefs
 * it.
 */
JsonObject *sf_client_clone(SfClient *client, JsonObject *params, const char *uri, GError **error);

#endif
