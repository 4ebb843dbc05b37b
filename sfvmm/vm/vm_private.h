/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the files of vm/ share about one VM. Nobody else includes this.
 */
#ifndef SF_VM_PRIVATE_H
#define SF_VM_PRIVATE_H

#include "sfvmm/memory/fault_handler.h"
#include "sfvmm/vm/domain_xml.h"
#include "sfvmm/vm/guest_channel.h"
#include "sfvmm/vm/launcher.h"
#include "sfvmm/vm/qemu_channel_client.h"
#include "sfvmm/vm/qmp.h"
#include "sfvmm/vm/vm_disk.h"

/* Files of a VM's directory. */
#define SF_VM_FILE_JSON        "vm.json"
#define SF_VM_FILE_QMP         "qmp.sock"
#define SF_VM_FILE_AGENT       "agent.sock"
#define SF_VM_FILE_CONSOLE     "console.sock"
#define SF_VM_FILE_LOG         "qemu.log"
#define SF_VM_FILE_CONSOLE_LOG "console.log"
#define SF_VM_FILE_LOADING                                                                                             \
    "loading" /* exists while a snapshot is being loaded: then the process is of no use to a new sfvmmd */

#define SF_VM_ROLES 3
#define SF_VM_CONNECT_SECONDS 60u /* a start or an adoption; 32 shells that start at once are slow */
extern const char *const sf_vm_role_names[SF_VM_ROLES]; /* by SfVmRole, as in vm.json */

#define SF_VM_DYING "~" /* NAME~PID: the directory of a VM that was killed */

/*
 * Who keeps a QEMU that is not a child of ours: libvirt (domain.c). Main thread; no call blocks. A VM without a keeper
 * was started by the launcher `exec`.
 */
typedef struct {
    const char *(*name)(gpointer keeper);
    /* Our end of a socket that speaks QMP; -1 + error. */
    int (*open_monitor)(gpointer keeper, GError **error);
    /* A socket that is the port of the agent, when its own is closed to us; -1 + error. */
    int (*open_port)(gpointer keeper, GError **error);
    void (*kill)(gpointer keeper, int pidfd_or_minus_one); /* its process ends soon */
    void (*label)(gpointer keeper, const SfDomainLineage *lineage);
    JsonObject *(*to_json)(gpointer keeper);
    void (*free)(gpointer keeper);
} SfVmKeeper;

struct _SfVm {
    GObject parent_instance;
    char *name;
    char *directory;
    char *overlay_directory;
    char *template_directory;
    char *owner; /* RUNDIR, by which we know what is ours in libvirt */
    SfLateCommits *late_commits; /* the launcher's */
    uid_t uid;                   /* that QEMU runs as */
    gid_t gid;
    SfVmRole role;
    SfVmConfig *config;

    const SfVmKeeper *keeper; /* NULL: none */
    gpointer keeper_data;
    JsonObject *keeper_json; /* of vm.json, until the keeper has been found again */
    char *agent_socket;      /* path of the agent's port; NULL: in the VM's directory */
    char *agent_port;        /* device id of that port; NULL: SF_AGENT_PORT_ID */
    gboolean keeper_ended;   /* the keeper has said that it has ended, and put its things away */
    guint end_timer;         /* the process has ended, and its keeper will say so */

    pid_t pid;
    guint64 start_time; /* of the process, in clock ticks since boot: tells a reused pid */
    int pidfd;
    guint exit_source;
    gboolean gone;
    gboolean killed; /* by us: then the object holds itself until the end is told */
    gboolean running;
    gboolean agent_seen; /* its agent has answered once, before a restart of sfvmmd counts too */
    char *shutdown_reason; /* of QEMU's SHUTDOWN event, or ours */

    SfQmp *qmp;
    SfQemuChannel *channel;
    gboolean greeted;  /* HELLO answered on this channel */
    gboolean attached; /* sf-attach answered on this channel */
    struct sf_qc_hello_reply hello;
    GTask *connect_task; /* start or adoption waits for QMP and channel */
    guint connect_seconds, connect_timer, retry_timer;
    guint retry_ms;

    SfGuestChannel *guest;
    gboolean guest_hello_held; /* until sf_vm_guest_greet(); a shell's agent port is greeted when it is loaded */
    guint guest_timer;
    guint clean_timer;
    guint log_timer;

    gboolean anonymous; /* its RAM is no memfd yet, or not all of it; see vm_share.c */
    SfVmCopied copied;
    SfRamBase *base;
    SfSnapshot *snapshot; /* loaded from */
    char *snapshot_id;

    GPtrArray *disks;  /* of SfVmDisk */
    GPtrArray *chains; /* of SfDiskChain: those of disks, not owned */

    gboolean lazy;              /* loaded by MAP: somebody else fills its pages */
    guint64 overwritten;        /* bytes, as QEMU has said last: see sf_vm_overwritten() */
    gboolean asks_avoided;      /* QEMU has been asked for that */
    char *handler_id;           /* of who fills its memory, on record; NULL: nobody */
    SfFaultHandler handler;     /* who; a reference to its owner is held. owner NULL: nobody */
    int uffd_number;            /* of the userfaultfd in QEMU */
    guint n_mapped;
    SfMappedBlock mapped[SF_QC_MAX_BLOCKS];

    char *tap;      /* name of the device of its NIC in a cluster, or NULL */
    int tap_number; /* of its descriptor in QEMU */
    char *netdev;   /* id of that NIC's netdev; NULL: SF_NETDEV_ID */
    char **unlinked; /* ids of other NICs, which its guest is to find without link; NULL: none */

    GArray *vcpu_threads; /* of pid_t, as QEMU says */
    gboolean passed_gate; /* a loaded clone has executed its first instruction */
    guint doubts; /* disks that QEMU is being asked about */
    GTask *snapshot_task;
    GQueue snapshot_queue; /* of GTask: snapshots asked for while one is being made */
    GTask *load_task;
    struct SfSettle *settle; /* under way */
};

/* A VM without process; all texts are copied. Takes nothing. */
SfVm *sf_vm_new(const SfLauncherOptions *options, const char *name, SfVmRole role, SfVmConfig *config);
char *sf_vm_path(SfVm *vm, const char *file);
char *sf_vm_overlay_path(SfVm *vm, const char *disk); /* of a new overlay */
char *sf_vm_template_path(SfVm *vm, guint64 size);

/* The keeper has put away what it had of the VM; the first reason that anybody gave counts. */
void sf_vm_keeper_ended(SfVm *vm, const char *reason);

/* vm_process.c. Takes pidfd. From now on the process' end is told. */
void sf_vm_set_process(SfVm *vm, pid_t pid, guint64 start_time, int pidfd);
void sf_vm_add_disk(SfVm *vm, SfVmDisk *disk);

/* vm_connection.c: connects QMP, sf channel and agent port; finishes when the first two have answered, within seconds. */
void sf_vm_connect_async(SfVm *vm, guint seconds, GAsyncReadyCallback callback, gpointer data);
gboolean sf_vm_connect_finish(SfVm *vm, GAsyncResult *result, GError **error);
void sf_vm_connect_end(SfVm *vm, GError *error_or_null); /* takes error; nothing if nobody waits for it */

void sf_vm_disconnect(SfVm *vm); /* for good: from all three */

/* vm_guest.c: connects the agent's port, now or as soon as it can be. */
void sf_vm_connect_guest(SfVm *vm);

/* At its end: what it wrote to disks that are not ephemeral goes into their images, once no clone stands on them. */
void sf_vm_keep_writes(SfVm *vm);

/* vm_record.c: vm.json, all that adoption needs. */
gboolean sf_vm_save(SfVm *vm, GError **error);
SfVm *sf_vm_restore(const SfLauncherOptions *options, const char *name, GError **error);

/* A GTask's end for a VM that has gone, or whose channel is not there: TRUE if it has been ended so. */
gboolean sf_vm_refuse(SfVm *vm, GTask *task);
void sf_vm_fail_gone(SfVm *vm, GTask *task); /* its error; the task is still the caller's */

/* vm_gate.c: clones of one fork start together. enter() and leave() enclose a load; wait() before leave(). */
void sf_vm_gate_learn(SfVm *vm); /* on each connection */
void sf_vm_gate_enter(void);
gboolean sf_vm_gate_is_alone(void);
void sf_vm_gate_wait(SfVm *vm);
void sf_vm_gate_leave(void);
void sf_vm_gate_running(SfVm *vm);
void sf_vm_resume_loaded(SfVm *vm); /* vm_load.c */

/* vm_load.c: QEMU has said that it runs. */
void sf_vm_load_running(SfVm *vm);

/* vm_lazy.c: clones whose memory comes on demand. */
gboolean sf_vm_lazy_begin(SfVm *vm, const SfFaultHandler *handler, const SfSnapshot *snapshot, GError **error);
/* Sends MAP; the answer comes to `mapped` (error NULL: mapped and attached). */
gboolean sf_vm_lazy_map(SfVm *vm, SfSnapshot *snapshot, void (*mapped)(SfVm *vm, GError *error), GError **error);
void sf_vm_lazy_end(SfVm *vm); /* the VM has ended: detach */
void sf_vm_lazy_to_json(SfVm *vm, JsonObject *object);
gboolean sf_vm_lazy_from_json(SfVm *vm, JsonObject *object, GError **error);

/* vm_nic.c: the NIC in a cluster. */
void sf_vm_nic_load(SfVm *vm, SfQmpBatch *batch); /* before a snapshot is loaded: no link from its first instruction on */
void sf_vm_nic_loaded(SfVm *vm);                  /* and before it runs */
void sf_vm_nic_to_json(SfVm *vm, JsonObject *object);
void sf_vm_nic_from_json(SfVm *vm, JsonObject *object);

/* vm_snapshot.c: nothing else is done to its disks any more. */
void sf_vm_snapshot_begin(SfVm *vm);

/* vm_settle.c */
void sf_vm_settle_job_event(SfVm *vm, const char *event, JsonObject *data);
void sf_vm_settle_abort(SfVm *vm);   /* ends soon, then sf_vm_snapshot_begin() is called */
/* Disks of too many layers get fewer, if any; then sf_vm_snapshot_begin() is called. FALSE: there is nothing to do. */
gboolean sf_vm_settle_shorten(SfVm *vm);
void sf_vm_settle_lost(SfVm *vm);    /* no event of its job will come any more */
char *sf_vm_settle_job(const SfVmDisk *disk); /* what QEMU knows a commit by */

/* vm_share.c: anonymous memory. done is called once. */
typedef void (*SfVmShared)(SfVm *vm, const GError *error_or_null);
void sf_vm_share(SfVm *vm, SfVmShared done);

/* vm_doubt.c: what became of disks while nobody listened. */
gboolean sf_vm_has_answered(SfVm *vm,
                            const GError *error); /* error of a command or batch; FALSE: the connection was lost */
gboolean sf_vm_doubts_any(SfVm *vm);
gboolean sf_vm_doubts_sort_out(SfVm *vm); /* TRUE if there are some: then sf_vm_connect_end() follows */

#endif
