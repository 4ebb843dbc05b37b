/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What one QEMU costs its host. From /proc/PID/status: the kernel keeps those counters, while smaps_rollup walks the
 * page tables (milliseconds for each GiB), which adds up when `sfctl top` looks at many VMs each second. RssAnon is
 * what is private (copies of snapshot pages included), RssShmem what is mapped of memfds.
 */
#include "sfvmm/vm/vm.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define STATUS_BYTES  8192
#define NS_PER_SECOND G_GUINT64_CONSTANT(1000000000)

static gboolean take_field(const char *status, const char *field, guint64 *bytes)
{
    const char *line = strstr(status, field);
    unsigned long long kib;

    if (!line || sscanf(line + strlen(field), " %llu kB", &kib) != 1) {
        return FALSE;
    }
    *bytes = kib * 1024;
    return TRUE;
}

gboolean sf_vm_usage(SfVm *vm, SfVmUsage *usage, GError **error)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/status", sf_vm_pid(vm));
    char status[STATUS_BYTES + 1];
    clockid_t clock;
    struct timespec time;
    int fd = sf_vm_is_gone(vm) ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, status, STATUS_BYTES);

    if (fd >= 0) {
        close(fd);
    }
    status[MAX(n, 0)] = '\0';
    if (!take_field(status, "\nRssAnon:", &usage->private_bytes) ||
        !take_field(status, "\nRssShmem:", &usage->shared_bytes) || clock_getcpuclockid(sf_vm_pid(vm), &clock) != 0 ||
        clock_gettime(clock, &time) < 0) {
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_GONE, "VM %s: it has ended", sf_vm_name(vm));
        return FALSE;
    }
    usage->cpu_ns = time.tv_sec * NS_PER_SECOND + time.tv_nsec;
    return TRUE;
}
