/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * A snapshot can be loaded by a QEMU that has the same devices at the same addresses. So everything that the guest can
 * see is written here once for all roles, with explicit addresses and names, and nothing depends on defaults of the
 * host.
 *
 * What differs, and why device state fits all the same:
 *   -S           shells wait for their load.
 *   -kernel      only a VM that boots has it. It costs a shell 15 MB and doubles its start. Kernel and initrd are in
 *                the guest's RAM by then; the option ROM that had put them there (linuxboot_dma.bin) is a file of
 *                fw_cfg, not a RAM block, and the state of fw_cfg is a selector and an offset, not its files. So
 *                streams fit: a stream of a parent with -kernel was loaded into a QEMU without, RAM blocks and ROMs
 *                included. The price: a clone can't reboot. Its firmware would find no kernel, so a reboot ends it
 *                (-action).
 *   -blockdev    the nodes below each disk (vm_disk.c).
 *
 * Chosen for fast snapshots, loads and small processes: no SATA, SMBus, SMM and VMware port (each has state or address
 * spaces of its own); no vapic (its post_load writes guest pages); a virtio-serial of two ports, and one queue per disk
 * (loading touches guest RAM for each queue, saving costs 46 KB for 31 ports).
 *
 * QEMU gets descriptors for everything it would open by path: sockets that listen already (a connection can be made
 * before QEMU is up), its console log, /dev/kvm (so that its user needs no right on it), kernel, initrd, disk layers.
 */
#include "sfvmm/vm/command_line.h"

#include "libsf/wire/message.h"

/* PCI slots, from 1 on; 0 is the host bridge, 31 the ISA bridge. */
#define SLOT_SERIAL     2u
#define SLOT_BALLOON    3u
#define SLOT_RNG        4u
#define SLOT_NETWORK    5u
#define SLOT_DISK_FIRST 8u

static void add(GPtrArray *argv, const char *option, const char *value)
{
    g_ptr_array_add(argv, g_strdup(option));
    if (value) {
        g_ptr_array_add(argv, g_strdup(value));
    }
}

G_GNUC_PRINTF(3, 4)
static void addf(GPtrArray *argv, const char *option, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    g_ptr_array_add(argv, g_strdup(option));
    g_ptr_array_add(argv, g_strdup_vprintf(format, args));
    va_end(args);
}

static void add_machine(GPtrArray *argv, const SfVmConfig *config, const SfCommandLineFds *fds)
{
    add(argv, "-machine",
        "q35,memory-backend=ram0,vmport=off,smm=off,sata=off,smbus=off,dump-guest-core=off,mem-merge=off");
    addf(argv, "-object", "memory-backend-memfd,id=ram0,size=%" G_GUINT64_FORMAT ",share=on", config->memory);
    addf(argv, "-m", "%" G_GUINT64_FORMAT "B", config->memory);
    addf(argv, "-smp", "%u", config->vcpus);
    if (fds->kvm >= 0) {
        addf(argv, "-add-fd", "fd=%d,set=%u", fds->kvm, SF_FDSET_KVM);
        addf(argv, "-accel", "kvm,device=/dev/fdset/%u", SF_FDSET_KVM);
    } else {
        add(argv, "-accel", "tcg");
    }
    add(argv, "-cpu", config->cpu);
    add(argv, "-global", "apic-common.vapic=off");
}

static void add_channels(GPtrArray *argv, const SfCommandLineFds *fds)
{
    addf(argv, "-chardev", "socket,id=qmp,fd=%d,server=on,wait=off", fds->qmp);
    add(argv, "-mon", "chardev=qmp,mode=control");
    addf(argv, "-add-fd", "fd=%d,set=%u", fds->console_log, SF_FDSET_CONSOLE_LOG);
    addf(argv, "-chardev", "socket,id=console,fd=%d,server=on,wait=off,logfile=/dev/fdset/%u,logappend=on",
         fds->console, SF_FDSET_CONSOLE_LOG);
    add(argv, "-serial", "chardev:console");
    addf(argv, "-chardev", "socket,id=agent,fd=%d,server=on,wait=off", fds->agent);
    addf(argv, "-device", "virtio-serial-pci,id=sf-serial,max_ports=2,addr=0x%x", SLOT_SERIAL);
    add(argv, "-device", "virtserialport,id=" SF_AGENT_PORT_ID ",chardev=agent,name=" SF_GP_PORT ",nr=1");
}

static void add_nic(GPtrArray *argv, const SfVmConfig *config, const SfCommandLineFds *fds)
{
    if (sf_vm_config_has_cluster(config)) {
        guint8 mac[SF_GP_MAC_LENGTH];
        sf_gp_mac_of_address(mac, config->address);
        addf(argv, "-netdev",
             fds->tap_is_socket ? "stream,id=" SF_NETDEV_ID ",server=off,addr.type=fd,addr.str=%d"
                                : "tap,id=" SF_NETDEV_ID ",fd=%d,vhost=off",
             fds->tap);
        addf(argv, "-device",
             "virtio-net-pci,id=sf-nic,netdev=" SF_NETDEV_ID ",romfile=,addr=0x%x,host_mtu=%u,guest_announce=off,"
             "mac=%02x:%02x:%02x:%02x:%02x:%02x",
             SLOT_NETWORK, SF_VM_CLUSTER_MTU, mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
    } else if (g_strcmp0(config->network, "user") == 0) {
        add(argv, "-netdev", "user,id=" SF_NETDEV_ID ",restrict=on");
        addf(argv, "-device", "virtio-net-pci,id=sf-nic,netdev=" SF_NETDEV_ID ",romfile=,addr=0x%x", SLOT_NETWORK);
    }
}

static void add_devices(GPtrArray *argv, const SfVmConfig *config, const SfCommandLineFds *fds)
{
    addf(argv, "-device", "virtio-balloon-pci,id=sf-balloon,free-page-reporting=on,addr=0x%x", SLOT_BALLOON);
    add(argv, "-object", "rng-builtin,id=sf-entropy");
    addf(argv, "-device", "virtio-rng-pci,id=sf-rng,rng=sf-entropy,addr=0x%x", SLOT_RNG);
    add_nic(argv, config, fds);
}

static void add_disks(GPtrArray *argv, const SfVmConfig *config, const GPtrArray *blockdevs, const GPtrArray *top_nodes,
                      const GArray *disk_fds)
{
    for (guint i = 0; i < disk_fds->len; i++) {
        addf(argv, "-add-fd", "fd=%d,set=%u", g_array_index(disk_fds, int, i), SF_FDSET_DISK_FIRST + i);
    }
    for (guint i = 0; i < blockdevs->len; i++) {
        add(argv, "-blockdev", g_ptr_array_index(blockdevs, i));
    }
    for (guint i = 0; i < config->disks->len; i++) {
        const SfDiskConfig *disk = g_ptr_array_index(config->disks, i);
        addf(argv, "-device", "virtio-blk-pci,id=%s,drive=%s,num-queues=1,addr=0x%x%s", disk->id,
             (const char *)g_ptr_array_index(top_nodes, i), SLOT_DISK_FIRST + i,
             i == 0 && !config->kernel ? ",bootindex=0" : "");
    }
}

static void add_boot(GPtrArray *argv, SfVmRole role, const SfVmConfig *config, const SfCommandLineFds *fds)
{
    if (role != SF_VM_PARENT) {
        add(argv, "-S", NULL);
        if (config->kernel) {
            add(argv, "-action", "reboot=shutdown");
        }
        return;
    }
    if (fds->kernel >= 0) {
        addf(argv, "-kernel", "/proc/self/fd/%d", fds->kernel);
        if (fds->initrd >= 0) {
            addf(argv, "-initrd", "/proc/self/fd/%d", fds->initrd);
        }
        if (config->append) {
            add(argv, "-append", config->append);
        }
    }
}

GPtrArray *sf_command_line_new(const SfLauncherOptions *options, const char *name, SfVmRole role,
                               const SfVmConfig *config, const SfCommandLineFds *fds, const GPtrArray *blockdevs,
                               const GPtrArray *top_nodes, const GArray *disk_fds)
{
    GPtrArray *argv = g_ptr_array_new_with_free_func(g_free);
    g_auto(GStrv) firmware = g_strsplit(options->firmware ? options->firmware : "", ":", -1);

    add(argv, options->qemu, NULL);
    addf(argv, "-name", "guest=%s,debug-threads=off", name);
    add(argv, "-nodefaults", NULL);
    add(argv, "-no-user-config", NULL);
    add(argv, "-display", "none");
    add(argv, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    add(argv, "-msg", "timestamp=on");
    for (char **directory = firmware; *directory; directory++) {
        if (**directory) {
            add(argv, "-L", *directory);
        }
    }
    add_machine(argv, config, fds);
    add_channels(argv, fds);
    add_devices(argv, config, fds);
    add_disks(argv, config, blockdevs, top_nodes, disk_fds);
    add_boot(argv, role, config, fds);
    g_ptr_array_add(argv, NULL);
    return argv;
}
