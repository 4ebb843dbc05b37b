/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The sandbox of sf-pager: what is left of a process that only maps pages to connections. One call, before the first
 * byte from outside is read and before the first thread is started.
 */
#ifndef SF_PAGER_SANDBOX_H
#define SF_PAGER_SANDBOX_H

#include <gio/gio.h>

/* directory: the only one in which files may be opened for keys. FALSE + error: do not go on. */
gboolean sandbox_enter(const char *directory, GError **error);

#endif
