/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Worker processes in a clone of a hierarchical ticket: making them, and what they tell the process that keeps them.
 */
#ifndef SF_WORKERS_H
#define SF_WORKERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Forks this process into the workers of clone `clone` of `ticket`, which has per_vm in each clone and `workers` in all.
 * Returns the worker's id in each of them. The process that called keeps them until all have ended, and ends the VM: in
 * it this does not return, unless there is no memory: -1.
 */
int sf_workers_fork(uint64_t ticket, unsigned clone, unsigned per_vm, unsigned workers);

/* This process's id, or that of the worker that forked it; 0: it is no worker. */
unsigned sf_worker_id(void);
/* Workers of the whole ticket; 0: this process is none. */
unsigned sf_worker_count(void);

/* In a worker: sf_sync(). */
int sf_worker_sync(const void *data, size_t length);

/* In a worker: sf_exit(); with_data: sf_exit_with(). Returns -1 if it has not ended. */
int sf_worker_end(int status, const void *data, size_t length, bool with_data);

/* This process is in a new VM, of another ticket, and its own there. No effect if it is no worker. */
void sf_worker_leave(void);

#endif
