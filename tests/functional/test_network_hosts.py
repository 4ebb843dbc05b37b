#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A cluster's network on three hosts, each in a network namespace of its own, on one bridge: who reaches whom, the way out,
forks of clones elsewhere, sfvmmds that are killed, and that nothing is left.
"""
import os
import re
import signal
import unittest

import harness
import hosts
from clusters import ASK, PARENT, SERVE, Capture, Server, Wire, member, namespaces
from harness import wait

ALLOWED, REFUSED = 80, 81
PREFIX = "10.111.8."
OUTSIDE = "out"
SLICES = "10.77.128.0"          # addresses of clones of clones elsewhere are above


@unittest.skipUnless(os.geteuid() == 0, "cluster networks need root")
class NetworkHosts(harness.Case):
    """The parent is on host a, whose way outside all members have."""

    @classmethod
    def setUpClass(cls):
        names = ("a", "b", "c")
        cls.link = hosts.Bridge(*names, OUTSIDE, prefix=PREFIX)
        cls.addClassCleanup(cls.link.close)
        cls.link.run("a", "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        cls.server = Server("/run/netns/" + cls.link.ends[OUTSIDE][0], ALLOWED, REFUSED)
        cls.addClassCleanup(cls.server.close)
        # Pages by multicast would be more UDP than the capture of test_across can take.
        cls.hosts = hosts.cluster(cls, names, config={"identify-seconds": 120}, link=cls.link, policy="spread",
                                  multicast="off")
        cls.daemon = cls.hosts["a"]
        cls.outside = cls.link.ends[OUTSIDE][1]
        cls.parent = harness.linux(cls.daemon, name="red", network="cluster", pool=1, tools=False,
                                   outside=["%s tcp %d" % (cls.outside, ALLOWED)])
        cls.parent.shell(SERVE)

    def setUp(self):
        super().setUp()
        self.addCleanup(self.daemon.end_tickets)

    def fork(self, *names, parent=None):
        """One clone on each of these hosts."""
        parent = parent or self.parent
        for host in self.hosts.values():
            self.daemon.call("host.drain", name=host.name, drain=host.name not in names)
        ticket = parent.clone(len(names))
        self.assertEqual({clone["host"] or "a" for clone in ticket["clones"]}, set(names), ticket)
        self.assertEqual({clone["state"] for clone in ticket["clones"]}, {"running"}, ticket)
        return [self.hosts[clone["host"] or "a"].vm(clone["vm"]).follow(parent)
                for clone in sorted(ticket["clones"], key=lambda clone: clone["id"])]

    def asks(self, vm, address):
        """The addresses of both ends, as the other end sees them."""
        return re.findall(r"(\S+) (\S+) hello", vm.shell(ASK % (address, "hello")))

    def all_reach_all(self, everyone):
        """everyone: [(vm, address)]"""
        for vm, _ in everyone:
            vm.begin("; ".join(ASK % (address, "hello") for _, address in everyone))
        for vm, own in everyone:
            self.assertEqual(re.findall(r"(\S+) (\S+) hello", vm.finish()), [(address, own) for _, address in everyone])

    def capture(self, *arguments, **keywords):
        wire = Capture(*arguments, **keywords)
        self.addCleanup(wire.close)
        return wire

    def leftovers(self, name):
        text = self.link.run(name, "sh", "-c", "ip -brief link; nft list tables")
        return re.findall(r".*\bsf[nx].*", text.stdout)

    def reaches_outside(self, vm, port):
        text = vm.shell("answer=; exec 6<>/dev/tcp/%s/%d; echo word >&6; read -t 60 -u 6 answer; echo \"= $answer\"; exec 6>&-"
                        % (self.outside, port), check=False)
        return "= %s word" % self.link.ends["a"][1] in text

    def test_across(self):
        """Members reach each other over two and three hosts, and what the policy allows by the parent's host alone."""
        here, = self.fork("a")
        there = self.fork("b", "c")
        wire = self.capture("/run/netns/" + self.link.switch, udp_only=True)
        everyone = [(self.parent, PARENT), (here, member(1)), (there[0], member(2)), (there[1], member(3))]
        self.all_reach_all(everyone)
        self.assertIn(member(3), there[0].shell(ASK % ("sf-2", "hello")))
        self.assertTrue(wire.devices(b"hello"), "between hosts")
        self.assertTrue(self.reaches_outside(there[0], ALLOWED))
        self.assertFalse(self.reaches_outside(there[0], REFUSED))
        for name in ("a", "b", "c"):
            text = there[1].shell("timeout 60 bash -c '< /dev/tcp/%s/%d' 2>&1; echo \"= $?\"" %
                                  (self.link.ends[name][1], self.hosts[name].port))
            self.assertNotIn("= 0", text, "host " + name)
        self.assertEqual(set(self.server.heard().splitlines()), {"connection from " + self.link.ends["a"][1]})
        self.daemon.end_tickets()
        for name in ("b", "c"):
            wait(lambda: not self.leftovers(name), what="an empty host " + name)

    def test_two_clusters_on_the_wire(self):
        """Two clusters with the same addresses, each on the same two hosts: between the hosts each has a number of its own, and
        on neither host does one see a frame of the other."""
        before = set(namespaces(self.daemon))
        blue = harness.linux(self.daemon, name="blue", network="cluster", pool=1, tools=False)
        self.addCleanup(blue.stop)
        self.addCleanup(self.daemon.end_tickets)
        blue.shell(SERVE)
        between = Wire.in_test(self, "/run/netns/" + self.link.switch, "udp")     # clones' memory comes by TCP
        reds = [self.parent] + self.fork("b")
        there = set(namespaces(self.hosts["b"]))
        blues = [blue] + self.fork("b", parent=blue)
        wires = {}
        for host, old in ((self.daemon, before), (self.hosts["b"], there)):
            for inode, path in namespaces(host).items():
                wires[host.name, "red" if inode in old else "blue"] = self.capture(path)
        self.assertEqual(len(wires), 4)
        for colour, (parent, clone) in (("red", reds), ("blue", blues)):
            self.assertIn("mark-of-" + colour, clone.shell(ASK % (PARENT, "mark-of-" + colour)))
            self.assertIn("mark-of-" + colour, parent.shell(ASK % (member(1), "mark-of-" + colour)))
        numbers = {colour: set(between.fields("mark-of-" + colour, "vxlan.vni")) for colour in ("red", "blue")}
        self.assertEqual([len(each) for each in numbers.values()], [1, 1], numbers)
        self.assertNotEqual(numbers["red"], numbers["blue"])
        self.assertEqual(set(between.matching("arp.isannouncement && arp.src.proto_ipv4 == %s" % member(1), "vxlan.vni")),
                         numbers["red"] | numbers["blue"], "where a clone is, its host tells the others")
        for (host, colour), wire in wires.items():
            other = "blue" if colour == "red" else "red"
            self.assertTrue(wire.devices(b"mark-of-" + colour.encode()), "%s on %s" % (colour, host))
            self.assertFalse(wire.devices(b"mark-of-" + other.encode()), "%s on %s" % (colour, host))

    def test_restarts(self):
        """sfvmmds of both ends are killed: members go on, and the next ones fork into the network. A clone elsewhere forks
        where it is."""
        there, = self.fork("b")
        far = self.hosts["b"]
        for host in (far, self.daemon):
            host.end(signal.SIGKILL)
            self.assertEqual(self.asks(there, PARENT), [(PARENT, member(1))])
            host.start()
        self.daemon.wait_up("b")
        far.wait_up("a")
        self.assertEqual(self.asks(there, PARENT), [(PARENT, member(1))])
        other, = self.fork("c")
        self.all_reach_all([(self.parent, PARENT), (there, member(1)), (other, member(2))])
        ticket = far.call("clone", vm=there.name, count=1)["ticket"]
        child = far.vm(ticket["clones"][0]["vm"]).follow(there)
        address = child.shell("sf address").split()[-1]
        self.assertGreaterEqual([int(part) for part in address.split(".")], [int(part) for part in SLICES.split(".")])
        self.assertEqual(self.asks(other, address), [(address, member(2))])
        far.end_ticket(ticket["ticket"])


if __name__ == "__main__":
    harness.main()
