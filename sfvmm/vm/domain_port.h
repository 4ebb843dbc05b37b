/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The port of a domain's agent, for who may use libvirtd and not enter the folder that its socket lies in. Main thread.
 */
#ifndef SF_DOMAIN_PORT_H
#define SF_DOMAIN_PORT_H

#include "sfvmm/vm/domain.h"

/*
 * A connected stream socket that is the port, not blocking; the caller's. Its other end is closed when libvirtd can't
 * open the port, or closes it. -1 + error.
 */
int sf_domain_port_open(SfDomain *domain, GError **error);

#endif
