/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The key by which members of a cluster reach each other with ssh: made by a program of its own, sf-cluster-ssh. */
#ifndef SF_AGENT_CLUSTER_SSH_H
#define SF_AGENT_CLUSTER_SSH_H

#include "libsf/wire/message.h"

/*
 * In the first VM of a cluster, before it can fork; waits for the program. That it is not there, or fails, is no reason to
 * end anything: the log says so.
 */
void cluster_ssh_prepare(const struct sf_gp_network *value);

#endif
