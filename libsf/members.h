/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The parent's view of the clones of a ticket, each of them a VM: their states, and the bytes that they handed over.
 */
#ifndef SF_MEMBERS_H
#define SF_MEMBERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "snowflock.h"

/*
 * Fills results[0..n-1]. flags: SF_GP_JOIN_NOHANG, or 0 to wait until all have ended, at most until deadline_ms of
 * CLOCK_MONOTONIC (0: no limit). Returns the number of clones, *running: some have not ended; -1, ETIMEDOUT among others.
 */
int sf_members_look(uint64_t ticket, struct sf_result *results, size_t n, uint32_t flags, uint64_t deadline_ms,
                    bool *running);

/* Reads from what clone id handed over. Returns the bytes read, fewer than length only at its end; -1. */
ssize_t sf_member_read(uint64_t ticket, unsigned id, void *buffer, size_t length, uint64_t offset);

#endif
