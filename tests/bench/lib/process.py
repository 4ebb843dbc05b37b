# SPDX-License-Identifier: GPL-2.0-or-later
"""What a process costs: CPU time of its threads, and memory that it alone has."""
import contextlib
import os
import re

MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+\s*(.*)$")
FIELD = re.compile(r"^(Private_Clean|Private_Dirty):\s+(\d+) kB$")
KIB = 1024


def thread_times(pid):
    """{tid: ns on a CPU} of each thread. /proc/PID/task/TID/schedstat is exact; stat counts in 10 ms."""
    times = {}
    for name in os.listdir("/proc/%d/task" % pid):
        with contextlib.suppress(OSError):
            with open("/proc/%d/task/%s/schedstat" % (pid, name)) as file:
                times[int(name)] = int(file.read().split()[0])
    return times


def spent(before, after):
    """ns between two thread_times() of a process."""
    return sum(time - before.get(tid, 0) for tid, time in after.items())


def spent_outside(pid, before, after):
    """As spent(), of a QEMU with one vCPU, without the vCPU's thread: of all but the main thread it is the busiest."""
    others = [time - before.get(tid, 0) for tid, time in after.items() if tid != pid]
    return spent(before, after) - max(others, default=0)


def private_bytes(pid):
    """Memory that goes when the process goes. A page of a memfd that only this process happens to map, and has not
    written, stays: it is the snapshot's."""
    total, name = 0, ""
    with open("/proc/%d/smaps" % pid) as file:
        for line in file:
            mapping, field = MAPPING.match(line), FIELD.match(line)
            if mapping:
                name = mapping.group(1)
            elif field and not (field.group(1) == "Private_Clean" and name.startswith("/memfd:")):
                total += int(field.group(2)) * KIB
    return total


def memfd_bytes(pid):
    """Bytes resident in the memfds that a process has open, each counted once."""
    found = {}
    folder = "/proc/%d/fd" % pid
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        with contextlib.suppress(OSError):
            if os.readlink(path).startswith("/memfd:"):
                info = os.stat(path)
                found[info.st_ino] = info.st_blocks * 512
    return sum(found.values())
