/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * State files: what sfvmmd finds again after a restart. One JSON object a file, replaced by rename, so that a reader
 * sees the old or the new one whole; mode 0600.
 */
#ifndef SF_STATE_FILE_H
#define SF_STATE_FILE_H

#include <gio/gio.h>
#include <json-glib/json-glib.h>

gboolean sf_state_write(const char *path, JsonObject *object, GError **error);

/* Caller owns the result. NULL + error that names the file when it is not there or is no JSON object. */
JsonObject *sf_state_read(const char *path, GError **error);

/* Names of the entries of a folder, sorted; empty when there is no such folder. Caller frees with g_strfreev. */
GStrv sf_state_list(const char *folder);

/* Remove a folder and all in it. Symbolic links are removed, not followed. What can't be removed is logged. */
void sf_state_remove_folder(const char *folder);

#endif
