/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The block nodes that libvirt has made for a domain's disks, as QEMU tells them. For worker threads. */
#ifndef SF_DOMAIN_NODES_H
#define SF_DOMAIN_NODES_H

#include "sfvmm/vm/domain.h"

typedef struct {
    guint64 size;     /* virtual, bytes */
    GPtrArray *nodes; /* of char *: lowest layer first; NULL at its end, not counted as a layer */
    JsonObject *top;  /* options of the top node: see SfVmDisk.domain_node */
} SfDomainNodes;

/* One for each of xml's disks, in that order; NULL + error. Blocks. Caller owns. */
GPtrArray *sf_domain_nodes_find(virDomainPtr domain, const SfDomainXml *xml, GError **error);

#endif
