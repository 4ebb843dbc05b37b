/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfVm: one QEMU process, whatever started it. It owns the run directory, the pidfd, the QMP connection, the sf channel
 * and the guest channel, and puts them behind asynchronous calls in GLib's manner: everything happens on the main
 * context of the main thread; a call on a VM that has ended finishes with SF_VM_ERROR_GONE.
 *
 *       starting --> running <--> paused --> gone
 *                       ^           |
 *       (shell: paused) +-- load ---+
 *
 * RUNDIR/vm/NAME/  vm.json  qmp.sock  agent.sock  console.sock  console.log  qemu.log
 *
 * Signals
 *   "exited"          (const char *reason)   the process is gone; emitted once, from the main loop
 *   "guest-message"   (const struct sf_gp_header *, GBytes *payload)   a valid agent frame (HELLO is handled inside)
 *   "guest-connected" ()                     the agent has answered HELLO
 *   "running"         (guint64 monotonic_ns) SF_QC_EVENT_RUNNING
 */
#ifndef SF_VM_H
#define SF_VM_H

#include <gio/gio.h>
#include <json-glib/json-glib.h>
#include "sfvmm/disk/disk.h"
#include "sfvmm/memory/fault_handler.h"
#include "sfvmm/memory/snapshot.h"
#include "sfvmm/vm/vm_config.h"
#include "sfvmm/wire/qemu_channel.h"

#define SF_TYPE_VM (sf_vm_get_type())
G_DECLARE_FINAL_TYPE(SfVm, sf_vm, SF, VM, GObject)

#define SF_VM_ERROR (sf_vm_error_quark())
GQuark sf_vm_error_quark(void);
typedef enum {
    SF_VM_ERROR_FAILED,  /* the message says what */
    SF_VM_ERROR_GONE,    /* the process has ended */
    SF_VM_ERROR_REFUSED, /* QEMU can't fork this VM; the message names the device */
    SF_VM_ERROR_TIMEOUT,
} SfVmError;

typedef enum { SF_VM_PARENT, SF_VM_SHELL, SF_VM_CLONE } SfVmRole;

const char *sf_vm_name(SfVm *vm);
SfVmRole sf_vm_role(SfVm *vm);
void sf_vm_set_role(SfVm *vm, SfVmRole role);
/* A shell that becomes a clone gets the clone's name: the run directory moves with it (its sockets stay connected). */
gboolean sf_vm_rename(SfVm *vm, const char *name, GError **error);
/* Tells who keeps the VM (libvirt) what it has become: a clone of that VM and ticket. */
void sf_vm_label(SfVm *vm, const char *parent, guint64 ticket, guint id);
const char *sf_vm_domain(SfVm *vm); /* name of its libvirt domain, or NULL */
pid_t sf_vm_pid(SfVm *vm);
gint64 sf_vm_started(SfVm *vm);                    /* ns since boot, to a clock tick */
SfVmConfig *sf_vm_config(SfVm *vm);
const char *sf_vm_directory(SfVm *vm);
gboolean sf_vm_is_running(SfVm *vm);
gboolean sf_vm_is_gone(SfVm *vm);
gboolean sf_vm_has_agent(SfVm *vm);  /* the agent has answered on this connection */
gboolean sf_vm_expects_agent(SfVm *vm);           /* it has answered once, before a restart of sfvmmd counts too */
SfRamBase *sf_vm_ram_base(SfVm *vm); /* of its family; for a clone that of its snapshot */
/* What a clone was loaded from. NULL for a parent, and after adoption until it is set. */
SfSnapshot *sf_vm_loaded_snapshot(SfVm *vm);
const char *sf_vm_loaded_snapshot_id(SfVm *vm); /* its id, after adoption too; NULL: not loaded from a snapshot */
/*
 * After adoption, once sf_snapshot_restore() has made the snapshot anew: a clone must hold a reference, or its family's
 * base would count as unused, and be written, while the clone still maps it. A clone without it cannot fork.
 */
void sf_vm_set_loaded_snapshot(SfVm *vm, SfSnapshot *snapshot);
GPtrArray *sf_vm_disks(SfVm *vm);         /* of SfDiskChain */
const char *sf_vm_qemu_version(SfVm *vm); /* from HELLO */
const char *sf_vm_machine(SfVm *vm);
const char *sf_vm_cpu(SfVm *vm); /* QOM type of the first CPU */

/* QMP. args: transfer full, may be NULL. The result's "return" node. */
void sf_vm_qmp_async(SfVm *vm, const char *command, JsonObject *args, GAsyncReadyCallback callback, gpointer data);
JsonNode *sf_vm_qmp_finish(SfVm *vm, GAsyncResult *result, GError **error);

/*
 * Snapshot: makes an overlay for every writable disk (files in the overlay directory, blockdev-add), then
 * SF_QC_SNAPSHOT, all disks or none; on success the VM's chains have their new tops, and *frozen_disks are copies of
 * the chains as they were frozen. On error everything is undone and the VM runs as before. One at a time per VM;
 * others wait.
 */
void sf_vm_snapshot_async(SfVm *vm, const char *id, GAsyncReadyCallback callback, gpointer data);
SfSnapshot *sf_vm_snapshot_finish(SfVm *vm, GAsyncResult *result, GPtrArray **frozen_disks, GError **error);

/*
 * Load a snapshot into a shell: the frozen disks go below the shell's own overlays, then SF_QC_LOAD. Finishes when it
 * is loaded; with `resume` the vCPUs are ordered to run then, or, while other VMs are being loaded, a little later, so
 * that siblings start together ("running" tells when). The VM's role becomes SF_VM_CLONE. After an error: kill it.
 *
 * handler: for a lazy snapshot who fills its pages (a reference to its owner is taken; NULL for others): MAP, attach()
 * with the VM's name, LOAD. It is detached when the VM ends.
 */
void sf_vm_load_async(SfVm *vm, SfSnapshot *snapshot, GPtrArray *frozen_disks, gboolean resume,
                      const SfFaultHandler *handler, GAsyncReadyCallback callback, gpointer data);
gboolean sf_vm_load_finish(SfVm *vm, GAsyncResult *result, GError **error);

/*
 * For an adopted clone of a lazy snapshot, or one that is going to be: who fills its pages now. attached: the handler
 * has its userfaultfd (an adopted pager knows the VM's name); else it is taken from the QEMU process (pidfd_getfd; its
 * number stands in vm.json) and attached anew. FALSE + error: that failed, the VM's next missing page would wait for
 * ever: kill it.
 */
gboolean sf_vm_set_fault_handler(SfVm *vm, const SfFaultHandler *handler, gboolean attached, GError **error);
const char *sf_vm_fault_handler_id(SfVm *vm); /* of who filled them last; NULL: its memory does not come on demand */
gboolean sf_vm_is_lazy(SfVm *vm); /* it was loaded by MAP, with a userfaultfd */
/*
 * Bytes of its memory that were not fetched because disk reads have filled them, as QEMU has said last; asks it anew.
 * Nothing is waited for: a QEMU whose main loop waits for a page would not answer.
 */
guint64 sf_vm_overwritten(SfVm *vm);

/*
 * Back to one memory and one disk after the last snapshot over the VM has gone: FOLD in small steps, THAW, block-commit
 * of overlays. A snapshot that is asked for meanwhile ends it with an error, and goes first.
 */
void sf_vm_settle_async(SfVm *vm, GAsyncReadyCallback callback, gpointer data);
gboolean sf_vm_settle_finish(SfVm *vm, GAsyncResult *result, GError **error);

/*
 * The NIC in a cluster. A clone begins its life without link, and without its guest seeing that: what it sends is
 * dropped, nothing comes in. That ends with sf_vm_link_async().
 */
const char *sf_vm_tap(SfVm *vm); /* name of its device, in the cluster's namespace; NULL: the VM is in no cluster */
int sf_vm_borrow_tap(SfVm *vm, GError **error); /* after adoption: a descriptor of it, for the caller to close; -1 + error */
void sf_vm_link_async(SfVm *vm, GAsyncReadyCallback callback, gpointer data);
gboolean sf_vm_link_finish(SfVm *vm, GAsyncResult *result, GError **error);

/*
 * What it has cost to make the VM's anonymous memory a memfd, before its first snapshot; times in ns. FALSE: nothing,
 * it was one from the start, or another sfvmmd did it.
 */
typedef struct {
    guint64 bytes;          /* that were copied */
    guint64 total;          /* from the first to the last of the pauses */
    guint64 pause, longest; /* in which the guest stood still: all together, and the longest */
    guint pauses;
} SfVmCopied;
gboolean sf_vm_copied(SfVm *vm, SfVmCopied *copied);

/* Obstacles to a fork, one line each; empty string: none. */
void sf_vm_check_async(SfVm *vm, GAsyncReadyCallback callback, gpointer data);
char *sf_vm_check_finish(SfVm *vm, GAsyncResult *result, GError **error);

/*
 * Begin to talk to the guest's agent. Not done by itself: an agent answers with the requests that wait, and after an
 * adoption these must find somebody who listens to "guest-message".
 */
void sf_vm_guest_greet(SfVm *vm);

/* To the guest's agent. Queued (bounded) until the port is connected; lost when the VM ends. payload may be NULL. */
gboolean sf_vm_guest_send(SfVm *vm, guint8 type, guint32 request, const void *payload, gsize length, GError **error);

void sf_vm_powerdown(SfVm *vm); /* ACPI button */
void sf_vm_kill(SfVm *vm);      /* SIGKILL; "exited" follows; then the run directory is removed */

/* Resident memory from /proc/PID/status, bytes. Cheap: no page table is walked. */
typedef struct {
    guint64 private_bytes; /* anonymous and private dirty */
    guint64 shared_bytes;  /* of the snapshot's or its own memfd */
    guint64 cpu_ns;        /* user + system */
} SfVmUsage;
gboolean sf_vm_usage(SfVm *vm, SfVmUsage *usage, GError **error);

#endif
