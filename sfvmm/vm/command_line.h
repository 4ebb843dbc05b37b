/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The command line of a QEMU: what parent, shells and clones of a family have in common, and what differs.
 */
#ifndef SF_COMMAND_LINE_H
#define SF_COMMAND_LINE_H

#include "sfvmm/vm/launcher.h"

/* Numbers of descriptors in the child; -1: none. */
typedef struct {
    int qmp, agent, console; /* listening unix stream sockets */
    int console_log;         /* opened for appending */
    int kvm;
    int kernel, initrd;
    int tap; /* of a NIC in a cluster; or a stream socket of frames: */
    gboolean tap_is_socket;
} SfCommandLineFds;

#define SF_AGENT_PORT_ID     "sf-agent"
#define SF_NETDEV_ID         "sf-net"
#define SF_FDSET_KVM         1u
#define SF_FDSET_CONSOLE_LOG 2u
#define SF_FDSET_DISK_FIRST  16u /* of disk layers at the start */

/*
 * argv, ends in NULL. blockdevs: JSON texts for -blockdev; top_nodes: names of the node of each disk (vm_disk.h).
 * disk_fds: of int, in the order of fdsets from SF_FDSET_DISK_FIRST. config is resolved: cpu is set, accel is "kvm" or
 * "tcg", disks have sizes.
 */
GPtrArray *sf_command_line_new(const SfLauncherOptions *options, const char *name, SfVmRole role,
                               const SfVmConfig *config, const SfCommandLineFds *fds, const GPtrArray *blockdevs,
                               const GPtrArray *top_nodes, const GArray *disk_fds);

#endif
