/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The parent's view of the workers of a hierarchical ticket: processes in its clones.
 */
#ifndef SF_TREE_H
#define SF_TREE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "libsf/ticket.h"
#include "snowflock.h"

/* As sf_members_look() and sf_member_read(), of workers. */
int sf_tree_look(const sf_ticket *ticket, struct sf_result *results, size_t n, uint32_t flags, uint64_t deadline_ms,
                 bool *running);
ssize_t sf_tree_read(const sf_ticket *ticket, unsigned id, void *buffer, size_t length, uint64_t offset);

#endif
