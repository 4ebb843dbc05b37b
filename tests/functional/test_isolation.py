#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Clones continue from the very instruction, and what one VM writes no other sees: by content, over all memory that the
guest can give and over a whole disk, while all of them write. With one vCPU and with four.
"""
import array
import unittest

import harness
from harness import on_all

CLONES = 3
MEMORY = 320 * harness.MIB
DISK_MIB = 16
WORDS = 1 << 64
SLOT = 65536                    # bytes of a slot of a disk (tests/guest/store.c)


def pattern(number, slot, length):
    """What tests/guest/store.c puts into a slot."""
    value = ((number + 1) * 0x9e3779b97f4a7c15 ^ (slot + 1) * 0xc2b2ae3d27d4eb4f) % WORDS
    words = array.array("Q")
    for _ in range(length // 8):
        words.append(value)
        value = (value + 0x165667b19e3779f9) % WORDS
    return words.tobytes()


class Isolation(harness.Case):
    vcpus = 1

    @classmethod
    def setUpClass(cls):
        cls.daemon = harness.Daemon()
        cls.addClassCleanup(cls.daemon.close)
        cls.daemon.start()
        cls.disk = harness.blank_disk(cls.daemon, "data.raw", DISK_MIB)
        cls.parent = harness.linux(cls.daemon, memory=MEMORY, vcpus=cls.vcpus, pool=CLONES,
                                   disks=[{"path": cls.disk, "format": "raw"}])
        cls.probe = cls.parent.probe()

    def fork(self):
        """Fork from outside; the probes of parent and clones, the parent's first."""
        ticket = self.parent.clone(CLONES)
        self.ticket = ticket["ticket"]
        self.addCleanup(self.end_fork)
        self.assertEqual([c["state"] for c in ticket["clones"]], ["running"] * CLONES, ticket)
        return [self.probe] + [harness.Probe(vm) for vm in self.daemon.clones(ticket)]

    def end_fork(self):
        if self.ticket:
            self.daemon.end_ticket(self.ticket)
            self.ticket = None

    def each_writes_its_own(self, store, everyone):
        """All write odd slots with numbers of their own at once, then even ones; each finds its own and old ones."""
        for index, probe in enumerate(everyone):
            probe.send("fill %s %d 2 1" % (store, 100 + index))
        for probe in everyone:
            probe.reply()
        for index, probe in enumerate(everyone):
            probe.send("verify %s %d 2 1" % (store, 100 + index))
        for probe in everyone:
            probe.reply()
        on_all(everyone, "verify %s 1 2 0" % store)
        for index, probe in enumerate(everyone):
            probe.send("fill %s %d 2 0" % (store, 200 + index))
        for probe in everyone:
            probe.reply()
        for index, probe in enumerate(everyone):
            probe.send("verify %s %d 2 1" % (store, 100 + index))
            probe.send("verify %s %d 2 0" % (store, 200 + index))
        for probe in everyone:
            probe.reply()
            probe.reply()

    def test_memory(self):
        self.addCleanup(self.probe, "close m")
        slots = int(self.probe("open m mem 0")["slots"])
        self.assertGreater(slots * 4096, MEMORY // 3, "the store is most of the guest's memory")
        self.probe("fill m 1")
        everyone = self.fork()
        self.probe.send("fill m 50 4 0")                    # the parent writes while its clones look at what they got
        on_all(everyone[1:], "verify m 1")
        self.probe.reply()
        self.probe("fill m 1 4 0")
        self.each_writes_its_own("m", everyone)
        self.end_fork()
        self.probe("verify m 100 2 1")
        self.probe("verify m 200 2 0")

    def test_disk(self):
        self.addCleanup(self.probe, "close d")
        self.assertEqual(int(self.probe("open d dev /dev/vdc 0")["slots"]) * SLOT, DISK_MIB * harness.MIB)
        self.probe("fill d 1")
        everyone = self.fork()
        self.probe.send("fill d 50 4 0")
        on_all(everyone[1:], "verify d 1")
        self.probe.reply()
        self.probe("fill d 1 4 0")
        self.each_writes_its_own("d", everyone)
        self.end_fork()
        self.probe("verify d 100 2 1")
        self.probe("verify d 200 2 0")

    def test_under_load(self):
        """A fork amid memory writes, file writes with fsync, timers and a loop in registers: all go on exactly."""
        names = ["m", "f", "d"]
        for name, kind in zip(names, ("mem 24", "dir /var/tmp/sft 16", "dev /dev/vdc 4")):
            self.probe("open %s %s" % (name, kind))
            self.addCleanup(self.probe, "close " + name)
            self.probe("churn " + name)
        self.probe("clock start")
        self.probe("regs start")
        everyone = self.fork()
        ticks = [int(reply["ticks"]) for reply in on_all(everyone, "clock read")]

        def ticking():
            now = [int(reply["ticks"]) for reply in on_all(everyone, "clock read")]
            return all(a > b for a, b in zip(now, ticks))
        harness.wait(ticking, harness.LONG, "timers in parent and clones")
        for reply in on_all(everyone, "regs stop"):
            self.assertEqual(reply["bad"], "0")
        for name in names:
            for reply in on_all(everyone, "settle " + name):
                self.assertGreater(int(reply["written"]), 0)
        for reply in on_all(everyone, "clock stop"):
            self.assertEqual(reply["backward"], "0")
        for index, probe in enumerate(everyone):
            probe.send("fill f %d" % (300 + index))
        for probe in everyone:
            probe.reply()
        for index, probe in enumerate(everyone):
            probe.send("verify f %d" % (300 + index))
        for probe in everyone:
            probe.reply()

    def test_root_file_system(self):
        """Files, through the page cache and the file system's journal."""
        self.probe("open f dir /var/tmp/sft-root 40")
        self.addCleanup(self.probe, "close f")
        self.probe("fill f 1")
        everyone = self.fork()
        on_all(everyone, "verify f 1")
        self.each_writes_its_own("f", everyone)

    def test_zz_users_image(self):
        """After all forks and the end of the VM the user's image holds what the parent wrote alone."""
        self.probe("open d dev /dev/vdc 0")
        self.probe("fill d 7")
        everyone = self.fork()
        self.probe.send("fill d 8 2 1")
        on_all(everyone[1:], "fill d 9")
        self.probe.reply()
        self.end_fork()
        self.probe("fill d 10 8 0")
        self.probe("close d")
        self.compare_footprint()
        self.before = None
        self.doCleanups()
        self.probe.quit()
        self.parent.shell("sync")
        self.parent.console.close()
        self.daemon.call("vm.stop", vm=self.parent.name, timeout_ms=int(harness.LONG * 1000))
        with open(self.disk, "rb") as file:
            for slot in range(DISK_MIB * harness.MIB // SLOT):
                number = 8 if slot % 2 else 10 if slot % 8 == 0 else 7
                self.assertEqual(file.read(SLOT), pattern(number, slot, SLOT), "slot %d" % slot)
        self.assertEqual(self.daemon.call("vm.list")["vms"], [])


class IsolationSmp(Isolation):
    vcpus = 4

    test_root_file_system = None


if __name__ == "__main__":
    harness.main()
