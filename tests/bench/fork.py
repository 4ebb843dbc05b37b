#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/bench fork: what a fork on one host costs, beside what stock QEMU needs for the same.

What is timed, and by whom:

    program: sf_clone()   sfvmmd             QEMU of the parent       shell -> clone           agent, program in the clone
        '---- CLONE ------> called
                            '-- SNAPSHOT ----> at: vCPUs stopped
                                               '..pause..> vCPUs run
                              <------------------'
                              '------------- LOAD ----------------------> running: 1st instruction
                              '------------- IDENTITY -----------------------------------> made unique
                            answered <---------------------------------------------------'
                                                                        returned: sf_clone() is over, a byte on the console

All are stamps of the host's clock: by QEMU (at, pause, running), by sfvmmd (called, answered), and the time of the last
change of the console's log (returned; coarse, the kernel may be a tick of 4 ms behind).
    fork.pause    pause, of a guest that has just written to every page of its RAM; the fork is undone in between (memory
                  folded and shared again), so that each is a first fork
    fork.first    at -> the last `running`
    fork.return   called -> the last `returned`
    fork.answer   called -> the last `answered`
    fork.cpu_per_clone  CPU time, from the order until the last clone runs, of sfvmmd, of the parent's QEMU and of all
                  clones' QEMUs without their vCPU threads, over the number of clones. The first clones run meanwhile, and
                  what their QEMUs do for them is counted too, so it is an upper bound.
    fork.private  of each idle clone some seconds after the fork: process.private_bytes()
    fork.overhead per pair of runs the median round of a job in a clone over that in a never-forked VM of the same
                  configuration; rounds of the first second are left out
    fork.stock    lib/stock.py
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
import tiny                                         # noqa: E402
from lib import fork_plot, guest, process, run, stock   # noqa: E402
from lib.daemon import daemon                       # noqa: E402

MIB = harness.MIB
GIB_MIB = 1024
NS_PER_MS = 1e6
COUNTS = (1, 8, 32)
LOOK = 0.05                     # seconds between two looks at a fork, which cost CPU time that the fork needs
IDLE_SECONDS = 5                # a clone's idle time before its memory is looked at
KVM_CLONES = 4
BARS_SIZES = ("1g", "4g")       # of RAM, that have a bar
JOB_SECONDS = 3.0               # of which the first second is left out
LEFT_OUT_NS = 1e9
MEMORY_JOB_MIB = 64
FORKBENCH = guest.FOLDER + "/sf-forkbench"

BARS = {
    "fork.pause.1g": 10, "fork.pause.4g": 10, "fork.first.32": 250, "fork.return.32.warm": 1300,
    "fork.return.32.cold": 2800, "fork.cpu_per_clone": 8, "fork.descriptor": 102400, "fork.private": 36,
    "fork.private.kvm": 20, "fork.overhead.cpu": 1.03, "fork.overhead.mem": 1.03,
}


# ---------------------------------------------------------------- VMs and forks

@contextlib.contextmanager
def linux(server, **params):
    vm = harness.linux(server, tools=False, **params)
    try:
        yield vm
    finally:
        vm.stop()


def ready(vm):
    """Wait until the VM is as if it had never been forked, and its pool is full."""
    harness.wait(vm.disks_at_first, harness.LONG, "memory and disks of %s made one again" % vm.name)
    harness.wait(vm.daemon.pools_full, harness.LONG, "full pool")


def check(ticket):
    for clone in ticket["clones"]:
        if clone["state"] not in ("starting", "running"):
            raise RuntimeError("clone %d: %s: %s" % (clone["id"], clone["state"], clone["reason"]))


def stamps(ticket, name):
    return [clone[name] for clone in ticket["clones"]]


def fork_inside(vm, count):
    """A program of the guest forks it. Returns the TICKET when sf_clone() has returned in every clone; its clones have
    one stamp more, `returned`."""
    ready(vm)
    vm.begin("%s fork %d hold" % (FORKBENCH, count))
    end = time.monotonic() + harness.LONG
    ticket, logs = None, {}
    while len(logs) < count:
        time.sleep(LOOK)
        if not ticket:
            ticket = next((t for t in vm.daemon.call("ticket.list")["tickets"]
                           if t["vm"] == vm.name and t["clones"]), None)
        for clone in ticket["clones"] if ticket else []:
            with contextlib.suppress(OSError):          # not placed yet
                log = os.stat(os.path.join(vm.daemon.run, "vm", clone["vm"], "console.log"))
                if log.st_size:
                    logs[clone["id"]] = log.st_mtime_ns
        if time.monotonic() > end:
            check(ticket or {"clones": []})
            raise AssertionError("sf_clone() has not returned in %d clones within %.0f s; the guest says: %r" %
                                 (count, harness.LONG, vm.console.text()[-500:]))
    realtime = time.time_ns() - time.monotonic_ns()
    ticket = vm.daemon.call("ticket.status", ticket=ticket["ticket"])["ticket"]
    check(ticket)
    for clone in ticket["clones"]:
        clone["returned"] = logs[clone["id"]] - realtime
    if ticket["granted"] != count:
        raise RuntimeError("%d clones granted of %d" % (ticket["granted"], count))
    vm.daemon.call("kill", ticket=ticket["ticket"])
    vm.finish(check=False)              # joins and releases the ticket
    return ticket


@contextlib.contextmanager
def forked(vm, count, **params):
    """Clones of a fork from outside, and their end."""
    ready(vm)
    ticket = vm.clone(count, **params)
    try:
        check(ticket)
        yield ticket
    finally:
        vm.daemon.call("kill", ticket=ticket["ticket"])
        vm.daemon.call("join", ticket=ticket["ticket"])


def last(ticket, name, since):
    """ms from a stamp of the fork to the last of a stamp of the clones."""
    return (max(stamps(ticket, name)) - ticket["fork"][since]) / NS_PER_MS


# ---------------------------------------------------------------- groups

def touch(vm):
    """The guest's program writes to every page it holds; MiB."""
    vm.console.send("\n")
    return int(vm.console.expect(r"resident (\d+)\r?\n")[0].group(1))


def measure_pause(figures, quick):
    sizes = {"256m": 256, "512m": 512, "1g": GIB_MIB, "2g": 2 * GIB_MIB, "4g": 4 * GIB_MIB}
    turns = {"1g": 12, "4g": 10}
    for name, mib in sizes.items():
        if quick and name not in BARS_SIZES:
            continue
        resident, descriptors = [], []
        with daemon() as server, linux(server, memory=mib * MIB, pool=1) as vm:
            vm.console.send(FORKBENCH + " resident\n")

            def pause():
                ready(vm)
                touch(vm)
                resident.append(100 * process.memfd_bytes(vm.pid) / (mib * MIB))
                with forked(vm, 1, wait="resumed") as ticket:
                    descriptors.append(vm.daemon.call("descriptor", ticket=ticket["ticket"])["size"])
                    return ticket["fork"]
            forks = run.repeat("pause " + name, 3 if quick else turns.get(name, 4), pause)
        figures.add("fork.pause." + name, "ms", [fork["pause_ns"] / NS_PER_MS for fork in forks])
        if name in BARS_SIZES:
            for part in ("stop", "device", "ram", "disk", "start"):
                figures.add("fork.pause.%s.%s" % (name, part), "ms", [fork[part + "_ns"] / NS_PER_MS for fork in forks])
            figures.add("fork.pause.%s.resident" % name, "%", resident[1:])
        if name == "1g":
            figures.add("fork.descriptor.resident", "bytes", descriptors)


def measure_warm(figures, quick):
    turns = {1: 10, 8: 8, 32: 8}
    with daemon() as server, linux(server, memory=GIB_MIB * MIB, pool=max(COUNTS)) as vm:
        for count in (1, 2, 4, 8, 16, 32):
            if quick and count not in COUNTS:
                continue
            tickets = run.repeat("warm %d" % count, 2 if quick else turns.get(count, 3), lambda: fork_inside(vm, count))
            if count in COUNTS:
                figures.add("fork.first.%d" % count, "ms", [last(t, "running", "at") for t in tickets])
                figures.add("fork.answer.%d.warm" % count, "ms", [last(t, "answered", "called") for t in tickets])
            figures.add("fork.return.%d.warm" % count, "ms", [last(t, "returned", "called") for t in tickets])
        figures.add("fork.cpu_per_clone", "ms",
                    run.repeat("cpu", 2 if quick else 6, lambda: cpu_per_clone(vm, max(COUNTS))))
        measure_idle(figures, vm, quick)


def cpu_per_clone(vm, count):
    """ms outside the guest."""
    ready(vm)
    pids = [usage["pid"] for usage in vm.daemon.call("vm.usage")["vms"]]
    server = vm.daemon.process.pid
    before = {pid: process.thread_times(pid) for pid in pids + [server]}
    with forked(vm, count, wait="resumed") as ticket:
        after = {server: process.thread_times(server), vm.pid: process.thread_times(vm.pid)}
        names = {clone["vm"] for clone in ticket["clones"]}
        clones = [usage["pid"] for usage in vm.daemon.call("vm.usage")["vms"] if usage["name"] in names]
        after.update({pid: process.thread_times(pid) for pid in clones})
    total = process.spent(before[server], after.pop(server))
    total += sum(process.spent_outside(pid, before[pid], times) for pid, times in after.items())
    return total / count / NS_PER_MS


def measure_idle(figures, vm, quick):
    """Memory of idle clones, and the descriptor of their snapshot."""
    descriptors = []
    for count in COUNTS:
        private, shared = [], []

        def idle():
            with forked(vm, count) as ticket:
                descriptors.append(vm.daemon.call("descriptor", ticket=ticket["ticket"])["size"])
                time.sleep(IDLE_SECONDS)
                private.append([process.private_bytes(clone.pid) / MIB for clone in vm.daemon.clones(ticket)])
                shared.append(process.memfd_bytes(vm.pid) / MIB)
        run.repeat("idle %d" % count, 1 if quick or count == max(COUNTS) else 3, idle)
        if count == 8:
            figures.add("fork.private", "MiB", [one for fork in private[1:] for one in fork])
        figures.add("fork.memory.private.%d" % count, "MiB", [sum(fork) for fork in private[1:]])
        figures.add("fork.memory.shared.%d" % count, "MiB", shared[1:])
    figures.add("fork.descriptor", "bytes", descriptors)


def measure_cold(figures, quick):
    turns = {1: 10, 8: 8, 32: 8}
    with daemon() as server, linux(server, memory=GIB_MIB * MIB, pool=0) as vm:
        for count in (1, 2, 4, 8, 16, 32):
            if quick and count not in COUNTS:
                continue
            tickets = run.repeat("cold %d" % count, 2 if quick else turns.get(count, 3), lambda: fork_inside(vm, count))
            figures.add("fork.return.%d.cold" % count, "ms", [last(t, "returned", "called") for t in tickets])


def measure_kvm(figures, quick):
    if not harness.have_kvm():
        raise harness.unittest.SkipTest("/dev/kvm is missing or closed to this user")
    with daemon() as server:
        vm = tiny.start(server, accel="kvm", pool=KVM_CLONES)

        def idle():
            with forked(vm, KVM_CLONES) as ticket:
                time.sleep(IDLE_SECONDS)
                ticket = server.call("ticket.status", ticket=ticket["ticket"])["ticket"]     # now with all stamps
                return ([process.private_bytes(clone.pid) / MIB for clone in server.clones(ticket)],
                        ticket["fork"]["pause_ns"] / NS_PER_MS, last(ticket, "running", "at"))
        forks = run.repeat("kvm", 1 if quick else 3, idle)
        vm.stop()
    figures.add("fork.private.kvm", "MiB", [one for private, _, _ in forks for one in private])
    figures.add("fork.pause.kvm", "ms", [pause for _, pause, _ in forks])
    figures.add("fork.first.%d.kvm" % KVM_CLONES, "ms", [first for _, _, first in forks])


def rounds(text, prefix=""):
    """ms of the median round of a job's output, without those that began in the first second."""
    found = [(int(start), int(took)) for start, took in re.findall(r"^%sround \d+ (\d+) (\d+)$" % prefix, text, re.M)]
    late = [took for start, took in found if start >= LEFT_OUT_NS]
    if not late:
        raise RuntimeError("the job ended within its first second")
    return statistics.median(late) / NS_PER_MS


def measure_overhead(figures, quick):
    jobs = {"cpu": ("cpu %d", 20), "mem": ("memory %%d %d" % MEMORY_JOB_MIB, 50)}
    with daemon() as server, linux(server, memory=GIB_MIB * MIB) as plain, linux(server, memory=GIB_MIB * MIB) as parent:
        for name, (job, trial) in jobs.items():
            begin = time.monotonic()
            plain.shell("%s %s" % (FORKBENCH, job % trial))
            command = job % (trial * JOB_SECONDS / (time.monotonic() - begin) + 1)

            def run_plain():
                return rounds(plain.shell("%s %s" % (FORKBENCH, command)))

            def run_clone():
                ready(parent)
                return rounds(parent.shell("%s fork 1 %s" % (FORKBENCH, command)), "clone 1 ")
            pairs = run.repeat("overhead " + name, 2 if quick else 5, lambda: (run_plain(), run_clone(), run_plain()))
            figures.add("fork.overhead." + name, "ratio",
                        [clone / statistics.mean((before, after)) for before, clone, after in pairs])
            figures.add("fork.overhead.%s.clone" % name, "ms", [clone for _, clone, _ in pairs])
            figures.add("fork.overhead.%s.plain" % name, "ms", [time for pair in pairs for time in (pair[0], pair[2])])


def measure_stock(figures, quick):
    template = stock.Stock(GIB_MIB)
    with contextlib.closing(template):
        figures.add("fork.stock.boot", "ms", [s * 1e3 for s in run.repeat("boot", 1 if quick else 2, template.boot)])
        for name, copy, turns in (("pause", False, 10), ("pause.copy", True, 4)):
            figures.add("fork.stock." + name, "ms", [
                s * 1e3 for s in run.repeat(name, 2 if quick else turns, lambda: template.pause(copy))])
        template.pause(run_on=False)
        for count in COUNTS[:2] if quick else COUNTS:
            for warm, ending in ((False, ""), (True, ".warm")):
                figures.add("fork.stock.restore.%d%s" % (count, ending), "ms", [
                    s * 1e3 for s in run.repeat("restore %d" % count, 2 if quick else 10 if count == 1 else 4,
                                                lambda: template.restore(count, warm))])


class Fork:
    name = "fork"
    about = "What a fork on one host costs, beside stock QEMU."
    bars = BARS
    groups = {"pause": measure_pause, "warm": measure_warm, "cold": measure_cold, "kvm": measure_kvm,
              "overhead": measure_overhead, "stock": measure_stock}
    plot = staticmethod(fork_plot.draw)

    @staticmethod
    def prepare():
        return guest.image("tests/guest/sf-forkbench")


if __name__ == "__main__":
    run.main(Fork)
