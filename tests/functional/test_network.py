#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Clones on their cluster's network: identity, who reaches whom, what the policy allows, what a hostile guest can't do, and
that nothing is left.

The daemon runs in a network namespace of its own, which plays the host, with a cable to another one, the outside. Guests
talk with bash and perl, which every Debian has. What passes is captured in the clusters' namespaces.
"""
import os
import re
import signal
import subprocess
import unittest

import harness
from clusters import ASK, PARENT, SERVE, Capture, Server, member, setns
from harness import wait

CLONES = 3
FORKS = 20              # that a connection of the parent outlives
HOST, OUTSIDE = "192.0.2.1", "192.0.2.9"
ALLOWED, REFUSED = 80, 81
GATEWAY = "10.77.255.254"

# Frames of a guest that is its own kernel: forged ones, then an honest one, all to everybody. %s: its own address.
FORGE = r"""perl -MSocket -e '
open F, "/sys/class/net/eth0/ifindex"; $n = <F> + 0;
@own = split /\./, "%s"; $ip = pack "C4", @own; $mac = pack "C6", 2, 0x5f, @own;
$parent = pack "C4", 10, 77, 0, 1; $pmac = pack "C6", 2, 0x5f, 10, 77, 0, 1; $all = "\xff" x 6;
socket S, 17, 3, 0 or die "socket: $!";
sub put { send(S, $_[0], 0, pack "S n i S C C a8", 17, 0, $n, 0, 0, 6, $all) or die "send: $!" }
sub udp { my ($m, $i, $t) = @_; "$all$m\x08\x00" . pack("C2 n n n C2 n a4 a4", 0x45, 0, 28 + length $t, 1, 0, 64, 17, 0,
  $i, "\xff" x 4) . pack("n4", 9, 9, 8 + length $t, 0) . $t }
sub arp { my ($m, $i, $t) = @_; "$all$mac\x08\x06\0\1\x08\0\6\4\0\2$m$i$all\0\0\0\0$t" }
put udp $pmac, $ip, "forged MAC"; put udp $mac, $parent, "forged address"; put arp $mac, $parent, "forged ARP";
put arp $pmac, $ip, "forged ARP MAC"; put "$all$mac\x81\x00\0\1\x08\x00forged VLAN";
put "\x33\x33\0\0\0\1$mac\x86\xdd\x60\0\0\0\0\x10\x3a\xff\xfe\x80" . "\0" x 13 . "\1\xff\2" . "\0" x 13 . "\1\x86\0forged router";
put udp $mac, $ip, "honest";'"""


class Lab:
    """Two namespaces: the host's, in which the daemon is started, and the outside."""

    def __init__(self):
        self.holders, self.servers = [], []
        self.host, self.outside = self.namespace(), self.namespace()
        self.run(self.host, "ip link add wan type veth peer name lan netns %d; ip address add %s/24 dev wan;"
                            "ip link set wan up; ip link set lo up; echo 1 > /proc/sys/net/ipv4/ip_forward" % (self.outside, HOST))
        self.run(self.outside, "ip address add %s/24 dev lan; ip link set lan up; ip link set lo up" % OUTSIDE)

    def namespace(self):
        holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        self.holders.append(holder)
        own = os.readlink("/proc/self/ns/net")
        wait(lambda: os.readlink("/proc/%d/ns/net" % holder.pid) != own, what="a network namespace")
        return holder.pid

    def run(self, where, command):
        return subprocess.run(["nsenter", "--net=/proc/%d/ns/net" % where, "sh", "-ec", command], check=True,
                              capture_output=True, text=True).stdout

    def serve(self, where, *ports):
        self.servers.append(Server("/proc/%d/ns/net" % where, *ports))
        return self.servers[-1]

    def leftovers(self):
        """Lines about devices, filter tables and routes of the host that are a cluster's."""
        return re.findall(r".*\bsfn.*", self.run(self.host, "ip -brief link; nft list tables; ip route show table all"))

    def close(self):
        for server in self.servers:
            server.close()
        for holder in self.holders:
            holder.kill()
            holder.wait()


@unittest.skipUnless(os.geteuid() == 0, "cluster networks need root")
class Network(harness.Case):
    """One parent whose policy allows one port outside; forks, and in one test a second cluster beside it."""

    @classmethod
    def setUpClass(cls):
        cls.lab = Lab()
        cls.addClassCleanup(cls.lab.close)
        cls.server = cls.lab.serve(cls.lab.outside, ALLOWED, REFUSED)
        cls.own = cls.lab.serve(cls.lab.host, ALLOWED)
        cls.daemon = harness.Daemon()
        cls.daemon.preexec = lambda: setns("/proc/%d/ns/net" % cls.lab.host)
        cls.addClassCleanup(cls.daemon.close)
        cls.daemon.start()
        cls.parent = harness.linux(cls.daemon, name="red", network="cluster", pool=CLONES, tools=False,
                                   outside=["%s tcp %d" % (OUTSIDE, ALLOWED)])
        cls.parent.shell(SERVE)

    def fork(self, parent=None, count=CLONES):
        """Parent and clones."""
        parent = parent or self.parent
        ticket = parent.clone(count)
        self.addCleanup(self.end, ticket["ticket"])
        self.assertEqual([c["state"] for c in ticket["clones"]], ["running"] * count, ticket)
        return ticket["ticket"], [parent] + [vm.follow(parent) for vm in self.daemon.clones(ticket)]

    def end(self, ticket):
        if ticket in [each["ticket"] for each in self.daemon.call("ticket.list")["tickets"]]:
            self.daemon.end_ticket(ticket)

    def all_reach_all(self, everyone):
        for number, vm in enumerate(everyone):
            vm.begin("; ".join(ASK % (member(other), "hello") for other in range(len(everyone))))
        for number, vm in enumerate(everyone):
            self.assertEqual(re.findall(r"(\S+) (\S+) hello", vm.finish()),
                             [(member(other), member(number)) for other in range(len(everyone))], vm.name)

    @staticmethod
    def words(vm, command):
        """What a command prints, without what the agent says on the console of a fresh clone."""
        return re.sub(r"sf-agent: .*\n", "", vm.shell(command)).split()

    def namespaces(self):
        """Those of the clusters, by the daemon's descriptors: {inode: path}."""
        folder = "/proc/%d/fd" % self.daemon.process.pid
        found = {}
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            if os.readlink(path).startswith("net:"):
                found[os.readlink(path)] = path
        return found

    def capture(self, path):
        capture = Capture(path)
        self.addCleanup(capture.close)
        return capture

    def test_identity(self):
        """Each has a MAC, an address and names of its own; all reach each other, by name too; then nothing is left."""
        before = self.lab.leftovers()
        ticket, everyone = self.fork()
        for number, vm in enumerate(everyone):
            text = vm.shell("ip address show eth0; ip route; cat /etc/hosts; sf address; sf address parent; sf address 2")
            self.assertIn("link/ether 02:5f:0a:4d:00:%02x " % (number + 1), text)
            self.assertEqual(re.findall(r"inet6? (\S+)/", text), [member(number), "fe80::5f:aff:fe4d:%x" % (number + 1)])
            self.assertIn("default via %s dev eth0" % GATEWAY, text)
            self.assertIn("\n%s sf-2 red-2\n" % member(2), text)
            self.assertEqual(text.split()[-3:], [member(number), PARENT, member(2)])
        self.all_reach_all(everyone)
        self.assertIn(member(1), everyone[3].shell(ASK % ("sf-1", "hello")))
        self.assertEqual([vm["address"] for vm in self.daemon.call("vm.list")["vms"]], [member(n) for n in range(4)])
        self.end(ticket)
        self.assertEqual(self.lab.leftovers(), before, "what is the parent's: a cable, its routes and its table")

    def test_two_forks_at_once(self):
        """The second one's clones have the next addresses; a clone forks within the same cluster."""
        self.fork(count=2)
        _, second = self.fork(count=1)
        self.assertEqual(self.words(second[1], "sf address"), [member(3)])
        self.assertIn(member(3), self.parent.shell(ASK % ("sf-1", "hello")))
        _, third = self.fork(parent=second[1], count=1)
        self.assertEqual(self.words(third[1], "sf address; sf address parent"), [member(4), member(3)])
        self.assertIn(member(4), self.parent.shell(ASK % (member(4), "hello")))

    def test_outside(self):
        """The policy's port is reached, by NAT, nothing else. A connection of the parent outlives many forks; a clone's
        copy of it ends at once.
        """
        ask = "echo %s >&%d; read -t 60 -u %d answer; echo \"= $? $answer\""
        self.parent.shell("exec 5<>/dev/tcp/%s/%d" % (OUTSIDE, ALLOWED))
        self.addCleanup(self.parent.shell, "exec 5>&-")
        for number in range(FORKS):
            ticket = self.parent.clone(1, wait="resumed" if number else "answered")
            if number == 0:
                self.outside_from_clone(self.daemon.clones(ticket)[0].follow(self.parent), ask)
            self.assertIn("= 0 %s word%d" % (HOST, number), self.parent.shell(ask % ("word%d" % number, 5, 5)))
            self.end(ticket["ticket"])
        self.assertEqual(self.own.heard(), "", "who has reached the host itself")
        self.assertEqual(set(self.server.heard().splitlines()), {"connection from " + HOST})

    def outside_from_clone(self, clone, ask):
        text = clone.shell("read -t 60 -u 5 answer; echo \"= $?\"")
        self.assertIn("= 1", text, "more than 128: the connection was not ended, the read timed out")
        self.assertIn("= 0 %s new" % HOST, clone.shell("exec 6<>/dev/tcp/%s/%d; " % (OUTSIDE, ALLOWED) + ask % ("new", 6, 6)))
        for address, port in ((OUTSIDE, REFUSED), (HOST, ALLOWED), ("169.254.169.254", 80), ("198.18.0.0", ALLOWED)):
            text = clone.shell("timeout 60 bash -c '< /dev/tcp/%s/%d' 2>&1; echo \"= $?\"" % (address, port))
            self.assertIn("= 1", text, "refused at once: %s %d: %s" % (address, port, text))
        text = clone.shell("timeout 2 bash -c '< /dev/tcp/%s/%d' 2>&1; echo \"= $?\"" % (GATEWAY, ALLOWED))
        self.assertNotIn("= 0", text, "the gateway has no services")

    def test_two_clusters(self):
        """The same addresses at the same time: neither sees a frame of the other."""
        before = set(self.namespaces())
        blue = harness.linux(self.daemon, name="blue", network="cluster", pool=1, tools=False)
        self.addCleanup(blue.stop)
        blue.shell(SERVE)
        _, reds = self.fork(count=1)
        _, blues = self.fork(parent=blue, count=1)
        namespaces = self.namespaces()
        captures = {("red" if inode in before else "blue"): self.capture(path) for inode, path in namespaces.items()}
        self.assertEqual(set(captures), {"red", "blue"})
        for colour, everyone in (("red", reds), ("blue", blues)):
            for number, vm in enumerate(everyone):
                answer = self.words(vm, ASK % (member(1 - number), "mark-of-" + colour))
                self.assertEqual(answer, [member(1 - number), member(number), "mark-of-" + colour])
        wait(lambda: captures["red"].devices(b"mark-of-red") and captures["blue"].devices(b"mark-of-blue"), what="frames")
        self.assertEqual(captures["red"].devices(b"mark-of-blue"), set())
        self.assertEqual(captures["blue"].devices(b"mark-of-red"), set())
        text = blue.shell("timeout 5 bash -c '< /dev/tcp/%s/%d' 2>&1; echo \"= $?\"" % (OUTSIDE, ALLOWED))
        self.assertNotIn("= 0", text, "a cluster without a policy has no way out")

    def test_forged_frames(self):
        """None leaves the tap of the guest that sends them."""
        ticket, everyone = self.fork(count=2)
        capture = self.capture(next(iter(self.namespaces().values())))
        everyone[1].shell(FORGE % member(1))
        wait(lambda: len(capture.devices(b"honest")) >= 3, what="an honest frame on the taps of parent and sibling")
        for what in (b"forged MAC", b"forged address", b"forged ARP", b"forged ARP MAC", b"forged VLAN", b"forged router"):
            self.assertEqual(len(capture.devices(what)), 1, "%r: seen at its sender's tap alone" % what)
        self.all_reach_all(everyone)

    def test_restart(self):
        """sfvmmd is killed: members go on talking; the next one finds the network again and forks into it."""
        ticket, everyone = self.fork(count=2)
        self.parent.shell("exec 5<>/dev/tcp/%s/7" % member(1))
        self.daemon.end(signal.SIGKILL)
        self.assertIn(member(1), self.parent.shell("echo during >&5; read -t 60 -u 5 answer; echo $answer"))
        self.daemon.start()
        self.assertIn("after", self.parent.shell("echo after >&5; read -t 60 -u 5 answer; echo $answer; exec 5>&-"))
        self.all_reach_all(everyone)
        _, more = self.fork(count=1)
        self.assertEqual(self.words(more[1], "sf address"), [member(3)])
        self.assertIn(member(1), more[1].shell(ASK % (member(1), "hello")))

    def test_zz_nothing_left(self):
        """The last VM ends: no device, table, route or namespace of the cluster is left."""
        self.before = None
        self.parent.stop()
        wait(lambda: not self.lab.leftovers(), what="an empty host")
        wait(lambda: not self.namespaces(), what="no namespace held by the daemon")


class Refusals(harness.Case):
    """What vm.run does not take, and a host that cannot."""

    @classmethod
    def setUpClass(cls):
        cls.daemon = harness.Daemon(config={"clusters": 0})
        cls.addClassCleanup(cls.daemon.close)
        cls.daemon.start()

    def refuse(self, code, *words, **params):
        self.error(code, "vm.run", *words, kernel="/boot/none", **params)

    def test_parameters(self):
        self.refuse("bad-params", "network", network="bridge")
        self.refuse("bad-params", "address", "cluster", address="10.0.0.1/24")
        self.refuse("bad-params", "outside", "cluster", outside=[])
        for address in ("10.0.0.1", "10.0.0.0/24", "10.0.0.255/24", "10.0.0.254/24", "10.0.0.1/31", "fe80::1/64", "x/24"):
            self.refuse("bad-params", "address", network="cluster", address=address)
        self.refuse("bad-params", "outside", network="cluster", outside="192.0.2.1")
        self.refuse("bad-params", "outside", network="cluster", outside=[7])

    def test_quota(self):
        self.refuse("quota", "clusters", network="cluster")


if __name__ == "__main__":
    harness.main()
