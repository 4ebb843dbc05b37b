#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/bench avoidance: pages that are not fetched because their content would be thrown away.

A Linux guest of 1 GiB under TCG, its clone on another host (a network namespace); counted is what that host fetches
while the clone works. The parent has used 400 MiB, and freed them, before it forks.

    avoidance.alloc.*     the clone allocates 400 MiB and fills them; Debian's kernel as it is
    avoidance.read.*      the clone reads 64 MiB that are not in its page cache; init_on_alloc=0
    avoidance.zeroing.*   the same with init_on_alloc=1, Debian's default

with `avoid` none, free, read, all. `on` is all. `alloc.off` and `read.off` are a parent without free-page reporting (the
balloon's driver is not loaded), as any VM was before: what it once used is in the snapshot for ever.
"""
import contextlib
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "functional")]

import harness                                      # noqa: E402
import memory                                       # noqa: E402
from lib import plot, run                           # noqa: E402

MIB = harness.MIB
USED, FILE = 400, 64            # MiB
WAYS = ("none", "free", "read", "all")
BARS = {"avoidance.alloc.ratio": 0.1, "avoidance.read.ratio": 0.1}
NO_REPORTING = "modprobe -r virtio_balloon"


def usage(host, name):
    return next(found for found in host.call("vm.usage")["vms"] if found["name"] == name)


@contextlib.contextmanager
def parent(made, reporting, more=""):
    """A VM that has used memory and freed it; reporting: its kernel says so to the host."""
    path = os.path.join(made[0].overlays, "random")
    with open(path, "wb") as file:
        file.write(os.urandom(FILE * MIB))
    os.chmod(path, 0o644)
    vm = harness.linux(made[0], memory=memory.GIB_MIB * MIB, pool=0, more=more,
                       disks=[{"path": path, "format": "raw", "readonly": True}])
    vm.layers = memory.layers(vm)
    try:
        if not reporting:
            vm.shell(NO_REPORTING)
        probe = vm.probe()
        probe("open m mem %d" % USED)
        probe("fill m 1")
        full = usage(made[0], vm.name)["shared"]
        probe("close m")
        if reporting:
            harness.wait(lambda: usage(made[0], vm.name)["shared"] < full - USED * MIB * 3 // 4, harness.LONG,
                         "free pages to be reported")
        probe.quit()
        yield vm
    finally:
        vm.stop()


def fetched(made, vm, avoid, work):
    """MiB that are fetched while work(clone) is done."""
    memory.settled(made, vm)
    memory.at(made, made[1])
    ticket = vm.clone(1, avoid=avoid, wait="answered")
    try:
        clone = made[1].vm(ticket["clones"][0]["vm"]).follow(vm)
        clone.shell("true")
        before = usage(made[1], clone.name)["pages"]["fetched"]
        work(clone)
        return (usage(made[1], clone.name)["pages"]["fetched"] - before) / MIB
    finally:
        made[0].end_ticket(ticket["ticket"])


def allocate(clone):
    probe = clone.probe()
    probe("open m mem %d" % USED)
    probe("fill m 2")
    probe("close m")
    probe.quit()


def read(clone):
    clone.shell("cat /dev/vdc > /dev/null")


def measure(figures, quick, name, work, more=""):
    found = {way: [] for way in WAYS + ("off",)}
    with memory.cluster(2) as made:
        with parent(made, True, more) as vm:
            for _ in range(1 if quick else 3):
                for way in WAYS:
                    found[way].append(fetched(made, vm, way, work))
        with parent(made, False, more) as vm:
            for _ in range(1 if quick else 3):
                found["off"].append(fetched(made, vm, "free", work))
    for way in found:
        figures.add("avoidance.%s.%s" % (name, way), "MiB", found[way])
    figures.add("avoidance.%s.on" % name, "MiB", found["all"])


def measure_alloc(figures, quick):
    measure(figures, quick, "alloc", allocate)
    memory.add_ratio(figures, "avoidance.alloc.ratio", "avoidance.alloc.on", "avoidance.alloc.off")


def measure_read(figures, quick):
    """The hook alone over nothing, in a parent that reports nothing: both with all that it once used in the snapshot."""
    measure(figures, quick, "read", read, "init_on_alloc=0")
    on = []
    with memory.cluster(2) as made, parent(made, False, "init_on_alloc=0") as vm:
        for _ in range(1 if quick else 3):
            on.append(fetched(made, vm, "all", read))
    figures.add("avoidance.read.hook", "MiB", on)
    memory.add_ratio(figures, "avoidance.read.ratio", "avoidance.read.hook", "avoidance.read.off")


def measure_zeroing(figures, quick):
    measure(figures, quick, "zeroing", read)
    memory.add_ratio(figures, "avoidance.zeroing.ratio", "avoidance.zeroing.on", "avoidance.zeroing.off")


def draw(figures, path):
    figure, axes = plot.panels(3)
    titles = (("alloc", "Allocating %d MiB" % USED), ("read", "Reading %d MiB, init_on_alloc=0" % FILE),
              ("zeroing", "Reading %d MiB, init_on_alloc=1" % FILE))
    for place, (name, title) in zip(axes, titles):
        ways = [way for way in ("off",) + WAYS if figures.get("avoidance.%s.%s" % (name, way))]
        values = [figures.get("avoidance.%s.%s" % (name, way))["median"] for way in ways]
        place.set_title(title)
        place.bar(range(len(ways)), values, 0.55, color=[plot.GREY] + [plot.BLUE] * 4)
        place.set_xticks(range(len(ways)), labels=["no reporting" if way == "off" else way for way in ways])
        place.grid(axis="x", visible=False)
        place.set_ylabel("MiB fetched")
    plot.save(figure, figures, "Pages that never travel", path)


class Avoidance:
    name = "avoidance"
    about = "Pages that clones on other hosts do not fetch: free memory, disk reads."
    bars = BARS
    groups = {"alloc": measure_alloc, "read": measure_read, "zeroing": measure_zeroing}
    plot = staticmethod(draw)

    @staticmethod
    def prepare():
        harness.environment("SF_BUILD", "the build")
        return contextlib.nullcontext()


if __name__ == "__main__":
    run.main(Avoidance)
