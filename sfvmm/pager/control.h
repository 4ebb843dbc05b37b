/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * control: the main thread of sf-pager: orders of sfvmmd over pager.sock (wire/pager_message.h), what becomes of them,
 * and the ledger of orders with their descriptors, from which a restarted sfvmmd takes over.
 */
#ifndef SF_PAGER_CONTROL_H
#define SF_PAGER_CONTROL_H

#include <gio/gio.h>

typedef struct Control Control;

/* listener: SEQPACKET, listening; taken. fault_seconds: bound of a fault, 0: the default. */
Control *control_new(const char *snapshot, int listener, guint fault_seconds, GError **error);
void control_free(Control *control); /* ends all threads */

#endif
