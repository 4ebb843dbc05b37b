/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libsf: the calls of snowflock.h that are about this VM and its tickets. join.c has those about its clones,
 * checkpoint.c and address.c those about checkpoints and addresses, array.c what stands on them all.
 *
 *     libsf.c  join.c  checkpoint.c  address.c     the public calls; array.c calls them
 *        |        |
 *     workers.c   |                     a hierarchical ticket: worker processes in a clone, and who keeps them
 *        |        |
 *      vm.c   members.c                 a clone about itself; the parent about clones
 *         \      /
 *          call.c                       one request to sf-agent, one answer
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "libsf/call.h"
#include "libsf/ticket.h"
#include "libsf/vm.h"
#include "libsf/workers.h"
#include "snowflock.h"

#define QUEUE_SHIFT 8 /* of SF_QUEUE() */

_Static_assert(SF_MAX_CLONES == SF_GP_MAX_CLONES && SF_MAX_QUEUE == SF_GP_MAX_QUEUE &&
               SF_MAX_RESULT == SF_GP_MAX_RESULT && SF_TEXT_LENGTH == SF_GP_TEXT_LEN &&
               SF_MAX_CHECKPOINT == SF_GP_CHECKPOINT_MAX,
               "the public limits are those of the protocol");
_Static_assert(SF_STARTING == SF_GP_STATE_STARTING && SF_RUNNING == SF_GP_STATE_RUNNING &&
               SF_EXITED == SF_GP_STATE_EXITED && SF_FAILED == SF_GP_STATE_FAILED && SF_LOST == SF_GP_STATE_LOST &&
               SF_KILLED == SF_GP_STATE_KILLED, "the public states are those of the protocol");

const char *sf_version(void)
{
    return SF_VERSION;
}

const char *sf_state_name(int state)
{
    return state < 0 ? "?" : sf_gp_state_name((uint32_t)state);
}

/* ---- tickets ---- */

sf_ticket *sf_ticket_new(uint64_t id, unsigned granted, unsigned per_vm)
{
    sf_ticket *ticket = malloc(sizeof(*ticket));

    if (!ticket) {
        sf_failed(ENOMEM, "no memory for a ticket");
        return NULL;
    }
    ticket->id = id;
    ticket->per_vm = per_vm;
    atomic_init(&ticket->granted, granted);
    atomic_init(&ticket->state, TICKET_FRESH);
    return ticket;
}

int sf_ticket_check(const sf_ticket *ticket)
{
    if (!ticket) {
        return sf_failed(EINVAL, "no ticket");
    }
    if (atomic_load(&ticket->state) == TICKET_FOREIGN) {
        return sf_failed(ECHILD, "ticket %016" PRIx64 " is that of this clone's parent", ticket->id);
    }
    return 0;
}

/* How many workers a VM is: one for each of its CPUs. */
static unsigned workers_per_vm(void)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);

    return cpus < 1 ? 1 : cpus > (long)SF_MAX_CLONES ? SF_MAX_CLONES : (unsigned)cpus;
}

sf_ticket *sf_request_ticket(unsigned count, unsigned flags)
{
    unsigned per_vm = flags & SF_HIERARCHICAL ? workers_per_vm() : 0;
    unsigned of_vm = per_vm > 0 ? per_vm : 1, workers;
    struct sf_gp_ticket want = { .count = (count + of_vm - 1) / of_vm, .queue = flags >> QUEUE_SHIFT & SF_MAX_QUEUE };
    uint8_t argument[SF_GP_TICKET_LENGTH], reply[SF_GP_ERROR_LENGTH];
    struct sf_gp_granted granted;
    ssize_t length;

    if (count < 1 || count > SF_MAX_CLONES || (flags & ~(SF_HIERARCHICAL | SF_QUEUE(SF_MAX_QUEUE))) != 0) {
        sf_failed(EINVAL, "a ticket for %u clones, flags %#x: 1 to %u clones are possible, flags must be of "
                  "SF_HIERARCHICAL and SF_QUEUE()", count, flags, SF_MAX_CLONES);
        return NULL;
    }
    sf_gp_ticket_pack(argument, &want);
    length = sf_ask(SF_GP_TICKET, argument, sizeof(argument), reply, sizeof(reply));
    if (length < 0) {
        return NULL;
    }
    if (!sf_gp_granted_parse(&granted, reply, (size_t)length) || granted.granted > want.count) {
        sf_malformed(SF_GP_TICKET);
        return NULL;
    }
    workers = granted.granted * of_vm;
    return sf_ticket_new(granted.ticket, workers < count ? workers : count, per_vm);
}

sf_ticket *sf_ticket_open(uint64_t id)
{
    if (id == 0) {
        sf_failed(EINVAL, "0 is not the number of a ticket");
        return NULL;
    }
    return sf_ticket_new(id, 0, 0);
}

unsigned sf_ticket_granted(const sf_ticket *ticket)
{
    return ticket ? atomic_load(&ticket->granted) : 0;
}

uint64_t sf_ticket_id(const sf_ticket *ticket)
{
    return ticket ? ticket->id : 0;
}

void sf_ticket_free(sf_ticket *ticket)
{
    free(ticket);
}

/* ---- fork ---- */

int sf_clone(sf_ticket *ticket)
{
    uint8_t argument[SF_GP_CLONE_LENGTH], reply[SF_GP_ERROR_LENGTH];
    struct sf_gp_cloned cloned;
    ssize_t length;
    int fresh = TICKET_FRESH;

    if (sf_ticket_check(ticket) < 0) {
        return -1;
    }
    if (!atomic_compare_exchange_strong(&ticket->state, &fresh, TICKET_FORKED)) {
        return sf_failed(EALREADY, "ticket %016" PRIx64 " was used: each fork needs a ticket of its own", ticket->id);
    }
    sf_gp_clone_pack(argument, &(struct sf_gp_clone){ .ticket = ticket->id });
    length = sf_ask(SF_GP_CLONE, argument, sizeof(argument), reply, sizeof(reply));
    if (length < 0) {
        int error = errno;

        /* The host knows whether it was used; a second attempt asks it. */
        atomic_store(&ticket->state, error == ECHILD ? TICKET_FOREIGN : TICKET_FRESH);
        errno = error;
        return -1;
    }
    if (!sf_gp_cloned_parse(&cloned, reply, (size_t)length)) {
        return sf_malformed(SF_GP_CLONE);
    }
    if (atomic_load(&ticket->granted) == 0) {
        atomic_store(&ticket->granted, cloned.count);
    }
    if (cloned.id > 0) {
        atomic_store(&ticket->state, TICKET_FOREIGN);
        sf_worker_leave(); /* the VM whose worker this process was is another one */
        if (ticket->per_vm > 0) {
            return sf_workers_fork(ticket->id, cloned.id, ticket->per_vm, atomic_load(&ticket->granted));
        }
    }
    return (int)cloned.id;
}

int sf_id(void)
{
    int id = sf_worker_id();
    struct sf_gp_self me;

    return id > 0 ? id : sf_vm_self(&me) < 0 ? -1 : (int)me.id;
}

int sf_count(void)
{
    int count = sf_worker_count();
    struct sf_gp_self me;

    return count > 0 ? count : sf_vm_self(&me) < 0 ? -1 : (int)me.count;
}

/* ---- a clone's end ---- */

static int check_result(const void *data, size_t length)
{
    if (length > SF_MAX_RESULT) {
        return sf_failed(EFBIG, "a result of %zu bytes: at most %u are possible", length, SF_MAX_RESULT);
    }
    return data || length == 0 ? 0 : sf_failed(EINVAL, "no data");
}

int sf_sync(const void *data, size_t length)
{
    if (check_result(data, length) < 0) {
        return -1;
    }
    return sf_worker_id() > 0 ? sf_worker_sync(data, length) : sf_vm_sync(data, length);
}

/* Standard output ends here too. A stream that another thread holds (it may wait there for ever) is left alone. */
static void flush_output(void)
{
    if (ftrylockfile(stdout) == 0) {
        fflush(stdout);
        funlockfile(stdout);
    }
}

void sf_exit(int status)
{
    struct sf_gp_self me;

    flush_output();
    if (sf_worker_id() > 0) {
        sf_worker_end(status, NULL, 0, false); /* returns if its keeper has gone: then the VM has no more use */
        fprintf(stderr, "sf_exit: %s\n", sf_error());
    }
    if (sf_vm_self(&me) == 0 && me.id > 0) {
        sf_vm_end(status);
    }
    exit(status);
}

int sf_exit_with(int status, const void *data, size_t length)
{
    if (check_result(data, length) < 0) {
        return -1;
    }
    flush_output();
    if (sf_worker_id() > 0) {
        return sf_worker_end(status, data, length, true);
    }
    if (sf_vm_sync(data, length) < 0) {
        return -1;
    }
    sf_vm_end(status); /* only a clone's data is taken */
    exit(status);
}
