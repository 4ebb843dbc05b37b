# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest gives away never changes a snapshot, nor comes back to it with old content."""
import os
import unittest

import sfqemu
from sfqemu import MIB

BALLOON = ("-device", "virtio-balloon-pci-transitional,free-page-reporting=on")
INFLATED, REPORTED = 17, 18         # MiB that the guest gives away, in the area that its fill command writes


class Discard(sfqemu.TestCase):
    def setUp(self):
        super().setUp()
        self.parent = self.vm(*BALLOON)
        self.parent.lines()

    def give(self, vm):
        self.assertTrue(vm.command("b", INFLATED))
        self.assertTrue(vm.command("r", REPORTED))

    def still(self, vm):
        vm.qmp.call("stop")
        data = vm.memory(16 * MIB, 4 * MIB)
        vm.qmp.call("cont")
        return data

    def test_shared_is_discarded(self):
        """The test itself: before a fork the pages do go."""
        self.parent.command("s", 1)
        self.parent.command("f", 4)
        self.give(self.parent)
        self.assertEqual(self.still(self.parent)[MIB:3 * MIB], bytes(2 * MIB))

    def given(self):
        """Where in what still() returns the guest gave pages away."""
        return slice(MIB, 3 * MIB)

    def test_frozen_and_layered(self):
        """Parent and clone get zeros at once; nobody else's memory changes."""
        self.parent.command("s", 1)
        self.parent.command("f", 4)
        snapshot = self.take(self.parent)
        then = snapshot.content("pc.ram")
        clone = self.clone(snapshot, *BALLOON)
        for i, vm in enumerate((self.parent, clone)):
            vm.command("s", 2 + i)
            vm.command("f", 4)
            expected = bytearray(self.still(vm))
            private = vm.private()
            expected[self.given()] = bytes(2 * MIB)
            self.give(vm)
            self.assertLess(vm.private(), private - MIB)
            self.assertEqual(self.still(vm), expected)
            vm.lines()
        self.assertHealthy(self.parent)
        self.assertContinues(snapshot, clone)
        self.assertEqual(snapshot.content("pc.ram"), then)

    def test_next_snapshot(self):
        """What was given away is zero in the next snapshot, and costs nothing there: as delta and folded, of parent
        and clone; also what was written again since, page by page."""
        self.parent.command("s", 1)
        self.parent.command("f", 4)
        first = self.take(self.parent)
        clone = self.clone(first, *BALLOON)
        for vm, flags in ((self.parent, sfqemu.SHARED_BASE), (clone, sfqemu.SHARED_BASE), (self.parent, 0)):
            below = first if vm is clone else None
            if not flags:
                clone.close()       # nobody uses the base any more: it is folded into
            vm.command("s", 4)
            self.give(vm)           # not looked at before the snapshot: that can cost pages of zeros
            vm.qmp.call("stop")
            snapshot = self.take(vm, flags, below=below)
            content = vm.memory()
            self.assertEqual(content[17 * MIB:19 * MIB], bytes(2 * MIB))
            self.assertEqual(snapshot.content("pc.ram"), content)
            if flags:
                self.assertLess(snapshot.block("pc.ram").folded, MIB)
            self.assertContent(snapshot, content)
            # Filled again: data between what is still zero.
            vm.qmp.call("cont")
            vm.command("f", 2)
            vm.qmp.call("stop")
            content = vm.memory()
            self.assertNotIn(bytes(sfqemu.PAGE), [content[at:at + sfqemu.PAGE]
                                                  for at in range(17 * MIB, 18 * MIB, sfqemu.PAGE)])
            self.assertEqual(content[18 * MIB:19 * MIB], bytes(MIB))
            self.assertContent(self.take(vm, flags, below=below), content)
            vm.qmp.call("cont")
            vm.lines()
            if vm is clone:
                self.assertContinues(first, vm)
            else:
                self.assertHealthy(vm)

    def assertContent(self, snapshot, content):
        """A clone has it too."""
        late = self.vm(*BALLOON, paused=True)
        late.load(snapshot, 0)
        self.assertEqual(late.memory(16 * MIB, 4 * MIB), content[16 * MIB:20 * MIB])
        late.close()

    def test_folded(self):
        """Folded in steps and thawed, the memory is the same, and the file has a hole where nothing was written again."""
        self.parent.command("s", 1)
        self.parent.command("f", 4)
        snapshot = self.take(self.parent)
        base = os.dup(snapshot.block("pc.ram").base)
        self.addCleanup(os.close, base)
        snapshot.close()
        self.parent.command("s", 5)
        self.parent.command("f", 2)
        expected = bytearray(self.still(self.parent))
        expected[2 * MIB:3 * MIB] = bytes(MIB)
        self.give(self.parent)
        self.parent.command("f", 2)     # what was given away in part, as it was before
        self.parent.qmp.call("stop")
        folded = True
        while folded:
            folded = self.parent.fold(MIB // 2)[0]
            self.assertEqual(self.parent.memory(16 * MIB, 2 * MIB), expected[:2 * MIB])
        self.assertEqual(self.parent.fold(MIB)[1], 0)
        self.parent.thaw()
        # Only now looked at: to read a hole through a mapping fills it.
        self.assertGreaterEqual(os.lseek(base, REPORTED * MIB, os.SEEK_DATA), (REPORTED + 1) * MIB)
        self.assertEqual(os.pread(base, 4 * MIB, 16 * MIB), expected)
        self.assertEqual(self.still(self.parent), expected)
        self.parent.lines()
        self.assertHealthy(self.parent)

    def test_lazy(self):
        """A clone on demand gives away what it never fetched: nobody is asked any more, nor in its snapshot."""
        self.parent.command("s", 1)
        self.parent.command("f", 4)
        snapshot = self.take(self.parent)
        memtap = sfqemu.Memtap(sfqemu.PageCache(snapshot))
        self.addCleanup(memtap.cache.close)
        self.addCleanup(memtap.close)
        clone = self.vm(*BALLOON, paused=True)
        clone.map(memtap)
        clone.load_mapped(snapshot)
        clone.channel.running()
        self.give(clone)
        clone.qmp.call("stop")
        self.assertEqual(clone.memory(17 * MIB, 2 * MIB), bytes(2 * MIB))
        again = self.take(clone)
        content = clone.memory(16 * MIB, 4 * MIB)
        late = self.vm(*BALLOON, paused=True)
        late.map(memtap, again)
        late.load_mapped(again, 0)
        self.assertEqual(late.memory(16 * MIB, 4 * MIB), content)
        self.assertEqual([at for _, at in memtap.faults if 17 * MIB <= at < 19 * MIB], [])
        self.assertIsNone(memtap.failure)

    def test_thawed_again(self):
        """Once thawed the guest's gifts are taken again."""
        snapshot = self.take(self.parent)
        snapshot.close()
        self.parent.command("s", 1)
        self.parent.command("f", 4)
        self.parent.thaw()
        self.give(self.parent)
        self.assertEqual(self.still(self.parent)[MIB:3 * MIB], bytes(2 * MIB))


class DiscardKvm(Discard):
    accel = "kvm"


if __name__ == "__main__":
    unittest.main()
