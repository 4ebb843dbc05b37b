#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's network is set up by what Debian has for it: clones have their own addresses, keep them when their manager is
told to set the network up anew, and their parent keeps its own.

One guest with systemd, in which each manager is started in its turn, and stopped.
"""
import os
import re
import unittest

import harness
from clusters import ASK, GATEWAY, OUTSIDE, PARENT, SERVE, Lab, in_namespace, member

PREFIX = 16
SOON = 60               # seconds in a guest
NETWORKD = "/etc/systemd/network/10-eth0.network"
STATIC = "10.77.0.1/16"
WAIT = "for i in $(seq %d); do ip -o -4 address show dev eth0 | grep -q ' %s/' && ip route | grep -q '^default via %s ' && break; " \
       "sleep 0.5; done"


def until(address):
    """In a guest: until eth0 has the address, and the default route."""
    return WAIT % (2 * SOON, address, GATEWAY)


@unittest.skipUnless(os.geteuid() == 0, "cluster networks need root")
class Managers(harness.Case):
    @classmethod
    def setUpClass(cls):
        cls.lab = Lab()
        cls.addClassCleanup(cls.lab.close)
        cls.daemon = harness.Daemon(config={"identify-seconds": 120})
        cls.addClassCleanup(cls.daemon.close)
        in_namespace("/proc/%d/ns/net" % cls.lab.host, cls.daemon.start)
        cls.parent = harness.linux(cls.daemon, name="red", network="cluster", pool=1, tools=False, memory=512 * harness.MIB,
                                   flavour="SF_IMAGE_SYSTEMD", outside=["%s tcp 80" % OUTSIDE])
        cls.parent.shell(SERVE)
        text = cls.parent.shell("ip -4 address show dev eth0")
        assert "inet" not in text, "the agent leaves the NIC to those who are there: " + text

    def keeps(self, start, anew, stop, check):
        """Shell commands in the guest: `start` the manager, set the network up `anew` in a clone, `check` the parent."""
        self.parent.shell("{ %s; } && %s" % (start, until(PARENT)), timeout=harness.LONG * 2)
        self.addCleanup(self.parent.shell, stop + "; ip address flush dev eth0; ip link set eth0 down", check=False)
        self.assert_has(self.parent, 0)
        ticket = self.parent.clone(1)
        self.addCleanup(self.daemon.end_tickets)
        self.assertEqual([clone["state"] for clone in ticket["clones"]], ["running"], ticket)
        clone = self.daemon.clones(ticket)[0].follow(self.parent)
        self.assert_has(clone, 1)
        self.assert_talk(clone)
        clone.shell("{ %s; } && %s" % (anew, until(member(1))), timeout=harness.LONG * 2)
        self.assert_has(clone, 1)
        self.assert_talk(clone)
        self.assert_has(self.parent, 0)
        self.parent.shell(check)

    def assert_has(self, vm, number):
        text = vm.shell("ip address show eth0; ip route")
        self.assertIn("link/ether 02:5f:0a:4d:00:%02x " % (number + 1), text)
        self.assertEqual(re.findall(r"inet (\S+)", text), ["%s/%d" % (member(number), PREFIX)], text)
        self.assertIn("default via " + GATEWAY, text)

    def assert_talk(self, clone):
        self.assertIn("%s %s hello" % (PARENT, member(1)), clone.shell(ASK % (PARENT, "hello")))
        self.assertIn("%s %s hello" % (member(1), PARENT), self.parent.shell(ASK % (member(1), "hello")))

    def networkd(self, text):
        self.keeps("printf '[Match]\\nName=eth0\\n[Network]\\n%s' > %s && systemctl start systemd-networkd" % (text, NETWORKD),
                   "systemctl restart systemd-networkd && networkctl reconfigure eth0",
                   "systemctl stop systemd-networkd.socket systemd-networkd; rm %s" % NETWORKD,
                   "networkctl --no-pager status eth0 | grep 'State: routable'")

    def test_networkd_static(self):
        self.networkd("Address=%s\\nGateway=%s\\n" % (STATIC, GATEWAY))

    def test_networkd_dhcp(self):
        self.networkd("DHCP=yes\\n")

    def manager(self, *settings):
        self.keeps("systemctl start NetworkManager && nmcli -w 60 connection add type ethernet con-name red ifname eth0 "
                   "ipv6.method disabled %s && nmcli -w 60 connection up red" % " ".join(settings),
                   "nmcli -w 60 connection up red",
                   "nmcli connection delete red; systemctl stop NetworkManager",
                   "nmcli -g GENERAL.STATE device show eth0 | grep -q ^100")

    def test_networkmanager_static(self):
        self.manager("ipv4.method manual ipv4.addresses %s ipv4.gateway %s" % (STATIC, GATEWAY))

    def test_networkmanager_dhcp(self):
        self.manager("ipv4.method auto")

    def ifupdown(self, text):
        file = "/etc/network/interfaces.d/eth0"
        self.keeps("printf 'iface eth0 inet %s' > %s && ifup eth0" % (text, file), "ifdown eth0; ifup eth0",
                   "ifdown eth0; rm %s" % file, "ifquery --state eth0")

    def test_ifupdown_static(self):
        self.ifupdown("static\\n address %s\\n gateway %s\\n" % (STATIC, GATEWAY))

    def test_ifupdown_dhcp(self):
        self.ifupdown("dhcp\\n")

    def test_dhcpcd(self):
        self.keeps("dhcpcd -q -4 eth0", "dhcpcd -q -4 eth0", "dhcpcd -q -4 -x eth0",
                   "dhcpcd -4 -U eth0 | grep -q ip_address=.*%s" % PARENT)


if __name__ == "__main__":
    harness.main()
