/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef SF_QEMU_VERSION_H
#define SF_QEMU_VERSION_H

#include "sfvmm/control/host.h"

/* Of the QEMU that is configured, "10.0.13"; borrowed. The first call runs it (some 30 ms). NULL + error: it can't be
 * run. */
const char *sf_host_qemu_version(SfHost *host, GError **error);

#endif
