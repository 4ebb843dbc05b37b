/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What this VM, as a clone, says to its host.
 */
#ifndef SF_VM_H
#define SF_VM_H

#include <stddef.h>

#include "libsf/wire/message.h"

/* Which clone this VM is. 0 or -1. */
int sf_vm_self(struct sf_gp_self *self);

/* sf_sync() of the VM. */
int sf_vm_sync(const void *data, size_t length);

/* Ends the VM. Returns only if the host cannot be told, and has said so on standard error. */
void sf_vm_end(int status);

#endif
