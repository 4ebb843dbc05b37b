/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Domains that an earlier sfvmmd has made and nobody has any more.
 */
#ifndef SF_DOMAIN_SWEEP_H
#define SF_DOMAIN_SWEEP_H

#include "sfvmm/vm/libvirt.h"

/*
 * Destroys the running domains whose lineage names this owner (a run directory) and that are not watched, in the
 * background. Main thread. Each one is told in the log, and so is a libvirtd that does not answer.
 */
void sf_domain_sweep(SfLibvirt *libvirt, const char *owner);

#endif
