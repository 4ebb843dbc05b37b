/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The part of /etc/hosts that names the members of the cluster. */
#ifndef SF_AGENT_NAMES_H
#define SF_AGENT_NAMES_H

#include <sys/stat.h>

#include "libsf/wire/message.h"

/* What was written last, and the file as it was then; all zero: nothing. */
struct names {
    struct sf_gp_network members; /* of it what names need */
    char parent_host[SF_GP_NAME_LEN + 1];
    struct stat file;
};

/*
 * Writes it anew, before what others have written, which loses only loopback addresses of the parent's host name
 * (parent_host; empty: not known): whoever looks for that finds its address in the cluster. The file is replaced as a
 * whole; if that can't be done it stays as it is, and the log says so: names are no reason to end a clone.
 * Nothing is done if they are the same as in *last, and the file is: so a clone has them from its parent.
 */
void names_write(struct names *last, const char *path, const struct sf_gp_network *value, const char *parent_host);

#endif
