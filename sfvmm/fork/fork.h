/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfFork: one fork of one VM, from the order to the end of its last clone, as an explicit state machine.
 *
 *     NEW --> SNAPSHOT --> PLACING --> RUNNING --> DONE
 *                 |            |
 *                 +--> FAILED <+   no clone could be made; the parent goes on in every case
 *
 *     state      what happens                                              undo when it fails
 *     SNAPSHOT   in a network: the parent's agent is told, and waited for  a bound; then on without
 *                the parent is paused, frozen, resumed (sf_vm_snapshot)    QEMU and vm/ undo it; the parent runs
 *     PLACING    each clone: take a shell, load it, let it run             the shell is killed, another one tried once
 *     RUNNING    each clone: made unique by its agent, then at work        the clone is killed and reported as failed
 *     DONE       every clone has exited, failed, was lost or killed
 *
 * A clone goes its way through these independently of its siblings; the fork is RUNNING when none is being placed any
 * more.
 *
 * Clones of one fork may be on several hosts. The fork exists on each of them, as an SfFork of the same ticket: on the
 * origin, where its VM is, with all clones, of which those with a `host` are driven by what that host reports
 * (remote.h); on each other host with the clones there alone, from PLACING on (sf_fork_new_placed()).
 *
 * Everything that must survive sfvmmd is in the ticket's directory before the step that needs it: fork.json, the
 * snapshot and the clones' results. Main thread only.
 *
 * Signals
 *   "changed" (SfClone *)   a clone's state or timeline has changed; NULL: the fork's own
 *   "placed"  ()            no clone is being placed any more, or it failed: `sf_clone()` can return in the parent
 *   "done"    ()            emitted once
 */
#ifndef SF_FORK_H
#define SF_FORK_H

#include "libsf/wire/guest_protocol.h"
#include "sfvmm/pager/pager.h"
#include "sfvmm/vm/shell_pool.h"

/* A ticket's id --> the name of its snapshot. */
#define SF_FORK_SNAPSHOT_PREFIX "s-"
#define SF_FORK_SNAPSHOT_FORMAT SF_FORK_SNAPSHOT_PREFIX "%016" G_GINT64_MODIFIER "x"

#define SF_TYPE_FORK (sf_fork_get_type())
G_DECLARE_FINAL_TYPE(SfFork, sf_fork, SF, FORK, GObject)

typedef enum {
    SF_FORK_NEW,
    SF_FORK_SNAPSHOT,
    SF_FORK_PLACING,
    SF_FORK_RUNNING,
    SF_FORK_DONE,
    SF_FORK_FAILED,
} SfForkState;

/* One clone. Times are CLOCK_MONOTONIC ns, 0: not yet. Read by others, written by fork/ alone. */
typedef struct {
    SfFork *fork;          /* not owned: the clone lives as long as its fork */
    guint id;              /* 1.. */
    char *name;            /* of its VM */
    char *host;            /* that it is placed on; NULL: this one */
    SfVm *vm;              /* NULL before it is placed, after its end, and on another host */
    guint32 state;         /* SF_GP_STATE_* */
    gint32 status;         /* of sf_exit, when EXITED */
    char *reason;          /* why it failed, was lost or killed; or NULL */
    guint64 result_length; /* bytes of the last whole result */
    guint64 received;      /* bytes of the result that is coming in */
    guint attempts;        /* shells tried */
    gboolean network_told; /* its agent knows what NETWORK is */
    guint reminders;       /* how often its guest has asked who it is, in this process */
    gint64 placed;         /* on another host: when that one was ordered to place it; its times are of this clock */
    gint64 loaded, running, answered, synced, exited;
    gulong exited_handler, running_handler;
    guint identify_timeout; /* GSource id, 0: none */
} SfClone;

/*
 * The way to other hosts, which floor 4 gives. Each call returns at once; what comes of it is told by the functions of
 * remote.h, later.
 */
typedef struct {
    gpointer owner;
    /* The snapshot is there: have those clones of `host` placed that are being placed. */
    void (*place)(gpointer owner, SfFork *fork, const char *host);
    /* The clone has been ended here; its QEMU has not. */
    void (*kill)(gpointer owner, SfClone *clone, const char *reason);
} SfForkRemote;

/* The clones' network, which floor 4 gives. Clones with an agent are put on it once they have their own MAC and
 * address. */
typedef struct {
    gpointer owner;
    /* Before the snapshot: the parent's agent is told what its clones will be, so that it does what they would all have
     * to do. FALSE: it can't be told; else sf_fork_parent_told() follows, or not. */
    gboolean (*tell_parent)(gpointer owner, SfFork *fork);
    /* Fills in what the agent of a clone is told. */
    void (*describe)(gpointer owner, const SfClone *clone, struct sf_gp_network *network);
    /* The clone's tap may be on the bridge from now on. */
    gboolean (*admit)(gpointer owner, const SfClone *clone, GError **error);
} SfForkNetwork;

/* `count` clones for a host; NULL: this one. */
typedef struct {
    const char *host;
    guint count;
} SfForkPlace;

typedef struct {
    guint64 ticket;
    guint count; /* clones of this SfFork, 1..SF_GP_MAX_CLONES */
    SfVm *parent;
    SfShellPool *pool;
    const SfForkPlace *places; /* of the clones, in the order of their ids; they add up to count. NULL: all here */
    guint n_places;
    const SfForkNetwork *network; /* NULL: clones are in none */
    const SfForkRemote *remote;   /* needed with places elsewhere, or after a restart */
    SfPager *pager;               /* that fills the memory which clones here map; NULL: it is all there */
    SfPager *server;              /* that gives the snapshot's memory to other hosts; NULL: no place is elsewhere */
    gboolean with_agent;          /* clones are made unique by their agent; else they just run */
    guint32 clone_request;        /* the agent's CLONE request, 0: forked from outside */
    const char *directory;        /* of the ticket; must exist */
    guint identify_seconds;       /* bound for a clone to become unique */
} SfForkOptions;

SfFork *sf_fork_new(const SfForkOptions *options);

/*
 * A fork without a parent, whose snapshot was taken already: the part of another host's fork that is placed here, or
 * one of a saved snapshot. options->count clones with these ids, of `total`; in options->places, in the order of their
 * ids.
 */
typedef struct {
    const char *parent_name;
    guint total;
    const guint *ids; /* ascending */
    SfSnapshot *snapshot;
    GPtrArray *frozen_disks; /* of SfDiskChain */
    gint64 ordered; /* when the order came, ns of CLOCK_MONOTONIC: times are told since then; 0: when it starts */
} SfForkPlaced;
SfFork *sf_fork_new_placed(const SfForkOptions *options, const SfForkPlaced *placed);

/* Begin. Progress is told by signals. */
void sf_fork_start(SfFork *fork);

SfForkState sf_fork_state(SfFork *fork);
const char *sf_fork_reason(SfFork *fork);  /* why it failed; NULL otherwise */
gboolean sf_fork_is_refused(SfFork *fork); /* it failed because this VM can't be forked as it is */
guint64 sf_fork_ticket(SfFork *fork);
guint sf_fork_count(SfFork *fork);               /* clones of this SfFork */
guint sf_fork_total(SfFork *fork);               /* of all hosts: the highest id */
SfClone *sf_fork_nth(SfFork *fork, guint index); /* 0..sf_fork_count() - 1, in the order of the ids */
const char *sf_fork_parent_name(SfFork *fork);
SfVm *sf_fork_parent(SfFork *fork); /* not owned; NULL: it had ended when sfvmmd was restarted, or is elsewhere */
gboolean sf_fork_with_agent(SfFork *fork);
guint32 sf_fork_clone_request(SfFork *fork); /* 0: forked from outside */
gboolean sf_fork_is_placed(SfFork *fork);
gboolean sf_fork_is_done(SfFork *fork);         /* DONE or FAILED */
gboolean sf_fork_is_answered(SfFork *fork);     /* placed, and no clone is still to become unique */
guint sf_fork_alive(SfFork *fork);              /* clones STARTING or RUNNING */
guint sf_fork_placed_count(SfFork *fork);       /* clones that got to run */
SfClone *sf_fork_clone(SfFork *fork, guint id); /* NULL: no such id here */
SfClone *sf_fork_clone_of_vm(SfFork *fork, SfVm *vm);

void sf_fork_parent_told(SfFork *fork); /* the parent's agent has answered SfForkNetwork's tell_parent() */

/* What the agent of a clone sent. Replies and effects are complete when these return; on error nothing has changed. */
void sf_fork_clone_network_told(SfClone *clone); /* NETWORK is answered */
void sf_fork_clone_identified(SfClone *clone, const char *error_text_or_null);
void sf_fork_clone_linked(SfClone *clone); /* LINK is answered */
void sf_fork_clone_remind(SfClone *clone); /* WHO: a guest that has booted anew is told again who it is */
gboolean sf_fork_clone_sync(SfClone *clone, guint64 offset, guint64 total, const void *data, gsize length,
                            GError **error);
void sf_fork_clone_exit(SfClone *clone, gint32 status);

/* Part of a clone's last whole result, at most `length` bytes; fewer at its end. */
GBytes *sf_fork_clone_fetch(SfClone *clone, guint64 offset, gsize length, GError **error);

/* End a clone, or all; the reason is what sf_join tells. */
void sf_fork_clone_kill(SfClone *clone, const char *reason);
void sf_fork_kill(SfFork *fork, const char *reason);
void sf_fork_clone_lose(SfClone *clone, const char *reason); /* it can't go on */

/* The snapshot while somebody needs it (fork, clones on other hosts), or NULL. Not owned by the caller. */
SfSnapshot *sf_fork_snapshot(SfFork *fork);
GPtrArray *sf_fork_frozen_disks(SfFork *fork); /* of SfDiskChain; NULL like the snapshot */

/* For the control protocol: adds "state", "reason", "fork" and "clones" to a ticket's object. */
void sf_fork_describe(SfFork *fork, JsonObject *ticket);
JsonObject *sf_fork_describe_clone(const SfClone *clone);

/*
 * After a restart of sfvmmd. options->parent may be NULL when it has ended. Then, for each living VM of it, adopt();
 * at last resume(), which places what was not placed, identifies what was not identified and reports what has died.
 * base: of the family, NULL when the VM that owns it has ended.
 */
SfFork *sf_fork_restore(const SfForkOptions *options, GError **error);
gboolean sf_fork_adopt(SfFork *fork, SfVm *vm); /* FALSE: not one of its clones */
void sf_fork_resume(SfFork *fork, SfRamBase *base);

#endif
