/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The part of /etc/hosts that names the members of the cluster. */
#ifndef SF_AGENT_NAMES_H
#define SF_AGENT_NAMES_H

#include "libsf/wire/message.h"

/*
 * Writes it anew, before what others have written, which loses only loopback addresses of the parent's host name
 * (parent_host; empty: not known): whoever looks for that finds its address in the cluster. The file is replaced as a
 * whole; if that can't be done it stays as it is, and the log says so: names are no reason to end a clone.
 */
void names_write(const char *path, const struct sf_gp_network *value, const char *parent_host);

#endif
