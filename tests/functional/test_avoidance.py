#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages that a clone on another host need not fetch: what the guest has given away, what a disk read overwrites. Each
switched on and off; content is compared, pages are counted."""
import hashlib
import os
import re
import unittest

import harness
import hosts
from harness import MIB

MEMORY = 384 * MIB
USED = 96                       # MiB that a program takes, fills and frees
FILE = 16                       # MiB that are read from a disk
# What is left of the pages when they are avoided: the program's own, the kernel's, read-ahead.
FEW = 0.3


class Avoidance(harness.Case):
    @classmethod
    def setUpClass(cls):
        cls.hosts = hosts.cluster(cls, ("a", "b"), config={"identify-seconds": 60})
        cls.daemon = cls.a = cls.hosts["a"]
        cls.b = cls.hosts["b"]
        cls.a.call("host.drain", name="a", drain=True)
        path = os.path.join(cls.a.top, "random")
        cls.data = os.urandom(FILE * MIB)
        with open(path, "wb") as file:
            file.write(cls.data)
        os.chmod(path, 0o644)
        cls.parent = harness.linux(cls.a, memory=MEMORY, more="init_on_alloc=0", disks=[
            {"path": path, "format": "raw", "readonly": True}])

    def setUp(self):
        super().setUp()
        self.addCleanup(self.a.end_tickets)

    def usage(self, name, host=None):
        return next(usage for usage in (host or self.a).call("vm.usage")["vms"] if usage["name"] == name)

    def use_and_free(self, probe, number, kind):
        """A program's memory comes and goes; its VM gives it back to the host. kind: of memory that shrinks."""
        probe("open m mem %d" % USED)
        probe("fill m %d" % number)
        full = self.usage(self.parent.name)[kind]
        probe("close m")
        harness.wait(lambda: self.usage(self.parent.name)[kind] < full - USED * MIB * (1 - FEW / 2), harness.LONG,
                     "free pages to be reported")

    def fork(self, avoid):
        """A clone on b; its VM."""
        ticket = self.parent.clone(1, avoid=avoid)
        self.assertEqual([(c["state"], c["host"]) for c in ticket["clones"]], [("running", "b")])
        self.assertEqual(ticket["avoid"], avoid)
        return ticket, self.b.vm(ticket["clones"][0]["vm"])

    def fetched(self, vm):
        return self.usage(vm.name, self.b)["pages"]["fetched"] / MIB

    def allocate(self, avoid, number):
        """MiB that a clone fetches for a program that takes as much memory as there was in use before."""
        ticket, vm = self.fork(avoid)
        probe = harness.Probe(vm)
        before = self.fetched(vm)
        probe("open m mem %d" % USED)
        probe("fill m %d" % number)
        probe("verify m %d" % number)
        found = self.fetched(vm) - before
        self.assertEqual(self.usage(vm.name, self.b)["pages"]["free"] > USED * MIB // 2, avoid != "none")
        self.a.end_ticket(ticket["ticket"])
        return found

    def test_free(self):
        """Of a parent that was never forked, and of one that has been: the first fork's snapshot knows nothing of pages
        that were given away since."""
        probe = self.parent.probe()
        self.addCleanup(probe.quit)
        self.use_and_free(probe, 1, "shared")
        everything = self.allocate("none", 2)
        self.assertGreater(everything, USED * (1 - FEW))
        self.assertLess(self.allocate("free", 3), USED * FEW)
        first, vm = self.fork("all")            # lives on: the parent stays frozen
        self.use_and_free(probe, 4, "private")
        self.assertLess(self.allocate("all", 5), USED * FEW)
        probe("open m mem %d" % USED)
        probe("fill m 6")
        clone = harness.Probe(vm)
        clone("open m mem %d" % USED)           # nor has the first clone seen any of it
        clone("fill m 7")
        clone("verify m 7")
        probe("verify m 6")
        self.a.end_ticket(first["ticket"])
        probe("verify m 6")
        probe("close m")

    def read(self, avoid):
        """MiB that a clone fetches for a disk that it reads, with the content checked."""
        ticket, vm = self.fork(avoid)
        vm.follow(self.parent)
        vm.shell("true")
        before = self.fetched(vm)
        found = re.search(r"\b[0-9a-f]{64}\b", vm.shell("sha256sum /dev/vdc")).group()     # its agent may say something too
        fetched = self.fetched(vm) - before
        self.assertEqual(found, hashlib.sha256(self.data).hexdigest())
        # Asked for each time, told the next.
        least = FILE * (1 - FEW) * MIB if avoid == "read" else 0
        harness.wait(lambda: self.usage(vm.name, self.b)["overwritten"] >= least, harness.LONG, "overwritten pages")
        self.assertEqual(self.usage(vm.name, self.b)["overwritten"] > 0, avoid == "read")
        self.a.end_ticket(ticket["ticket"])
        return fetched

    def test_read(self):
        """Not with `free`, or there would be nothing left to fetch of memory that was never used."""
        without = self.read("none")
        self.assertGreater(without, FILE * (1 - FEW))
        self.assertLess(self.read("read"), FILE * FEW + (without - FILE))

    def test_bad(self):
        with self.assertRaises(harness.ControlError):
            self.parent.clone(1, avoid="zero")


if __name__ == "__main__":
    harness.main()
