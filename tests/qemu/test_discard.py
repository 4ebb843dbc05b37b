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

    def test_frozen_and_layered(self):
        self.parent.command("s", 1)
        self.parent.command("f", 4)
        snapshot = self.take(self.parent)
        then = snapshot.content("pc.ram")
        holes = os.fstat(snapshot.block("pc.ram").base).st_blocks
        clone = self.clone(snapshot, *BALLOON)
        for i, vm in enumerate((self.parent, clone)):
            vm.command("s", 2 + i)
            vm.command("f", 4)
            written = self.still(vm)
            self.give(vm)
            self.assertEqual(self.still(vm), written)
            vm.lines()
        self.assertHealthy(self.parent)
        self.assertContinues(snapshot, clone)
        self.assertEqual(snapshot.content("pc.ram"), then)
        self.assertGreaterEqual(os.fstat(snapshot.block("pc.ram").base).st_blocks, holes)

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
