/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libsf: fork this virtual machine.
 *
 *     sf_ticket *ticket = sf_request_ticket(8, 0);
 *     int id = sf_clone(ticket);
 *     if (id > 0) {                      // one of up to 8 clones of this whole VM
 *         sf_exit_with(0, share, share_length);
 *     }
 *     sf_join(ticket, results, 8);       // the parent
 *
 * Link with -lsf (pkg-config libsf). Needs sf-agent in the VM and sfvmmd on the host; see snowflock(7).
 *
 * All functions are thread-safe. Those that fail return NULL or -1 with errno set; sf_error() has the reason in words.
 * sf_join(), sf_join_timed(), sf_result_read() and sf_result_get() may be interrupted by a signal handler (EINTR) and
 * repeated; the others wait on.
 */
#ifndef SNOWFLOCK_H
#define SNOWFLOCK_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SF_MAX_CLONES  1024u              /* of one ticket */
#define SF_MAX_RESULT  (64u * 1024 * 1024) /* bytes that a clone may hand back */
#define SF_TEXT_LENGTH 256

/* The right to fork this VM once into some number of clones. */
typedef struct sf_ticket sf_ticket;

/*
 * Flag of a ticket: a VM with k CPUs counts as k clones. sf_clone() forks the VM first, then its caller in each clone
 * into k processes, the workers, which have ids, results and statuses of their own: 1..granted over all clones. For a
 * worker, sf_id(), sf_count(), sf_sync() and sf_exit() are its own; the VM ends with the last of its workers.
 */
#define SF_HIERARCHICAL 1u

/*
 * Flag of a ticket: it may wait so many seconds (up to SF_MAX_QUEUE), when the hosts have no room now or a quota is used
 * up. Without it the answer is given at once.
 */
#define SF_QUEUE(seconds) ((unsigned)(seconds) << 8)
#define SF_MAX_QUEUE      65535u

/* What became of a clone. */
#define SF_STARTING 0
#define SF_RUNNING  1
#define SF_EXITED   2 /* by sf_exit(): status is valid */
#define SF_FAILED   3 /* never ran, or could not be made unique; text says why */
#define SF_LOST     4 /* died without sf_exit(); text says why, signal by which signal */
#define SF_KILLED   5 /* by sf_kill() or an operator */

struct sf_result {
    unsigned id;                   /* 1..granted */
    int state;
    int status;                    /* of sf_exit() */
    int signal;                    /* that ended a worker of a hierarchical ticket; else 0 */
    uint64_t result_length;        /* bytes that the clone handed back last */
    char text[SF_TEXT_LENGTH];     /* why, for people; may be empty */
};

/*
 * Asks for count clones (1..SF_MAX_CLONES). flags: 0, or of SF_HIERARCHICAL and SF_QUEUE(). Fewer may be granted, at least
 * one. Nothing is paused or copied yet. Returns a ticket to be freed with sf_ticket_free(), or NULL.
 */
sf_ticket *sf_request_ticket(unsigned count, unsigned flags);

/* A handle for a ticket that another program of this VM holds. Does not ask whether it exists. NULL: ENOMEM, EINVAL. */
sf_ticket *sf_ticket_open(uint64_t id);

/* Clones granted; for a handle of sf_ticket_open() 0, after sf_clone() the clones made. */
unsigned sf_ticket_granted(const sf_ticket *ticket);

/* The ticket's number, for sf_ticket_open() and the command sf. Never 0. */
uint64_t sf_ticket_id(const sf_ticket *ticket);

/* Frees the handle. Clones and results stay; see sf_release(). NULL is allowed. */
void sf_ticket_free(sf_ticket *ticket);

/*
 * Forks the VM. Returns 0 in the parent and 1..granted in the clones, -1 if there was no fork. All programs of the VM
 * exist in each clone; requests of others that wait there end with ECHILD, as does every use of a parent's ticket.
 * With SF_HIERARCHICAL it returns in worker processes; of the caller's threads only this one exists there.
 */
int sf_clone(sf_ticket *ticket);

/*
 * In a clone: hands length bytes (at most SF_MAX_RESULT) to the host as the clone's result. When it returns 0 they are
 * safe there and have replaced those of the last call. EPERM in a VM that is no clone.
 */
int sf_sync(const void *data, size_t length);

/* In a clone: ends the clone, the whole VM. Elsewhere: exit(status). */
void sf_exit(int status) __attribute__((noreturn));

/* sf_sync(), then sf_exit(). Returns only when the data could not be handed over: -1. */
int sf_exit_with(int status, const void *data, size_t length);

/*
 * Waits until all clones of the ticket have ended and fills results[0..n-1] with those of ids 1..n.
 * Returns the number of clones, which may be more than n.
 */
int sf_join(sf_ticket *ticket, struct sf_result *results, size_t n);

/* As sf_join(), but waits at most timeout_ms (0: not at all, -1: no limit). Returns 0 when some have not ended. */
int sf_join_timed(sf_ticket *ticket, struct sf_result *results, size_t n, int timeout_ms);

/* Reads from clone id's result. Returns the bytes read, fewer than length only at its end. */
ssize_t sf_result_read(sf_ticket *ticket, unsigned id, void *buffer, size_t length, uint64_t offset);

/* All of clone id's result, with a NUL byte behind it, in memory for free(). length may be NULL. */
char *sf_result_get(sf_ticket *ticket, unsigned id, size_t *length);

/* Ends all clones of the ticket. Results that they handed over stay. */
int sf_kill(sf_ticket *ticket);

/* The host forgets ticket and results; clones that still run are killed. The handle remains to be freed. */
int sf_release(sf_ticket *ticket);

/*
 * An array of slots, all of one size, that the clones (or workers) of a ticket fill together. It is made before the fork; a
 * clone fills the slots that are its share and hands them over at its end, which is its result; the parent has all of them
 * after the join.
 *
 *     sf_array *prices = sf_array_new(1000, sizeof(double));
 *     int id = sf_clone(ticket);
 *     if (id > 0) {
 *         for (unsigned i = id - 1; i < 1000; i += granted) {
 *             *(double *)sf_array_fill(prices, i) = price(i);
 *         }
 *         sf_array_exit(prices, 0);
 *     }
 *     sf_array_join(prices, ticket, NULL, 0);
 *
 * An array belongs to one thread, and is to be freed with sf_array_free() (NULL is allowed).
 */
typedef struct sf_array sf_array;

/* slots slots of slot_size bytes, all zero; NULL: EINVAL, ENOMEM. */
sf_array *sf_array_new(size_t slots, size_t slot_size);

/* The memory of a slot, to be written: it counts as filled from now on. NULL: EINVAL, there is no such slot. */
void *sf_array_fill(sf_array *array, size_t slot);

/* The memory of a slot, to be read. NULL: EINVAL, there is no such slot. */
const void *sf_array_get(const sf_array *array, size_t slot);

/* How many slots there are. */
size_t sf_array_length(const sf_array *array);

/* sf_exit_with() the filled slots. Returns only when they could not be handed over: -1. */
int sf_array_exit(sf_array *array, int status);

/*
 * sf_join(), then the slots that clones have handed over are put into the array; of a slot that several have filled it has
 * that of the highest id. EPROTO: what a clone handed over is no part of this array.
 */
int sf_array_join(sf_array *array, sf_ticket *ticket, struct sf_result *results, size_t n);

void sf_array_free(sf_array *array);

/*
 * Checkpoints: fork now, make the clones later. The VM's state is saved on its host under a name (1..SF_MAX_CHECKPOINT of
 * a-z, 0-9 and '-', a letter or digit first), while the VM runs on; clones of it can be made at any time, and again.
 *
 *     int id = sf_checkpoint_parent("warm");
 *     if (id > 0) {                      // in each clone that sf_create_clones() has made, perhaps days later
 *         sf_exit_with(0, share, share_length);
 *     }
 *     sf_ticket *ticket = sf_create_clones("warm", 8);
 *     sf_join(ticket, results, 8);
 *
 * sf_checkpoint_parent() returns 0 when the checkpoint is saved, which takes seconds (the pause is that of a fork), a
 * clone's id in clones, -1 if there is none. For VMs that were started, not for clones.
 */
#define SF_MAX_CHECKPOINT 32
int sf_checkpoint_parent(const char *name);

/*
 * Makes count clones (1..SF_MAX_CLONES; fewer may be granted) of this VM's checkpoint. They run when it returns. The
 * ticket is one that has forked: join, kill and release it. To be freed with sf_ticket_free(); NULL on error.
 */
sf_ticket *sf_create_clones(const char *name, unsigned count);

/* Removes the checkpoint. EBUSY while clones of it live. */
int sf_checkpoint_forget(const char *name);

/* This VM's id among its siblings, 1..sf_count(); 0 in a VM that is no clone; -1: sf-agent cannot be asked. */
int sf_id(void);

/* How many clones were made with this one; 0 in a VM that is no clone; -1: sf-agent cannot be asked. */
int sf_count(void);

/*
 * Addresses in the cluster's network: of clone id, of the parent (id 0), of this VM (SF_SELF). Ids are those of the newest
 * fork that this VM was in, on either side. The text, like "10.77.0.3", is written to buffer (SF_ADDRESS_LENGTH bytes are
 * enough). sf_parent_address() is sf_address() with id 0. Return 0, or -1 with ENOTCONN where there is no such network,
 * EINVAL for an id that nobody has, ERANGE when size is too small, ENOSYS when sf-agent is too old to know.
 */
#define SF_SELF           (-1)
#define SF_ADDRESS_LENGTH 64
int sf_address(int id, char *buffer, size_t size);
int sf_parent_address(char *buffer, size_t size);

/* "running", "exited", ...; "?" for an unknown state. */
const char *sf_state_name(int state);

/* Why the last call of this thread that failed did so. Valid until the next one; "" when none has failed. */
const char *sf_error(void);

/* Version of the library, "0.1.0". */
const char *sf_version(void);

#ifdef __cplusplus
}
#endif

#endif
