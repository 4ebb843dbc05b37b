#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/bench memory: what memory on demand costs. Hosts are network namespaces on a bridge; TLS unless said.

Pages, without a VM:
    memory.fault.local    on host 2, a userfaultfd fault that a thread of the same process answers (pwrite, wake)
    memory.fault.tcp      from host 2 to host 1 and back, 28 bytes there, 4124 back, raw TCP without TLS
    memory.fault.floor    the two together: in the same run, over the same bridge as the faults
    memory.fault.remote   one fault at a time, nothing prefetched: userfaultfd -> sf-pager -> TLS -> sf-pager -> pwrite, wake
    memory.read.*         4 KiB at random places by libnbd, one at a time: our page server, nbdkit, qemu-nbd
    memory.bulk.*         nbdcopy to nowhere, from the same
    memory.completion     all of a memory of random bytes in the background, from one sf-pager to another, beside nbdcopy from the
                          same server into a file on a tmpfs

Clones, of a Linux guest with 1 GiB under TCG:
    memory.return.*       `clone` called -> the answer that all agents have answered, shells waiting on all hosts
    memory.fetched.5s     what a clone's host has fetched 5 s after the fork, of an idle guest; demand: for faults alone
    memory.second         what a second clone on the same host adds to that within 5 s, over the first
    memory.faults.*       faults that had to be fetched within 5 s, without and with what an earlier clone's order has told
    memory.job.*          a job of the guest in a clone, from its start to its end

Ratios are taken of medians, unless samples come in pairs. Where larger is better the figure's name says so and it has no
bar; the bar is on a ratio of times.
"""
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "functional")]

import harness                                      # noqa: E402
import hosts                                        # noqa: E402
from lib import memory_plot, network, run           # noqa: E402

MIB = harness.MIB
GIB_MIB = 1024
NS_PER_US, NS_PER_MS, NS_PER_S = 1e3, 1e6, 1e9
IDLE_SECONDS = 5
SNAPSHOT, BLOCK = "s-1", "pc.ram"
COMPLETION_RATIO = 0.6          # of nbdcopy's speed, at least
BARS = {
    "memory.fault.ratio": 2.5, "memory.completion.ratio": 1 / COMPLETION_RATIO, "memory.return.ratio": 2,
    "memory.faults.ratio": 0.2, "memory.fetched.5s": 30, "memory.demand.5s": 6, "memory.second.ratio": 0.02,
    "memory.job.ratio": 1.15, "memory.return.32.ratio": 1.25,
}


def median(figures, name):
    return figures.get(name)["median"]


def add_ratio(figures, name, over, under):
    figures.add(name, "ratio", [median(figures, over) / median(figures, under)])


def output(command, **kwargs):
    done = subprocess.run(command, capture_output=True, text=True, timeout=harness.LONG * 5, **kwargs)
    if done.returncode:
        raise RuntimeError("%s: %s" % (" ".join(command), done.stderr.strip()[-500:]))
    return done.stdout


def numbers(command):
    return [int(line) for line in output(command).split()]


def need(name):
    path = shutil.which(name)
    if not path:
        raise harness.unittest.SkipTest("%s is missing (packages nbdkit, libnbd-bin)" % name)
    return path


# ---------------------------------------------------------------- pages, without a VM

class Pages:
    """Two hosts, certificates for both, a directory on a tmpfs; what runs on them ends with it."""

    def __init__(self):
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        self.network = self.stack.enter_context(network.Network(2))
        self.keys = hosts.Keys()
        self.stack.callback(self.keys.close)
        self.keys.host("h1", self.network.address(1))
        self.keys.host("h2", self.network.address(2))
        self.folder = tempfile.mkdtemp(prefix="sfm")
        os.chmod(self.folder, 0o755)
        self.stack.callback(shutil.rmtree, self.folder, True)
        return self

    def __exit__(self, *_):
        self.stack.close()

    def pages(self, name):
        return os.path.join(self.keys.directory, name, "pages")

    def new_folder(self):
        return tempfile.mkdtemp(dir=self.folder)

    def begin(self, host, command, first_line=False, obeys=False):
        """A process on a host until the end. Returns it and its first line. obeys: it ends with its input."""
        process = subprocess.Popen(self.network.command(host, command), stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE if first_line else subprocess.DEVNULL, text=True)

        def end():
            process.stdin.close()
            if not obeys:
                process.terminate()
            try:
                process.wait(harness.SHORT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout:
                process.stdout.close()
        self.stack.callback(end)
        line = process.stdout.readline().split() if first_line else None
        if first_line and not line:
            raise RuntimeError("%s did not begin" % " ".join(command))
        return process, line

    def on(self, host, command):
        return numbers(self.network.command(host, command))

    # -- servers on host 1, each returns what a client on host 2 needs: (uri, arguments of page_probe)

    def listening(self, port):
        def open_port():
            done = subprocess.run(self.network.command(2, ["/usr/bin/python3", "-c",
                                  "import socket; socket.create_connection((%r, %d), 1)" %
                                  (self.network.address(1), port)]), capture_output=True)
            return done.returncode == 0
        harness.wait(open_port, what="a server at port %d" % port)

    def ours(self, mib):
        server = harness.program("tests/pager/page_server")
        process, line = self.begin(1, [server, "--tcp", self.network.address(1), "--size", str(mib), "--tls",
                                       self.pages("h1"), "--unit", "pages"], True, True)
        process.stdin.write("allow h2\n")
        process.stdin.flush()
        process.stdout.readline()
        return "nbds://%s:%s/%s/%s" % (self.network.address(1), line[1], SNAPSHOT, BLOCK), [self.pages("h2")]

    def nbdkit(self, tls, mib, port):
        keys = ["--tls=require", "--tls-certificates=" + self.pages("h1"), "--tls-verify-peer"] if tls else []
        self.begin(1, [need("nbdkit"), "-f", "-i", self.network.address(1), "-p", str(port)] + keys +
                   ["pattern", "%dM" % mib])
        self.listening(port)
        return "nbd%s://%s:%d" % ("s" if tls else "", self.network.address(1), port), [self.pages("h2")] if tls else []

    def qemu_nbd(self, mib, port):
        path = os.path.join(self.folder, "qemu-nbd.raw")
        with open(path, "wb") as file:
            for _ in range(mib):
                file.write(b"\x55" * MIB)
        self.begin(1, [os.path.join(os.path.dirname(harness.qemu()), "qemu-nbd"), "-r", "-t", "-f", "raw", "-b",
                       self.network.address(1), "-p", str(port), path])
        self.listening(port)
        return "nbd://%s:%d" % (self.network.address(1), port), []

    def origin(self, mib):
        """sf-pager with random memory; its URI."""
        _, line = self.begin(1, [harness.program("tests/bench/fault_probe"), "origin",
                                 harness.program("sfvmm/pager/sf-pager"), self.new_folder(), self.pages("h1"),
                                 self.network.address(1), str(mib)], True, True)
        return "nbds://%s:%s/%s/" % (self.network.address(1), line[0], SNAPSHOT)

    def remote(self, uri, mib, *what):
        """Another sf-pager that fetches from it."""
        return self.on(2, [harness.program("tests/bench/fault_probe"), "remote", harness.program("sfvmm/pager/sf-pager"),
                           self.new_folder(), self.pages("h2"), uri + "{block}", str(mib)] + list(what))


def measure_fault(figures, quick):
    probe, count, mib = harness.program("tests/bench/page_probe"), 500 if quick else 3000, 256
    local, tcp, remote = [], [], []
    with Pages() as pages:
        address = pages.network.address(1)
        _, line = pages.begin(1, [probe, "serve", address], True)
        uri = pages.origin(mib)

        def turn():     # one after the other and again: the machine's mood changes
            local.append(pages.on(2, [probe, "fault", str(count)]))
            tcp.append(pages.on(2, [probe, "tcp", address, line[0], str(count)]))
            remote.append(pages.remote(uri, mib, "faults", str(count)))
        run.repeat("fault", 1 if quick else 4, turn)
    for name, samples in (("local", local), ("tcp", tcp), ("remote", remote)):
        figures.add("memory.fault." + name, "us", [ns / NS_PER_US for part in samples[1:] for ns in part])
    figures.add("memory.fault.floor", "us", [median(figures, "memory.fault.local") + median(figures, "memory.fault.tcp")])
    add_ratio(figures, "memory.fault.ratio", "memory.fault.remote", "memory.fault.floor")


def measure_read(figures, quick):
    """TLS alone for ours: it serves nothing plain on an address of a network."""
    probe, nbdcopy = harness.program("tests/bench/page_probe"), need("nbdcopy")
    count, mib = 500 if quick else 4000, 64 if quick else 256
    with Pages() as pages:
        servers = {"tls": pages.ours(mib), "nbdkit.tls": pages.nbdkit(True, mib, 10810),
                   "nbdkit": pages.nbdkit(False, mib, 10811), "qemu-nbd": pages.qemu_nbd(mib, 10812)}
        reads, bulk = {name: [] for name in servers}, {name: [] for name in servers}

        def turn():
            for name, (uri, keys) in servers.items():
                reads[name].append(pages.on(2, [probe, "nbd", uri, str(count)] + keys))
                query = "?tls-certificates=" + keys[0] if keys else ""
                begin = time.monotonic()
                output(pages.network.command(2, [nbdcopy, uri + query, "null:"]))
                bulk[name].append(mib * MIB / 1e6 / (time.monotonic() - begin))
        run.repeat("read", 1 if quick else 4, turn)
    for name in servers:
        figures.add("memory.read." + name, "us", [ns / NS_PER_US for part in reads[name][1:] for ns in part])
    for name in servers:
        figures.add("memory.bulk." + name, "MB/s", bulk[name][1:])


def measure_completion(figures, quick):
    mib = 128 if quick else GIB_MIB
    ours, theirs = [], []
    with Pages() as pages:
        uri = pages.origin(mib)
        path = os.path.join(pages.folder, "copy")

        def turn():
            ours.extend(pages.remote(uri, mib, "complete"))
            begin = time.monotonic_ns()
            output(pages.network.command(2, [need("nbdcopy"), "%s%s?tls-certificates=%s" %
                                             (uri, BLOCK, pages.pages("h2")), path]))
            theirs.append(time.monotonic_ns() - begin)
            os.unlink(path)
        run.repeat("completion", 1 if quick else 4, turn)
    for name, samples in (("memory.completion", ours[1:]), ("memory.completion.nbdcopy", theirs[1:])):
        figures.add(name + ".time", "s", [ns / NS_PER_S for ns in samples])
        figures.add(name, "MB/s", [mib * MIB / 1e6 / (ns / NS_PER_S) for ns in samples])
    figures.add("memory.completion.ratio", "ratio", [statistics.median(a / b for a, b in zip(ours[1:], theirs[1:]))])


# ---------------------------------------------------------------- clones

@contextlib.contextmanager
def cluster(count):
    """Hosts h1.. that know each other."""
    with contextlib.ExitStack() as stack:
        net = stack.enter_context(network.Network(count))
        keys = hosts.Keys()
        stack.callback(keys.close)
        made = []
        for number in range(1, count + 1):
            host = network.NetworkHost(net, number, keys)
            stack.callback(host.close)
            made.append(host.start())
        hosts.introduce(made)
        yield made


def at(made, *chosen):
    """Clones are placed on these hosts alone."""
    for host in made:
        made[0].call("host.drain", name=host.name, drain=host not in chosen)


def settled(made, vm):
    """Nothing is left of the last fork, and the parent's memory and disks are one again."""
    def done():
        return not made[0].call("ticket.list")["tickets"] and vm.disks_at_first() and \
            all(host.pools_full() for host in made)
    harness.wait(done, harness.LONG, "the end of the last fork")


@contextlib.contextmanager
def linux(host, **params):
    vm = harness.linux(host, tools=False, **params)
    try:
        yield vm
    finally:
        vm.stop()


def shells_wait(made, ticket):
    """Whether as many shells wait on each host as there will be clones."""
    def waiting(host):
        return sum(usage["role"] == "shell" for usage in host.call("vm.usage")["vms"])
    return all(waiting(host) >= place["count"] for place in ticket["places"] for host in made
               if host.name == place["host"])


@contextlib.contextmanager
def forked(made, vm, count):
    """Clones, once shells wait for all of them. ticket["ms"]: from the order to the answer of the last agent."""
    settled(made, vm)
    ticket = made[0].call("ticket.request", vm=vm.name, count=count, all=True)["ticket"]
    try:
        harness.wait(lambda: shells_wait(made, ticket), harness.LONG, "%d shells" % count)
        begin = time.monotonic_ns()
        ticket = made[0].call("clone", ticket=ticket["ticket"], wait="answered")["ticket"]
        ticket["ms"] = (time.monotonic_ns() - begin) / NS_PER_MS
        for clone in ticket["clones"]:
            if clone["state"] != "running":
                raise RuntimeError("clone %d: %s: %s" % (clone["id"], clone["state"], clone["reason"]))
        yield ticket
    finally:
        made[0].end_ticket(ticket["ticket"])


def measure_return(figures, quick):
    def one(made, vm, *chosen):
        at(made, *chosen)
        with forked(made, vm, 1) as ticket:
            return ticket["ms"]
    with cluster(2) as made, linux(made[0], memory=GIB_MIB * MIB, pool=1) as vm:
        pairs = run.repeat("return", 2 if quick else 10, lambda: (one(made, vm, made[0]), one(made, vm, made[1])))
    figures.add("memory.return.local", "ms", [pair[0] for pair in pairs])
    figures.add("memory.return.remote", "ms", [pair[1] for pair in pairs])
    add_ratio(figures, "memory.return.ratio", "memory.return.remote", "memory.return.local")


def measure_spread(figures, quick):
    count = 8 if quick else 32
    with cluster(4) as made, linux(made[0], memory=GIB_MIB * MIB, pool=count) as vm:
        def one(*chosen):
            at(made, *chosen)
            with forked(made, vm, count) as ticket:
                return ticket["ms"]
        pairs = run.repeat("spread", 1 if quick else 4, lambda: (one(made[0]), one(*made)))
    figures.add("memory.return.32", "ms", [pair[0] for pair in pairs])
    figures.add("memory.return.32x4", "ms", [pair[1] for pair in pairs])
    add_ratio(figures, "memory.return.32.ratio", "memory.return.32x4", "memory.return.32")


def pages_of(host):
    """Counters of the sf-pager of the clones on a host: those of one ticket."""
    return next(usage["pages"] for usage in host.call("vm.usage")["vms"] if "pages" in usage)


def idle(made, vm, count=1):
    """Clones on the second host, some seconds later: (counters, ms until the answer)."""
    at(made, made[1])
    with forked(made, vm, count) as ticket:
        time.sleep(IDLE_SECONDS)
        return pages_of(made[1]), ticket["ms"]


def measure_fetched(figures, quick):
    """The first fork of a VM has no working set to go by; the next ones have that of the first."""
    plain, recorded, twins = [], [], []

    def turn():
        with cluster(2) as made, linux(made[0], memory=GIB_MIB * MIB) as vm:
            plain.append(idle(made, vm))
            for _ in range(1 if quick else 2):
                recorded.append(idle(made, vm))
        with cluster(2) as made, linux(made[0], memory=GIB_MIB * MIB) as vm:
            twins.append(idle(made, vm, 2))
    run.repeat("fetched", 0 if quick else 2, turn)
    for name, found in (("plain", plain), ("recorded", recorded)):
        figures.add("memory.faults." + name, "", [pages["demand_faults"] for pages, _ in found])
        figures.add("memory.return.remote." + name, "ms", [ms for _, ms in found])
        figures.add("memory.fetched.5s." + name, "MiB", [pages["fetched"] / MIB for pages, _ in found])
        figures.add("memory.demand.5s." + name, "MiB", [pages["demand"] / MIB for pages, _ in found])
        figures.add("memory.unused.5s." + name, "MiB", [pages["unused"] / MIB for pages, _ in found])
    figures.add("memory.fetched.5s", "MiB", [pages["fetched"] / MIB for pages, _ in plain])
    figures.add("memory.demand.5s", "MiB", [pages["demand"] / MIB for pages, _ in plain])
    add_ratio(figures, "memory.faults.ratio", "memory.faults.recorded", "memory.faults.plain")
    # Both clones of a ticket start together: what two have fetched beyond what one has, is the second's.
    one = statistics.median(pages["fetched"] for pages, _ in plain)
    figures.add("memory.first", "MiB", [one / MIB])
    figures.add("memory.second", "MiB", [max(0, pages["fetched"] - one) / MIB for pages, _ in twins])
    add_ratio(figures, "memory.second.ratio", "memory.second", "memory.first")


def measure_job(figures, quick):
    """bowtie2's example, all of it in one clone; timed from outside, by the command in the parent's console."""
    with cluster(2) as made:
        vm = harness.linux(made[0], memory=GIB_MIB * MIB, pool=1)

        def one(host):
            settled(made, vm)
            at(made, host)
            begin = time.monotonic()
            vm.shell("sf-bowtie2 -n 1 -o /var/tmp/job.sam", timeout=harness.LONG * 5)
            return time.monotonic() - begin
        pairs = run.repeat("job", 1 if quick else 3, lambda: (one(made[0]), one(made[1]), one(made[0])))
        vm.stop()
    figures.add("memory.job.local", "s", [time for pair in pairs for time in (pair[0], pair[2])])
    figures.add("memory.job.remote", "s", [pair[1] for pair in pairs])
    figures.add("memory.job.ratio", "ratio", [pair[1] / statistics.mean((pair[0], pair[2])) for pair in pairs])


class Memory:
    name = "memory"
    about = "What memory on demand costs: faults, page server, clones on other hosts."
    bars = BARS
    groups = {"fault": measure_fault, "read": measure_read, "completion": measure_completion, "return": measure_return,
              "fetched": measure_fetched, "job": measure_job, "spread": measure_spread}
    prepare = staticmethod(run.needs_build)

    @staticmethod
    def plot(figures, path):
        memory_plot.draw(figures, path)


if __name__ == "__main__":
    run.main(Memory)
