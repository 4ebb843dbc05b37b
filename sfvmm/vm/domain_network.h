/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The cluster network of a domain, as its XML has it. Knows no libvirt. Any thread.
 *
 *     in <metadata>    which network it is, and what of the outside is reachable in it
 *     in <devices>     the NIC in it: the one that has the MAC of the address
 *
 * A network here is an object with the members "network", "address" and "outside" of SfVmConfig, checked and complete.
 */
#ifndef SF_DOMAIN_NETWORK_H
#define SF_DOMAIN_NETWORK_H

#include <gio/gio.h>
#include <json-glib/json-glib.h>
#include "sfvmm/vm/xml.h"

#define SF_DOMAIN_NETWORK_URI "urn:snowflock:network:1" /* namespace of the element in <metadata> */

/* What <metadata> says, or NULL; NULL + error: that can't be. *address: of the domain. Caller owns. */
JsonObject *sf_domain_network_read(xmlDoc *doc, guint32 *address, GError **error);
void sf_domain_network_write(xmlDoc *doc, JsonObject *network);
/* The element, equal for equal networks. Caller owns. */
char *sf_domain_network_format(JsonObject *network);

/* The NIC of the domain with this address in its cluster, or NULL; address 0: it is in none. */
xmlNode *sf_domain_nic_find(xmlDoc *doc, guint32 address);
/* Of a running domain's text: the tap of that NIC and the id of its device. Caller owns both. FALSE + error. */
gboolean sf_domain_nic_names(const char *text, guint32 address, char **target, char **alias, GError **error);
/* Why it is not fit for the cluster, "it is ..."; NULL: it is. Caller owns. */
char *sf_domain_nic_fault(xmlDoc *doc, guint32 address);
/* One that is; to be shown, and in the place of what has its MAC. Caller owns. */
char *sf_domain_nic_format(guint32 address);
void sf_domain_nic_write(xmlDoc *doc, guint32 address);

#endif
