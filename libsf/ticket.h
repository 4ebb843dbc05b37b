/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What is behind a ticket handle. Any thread may use a handle: what changes in it is atomic.
 */
#ifndef SF_TICKET_H
#define SF_TICKET_H

#include <stdatomic.h>
#include <stdint.h>

enum sf_ticket_state { TICKET_FRESH, TICKET_FORKED, TICKET_FOREIGN };

struct sf_ticket {
    uint64_t id;
    atomic_uint granted;    /* VMs, or workers of a hierarchical ticket */
    atomic_int state;
    unsigned per_vm;        /* workers in each VM; 0: not hierarchical, the VM itself is the worker */
};

/* NULL: ENOMEM. */
struct sf_ticket *sf_ticket_new(uint64_t id, unsigned granted, unsigned per_vm);

/* 0; -1: there is no ticket (EINVAL), or it is the parent's (ECHILD). */
int sf_ticket_check(const struct sf_ticket *ticket);

#endif
