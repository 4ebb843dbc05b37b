/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The operators of sfvmmd.conf: who may use the control protocol from elsewhere, and the user that each counts as. */
#ifndef SF_CONFIG_OPERATORS_H
#define SF_CONFIG_OPERATORS_H

#include <glib.h>

#define SF_CONFIG_OPERATORS "operators"

/*
 * Group [operators], lines NAME=USER. Returns a table name -> uid (GUINT_TO_POINTER), empty without the group; the
 * caller unrefs it. path: of the file, for errors. NULL + error.
 */
GHashTable *sf_config_operators_read(GKeyFile *file, const char *path, GError **error);

#endif
