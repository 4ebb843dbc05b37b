/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The sandbox of programs that sfvmmd starts and that talk to strangers: what is left of a process that moves bytes
 * between connections. One call, before the first byte from outside is read and before the first thread is started.
 */
#ifndef SF_SANDBOX_H
#define SF_SANDBOX_H

#include <gio/gio.h>

/* program: for messages. directory: the only one in which files may be opened, or NULL. FALSE + error: do not go on. */
gboolean sf_sandbox_enter(const char *program, const char *directory, GError **error);

#endif
