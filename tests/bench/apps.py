#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/bench apps: the applications of examples/apps, forked and not. Two hosts, network namespaces on a bridge.

    apps.NAME.forked    a VM forks into 4 clones, two on each host; from before the ticket until the output is whole
    apps.NAME.ideal     4 VMs that were never forked, two on each host, do a part of the work each, prepared and begun at the
                        same time; the slowest, and the time that it took to join the parts in the forked run
    apps.NAME.ratio     forked over ideal
    apps.NAME.over      forked - ideal

Both by turns. The parts of both must be the same, byte for byte, else it is no measurement. Each application is a
group. The group `bytes`:

    apps.bytes.NAME.*   what the parent's host sent to the other one for one run, over the clones there: memory, disks, orders.
                        The work is the small one of the tests. all: pages that would be thrown away are avoided, the default;
                        none: they are not; multicast: as all, memory by multicast

The group `sandbox` measures examples/sandbox, on one host:

    apps.sandbox.rate           commands a second, each in a clone of its own, two at once, a thousand in a row
    apps.sandbox.latency        from before the ticket to the first byte that a command printed, as sf-pool sees it; one
                                command at a time, as it is one boot that it is compared with
    apps.sandbox.latency.busy   the same of the thousand, two at once
    apps.sandbox.boot           a cold boot of the same VM, until its shell answers
    apps.sandbox.latency.ratio  latency over boot
    apps.sandbox.left           kinds of things (VMs, tickets, processes, files, descriptors, network interfaces) that are
                                not as they were before the thousand; standard error says which
    apps.sandbox.daemon         by how much sfvmmd's own memory has grown meanwhile
    apps.sandbox.parent         the same of the parent's QEMU

The group `concurrent`: four parents on four hosts go five times through ticket, two clones, task, join, all at the same time.

    apps.concurrent             seconds that a task took in its clone, mean of all
    apps.concurrent.alone       the same tasks in as many VMs that were never forked, five times, all at the same time
    apps.concurrent.ratio       one over the other

The group `slurm`, in lib/slurm_grant.py: tickets through a real Slurm, on two hosts.

    apps.slurm.grant            from the request of a ticket for 4 clones on the VM's host to its grant: salloc, scontrol
    apps.slurm.grant.hosts      the same for 6 clones on both hosts: then the other one is asked, too
    apps.slurm.salloc           salloc --no-shell alone, in turn with the others
    apps.slurm.static[.hosts]   the same tickets by the resource manager `static`

Minutes on two quiet cores under TCG: 5 for an application, 5 for bytes, 10 for sandbox, 5 for concurrent, 1 for slurm.
With --quick 1 to 2 each; bytes 3.
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
RUNS, QUICK_RUNS = 3, 1         # of an application, forked and not, by turns: the machine's speed changes
RATIO_BAR, OVER_BAR = 1.25, 4
# Of --size: work of some 20 s for each of four clones, under TCG and on two cores.
SIZES = {"blast": 26, "bowtie2": 36, "clustalw": 8, "povray": 13, "quantlib": 24, "distcc": 5}
SMALL = 1                       # size of the tests
NETWORK = {"distcc": {"network": "cluster"}}    # of a parent whose clones must reach it
FETCHES, QUICK_FETCHES = 2, 1   # of an application, by each transport: what they fetch hardly differs
TRANSPORTS = {"all": {}, "none": {"avoid": "none"}, "multicast": {"multicast": "on"}}   # keys of [cluster]
SANDBOXES, QUICK_SANDBOXES, WARM_SANDBOXES, LATENCY_SANDBOXES, AT_ONCE = 1000, 100, 10, 30, 2
LATENCY_BAR = 0.1
PARENTS, TURNS, CLONES_OF_EACH, ROUNDS, QUICK_ROUNDS = 4, 5, 2, 200000, 20000
CONCURRENT_BAR = 1.25
BARS = {"apps.%s.%s" % (name, what): bar for name in SIZES for what, bar in (("ratio", RATIO_BAR), ("over", OVER_BAR))}
BARS.update({"apps.sandbox.latency.ratio": LATENCY_BAR, "apps.sandbox.left": 0, "apps.concurrent.ratio": CONCURRENT_BAR})
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
    for number, host in enumerate(made):
        host.cluster = {**{key: value for key, value in host.cluster.items() if key not in ("avoid", "multicast")}, **keys}
        witness = made[number - 1]
        host.restart_before(witness)
        host.wait_up(witness.name)


def measure(name, figures, quick):
    job = Job(name, SMALL if quick else SIZES[name])
    runs, alone = [], []
    with memory.cluster(HOSTS) as made, booted(made * (CLONES // HOSTS)) as vms, \
            booted(made[:1], pool=CLONES // HOSTS, **NETWORK.get(name, {})) as (parent,):
        for _ in range(QUICK_RUNS if quick else RUNS):
            runs.append(Forked(made, parent, job))
            alone.append(ideal(vms, job, runs[-1].parts) + runs[-1].joining)
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
                sent = [Forked(made, parent, job).sent for _ in range(QUICK_FETCHES if quick else FETCHES)]
                figures.add("apps.bytes.%s.%s" % (job.name, transport), "MiB",
                            [count / MIB / (CLONES // HOSTS) for count in sent])


class Left:
    """What a run of sandboxes may leave behind at a host. things: by kind and name; the rest in MiB."""

    def __init__(self, server, parent):
        self.things = {**server.footprint(), "descriptors of the parent": dict(server.descriptors(parent.pid)),
                       "overlays": len(os.listdir(server.config["overlay-directory"])),
                       "interfaces": dict.fromkeys(os.listdir("/sys/class/net"), 1)}
        self.daemon = harness.anonymous(server.process.pid) / MIB
        self.parent = harness.anonymous(parent.pid) / MIB

    def more_than(self, early):
        """{kind: what differs}"""
        return harness.changes({kind: (early.things[kind], things) for kind, things in self.things.items()
                                if early.things[kind] != things})


def pool(parent, count, at_once):
    """So many commands, each in its clone. Seconds until the first output, of the median one."""
    text = parent.shell("seq %d | sed 's/.*/echo &/' | sf-pool --at-once %d | grep -c '= 0'" % (count, at_once),
                        timeout=count * harness.SHORT)
    match = re.search(r"first output after ([0-9.]+) s", text)
    if not match or not text.rstrip().endswith(str(count)):
        raise RuntimeError("sf-pool: " + text[-500:])
    return float(match.group(1))


def sandbox(figures, quick):
    count = QUICK_SANDBOXES if quick else SANDBOXES
    with daemon() as server:
        begin = time.monotonic()
        parent = harness.linux(server, tools=False, pool=AT_ONCE)
        boot = time.monotonic() - begin
        pool(parent, WARM_SANDBOXES, AT_ONCE)
        latency = pool(parent, LATENCY_SANDBOXES, 1)
        memory.settled([server], parent)
        early, begin = Left(server, parent), time.monotonic()
        busy = pool(parent, count, AT_ONCE)
        seconds = time.monotonic() - begin
        memory.settled([server], parent)
        with contextlib.suppress(AssertionError):
            harness.wait(lambda: not Left(server, parent).more_than(early), harness.SHORT, "nothing left")
        late = Left(server, parent)
    left = late.more_than(early)
    if left:
        run.say("left by %d sandboxes (before, after): %s" % (count, left))
    figures.add("apps.sandbox.rate", "1/s", [count / seconds])
    figures.add("apps.sandbox.latency", "s", [latency])
    figures.add("apps.sandbox.latency.busy", "s", [busy])
    figures.add("apps.sandbox.boot", "s", [boot])
    figures.add("apps.sandbox.latency.ratio", "ratio", [latency / boot])
    figures.add("apps.sandbox.left", "things", [len(left)])
    figures.add("apps.sandbox.daemon", "MiB", [late.daemon - early.daemon])
    figures.add("apps.sandbox.parent", "MiB", [late.parent - early.parent])


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
