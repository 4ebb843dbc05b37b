#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/bench apps: the applications of examples/apps, forked and not. Two hosts, network namespaces on a bridge.

    apps.NAME.forked    a VM forks into 4 clones, two on each host; from before the ticket until the output is whole
    apps.NAME.ideal     4 VMs that were never forked, two on each host, do a part of the work each, prepared and begun at the
                        same time; the slowest, and the time that it took to join the parts in the forked run
    apps.NAME.ratio     forked over ideal
    apps.NAME.over      forked - ideal

The parts of both must be the same, byte for byte, else it is no measurement. Each application is a group. The group `bytes`:

    apps.bytes.NAME.*   what the parent's host sent to the other one for one run, over the clones there: memory, disks, orders.
                        The work is the small one of the tests. all: pages that would be thrown away are avoided, the default;
                        none: they are not; multicast: as all, memory by multicast

The group `sandbox` measures examples/sandbox, on one host:

    apps.sandbox.rate           commands a second, each in a clone of its own, two at once, a thousand in a row; nothing
                                may be left of them
    apps.sandbox.latency        from before the ticket to the first byte that a command printed, as sf-pool sees it
    apps.sandbox.boot           a cold boot of the same VM, until its shell answers
    apps.sandbox.latency.ratio  latency over boot

The group `concurrent`: four parents on four hosts go five times through ticket, two clones, task, join, all at the same time.

    apps.concurrent             seconds that a task took in its clone, mean of all
    apps.concurrent.alone       the same tasks in as many VMs that were never forked, five times, all at the same time
    apps.concurrent.ratio       one over the other

The group `slurm`, in lib/slurm_grant.py: tickets through a real Slurm, on two hosts.

    apps.slurm.grant            from the request of a ticket for 4 clones on the VM's host to its grant: salloc, scontrol
    apps.slurm.grant.hosts      the same for 6 clones on both hosts: then the other one is asked, too
    apps.slurm.salloc           salloc --no-shell alone, in turn with the others
    apps.slurm.static[.hosts]   the same tickets by the resource manager `static`
"""
import contextlib
import os
import re
import statistics
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "functional")]

import cycling                                      # noqa: E402
import harness                                      # noqa: E402
import memory                                       # noqa: E402
from lib import apps_plot, run, slurm_grant         # noqa: E402
from lib.daemon import daemon                       # noqa: E402

MIB = harness.MIB
APPS = "/usr/share/snowflock/apps"
CLONES, HOSTS = 4, 2
MEMORY = 512 * MIB
BOUND = 10 * harness.LONG
RUNS, QUICK_RUNS = 2, 1         # of an application, forked and not
RATIO_BAR, OVER_BAR = 1.25, 4
# Of --size: work of some 20 s for each of four clones, under TCG and on two cores.
SIZES = {"blast": 26, "bowtie2": 36, "clustalw": 8, "povray": 9, "quantlib": 24, "distcc": 3}
SMALL = 1                       # size of the tests
NETWORK = {"distcc": {"network": "cluster"}}    # of a parent whose clones must reach it
TRANSPORTS = {"all": {}, "none": {"avoid": "none"}, "multicast": {"multicast": "on"}}   # keys of [cluster]
SANDBOXES, QUICK_SANDBOXES, AT_ONCE = 1000, 30, 2
LATENCY_BAR = 0.1
PARENTS, TURNS, CLONES_OF_EACH, ROUNDS, QUICK_ROUNDS = 4, 5, 2, 400000, 20000
CONCURRENT_BAR = 1.25
BARS = {"apps.%s.%s" % (name, what): bar for name in SIZES for what, bar in (("ratio", RATIO_BAR), ("over", OVER_BAR))}
BARS.update({"apps.sandbox.latency.ratio": LATENCY_BAR, "apps.concurrent.ratio": CONCURRENT_BAR})
BARS.update(slurm_grant.BARS)


class Job:
    """An application at a size."""

    def __init__(self, name, size):
        self.name, self.size = name, size

    def command(self, way):
        return "%s/%s --size %d %s" % (APPS, self.name, self.size, way)

    def said(self, text):
        """Seconds that it took, and the digest of what it made."""
        match = re.search(r"%s: ([0-9.]+) s, \d+ bytes, sha256 (\w+)" % self.name, text)
        if not match:
            raise RuntimeError("%s: %s" % (self.name, text))
        return float(match.group(1)), match.group(2)


class Forked:
    """One run in clones."""

    def __init__(self, made, parent, job):
        memory.settled(made, parent)
        before = made[0].network.sent(1)
        text = parent.shell(job.command("-n %d" % CLONES), timeout=BOUND)
        self.sent = made[0].network.sent(1) - before
        self.seconds, _ = job.said(text)
        match = re.search(r"joined in ([0-9.]+) s, parts ([\w ]+)", text)
        self.joining, self.parts = float(match.group(1)), match.group(2).split()
        if len(self.parts) != CLONES:
            raise RuntimeError("%s: %d clones: %s" % (job.name, len(self.parts), text))


def ideal(vms, job, parts):
    """Seconds of the slowest of VMs that do a part each. parts: digests of what they must make."""
    for number, vm in enumerate(vms, 1):
        vm.begin(job.command("--wait --part %d/%d" % (number, len(vms))))
    for vm in vms:
        vm.console.expect("prepared\r?\n", BOUND)
    for vm in vms:
        vm.console.send("\n")
    done = [job.said(vm.finish(BOUND)) for vm in vms]
    if [digest for _, digest in done] != parts:
        raise RuntimeError("%s: the parts of clones and of VMs that were never forked differ" % job.name)
    return max(seconds for seconds, _ in done)


@contextlib.contextmanager
def booted(hosts, **params):
    vms = cycling.booted(hosts, memory=MEMORY, **params)
    try:
        yield vms
    finally:
        for vm in vms:
            vm.stop()


def configure(made, keys):
    """The hosts go on with other keys of [cluster]; their VMs do not notice."""
    for host in made:
        host.cluster = {**{key: value for key, value in host.cluster.items() if key not in ("avoid", "multicast")}, **keys}
        host.restart()
    for host in made:
        for other in made:
            if host is not other:
                host.wait_up(other.name)


def measure(name, figures, quick):
    job = Job(name, SMALL if quick else SIZES[name])
    runs_wanted = QUICK_RUNS if quick else RUNS
    with memory.cluster(HOSTS) as made:
        with booted(made[:1], pool=CLONES // HOSTS, **NETWORK.get(name, {})) as (parent,):
            runs = [Forked(made, parent, job) for _ in range(runs_wanted)]
        with booted(made * (CLONES // HOSTS)) as vms:
            alone = [ideal(vms, job, one.parts) + one.joining for one in runs]
    figures.add("apps.%s.ideal" % name, "s", alone)
    figures.add("apps.%s.forked" % name, "s", [one.seconds for one in runs])
    took, would = statistics.median(one.seconds for one in runs), statistics.median(alone)
    figures.add("apps.%s.ratio" % name, "ratio", [took / would])
    figures.add("apps.%s.over" % name, "s", [took - would])


def fetched(figures, quick):
    """The small work of all applications, over each kind of transport, by one parent that has forked each before."""
    with memory.cluster(HOSTS) as made, booted(made[:1], pool=CLONES // HOSTS, network="cluster") as (parent,):
        jobs = [Job(name, SMALL) for name in SIZES]
        for job in jobs:
            Forked(made, parent, job)
        for transport, keys in TRANSPORTS.items():
            configure(made, keys)
            for job in jobs:
                sent = [Forked(made, parent, job).sent for _ in range(1 if quick else 3)]
                figures.add("apps.bytes.%s.%s" % (job.name, transport), "MiB",
                            [count / MIB / (CLONES // HOSTS) for count in sent])


def sandbox(figures, quick):
    count = QUICK_SANDBOXES if quick else SANDBOXES
    with daemon() as server:
        begin = time.monotonic()
        parent = harness.linux(server, tools=False, pool=AT_ONCE)
        boot = time.monotonic() - begin
        before = server.footprint()
        begin = time.monotonic()
        text = parent.shell("seq %d | sed 's/.*/echo &/' | sf-pool --at-once %d | grep -c '= 0'" % (count, AT_ONCE),
                            timeout=count * harness.SHORT)
        seconds = time.monotonic() - begin
        match = re.search(r"first output after ([0-9.]+) s", text)
        if not match or not text.rstrip().endswith(str(count)):
            raise RuntimeError("sf-pool: " + text[-500:])
        harness.wait(lambda: server.footprint() == before, harness.LONG, "nothing left of %d sandboxes" % count)
    figures.add("apps.sandbox.rate", "1/s", [count / seconds])
    figures.add("apps.sandbox.latency", "s", [float(match.group(1))])
    figures.add("apps.sandbox.boot", "s", [boot])
    figures.add("apps.sandbox.latency.ratio", "ratio", [float(match.group(1)) / boot])


def concurrent(figures, quick):
    rounds, turns = (QUICK_ROUNDS, 1) if quick else (ROUNDS, TURNS)
    with memory.cluster(PARENTS) as made:
        def tasks(vms, clones):
            cycling.begin(vms, turns, clones, rounds)
            seconds = cycling.finish(vms, turns, clones, rounds, BOUND)
            for vm in vms:
                vm.stop()
            return seconds
        forked = tasks(cycling.booted(made, pool=CLONES_OF_EACH), CLONES_OF_EACH)
        alone = tasks(cycling.booted(made * CLONES_OF_EACH), 0)
    figures.add("apps.concurrent", "s", [statistics.mean(forked)])
    figures.add("apps.concurrent.alone", "s", [statistics.mean(alone)])
    figures.add("apps.concurrent.ratio", "ratio", [statistics.mean(forked) / statistics.mean(alone)])


def group(name):
    return lambda figures, quick: measure(name, figures, quick)


class Apps:
    name = "apps"
    about = "Applications in clones, beside the same work in VMs that were never forked."
    bars = BARS
    groups = {**{name: group(name) for name in SIZES}, "bytes": fetched, "concurrent": concurrent, "sandbox": sandbox,
              "slurm": slurm_grant.measure}
    prepare = staticmethod(run.needs_build)

    @staticmethod
    def plot(figures, path):
        apps_plot.draw(figures, path)


if __name__ == "__main__":
    run.main(Apps)
