#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Clones on their cluster's network: identity, who reaches whom, what the policy allows, what a hostile guest can't do, and
that nothing is left.

The daemon runs in a network namespace of its own, which plays the host, with a cable to another one, the outside. Guests
talk with bash and perl, which every Debian has. What passes is captured in the clusters' namespaces.
"""
import os
import re
import unittest

import harness
from clusters import ALLOWED, ASK, CLONES, GATEWAY, HOST, OUTSIDE, SERVE, Capture, Members, Wire, member, namespaces
from harness import wait

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


# Which ports of these addresses take connections.
SCAN = r"""perl -MIO::Socket::INET -MIO::Select -e '
for $h (qw(%s)) { for $p (1 .. 150) {
  $s = IO::Socket::INET->new(PeerAddr => $h, PeerPort => $p, Blocking => 0) or next; $of{$s} = "$h:$p"; push @s, $s } }
$all = IO::Select->new(@s); $end = time + 10;
while ($all->count && time < $end) { for ($all->can_write(1)) { $all->remove($_); print "open $of{$_}\n" if $_->connected } }'"""

# Frames to all and to one, as many as it can for some seconds.
FLOOD = r"""perl -MSocket -e '
socket S, PF_INET, SOCK_DGRAM, 0; setsockopt S, SOL_SOCKET, SO_BROADCAST, 1; $t = "flood" x 200; $end = time + 4;
while (time < $end) { for (1 .. 200) { send S, $t, 0, sockaddr_in(9, inet_aton($_)) for ("10.77.255.255", "10.77.0.1") } }'"""

# To all on the link, from the own address and from one that it gives itself.
IPV6 = r"""ip -6 address add fd5f::66/64 dev eth0 nodad; perl -MSocket=:all -e '
open F, "/sys/class/net/eth0/ifindex"; $n = <F> + 0;
for (["fd5f::66", "forged six"], ["", "honest six"]) { my ($from, $text) = @$_;
  socket S, PF_INET6, SOCK_DGRAM, 0 or die; setsockopt S, IPPROTO_IPV6, IPV6_MULTICAST_IF, pack "i", $n;
  !$from or bind S, pack_sockaddr_in6(0, inet_pton(AF_INET6, $from)) or die "bind: $!";
  send S, $text, 0, pack_sockaddr_in6(9, inet_pton(AF_INET6, "ff02::1"), $n) or die "send: $!" }'"""

# Boots the guest's kernel anew, without firmware: kexec_file_load(2), reboot(2).
KEXEC = r"""perl -e '
open K, glob "/boot/vmlinuz-*" or die; open I, glob "/boot/initrd.img-*" or die; open C, "/proc/cmdline"; $c = <C>; chomp $c;
syscall(320, fileno K, fileno I, 1 + length $c, $c, 0) == 0 or die "kexec_file_load: $!";
syscall(169, 0xfee1dead, 672274793, 0x45584543, 0); die "reboot: $!"'"""

# Until the agent has been told of the identity, or for a minute.
TOLD = "for i in $(seq 120); do grep -q SF_ID=%d /run/snowflock/clone && break; sleep 0.5; done 2> /dev/null"


@unittest.skipUnless(os.geteuid() == 0, "cluster networks need root")
class Network(Members, harness.Case):
    """One parent whose policy allows one port outside; forks, and in one test a second cluster beside it."""

    @classmethod
    def setUpClass(cls):
        cls.open_lab(harness.Daemon())

    def capture(self, path):
        capture = Capture(path)
        self.addCleanup(capture.close)
        return capture

    def test_two_forks_at_once(self):
        """The second one's clones have the next addresses; a clone forks within the same cluster."""
        self.fork(count=2)
        _, second = self.fork(count=1)
        self.assertEqual(self.words(second[1], "sf address"), [member(3)])
        self.assertIn(member(3), self.parent.shell(ASK % ("sf-1", "hello")))
        _, third = self.fork(parent=second[1], count=1)
        self.assertEqual(self.words(third[1], "sf address; sf address parent"), [member(4), member(3)])
        self.assertIn(member(4), self.parent.shell(ASK % (member(4), "hello")))

    def test_two_clusters(self):
        """The same addresses at the same time: neither sees a frame of the other."""
        before = set(namespaces(self.daemon))
        blue = harness.linux(self.daemon, name="blue", network="cluster", pool=1, tools=False)
        self.addCleanup(blue.stop)
        blue.shell(SERVE)
        _, reds = self.fork(count=1)
        _, blues = self.fork(parent=blue, count=1)
        paths = namespaces(self.daemon)
        wires = {("red" if inode in before else "blue"): Wire.in_test(self, path) for inode, path in paths.items()}
        self.assertEqual(set(wires), {"red", "blue"})
        for colour, everyone in (("red", reds), ("blue", blues)):
            for number, vm in enumerate(everyone):
                answer = self.words(vm, ASK % (member(1 - number), "mark-of-" + colour))
                self.assertEqual(answer, [member(1 - number), member(number), "mark-of-" + colour])
        for colour, other in (("red", "blue"), ("blue", "red")):
            self.assertGreater(wires[colour].frames("mark-of-" + colour), 0)
            self.assertEqual(wires[colour].frames("mark-of-" + other), 0)
        text = blue.shell("timeout 5 bash -c '< /dev/tcp/%s/%d' 2>&1; echo \"= $?\"" % (OUTSIDE, ALLOWED))
        self.assertNotIn("= 0", text, "a cluster without a policy has no way out")

    def test_forged_frames(self):
        """None leaves the tap of the guest that sends them."""
        ticket, everyone = self.fork(count=2)
        capture = self.capture(next(iter(namespaces(self.daemon).values())))
        everyone[1].shell(FORGE % member(1))
        wait(lambda: len(capture.devices(b"honest")) >= 3, what="an honest frame on the taps of parent and sibling")
        for what in (b"forged MAC", b"forged address", b"forged ARP", b"forged ARP MAC", b"forged VLAN", b"forged router"):
            self.assertEqual(len(capture.devices(what)), 1, "%r: seen at its sender's tap alone" % what)
        self.all_reach_all(everyone)

    def test_scan_and_flood(self):
        """A guest that scans finds the one port that the policy has; while it floods others talk; its IPv6 stays inside."""
        ticket, everyone = self.fork(count=2)
        hostile = everyone[1]
        addresses = " ".join((HOST, OUTSIDE, GATEWAY, "198.18.0.0", "169.254.169.254"))
        found = re.findall(r"open (\S+)", hostile.shell(SCAN % addresses))
        self.assertEqual(found, ["%s:%d" % (OUTSIDE, ALLOWED)])
        hostile.begin(FLOOD)
        for vm, number in ((self.parent, 2), (everyone[2], 0)):
            self.assertIn("hello", vm.shell(ASK % (member(number), "hello")))
        hostile.finish()
        capture = self.capture(next(iter(namespaces(self.daemon).values())))      # it has no room for a flood
        hostile.shell(IPV6)
        wait(lambda: len(capture.devices(b"honest six")) >= 3, what="IPv6 from its own address, at all members' taps")
        self.assertEqual(len(capture.devices(b"forged six")), 1, "from another address: at its sender's tap alone")
        self.all_reach_all(everyone)
        self.assertEqual(self.own.heard(), "", "who has reached the host itself")

    def test_boots_anew(self):
        """A clone whose guest boots once more has MAC, address and name of its own again; its NIC had the parent's."""
        clone = self.fork(count=1)[1][1]
        clone.begin(KEXEC)
        clone.start_shell()
        text = clone.shell(TOLD % 1 + "; ip address show eth0; ip route; hostname; cat /etc/hosts", timeout=2 * harness.LONG)
        self.assertIn("link/ether 02:5f:0a:4d:00:02 ", text)
        self.assertEqual(re.findall(r"inet (\S+)/", text), [member(1)])
        self.assertIn("default via %s dev eth0" % GATEWAY, text)
        self.assertIn("\nred-1\n", text)
        self.assertIn("\n%s sf-1 red-1\n" % member(1), text)
        clone.shell(SERVE)
        self.all_reach_all([self.parent, clone])

    def test_zz_nothing_left(self):
        """The last VM ends: no device, table, route or namespace of the cluster is left."""
        self.before = None
        self.parent.stop()
        wait(lambda: not self.lab.leftovers(), what="an empty host")
        wait(lambda: not namespaces(self.daemon), what="no namespace held by the daemon")


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
