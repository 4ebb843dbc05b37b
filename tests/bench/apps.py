#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/bench apps: the applications of examples/apps, forked and not. Two hosts, network namespaces on a bridge.

    apps.NAME.forked    a VM forks into 4 clones, two on each host; from before the ticket until the output is whole
    apps.NAME.ideal     4 VMs that were never forked, two on each host, do a part of the work each, prepared and begun at the
                        same time; the slowest, and the time that it took to join the parts in the forked run
    apps.NAME.plain     the unchanged program in one VM, reported: what a machine with that VM alone would take
    apps.NAME.ratio     forked over ideal
    apps.NAME.over      forked - ideal
    apps.bytes.NAME     what the parent's host sent to the other one for one run, for each clone there: memory, disks, orders

All outputs of an application must be the same, else it is no measurement. --only NAME measures one of them. And of
examples/sandbox, on one host:

    apps.sandbox.rate           commands a second, each in a clone of its own, two at once, a thousand in a row; nothing
                                may be left of them
    apps.sandbox.latency        from the ticket to the first byte that a command printed, as sf-pool sees it
    apps.sandbox.boot           a cold boot of the same VM, until its shell answers
    apps.sandbox.latency.ratio  latency over boot
"""
import contextlib
import os
import re
import statistics
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "functional")]

import harness                                      # noqa: E402
import memory                                       # noqa: E402
from lib import apps_plot, run                      # noqa: E402

MIB = harness.MIB
APPS = "/usr/share/snowflock/apps"
CLONES, HOSTS = 4, 2
MEMORY = 512 * MIB
BOUND = 10 * harness.LONG
RATIO_BAR, OVER_BAR = 1.25, 4
SIZES = {"blast": 60, "bowtie2": 12, "clustalw": 3, "povray": 8, "quantlib": 24}    # of --size: some 20 s of a clone under TCG
SANDBOXES, QUICK_SANDBOXES, AT_ONCE = 1000, 30, 2
LATENCY_BAR = 0.1
BARS = {"apps.%s.%s" % (name, what): bar for name in SIZES for what, bar in (("ratio", RATIO_BAR), ("over", OVER_BAR))}
BARS["apps.sandbox.latency.ratio"] = LATENCY_BAR


class Job:
    """An application at a size, and the digest that all its outputs have."""

    def __init__(self, name, size):
        self.name, self.size, self.digest = name, size, None

    def command(self, way):
        return "%s/%s --size %d %s" % (APPS, self.name, self.size, way)

    def seconds(self, text, whole=True):
        """What it says it took, and how much of that to join. whole: it is all of the output."""
        match = re.search(r"%s: ([0-9.]+) s, \d+ bytes, sha256 (\w+), joined in ([0-9.]+) s" % self.name, text)
        if not match:
            raise RuntimeError("%s: %s" % (self.name, text))
        if whole and self.digest not in (None, match.group(2)):
            raise RuntimeError("%s: its output is another one: %s" % (self.name, text))
        if whole:
            self.digest = match.group(2)
        return float(match.group(1)), float(match.group(3))


def forked(made, parent, job):
    """Seconds, those to join, and bytes that the parent's host has sent."""
    before = made[0].network.sent(1)
    seconds = job.seconds(parent.shell(job.command("-n %d" % CLONES), timeout=BOUND))
    return *seconds, made[0].network.sent(1) - before


def ideal(vms, job):
    """Seconds of the slowest of VMs that do a part each."""
    for number, vm in enumerate(vms, 1):
        vm.begin(job.command("--wait --part %d/%d" % (number, len(vms))))
    for vm in vms:
        vm.console.expect("prepared\r?\n", BOUND)
    for vm in vms:
        vm.console.send("\n")
    return max(job.seconds(vm.finish(BOUND), whole=False)[0] for vm in vms)


@contextlib.contextmanager
def booted(hosts, **params):
    vms = [harness.linux(host, memory=MEMORY, tools=False, **params) for host in hosts]
    try:
        yield vms
    finally:
        for vm in vms:
            vm.stop()


def measure(name, figures, quick):
    job = Job(name, 1 if quick else SIZES[name])
    turns = 1 if quick else 2
    with memory.cluster(HOSTS) as made:
        with booted(made[:1], pool=CLONES // HOSTS) as (parent,):
            plain, _ = job.seconds(parent.shell(job.command("--plain"), timeout=BOUND))
            runs = [forked(made, parent, job) for _ in range(turns)]
        with booted((made * CLONES)[:CLONES]) as vms:
            alone = [ideal(vms, job) + runs[turn][1] for turn in range(turns)]
    figures.add("apps.%s.plain" % name, "s", [plain])
    figures.add("apps.%s.ideal" % name, "s", alone)
    figures.add("apps.%s.forked" % name, "s", [seconds for seconds, _, _ in runs])
    took, would = statistics.median(seconds for seconds, _, _ in runs), statistics.median(alone)
    figures.add("apps.%s.ratio" % name, "ratio", [took / would])
    figures.add("apps.%s.over" % name, "s", [took - would])
    figures.add("apps.bytes.%s" % name, "MiB", [sent / MIB / (CLONES // HOSTS) for _, _, sent in runs])


def sandbox(figures, quick):
    count = QUICK_SANDBOXES if quick else SANDBOXES
    daemon = harness.Daemon()
    try:
        daemon.start()
        begin = time.monotonic()
        parent = harness.linux(daemon, tools=False, pool=AT_ONCE)
        boot = time.monotonic() - begin
        before = daemon.footprint()
        begin = time.monotonic()
        text = parent.shell("seq %d | sed 's/.*/echo &/' | sf-pool --at-once %d | grep -c '= 0'" % (count, AT_ONCE),
                            timeout=count * harness.SHORT)
        seconds = time.monotonic() - begin
        match = re.search(r"first output after ([0-9.]+) s", text)
        if not match or not text.rstrip().endswith(str(count)):
            raise RuntimeError("sf-pool: " + text[-500:])
        harness.wait(lambda: daemon.footprint() == before, harness.LONG, "nothing left of %d sandboxes" % count)
    finally:
        daemon.close()
    figures.add("apps.sandbox.rate", "1/s", [count / seconds])
    figures.add("apps.sandbox.latency", "s", [float(match.group(1))])
    figures.add("apps.sandbox.boot", "s", [boot])
    figures.add("apps.sandbox.latency.ratio", "ratio", [float(match.group(1)) / boot])


def group(name):
    return lambda figures, quick: measure(name, figures, quick)


class Apps:
    name = "apps"
    about = "Applications in clones, beside the same work in VMs that were never forked."
    bars = BARS
    groups = {**{name: group(name) for name in SIZES}, "sandbox": sandbox}

    @staticmethod
    def plot(figures, path):
        apps_plot.draw(figures, path)

    @staticmethod
    def prepare():
        harness.environment("SF_BUILD", "the build")
        return contextlib.nullcontext()


if __name__ == "__main__":
    run.main(Apps)
