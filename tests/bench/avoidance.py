#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/bench avoidance: pages that are not fetched because their content would be thrown away.

A Linux guest of 1 GiB under TCG, its clone on another host (a network namespace); counted is what that host fetches
while the clone works, read-ahead included. The parent has used 400 MiB, and freed them, before it forks.

    avoidance.alloc.*     the clone allocates 400 MiB and fills them; Debian's kernel as it is
    avoidance.zeroing.*   it reads 64 MiB that are not in its page cache; Debian's kernel as it is (init_on_alloc=1)
    avoidance.read.*      the same with init_on_alloc=0

    .off     nothing is avoided (none), and the parent's balloon driver is not loaded: it reports no free pages
    .read    the same parent, disk reads alone are avoided (read)
    .free    its balloon driver is loaded now; free memory alone is avoided (free)
    .all     the same, both are avoided (all)

    .start   what starting the program that reads costs, beside .read: it is started once before, and not counted in the others

Ratios are over .off: of .all, but avoidance.read.ratio is of .read, disk reads alone. avoidance.read.zeroing is that of
.read with init_on_alloc=1.
"""
import contextlib
import os
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "functional")]

import harness                                      # noqa: E402
import memory                                       # noqa: E402
from lib import plot, process, run                  # noqa: E402

MIB = harness.MIB
USED, FILE = 400, 64            # MiB
REPORT_SECONDS = 5              # Linux reports two seconds after pages were freed, some of them at a time
# What is avoided, before the parent reports free pages and then.
SILENT = {"off": "none", "read": "read"}
REPORTING = {"free": "free", "all": "all"}
WAYS = (*SILENT, *REPORTING)
BARS = {"avoidance.alloc.ratio": 0.1, "avoidance.read.ratio": 0.1}


def usage(host, vm):
    return next(found for found in host.call("vm.usage")["vms"] if found["name"] == vm.name)


def held(host, vm):
    """Bytes of the host's memory that a VM's RAM takes, whether its process has touched them or not."""
    return process.memfd_bytes(usage(host, vm)["pid"])


def pages(host, vm):
    return usage(host, vm)["pages"]


@contextlib.contextmanager
def parent(made, more):
    """A VM that has used memory and freed it, and has told nobody."""
    path = os.path.join(made[0].overlays, "random")
    with open(path, "wb") as file:
        file.write(os.urandom(FILE * MIB))
    os.chmod(path, 0o644)
    vm = harness.linux(made[0], memory=memory.GIB_MIB * MIB, more=more,
                       disks=[{"path": path, "format": "raw", "readonly": True}])
    try:
        vm.shell("modprobe -r virtio_balloon")
        probe = vm.probe()
        probe("open m mem %d" % USED)
        probe("fill m 1")
        probe("close m")
        probe.quit()
        memory.idle(made, vm)           # the first clone's working set goes ahead of all others: that of one that did nothing
        yield vm
    finally:
        vm.stop()


def report(host, vm):
    """The parent reports its free pages from now on; returns when it has no more to report."""
    full = held(host, vm)
    vm.shell("modprobe virtio_balloon")
    last = full

    def quiet():
        nonlocal last
        time.sleep(REPORT_SECONDS)
        before, last = last, held(host, vm)
        return last < full - USED * MIB * 3 // 4 and last >= before
    harness.wait(quiet, harness.LONG, "free pages to be reported")


def fetched(made, vm, avoid, *works):
    """MiB that are fetched while each work(clone) is done, one after another."""
    memory.settled(made, vm)
    memory.at(made, made[1])
    ticket = vm.clone(1, avoid=avoid, wait="answered")
    try:
        clone = made[1].vm(ticket["clones"][0]["vm"]).follow(vm)
        clone.shell("true")
        found = [pages(made[1], clone)["fetched"]]
        for work in works:
            work(clone)
            found.append(pages(made[1], clone)["fetched"])
        return [(after - before) / MIB for before, after in zip(found, found[1:])]
    finally:
        made[0].end_ticket(ticket["ticket"])


def allocate(clone):
    probe = clone.probe()
    probe("open m mem %d" % USED)
    probe("fill m 2")
    probe("close m")
    probe.quit()


def start(clone):
    """The program that reads, and the guest's way to its disk, fetched before."""
    clone.shell("cat /etc/hostname > /dev/null; head -c 4096 /dev/vdc > /dev/null")


def read(clone):
    clone.shell("cat /dev/vdc > /dev/null")


def measure(figures, quick, works, more=""):
    """works: {name: functions(clone)}, of which the last is counted, and one before it, with .read, as .start."""
    with memory.cluster(2) as made, parent(made, more) as vm:
        for ways in (SILENT, REPORTING):
            if ways is REPORTING:
                memory.settled(made, vm)
                report(made[0], vm)
            for name, work in works.items():
                for way, avoid in ways.items():
                    found = [fetched(made, vm, avoid, *work) for _ in range(1 if quick else 3)]
                    figures.add("avoidance.%s.%s" % (name, way), "MiB", [counts[-1] for counts in found])
                    if len(work) > 1 and way == "read":
                        figures.add("avoidance.%s.start" % name, "MiB", [counts[0] for counts in found])


def measure_default(figures, quick):
    """Debian's kernel as it is."""
    measure(figures, quick, {"alloc": [allocate], "zeroing": [start, read]})
    memory.add_ratio(figures, "avoidance.alloc.ratio", "avoidance.alloc.all", "avoidance.alloc.off")
    memory.add_ratio(figures, "avoidance.zeroing.ratio", "avoidance.zeroing.all", "avoidance.zeroing.off")
    memory.add_ratio(figures, "avoidance.read.zeroing", "avoidance.zeroing.read", "avoidance.zeroing.off")


def measure_read(figures, quick):
    """A kernel that does not zero what it allocates."""
    measure(figures, quick, {"read": [start, read]}, "init_on_alloc=0")
    memory.add_ratio(figures, "avoidance.read.ratio", "avoidance.read.read", "avoidance.read.off")


def draw(figures, path):
    figure, axes = plot.panels(3)
    titles = (("alloc", "Allocating %d MiB" % USED), ("read", "Reading %d MiB, init_on_alloc=0" % FILE),
              ("zeroing", "Reading %d MiB, init_on_alloc=1" % FILE))
    for place, (name, title) in zip(axes, titles):
        ways = [way for way in WAYS if figures.get("avoidance.%s.%s" % (name, way))]
        values = [figures.get("avoidance.%s.%s" % (name, way))["median"] for way in ways]
        place.set_title(title)
        place.bar(range(len(ways)), values, 0.55, color=[plot.GREY] + [plot.BLUE] * 3)
        place.set_xticks(range(len(ways)), labels=ways)
        place.grid(axis="x", visible=False)
        place.set_ylabel("MiB fetched")
    plot.save(figure, figures, "Pages that never travel", path)


class Avoidance:
    name = "avoidance"
    about = "Pages that clones on other hosts do not fetch: free memory, disk reads."
    bars = BARS
    groups = {"default": measure_default, "read": measure_read}
    prepare = staticmethod(run.needs_build)
    plot = staticmethod(draw)


if __name__ == "__main__":
    run.main(Avoidance)
