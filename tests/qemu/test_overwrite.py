# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk read into memory that comes on demand asks for no page that it fills; one that fails leaves what was there."""
import json
import os
import unittest

import sfqemu
from sfqemu import MIB, OVERWRITES, PAGE

SECTOR = 512
AT = 17                             # MiB that is read to, in the area that the guest's fill command writes
BAD_SECTOR = 1001                   # in the middle of a page
# Command of the tiny guest, and the device that it reads from.
DISKS = {
    "v": ("-device", "virtio-blk-pci-transitional,drive=data,num-queues=1"),
    "c": ("-device", "virtio-scsi-pci-transitional,id=scsi,num_queues=1", "-device", "scsi-hd,drive=data,bus=scsi.0"),
    "a": ("-device", "ide-hd,drive=data,bus=ide.0"),
}


class Overwrite(sfqemu.TestCase):
    def setUp(self):
        super().setUp()
        self.data = os.urandom(MIB)
        self.path = os.path.join(self.directory, "data")
        with open(self.path, "wb") as f:
            f.write(self.data)

    def disk(self, letter, bad=None):
        """Options of a data disk; bad: its sector that cannot be read."""
        # Writable, or there is no IDE disk of it; nobody writes.
        node = {"driver": "blkdebug", "node-name": "data",
                "image": {"driver": "file", "filename": self.path, "locking": "off"}}
        if bad is not None:
            node["inject-error"] = [{"event": "none", "iotype": "read", "errno": 5, "sector": bad}]
        return ("-blockdev", json.dumps(node), *DISKS[letter])

    def fork(self, letter):
        """A parent whose memory is filled, forked; its snapshot and a memtap."""
        parent = self.vm(*self.disk(letter))
        parent.lines()
        parent.command("s", 1)
        parent.command("f", 4)
        snapshot = self.take(parent)
        memtap = sfqemu.Memtap(sfqemu.PageCache(snapshot))
        self.addCleanup(memtap.cache.close)
        self.addCleanup(memtap.close)
        return snapshot, memtap

    def clone_of(self, snapshot, memtap, letter, flags=OVERWRITES, **keywords):
        clone = self.vm(*self.disk(letter, **keywords), paused=True)
        clone.map(memtap, flags=flags)
        clone.load_mapped(snapshot)
        clone.channel.running()
        return clone

    def asked(self, memtap):
        """Pages of the buffer that were asked for."""
        return sorted({at - AT * MIB for _, at in memtap.faults if AT * MIB <= at < (AT + 1) * MIB})

    def content(self, vm):
        vm.qmp.call("stop")
        data = vm.memory(16 * MIB, 4 * MIB)
        vm.qmp.call("cont")
        return data

    def check(self, letter):
        """A read that succeeds asks for nothing, one that fails leaves what was there; of one kind of disk."""
        snapshot, memtap = self.fork(letter)
        before = snapshot.content("pc.ram")[16 * MIB:20 * MIB]
        clone = self.clone_of(snapshot, memtap, letter)
        for _ in range(2):          # and once more, into pages that are there
            self.assertTrue(clone.command(letter, AT))
            self.assertEqual(self.asked(memtap), [])
            self.assertEqual(clone.overwritten(), MIB)
        self.assertEqual(self.content(clone), before[:MIB] + self.data + before[2 * MIB:])
        clone.lines()
        self.assertContinues(snapshot, clone)
        clone.close()

        clone = self.clone_of(snapshot, memtap, letter, bad=BAD_SECTOR)
        self.assertFalse(clone.command(letter, AT))
        self.assertEqual(clone.overwritten(), 0)
        self.assertEqual(self.asked(memtap), [])
        self.assertEqual(self.content(clone), before)
        self.assertEqual(self.asked(memtap), list(range(0, MIB, PAGE)))
        clone.lines()
        self.assertContinues(snapshot, clone)
        self.assertIsNone(memtap.failure)

    def test_virtio_blk(self):
        self.check("v")

    def test_virtio_scsi(self):
        self.check("c")

    def test_ahci(self):
        """Takes half a minute: SeaBIOS waits 32 s for this QEMU's answer to its first question to an AHCI disk."""
        self.check("a")

    def test_switched_off(self):
        """Without the flag every page is fetched."""
        snapshot, memtap = self.fork("v")
        clone = self.clone_of(snapshot, memtap, "v", flags=0)
        self.assertTrue(clone.command("v", AT))
        self.assertEqual(self.asked(memtap), list(range(0, MIB, PAGE)))
        self.assertEqual(clone.overwritten(), 0)
        self.assertEqual(self.content(clone)[MIB:2 * MIB], self.data)
        self.assertIsNone(memtap.failure)

    def test_pages_in_part(self):
        """Of pages at the ends that are filled in part the rest is fetched."""
        snapshot, memtap = self.fork("v")
        clone = self.clone_of(snapshot, memtap, "v")
        clone.command("o", 3)
        self.assertTrue(clone.command("v", AT))
        self.assertEqual(self.asked(memtap), [0, MIB - PAGE])
        expected = bytearray(snapshot.content("pc.ram")[16 * MIB:20 * MIB])
        expected[MIB + 3 * SECTOR:2 * MIB - 3 * SECTOR] = self.data[:MIB - 6 * SECTOR]
        self.assertEqual(self.content(clone), expected)

    def test_memory_that_is_there(self):
        """Pages that the clone has written, and those of a page cache that is full: never mixed up."""
        snapshot, memtap = self.fork("v")
        memtap.fill("pc.ram")
        clone = self.clone_of(snapshot, memtap, "v", bad=BAD_SECTOR)
        clone.command("s", 7)
        clone.command("f", 2)
        before = self.content(clone)
        self.assertFalse(clone.command("v", AT))
        self.assertEqual(self.content(clone), before)

    def test_forked_again(self):
        """What was read into spared pages is in the clone's own snapshot."""
        snapshot, memtap = self.fork("v")
        clone = self.clone_of(snapshot, memtap, "v")
        self.assertTrue(clone.command("v", AT))
        clone.qmp.call("stop")
        again = self.take(clone)
        late = self.vm(*self.disk("v"), paused=True)
        late.map(memtap, again, flags=OVERWRITES)
        late.load_mapped(again, 0)
        self.assertEqual(late.memory(AT * MIB, MIB), self.data)
        self.assertEqual(self.asked(memtap), [])

    def test_flag_is_for_map(self):
        snapshot, _ = self.fork("v")
        shell = self.vm(*self.disk("v"), paused=True)
        with self.assertRaises(sfqemu.ChannelError):
            shell.load(snapshot, OVERWRITES)

    def test_avoided_has_no_payload(self):
        with self.assertRaises(sfqemu.ChannelError):
            self.vm(*self.disk("v"), paused=True).channel.call(sfqemu.AVOIDED, bytes(8))


class OverwriteKvm(Overwrite):
    accel = "kvm"


if __name__ == "__main__":
    unittest.main()
