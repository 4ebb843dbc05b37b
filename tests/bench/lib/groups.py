# SPDX-License-Identifier: GPL-2.0-or-later
"""What scripts/bench multicast measures with real sockets: hosts out of network namespaces, one with the parent VM, the
others with a clone each; or with receivers without VMs."""
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time

import harness
import hosts
from . import network, plot, run

MIB = harness.MIB
MEMORY = 256 * MIB
JOB_MIB, JOB_MIB_QUICK = 96, 24         # of the parent's memory, which every clone reads: random, no two pages alike
CLONES = 8
RATES = {"1g": "1gbit", "200m": "200mbit"}
QUEUE = "100ms"                 # of a link's queue, at its rate: more than one sender's buffer
RECEIVERS = 32
SIM_MIB, SIM_MIB_QUICK = 64, 16
PORT = 7411
SNAPSHOT = "s-1"
NS_PER_S = 1e9


def at_host(net, number, *command):
    done = subprocess.run(net.command(number, list(command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError("%s: %s" % (" ".join(command), done.stderr.strip()))
    return done.stdout


class Bed:
    """h1 with the parent, whose memory has something random in it, and the other hosts."""

    def __init__(self, count, mib):
        self.count, self.mib, self.mode = count, mib, "on"
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        try:
            self.net = self.stack.enter_context(network.Network(1 + self.count))
            keys = hosts.Keys()
            self.stack.callback(keys.close)
            self.hosts = []
            for number in range(1, 2 + self.count):
                host = network.NetworkHost(self.net, number, keys, cluster={"multicast": "on"})
                self.stack.callback(host.close)
                self.hosts.append(host.start())
            self.origin = self.hosts[0]
            for host in self.hosts[1:]:
                self.origin.add(host)
            self.vm = harness.linux(self.origin, memory=MEMORY, pool=1)
            self.stack.callback(self.vm.stop)
            self.probe = self.vm.probe()
            self.probe("open m mem %d" % self.mib)
            self.probe("fill m 1")
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *_):
        self.stack.close()

    def use(self, mode):
        """multicast=on or off, by a new start of the origin's sfvmmd: the parent goes on."""
        if mode != self.mode:
            self.mode = self.origin.cluster["multicast"] = mode
            self.origin.end()
            self.origin.start()
            for host in self.hosts[1:]:
                self.origin.wait_up(host.name)

    def limit(self, rate):
        """Links of this rate; None: as fast as they are. Both ways, but for the parent's own host only."""
        for number in range(1, 2 + self.count):
            with contextlib.suppress(RuntimeError):
                at_host(self.net, number, "tc", "qdisc", "del", "dev", "eth0", "root")
            if rate:
                at_host(self.net, number, "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst",
                        "128kb", "latency", QUEUE)

    def lose(self, percent):
        """Of what comes from the group, each host loses so much, packet by packet; 0: nothing."""
        hosts.plain_checksums(lambda *command: at_host(self.net, 1, *command), "eth0")
        for number in range(2, 2 + self.count):
            rules = "table netdev bad\ndelete table netdev bad\n"
            if percent:
                rules += """table netdev bad { chain in { type filter hook ingress device "eth0" priority 0;
                            udp dport %d numgen random mod 10000 < %d drop; }
                         }""" % (PORT, percent * 100)
            at_host(self.net, number, "sh", "-c", "echo '%s' | nft -f -" % rules)

    def sent(self):
        return self.net.sent(1)

    def job(self, count):
        """A fork with one clone on each of `count` hosts; each reads all of the memory and verifies it. Bytes that the
        origin has sent from the ticket on, seconds from the fork until the last has finished."""
        self.settle()
        for host in self.hosts:
            self.origin.call("host.drain", name=host.name, drain=host not in self.hosts[1:1 + count])
        before = self.sent()
        got = self.probe("ticket 0 %d" % count)
        if got["granted"] != str(count):
            raise RuntimeError("%s of %d places" % (got["granted"], count))
        ready = [host.pools_full for host in self.hosts[1:1 + count]]
        harness.wait(lambda: all(full() for full in ready), harness.LONG, "shells")
        begin = time.monotonic()
        self.probe("clone 0")
        ticket = self.origin.call("ticket.status", ticket=got["ticket"])["ticket"]
        named = {host.name: host for host in self.hosts}
        probes = [harness.Probe(named[clone["host"]].vm(clone["vm"])) for clone in ticket["clones"]]
        for probe in probes:
            probe.reply()
        harness.on_all(probes, "verify m 1", harness.LONG * 5)
        seconds, sent = time.monotonic() - begin, self.sent() - before
        self.groups = [group for host in self.hosts for group in host.call("vm.usage")["multicast"]]
        self.probe("kill 0")
        self.probe("join 0")
        self.probe("release 0")
        return sent, seconds

    def settle(self):
        harness.wait(lambda: not self.origin.call("ticket.list")["tickets"] and
                     self.vm.disks_at_first(),
                     harness.LONG, "the end of the last fork")


def ratio(figures, name, over, under):
    figures.add(name, "ratio", [figures.get(over)["median"] / figures.get(under)["median"]])


def measure_bytes(figures, quick):
    counts = (1, 2) if quick else (1, 2, 4, CLONES)
    with Bed(counts[-1], JOB_MIB_QUICK if quick else JOB_MIB) as bed:
        for mode, name in (("on", "multicast"), ("off", "unicast")):
            bed.use(mode)
            for count in counts:
                sent, _ = bed.job(count)
                run.say("  %s, %d hosts: %.1f MiB" % (name, count, sent / MIB))
                figures.add("%s.bytes.%d" % (name, count), "MiB", [sent / MIB])
    for name in ("multicast", "unicast"):
        ratio(figures, "%s.bytes.ratio" % name, "%s.bytes.%d" % (name, counts[-1]), name + ".bytes.1")


def measure_time(figures, quick):
    count = 2 if quick else CLONES
    with Bed(count, JOB_MIB_QUICK if quick else JOB_MIB) as bed:
        bed.job(count)                                      # the first one translates all code anew
        for mode, name in (("on", "multicast"), ("off", "unicast")):
            bed.use(mode)
            for label, rate in RATES.items():
                bed.limit(rate)
                samples = [bed.job(count)[1] for _ in range(1 if quick else 2)]
                run.say("  %s at %s: %s s" % (name, rate, ["%.1f" % sample for sample in samples]))
                figures.add("%s.time.%s" % (name, label), "s", samples)
                bed.limit(None)
    for label in RATES:
        ratio(figures, "multicast.time.%s.ratio" % label, "multicast.time." + label, "unicast.time." + label)


def measure_loss(figures, quick):
    count = 2 if quick else CLONES
    with Bed(count, JOB_MIB_QUICK if quick else JOB_MIB) as bed:
        bed.job(count)
        for percent in (0, 1, 5):
            bed.lose(percent)
            sent, seconds = bed.job(count)
            fallen = sum(group.get("fallen_back", 0) for group in bed.groups)
            run.say("  %d %% lost: %.1f s, %.1f MiB, %d pages by unicast" % (percent, seconds, sent / MIB, fallen))
            figures.add("multicast.loss.time.%d" % percent, "s", [seconds])
            figures.add("multicast.loss.bytes.%d" % percent, "MiB", [sent / MIB])
    for percent in (1, 5):
        ratio(figures, "multicast.loss.%d" % percent, "multicast.loss.time.%d" % percent, "multicast.loss.time.0")


# ---------------------------------------------------------------- receivers without VMs

class Receivers:
    """An origin on host 1, receivers on host 2: each a process of its own, with an sf-pager of its own."""

    def __init__(self, mib):
        self.mib = mib
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        try:
            self.net = self.stack.enter_context(network.Network(2))
            keys = hosts.Keys()
            self.stack.callback(keys.close)
            names = [(1, "h1")] + [(2, "r%d" % i) for i in range(RECEIVERS)]    # a name has a bound of connections
            self.pages = {name: os.path.join(keys.host(name, self.net.address(number)), "pages")
                          for number, name in names}
            self.folder = tempfile.mkdtemp(prefix="sfm")
            os.chmod(self.folder, 0o755)
            self.stack.callback(shutil.rmtree, self.folder, True)
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *_):
        self.stack.close()

    def begin(self, number, *arguments):
        process = subprocess.Popen(self.net.command(number, [harness.program("tests/bench/fault_probe"), *arguments]),
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        def end():
            process.stdin.close()
            process.stdout.read()
            process.stdout.close()
            if process.wait(harness.LONG):
                raise RuntimeError("fault_probe %s failed" % arguments[0])
        return process, end

    @staticmethod
    def ask(process, line):
        process.stdin.write(line + "\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    def sent(self):
        return self.net.sent(1)

    def complete(self, count):
        """All receivers fetch all of it at once: bytes that the origin sends, seconds of each."""
        pager = harness.program("sfvmm/pager/sf-pager")
        with contextlib.ExitStack() as stack:
            origin, end = self.begin(1, "origin", pager, tempfile.mkdtemp(dir=self.folder), self.pages["h1"],
                                     self.net.address(1), str(self.mib), *["r%d" % i for i in range(count)])
            stack.callback(end)
            uri = "nbds://%s:%s/%s/{block}" % (self.net.address(1), origin.stdout.readline().strip(), SNAPSHOT)
            expected = self.ask(origin, "sum")
            receivers = []
            for i in range(count):
                invitation = self.ask(origin, "invite r%d" % i)
                json.loads(invitation)
                process, end = self.begin(2, "remote", pager, tempfile.mkdtemp(dir=self.folder),
                                          self.pages["r%d" % i], uri,
                                          str(self.mib), "group", invitation, self.net.address(2), self.net.address(1))
                stack.callback(end)
                receivers.append(process)
            for process in receivers:
                if process.stdout.readline().strip() != "ready":
                    raise RuntimeError("a receiver did not begin")
            before = self.sent()
            for process in receivers:
                process.stdin.write("go\n")
                process.stdin.flush()
            times = [int(process.stdout.readline()) / NS_PER_S for process in receivers]
            sent = self.sent() - before
            for process in receivers:
                if process.stdout.readline().strip() != expected:
                    raise RuntimeError("a receiver has another memory than the origin")
            return sent, times


def measure_sim32(figures, quick):
    with Receivers(SIM_MIB_QUICK if quick else SIM_MIB) as receivers:
        one, _ = receivers.complete(1)
        many, times = receivers.complete(8 if quick else RECEIVERS)
    run.say("  one: %.1f MiB, many: %.1f MiB; %.1f s to %.1f s" % (one / MIB, many / MIB, min(times), max(times)))
    figures.add("multicast.bytes.sim1", "MiB", [one / MIB])
    figures.add("multicast.bytes.simmany", "MiB", [many / MIB])
    figures.add("multicast.bytes.sim32", "ratio", [many / one])
    figures.add("multicast.sim32.time", "s", times)
    figures.add("multicast.sim32.slowest", "ratio", [max(times) / statistics.median(times)])


GROUPS = {"bytes": measure_bytes, "time": measure_time, "loss": measure_loss, "sim32": measure_sim32}
BARS = {"multicast.bytes.ratio": 1.15, "multicast.time.1g.ratio": 1.0, "multicast.time.200m.ratio": 0.5,
        "multicast.bytes.sim32": 1.2}


# ---------------------------------------------------------------- the plot

COUNTS = (1, 2, 4, CLONES)


def plot_bytes(axes, figures):
    axes.set_title("What the origin sends")
    for name, colour in (("unicast", plot.ORANGE), ("multicast", plot.BLUE)):
        plot.line(axes, figures, [(count, "%s.bytes.%d" % (name, count)) for count in COUNTS], name, colour)
    axes.set_xticks(COUNTS)
    axes.set_xlim(0.5, CLONES * 1.3)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("hosts with a clone each, the same job")
    axes.set_ylabel("MiB")


def plot_time(axes, figures):
    axes.set_title("Until all %d clones have finished" % CLONES)
    labels = list(RATES)
    for offset, name, colour in ((-0.2, "unicast", plot.ORANGE), (0.2, "multicast", plot.BLUE)):
        found = [figures.get("%s.time.%s" % (name, label)) for label in labels]
        axes.bar([i + offset for i in range(len(labels))], [figure["median"] if figure else 0 for figure in found], 0.36,
                 color=colour, label=name)
    axes.set_xticks(range(len(labels)), labels=[RATES[label] for label in labels])
    axes.legend()
    axes.set_xlabel("each host's link")
    axes.set_ylabel("s")
