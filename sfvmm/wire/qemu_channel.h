/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The sf channel: what sfvmmd and a patched QEMU say to each other.
 *
 * QMP `sf-attach fd=NAME` gives QEMU one end of an AF_UNIX SOCK_SEQPACKET pair. From then on sfvmmd asks and QEMU
 * answers over it; descriptors travel beside a message with SCM_RIGHTS. QEMU works in its main loop (never in the
 * monitor), answers requests in the order they came, and drops the channel, nothing else, when the peer hangs up
 * or sends what is no message (wrong magic, type of a reply, length other than the packet's, truncated data or
 * descriptors). A message with an unknown type or a malformed payload is answered by ERROR. sfvmmd may attach again at
 * any time; a new channel takes the place of the old one.
 *
 *    0       4      6      8        12       16
 *    +-------+------+------+--------+--------+----------------- - -
 *    | magic | type | zero | serial | length | payload (length bytes)
 *    +-------+------+------+--------+--------+----------------- - -
 *
 * All integers are little-endian. One packet is one message. A reply has its request's serial and type | REPLY,
 * or the type ERROR. An event has serial 0. Texts are UTF-8, NUL-padded to their field, always NUL-terminated.
 *
 * This file stands word for word in the QEMU series too (include/migration/sf-channel.h); a test compares them.
 */
#ifndef SF_QEMU_CHANNEL_H
#define SF_QEMU_CHANNEL_H

#include <stdint.h>

#define SF_QC_MAGIC         0x31514653u   /* "SFQ1" */
#define SF_QC_VERSION       3
#define SF_QC_MAX_MESSAGE   65536         /* header included; fits the default SO_SNDBUF */
#define SF_QC_MAX_FDS       64            /* in one message; the kernel's limit is 253 */
#define SF_QC_MAX_BLOCKS    16            /* RAM blocks with a descriptor */
#define SF_QC_MAX_LAYERS    24            /* delta layers of one block above its base */
#define SF_QC_MAX_PRESENT   4096          /* present extents of one block in MAP; each costs two VMAs */
#define SF_QC_MAX_DISKS     32
#define SF_QC_NAME_LEN      64            /* block id, node name */
#define SF_QC_TEXT_LEN      1024

/* Types of requests (sfvmmd -> QEMU). */
#define SF_QC_HELLO         0x0001        /* -> sf_qc_hello_reply + blocks; fds: one per block */
#define SF_QC_CHECK         0x0002        /* -> text, one line per obstacle "DEVICE: reason"; empty: forkable, after SHARE */
#define SF_QC_SNAPSHOT      0x0003
#define SF_QC_LOAD          0x0004
#define SF_QC_FOLD          0x0005
#define SF_QC_THAW          0x0006
#define SF_QC_MAP           0x0007        /* memory on demand: the first half of a LOAD */
#define SF_QC_AVOIDED       0x0008        /* -> sf_qc_avoided_reply */
#define SF_QC_SHARE         0x0009        /* anonymous RAM becomes memfds: before the first SNAPSHOT */
#define SF_QC_REPLY         0x8000        /* or-ed to the request's type */
#define SF_QC_ERROR         0xffff        /* payload: sf_qc_error */

/* Types of events (QEMU -> sfvmmd). */
#define SF_QC_EVENT_RUNNING 0x4001        /* sf_qc_running: a loaded clone's first vCPU entered the guest */

struct sf_qc_header {
    uint32_t magic;
    uint16_t type;
    uint16_t zero;
    uint32_t serial;
    uint32_t length;                      /* of the payload */
};

struct sf_qc_error {
    char text[SF_QC_TEXT_LEN];            /* names the object, what failed, what to do */
};

/* How a block's memory is mapped. */
#define SF_QC_RAM_SHARED    0             /* the memfd itself, MAP_SHARED: a VM that was never forked, or was thawed */
#define SF_QC_RAM_FROZEN    1             /* MAP_PRIVATE of its own memfd: a parent with a snapshot */
#define SF_QC_RAM_LAYERED   2             /* MAP_PRIVATE of somebody's read-only memfd and deltas: a clone */

/* What else is true of a block. */
#define SF_QC_BLOCK_LAZY    1u            /* its base is a page cache that is filled on demand; see MAP */

/* One RAM block that has a memfd (pc.ram). Offsets and lengths in bytes, multiples of the page size. */
struct sf_qc_block {
    char id[SF_QC_NAME_LEN];
    uint64_t length;
    uint32_t mode;                        /* SF_QC_RAM_* */
    uint32_t flags;                       /* SF_QC_BLOCK_LAZY or 0 */
};

struct sf_qc_hello {
    uint32_t version;                     /* SF_QC_VERSION */
    uint32_t zero;
};

/* Followed by n_blocks sf_qc_block. fds: the base memfd of each block, writable where QEMU's own is, in that order. */
struct sf_qc_hello_reply {
    uint32_t version;
    uint32_t n_blocks;
    uint32_t page_size;                   /* of the target, bytes */
    uint32_t vcpus;
    uint32_t running;                     /* 1: vCPUs run; 0: paused */
    uint32_t loaded;                      /* 1: SF_QC_LOAD succeeded in this process */
    char qemu_version[SF_QC_NAME_LEN];    /* "10.0.13" */
    char machine[SF_QC_NAME_LEN];         /* versioned machine type, "pc-q35-10.0" */
    char accel[SF_QC_NAME_LEN];           /* "tcg" or "kvm" */
    char cpu[SF_QC_NAME_LEN];             /* QOM type of the first CPU, "qemu64-x86_64-cpu" */
};

/*
 * SNAPSHOT: check, pause, save device state and small RAM blocks, freeze or fold RAM, put the disk overlays in,
 * resume if it ran. Followed by n_disks sf_qc_disk. On any error everything done is undone and the VM runs again.
 *
 * RAM: a SHARED block is frozen (mremap aside, MAP_PRIVATE in place). A FROZEN block's private pages are folded into
 * its memfd when SHARED_BASE is not set, else copied into a new delta. A LAYERED block always gets a delta.
 * A delta holds all private pages of the block, at the block's own offsets, and an array of sf_qc_extent, sorted
 * and disjoint, that says where; small gaps are filled from the layers below so that extents stay few. Of a LAZY
 * block no page is fetched for that: gaps are filled with what is there, and pages that were only read as zero are
 * not in the delta. What the guest has given away (balloon, free page reporting) is an extent with a hole behind it:
 * zero, whatever the layers below have.
 */
#define SF_QC_SNAPSHOT_SHARED_BASE  1u    /* somebody else uses the base memfd: leave it as it is */

struct sf_qc_snapshot {
    uint32_t flags;
    uint32_t n_disks;
};

struct sf_qc_disk {
    char node[SF_QC_NAME_LEN];            /* the present top */
    char overlay[SF_QC_NAME_LEN];         /* added by blockdev-add without backing; becomes the top */
};

/*
 * Followed by n_blocks sf_qc_snapshot_block. fds, in this order: state; then for each block its base memfd (read-only),
 * and, if has_delta, the delta memfd and the extents memfd (both read-only).
 * Times are in ns, durations except `at`.
 */
struct sf_qc_snapshot_reply {
    uint64_t at;                          /* CLOCK_MONOTONIC when the vCPUs had stopped */
    uint64_t pause;                       /* from the order to stop to vCPUs ordered to run */
    uint64_t stop, device, ram, disk, start;  /* its parts */
    uint64_t state_length;                /* bytes of state: small blocks, then device state */
    uint64_t device_length;               /* bytes of it that are device state */
    uint32_t n_blocks;
    uint32_t zero;
};

struct sf_qc_snapshot_block {
    char id[SF_QC_NAME_LEN];
    uint64_t length;
    uint64_t folded;                      /* bytes written to the base or to the delta in this snapshot */
    uint32_t has_delta;
    uint32_t n_extents;                   /* of the delta */
};

struct sf_qc_extent {
    uint64_t offset;                      /* bytes from the start of the block */
    uint64_t length;                      /* bytes, > 0 */
};

/*
 * LOAD into a paused QEMU of the same configuration that has not been loaded yet. Followed by n_blocks
 * sf_qc_load_block. fds: state; then for each block its base memfd and for each of its layers, lowest first, delta and
 * extents.
 * With RESUME the vCPUs start at the end, and EVENT_RUNNING follows.
 * With MAPPED the memory is that of a MAP before: n_blocks is 0, the only descriptor is the state.
 * After an error the process is of no further use: kill it.
 */
#define SF_QC_LOAD_RESUME   1u
#define SF_QC_LOAD_MAPPED   2u
#define SF_QC_MAP_OVERWRITES 4u           /* in MAP only */

struct sf_qc_load {
    uint32_t flags;
    uint32_t n_blocks;
    uint64_t state_length;                /* bytes; 0 in MAP */
};

struct sf_qc_load_block {
    char id[SF_QC_NAME_LEN];
    uint64_t length;
    uint32_t n_layers;                    /* deltas above the base */
    uint32_t flags;                       /* SF_QC_BLOCK_LAZY in MAP, or 0 */
    uint32_t n_present;                   /* of a LAZY block: its present extents; else 0 */
    uint32_t zero;
    uint32_t n_extents[SF_QC_MAX_LAYERS]; /* of each layer */
};

struct sf_qc_load_reply {
    uint64_t total;                       /* ns */
    uint64_t map, device, blocks;         /* its parts, ns */
};

/*
 * MAP: the first half of a LOAD whose memory comes on demand. Payload as that of LOAD (sf_qc_load with state_length 0,
 * then n_blocks sf_qc_load_block). fds: the userfaultfd device (/dev/userfaultfd, opened read-write); then for each
 * block its base memfd, if it is LAZY its present extents (memfd of n_present sf_qc_extent, sorted, disjoint), and for
 * each of its layers, lowest first, delta and extents.
 *
 * The base of a LAZY block is a page cache: a sparse memfd into which somebody else writes pages as they are wanted
 * (pwrite, then UFFDIO_WAKE; or UFFDIO_ZEROPAGE for what is zero). Its present extents say where the snapshot has pages
 * at all. Only they are mapped from it, registered for MISSING. All else is anonymous memory, zero, and asks nobody.
 * With OVERWRITES a missing page of a LAZY block that a disk read is about to fill as a whole is not asked for either:
 * QEMU makes it a page of its own, and drops it again if the read fails.
 *
 * fds of the reply: the userfaultfd, after UFFDIO_API, O_NONBLOCK; none if no block is LAZY (the device is not used
 * then). QEMU keeps it open for ever: were all its descriptors closed, missing pages would read as zero. Whoever serves
 * it must do so from the reply on and must not need this QEMU for it: LOAD reads some pages, with the main loop waiting
 * for them. A server that takes over from one that has died wakes all blocks once: faults that were read from the
 * userfaultfd and not answered come again then. Then LOAD with MAPPED. After an error the process is of no further use:
 * kill it.
 */

/* Followed by n_blocks sf_qc_mapped_block: the LAZY ones, in the order of the request. */
struct sf_qc_map_reply {
    uint32_t n_blocks;
    int32_t uffd;                         /* the number of the userfaultfd in QEMU; -1: none */
    uint64_t total;                       /* ns */
};

struct sf_qc_mapped_block {
    char id[SF_QC_NAME_LEN];
    uint64_t address;                     /* in QEMU's address space: where offset 0 of the block is */
    uint64_t length;
};

struct sf_qc_running {
    uint64_t at;                          /* CLOCK_MONOTONIC, ns */
};

/* Of AVOIDED, which has no payload and can be asked at any time: what was not fetched since MAP. */
struct sf_qc_avoided_reply {
    uint64_t overwritten;                 /* bytes that disk reads have filled, see OVERWRITES */
};

/*
 * FOLD: write at most max_bytes of the private pages of FROZEN blocks back into their memfds, pausing the VM for that
 * alone. Only when nobody else uses the base. Call again while `left` is large, then THAW.
 * THAW: in one pause fold what is left and map the memfds MAP_SHARED again: the VM is as it was before its first fork.
 * THAW of SHARED blocks succeeds and does nothing; FOLD and THAW of LAYERED blocks are errors.
 */
struct sf_qc_fold {                       /* also of SHARE */
    uint64_t max_bytes;
};

struct sf_qc_fold_reply {                 /* also of THAW and SHARE */
    uint64_t folded;                      /* bytes; in SHARE what was copied */
    uint64_t left;                        /* bytes still private */
    uint64_t pause;                       /* ns */
};

/*
 * SHARE: make at most max_bytes (but at least a page) of anonymous RAM a shared memfd, pausing the VM for that alone.
 * What of it has content is copied. Call again until `left` is 0: then its blocks are SHARED, and HELLO has them.
 * Without anonymous RAM it succeeds and does nothing. Refused when CHECK names an obstacle.
 */

#endif
