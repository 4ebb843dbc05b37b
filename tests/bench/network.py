#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/bench network: what a cluster's network costs. Hosts are network namespaces on a bridge.

    network.setup.N         what it adds to a fork of N clones until all have answered: forks with and without it by turns,
                            the sample is the difference of two that follow each other
    network.latency.*       a byte there and back by TCP, over the same by a plain bridge, and between hosts VXLAN, that are
                            set up by hand: the guests are the same, their taps are put from one to the other
    network.throughput.*    the time that bytes take by TCP, over the same. (Of speed it is the inverse: 0.9 is 1.11)
        pair                two clones
        parent              a clone and the parent
        hosts               the parent and a clone on another host
    network.cycle           clusters of a VM and three clones, with a way outside, set up and gone again
    network.left            devices, filter tables, routes and namespaces that are left after all cycles
"""
import contextlib
import os
import re
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "functional")]

import harness                                      # noqa: E402
import hosts                                        # noqa: E402
import tiny                                         # noqa: E402
from lib import network, run                        # noqa: E402

MS = 1e3
SPEED_BAR, LATENCY_BAR = 1 / 0.9, 1.1
BARS = {"network.setup.32": 100, "network.left": 0}
BARS.update({"network.latency." + what: LATENCY_BAR for what in ("pair", "parent", "hosts")})
BARS.update({"network.throughput." + what: SPEED_BAR for what in ("pair", "parent", "hosts")})
OUTSIDE = "192.0.2.0/24 tcp 80"
PARENT = "10.77.0.1"
PORT, HAND_NUMBER, HAND_PORT, MTU = 7000, 77, 4799, 1450
ROUND_TRIPS, MEGABYTES = 300, 24
CLUSTER_CLONES = 3

# In a guest, before the fork: echoes a byte, swallows the rest until a newline ends it, then says so.
SERVER = r"""perl -MIO::Socket::INET -MSocket=IPPROTO_TCP,TCP_NODELAY -e '
$s = IO::Socket::INET->new(LocalPort => %d, Listen => 9, ReuseAddr => 1) or die "listen: $!";
$SIG{CHLD} = "IGNORE";
while ($c = $s->accept) {
  next if fork;
  setsockopt $c, IPPROTO_TCP, TCP_NODELAY, 1;
  while (sysread $c, $d, 65536) { syswrite $c, substr $d, -1 if $d =~ /[\n.]$/ }
  exit }' > /dev/null 2>&1 &
until (exec 3<> /dev/tcp/127.0.0.1/%d) 2> /dev/null; do sleep 0.1; done""" % (PORT, PORT)

# One line: microseconds of a round trip, and of all bytes.
CLIENT = r"""perl -MIO::Socket::INET -MTime::HiRes=time -MSocket=IPPROTO_TCP,TCP_NODELAY -e '
$s = IO::Socket::INET->new(PeerAddr => "%%s", PeerPort => %d, Timeout => 60) or die "connect: $!";
setsockopt $s, IPPROTO_TCP, TCP_NODELAY, 1;
sub trips { for (1 .. $_[0]) { syswrite $s, "."; sysread $s, $d, 1 } }
trips 20; $t = time; trips %d; $l = (time - $t) * 1e6 / %d;
$b = "x" x 65536; $t = time; for (1 .. %d * 16) { $o = 0; $o += syswrite $s, $b, 65536 - $o, $o while $o < 65536 }
syswrite $s, "\n"; sysread $s, $d, 1; printf "us %%%%.1f %%%%.1f\n", $l, (time - $t) * 1e6;'""" % (
    PORT, ROUND_TRIPS, ROUND_TRIPS, MEGABYTES)


def shell(path, command):
    return subprocess.run(["nsenter", "--net=" + path, "--", "sh", "-ec", command], check=True, capture_output=True,
                          text=True).stdout


def linux(daemon, name, pool, **params):
    vm = harness.linux(daemon, name=name, pool=pool, tools=False, **params)
    vm.shell(SERVER)
    return vm


def measured(vm, address):
    """Microseconds of a round trip, and of all bytes, to that member."""
    match = re.search(r"us ([\d.]+) ([\d.]+)", vm.shell(CLIENT % address))
    return float(match.group(1)), float(match.group(2))


# ---- by hand ----

def cluster_namespace(daemon):
    """The path of the one cluster's namespace that a daemon has."""
    folder = "/proc/%d/fd" % daemon.process.pid
    paths = {os.readlink(path): path for path in (os.path.join(folder, name) for name in os.listdir(folder))
             if os.readlink(path).startswith("net:")}
    path, = paths.values()
    return path


def tap_of(vm):
    for name in os.listdir("/proc/%d/fdinfo" % vm.pid):
        with open("/proc/%d/fdinfo/%s" % (vm.pid, name)) as file:
            match = re.search(r"^iff:\t(\S+)", file.read(), re.M)
        if match:
            return match.group(1)
    raise RuntimeError("%s has no tap" % vm.name)


class ByHand:
    """On one host: a bridge in a namespace of its own, that the taps of members are moved to and back."""

    def __init__(self, stack, daemon, vms, host_path, peer=None):
        self.tag = "sfhand%d-%d" % (os.getpid(), daemon.process.pid)
        self.home, self.taps = cluster_namespace(daemon), [tap_of(vm) for vm in vms]
        subprocess.run(["ip", "netns", "add", self.tag], check=True)
        stack.callback(subprocess.run, ["ip", "netns", "del", self.tag], check=False)
        self.path = "/run/netns/" + self.tag
        shell(self.path, "ip link add hand mtu %d type bridge; ip link set hand up" % MTU)
        if peer:
            shell(host_path, "ip link add handfar mtu %d type vxlan id %d dstport %d remote %s; ip link set handfar netns %s"
                  % (MTU, HAND_NUMBER, HAND_PORT, peer, self.tag))
            shell(self.path, "ip link set handfar master hand up")

    def move(self, source, target, bridge):
        # A namespace is named to ip by a process in it.
        with subprocess.Popen(["nsenter", "--net=" + target, "--", "sh", "-c", "echo; read line"], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE) as holder:
            holder.stdout.readline()
            for tap in self.taps:
                shell(source, "ip link set %s netns %d" % (tap, holder.pid))
                shell(target, "ip link set %s master %s up" % (tap, bridge))
            holder.stdin.close()

    def begin(self):
        self.move(self.home, self.path, "hand")

    def end(self):
        self.move(self.path, self.home, "br0")


@contextlib.contextmanager
def by_hand(hands):
    for hand in hands:
        hand.begin()
    yield
    for hand in hands:
        hand.end()


def compare(figures, name, hands, client, address, rounds):
    """Ours and by hand, by turns, and first by turns: what only the first of two has to do is nobody's."""
    ours, others = [], []
    for number in range(rounds + 1):
        if number % 2 == 0:
            ours.append(measured(client, address))
        with by_hand(hands):
            others.append(measured(client, address))
        if number % 2 == 1:
            ours.append(measured(client, address))
    for index, what in enumerate(("latency", "throughput")):
        own, other = ([sample[index] for sample in samples[1:]] for samples in (ours, others))     # the first: warm-up
        if what == "latency":
            figures.add("network.latency.%s.us" % name, "us", own)
            figures.add("network.latency.%s.hand" % name, "us", other)
        else:
            figures.add("network.speed.%s" % name, "MB/s", [MEGABYTES * 1.048576 * 1e6 / us for us in own])
            figures.add("network.speed.%s.hand" % name, "MB/s", [MEGABYTES * 1.048576 * 1e6 / us for us in other])
        figures.add("network.%s.%s" % (what, name), "ratio", [statistics.median(own) / statistics.median(other)])


# ---- groups ----

class Bench:
    name = "network"
    about = "What a cluster's network costs."
    bars = BARS

    def __init__(self):
        self.groups = {"setup": self.setup, "one": self.one_host, "hosts": self.two_hosts, "cycle": self.cycle}

    @contextlib.contextmanager
    def prepare(self):
        with network.Network(2) as self.network:
            yield

    def plot(self, figures, path):
        raise harness.unittest.SkipTest("this bench has none")

    def path(self, number):
        return "/run/netns/" + self.network.name(number)

    @contextlib.contextmanager
    def daemon(self, **config):
        """In the first namespace."""
        daemon = harness.Daemon(config=config)
        plain = daemon.command
        daemon.command = lambda: self.network.command(1, plain())
        try:
            daemon.start()
            yield daemon
        finally:
            daemon.close()

    def setup(self, figures, quick):
        counts, rounds = ((4,), 1) if quick else ((8, 32), 6)
        with self.daemon() as daemon:
            vms = [linux(daemon, "plain", max(counts)), linux(daemon, "member", max(counts), network="cluster")]

            def fork(vm, count):
                harness.wait(daemon.pools_full, harness.LONG, "shells")
                start = time.monotonic()
                ticket = vm.clone(count)
                end = time.monotonic()
                daemon.end_ticket(ticket["ticket"])
                return (end - start) * MS
            for count in counts:
                times = [[fork(vm, count) for vm in vms] for _ in range(rounds + 1)][1:]
                figures.add("network.fork.%d" % count, "ms", [member for _, member in times])
                figures.add("network.setup.%d" % count, "ms", [member - plain for plain, member in times])

    def one_host(self, figures, quick):
        with contextlib.ExitStack() as stack, self.daemon() as daemon:
            parent = linux(daemon, "red", 2, network="cluster")
            clones = [vm.follow(parent) for vm in daemon.clones(parent.clone(2))]
            hands = [ByHand(stack, daemon, [parent] + clones, self.path(1))]
            compare(figures, "pair", hands, clones[0], "10.77.0.3", 1 if quick else 11)
            compare(figures, "parent", hands, clones[0], PARENT, 1 if quick else 11)

    def two_hosts(self, figures, quick):
        with contextlib.ExitStack() as stack:
            keys = hosts.Keys()
            stack.callback(keys.close)
            one, two = (network.NetworkHost(self.network, number, keys) for number in (1, 2))
            for host, other in ((one, two), (two, one)):
                stack.callback(host.close)
                host.start()
            one.add(two)
            parent = linux(one, "red", 1, network="cluster")
            one.call("host.drain", name=one.name, drain=True)
            ticket = parent.clone(1)
            clone = two.vm(ticket["clones"][0]["vm"]).follow(parent)
            # This is no bench of memory: faults and fetching would be in what is measured.
            one.call("complete", ticket=ticket["ticket"], timeout_ms=int(harness.LONG * MS))
            hands = [ByHand(stack, one, [parent], self.path(1), self.network.address(2)),
                     ByHand(stack, two, [clone], self.path(2), self.network.address(1))]
            compare(figures, "hosts", hands, clone, PARENT, 1 if quick else 11)

    def left(self, daemon):
        text = shell(self.path(1), "ip -brief link; nft list tables; ip route show table all")
        namespaces = {os.readlink(os.path.join("/proc/%d/fd" % daemon.process.pid, name))
                      for name in os.listdir("/proc/%d/fd" % daemon.process.pid)}
        return len(re.findall(r"\bsf[nx]", text)) + len([link for link in namespaces if link.startswith("net:")])

    def cycle(self, figures, quick):
        cycles = 3 if quick else 100
        shell(self.path(1), "echo 1 > /proc/sys/net/ipv4/ip_forward; ip route replace 192.0.2.0/24 dev eth0")
        with self.daemon() as daemon:
            before, start = self.left(daemon), time.monotonic()
            for _ in range(cycles):
                vm = tiny.start(daemon, network="cluster", outside=[OUTSIDE], pool=CLUSTER_CLONES)
                ticket = vm.clone(CLUSTER_CLONES)
                daemon.end_ticket(ticket["ticket"])
                vm.stop()
            figures.add("network.cycle", "1/s", [cycles / (time.monotonic() - start)])
            with contextlib.suppress(AssertionError):
                harness.wait(lambda: self.left(daemon) == before, harness.SHORT, "nothing left")
            figures.add("network.left", "things", [self.left(daemon) - before])


if __name__ == "__main__":
    run.main(Bench())
