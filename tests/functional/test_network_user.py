#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Clones on their cluster's network where nobody is root: sfvmmd, its QEMUs and sf-switch are an ordinary user's. What members
see is what they see on a bridge (clusters.Members); that an ordinary user's frames are filtered tests/unit/net has.
"""
import os
import unittest

import harness
from clusters import Members
from harness import wait


@unittest.skipUnless(os.geteuid() == 0, "root makes the namespace that plays the host")
class NetworkUser(Members, harness.Case):

    FORKS = 3

    @classmethod
    def setUpClass(cls):
        cls.open_lab(harness.Daemon(user="nobody"))

    def switches(self):
        return [pid for pid in self.daemon.processes() if "sf-switch" in harness.command_line(pid)]

    def test_nobody_is_root(self):
        """None of its processes has a capability, and no interface of the host is a cluster's."""
        for pid in self.daemon.processes() + [self.daemon.process.pid]:
            with open("/proc/%d/status" % pid) as file:
                self.assertIn("\nCapEff:\t0000000000000000\n", file.read(), harness.command_line(pid))
        self.assertEqual(self.lab.leftovers(), [])
        self.assertEqual(len(self.switches()), 1)

    def test_zz_nothing_left(self):
        """The last VM ends, and sf-switch and its files with it."""
        self.before = None
        self.parent.stop()
        wait(lambda: not self.switches(), what="no sf-switch")
        self.assertEqual(os.listdir(os.path.join(self.daemon.run, "net")), [])


if __name__ == "__main__":
    harness.main()
