/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfDhcpService: answers DHCP requests of the members of a bridge, on a packet socket in the bridge's namespace. Main
 * thread only, by GLib's default main context.
 */
#ifndef SF_DHCP_SERVICE_H
#define SF_DHCP_SERVICE_H

#include <gio/gio.h>
#include "sfvmm/net/dhcp.h"

typedef struct SfDhcpService SfDhcpService;

/*
 * bridge: name of a device of the namespace. members: of SfNetMember *; the caller's, who may change it at any time, as
 * is what `subnet` points to.
 */
SfDhcpService *sf_dhcp_service_new(int netns, const char *bridge, const SfDhcpSubnet *subnet, const GPtrArray *members,
                                   GError **error);
void sf_dhcp_service_free(SfDhcpService *service);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfDhcpService, sf_dhcp_service_free)

#endif
