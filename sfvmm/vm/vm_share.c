/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * The RAM of a domain may be anonymous memory, which nobody else can map. Before its first snapshot it becomes a shared
 * memfd, in steps that pause the guest for some milliseconds each:
 *
 *     snapshot is asked for --> SHARE, SHARE, ... --> nothing left --> snapshot as ever
 *
 * What the guest uses is copied once; what that has cost is kept, and told by vm.status. A step that fails fails the
 * snapshot, with the reason; the guest goes on, and the next snapshot goes on with it. A killed sfvmmd: vm.json says
 * that it is anonymous until all is done, and SHARE knows what is left.
 */
#include "sfvmm/vm/vm_private.h"

#include "sfvmm/process/clock.h"

#define NS_PER_MS        1000000u
#define SHARE_STEP_BYTES (32u << 20) /* some 10 to 20 ms of pause, when the guest uses all of it */

typedef struct {
    SfVm *vm;
    gint64 start;
    guint64 left; /* bytes, as the last answer said */
    SfVmCopied copied;
    SfVmShared done;
} Share;

static void share_step(Share *share);

static void share_end(Share *share, const GError *error)
{
    SfVm *vm = share->vm;

    if (!error) {
        vm->anonymous = FALSE;
        vm->copied = share->copied;
        vm->copied.total = (guint64)(sf_clock_ns() - share->start);
        sf_vm_save(vm, NULL);
        g_message("VM %s: its memory was anonymous and is a memfd now: %" G_GUINT64_FORMAT
                  " MiB copied in %" G_GUINT64_FORMAT " ms, %u pauses, %" G_GUINT64_FORMAT
                  " ms in all, the longest %" G_GUINT64_FORMAT " us",
                  vm->name, vm->copied.bytes >> 20, vm->copied.total / NS_PER_MS, vm->copied.pauses,
                  vm->copied.pause / NS_PER_MS, vm->copied.longest / SF_CLOCK_NS_PER_US);
    }
    share->done(vm, error);
    g_object_unref(vm);
    g_free(share);
}

static void on_shared(SfQcMessage *message, const GError *error, gpointer data)
{
    Share *share = data;
    struct sf_qc_fold_reply reply;
    g_autoptr(GError) failure = NULL;

    if (!error && sf_qc_parse_fold(message->payload, message->n_fds, &reply, &failure) && reply.left >= share->left) {
        g_set_error(&failure, SF_VM_ERROR, SF_VM_ERROR_FAILED,
                    "QEMU does not get on with it: %" G_GUINT64_FORMAT " bytes are left", (guint64)reply.left);
    }
    if (error || failure) {
        share_end(share, error ? error : failure);
        return;
    }
    share->left = reply.left;
    if (reply.pause > 0) {
        share->copied.pauses++;
    }
    share->copied.bytes += reply.folded;
    share->copied.pause += reply.pause;
    share->copied.longest = MAX(share->copied.longest, reply.pause);
    if (reply.left > 0) {
        share_step(share);
    } else {
        share_end(share, NULL);
    }
}

static void share_step(Share *share)
{
    SfVm *vm = share->vm;
    GBytes *packet;

    if (!vm->channel || !vm->greeted) {
        g_autoptr(GError) error =
            g_error_new_literal(SF_VM_ERROR, SF_VM_ERROR_GONE, "its QEMU is not connected at present");
        share_end(share, error);
        return;
    }
    packet = sf_qc_request_share(sf_qemu_channel_serial(vm->channel), SHARE_STEP_BYTES);
    sf_qemu_channel_request(vm->channel, SF_QC_SHARE, packet, NULL, 0, on_shared, share);
}

void sf_vm_share(SfVm *vm, SfVmShared done)
{
    Share *share = g_new0(Share, 1);

    share->vm = g_object_ref(vm);
    share->start = sf_clock_ns();
    share->left = G_MAXUINT64;
    share->done = done;
    share_step(share);
}

gboolean sf_vm_copied(SfVm *vm, SfVmCopied *copied)
{
    *copied = vm->copied;
    return copied->pauses > 0;
}
