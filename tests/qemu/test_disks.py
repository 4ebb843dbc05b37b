# SPDX-License-Identifier: GPL-2.0-or-later
"""Overlays are put on all disks in the pause of the snapshot, or on none."""
import os
import unittest

import sfqemu
from sfqemu import FROZEN, MIB, SHARED, SHARED_BASE, ChannelError

SIZE = 4 * MIB


class Disks(sfqemu.TestCase):
    def setUp(self):
        super().setUp()
        options = []
        for i in range(2):
            path = os.path.join(self.directory, "disk%d" % i)
            with open(path, "wb") as f:
                f.truncate(SIZE)
            options += ["-blockdev", "driver=file,node-name=file%d,filename=%s" % (i, path),
                        "-blockdev", "driver=raw,node-name=disk%d,file=file%d" % (i, i),
                        "-device", "virtio-blk-pci,id=v%d,drive=disk%d,romfile=" % (i, i)]
        self.parent = self.vm(*options)
        self.parent.lines(more=1)

    def overlay(self, name, driver="qcow2"):
        """A node without backing, as the daemon prepares it before the fork."""
        qmp = self.parent.qmp
        path = os.path.join(self.directory, name)
        with open(path, "wb") as f:
            f.truncate(SIZE)
        qmp.call("blockdev-add", driver="file", node_name=name + "-file", filename=path)
        node = {"driver": driver, "node_name": name, "file": name + "-file"}
        if driver == "qcow2":
            qmp.call("blockdev-create", job_id=name,
                     options={"driver": driver, "file": name + "-file", "size": SIZE})
            sfqemu.wait(lambda: any(job["id"] == name and job["status"] == "concluded"
                                    for job in qmp.call("query-jobs")), "blockdev-create of " + name)
            qmp.call("job-dismiss", id=name)
            node["backing"] = None
        qmp.call("blockdev-add", **node)
        return name

    def tops(self):
        """{device: node}"""
        return {info["qdev"].split("/")[3]: info["inserted"]["node-name"] for info in self.parent.qmp.call("query-block")
                if "inserted" in info and info["qdev"].startswith("/machine/peripheral/")}

    def test_all(self):
        disks = [("disk%d" % i, self.overlay("over%d" % i)) for i in range(2)]
        snapshot = self.take(self.parent, disks=disks)
        self.assertGreater(snapshot.disk, 0)
        self.assertEqual(self.tops(), {"v0": "over0", "v1": "over1"})
        nodes = {node["node-name"]: node for node in self.parent.qmp.call("query-named-block-nodes")}
        for i in range(2):
            self.assertTrue(nodes["disk%d" % i]["ro"])
            self.assertFalse(nodes["over%d" % i]["ro"])
        more = [("over0", self.overlay("more0"))]
        self.take(self.parent, SHARED_BASE, disks=more)
        self.assertEqual(self.tops(), {"v0": "more0", "v1": "over1"})
        self.parent.lines(more=1)

    def none(self, mode, disks, what):
        events = len(self.parent.qmp.events)
        tops = self.tops()
        with self.assertRaisesRegex(ChannelError, what):
            self.parent.snapshot(disks=disks)
        self.assertEqual(self.tops(), tops)
        self.assertEqual(self.parent.mode(), mode)
        self.assertEqual(self.parent.status(), "running")
        self.parent.lines(more=1)
        self.assertHealthy(self.parent)
        return self.parent.qmp.events[events:]

    def test_none(self):
        """The second of two fails in the pause: the first is taken off again, and memory is shared as before."""
        bad = [("disk0", self.overlay("over0")), ("disk1", self.overlay("bad", "raw"))]
        for _ in range(3):
            events = self.none(SHARED, bad, "backing")
            self.assertIn("RESUME", events)
        good = bad[:1] + [("disk1", self.overlay("over1"))]
        self.take(self.parent, disks=good)
        self.assertEqual(self.tops(), {"v0": "over0", "v1": "over1"})
        again = [("over0", self.overlay("more0")), ("over1", "bad")]
        self.none(FROZEN, again, "backing")
        # A fold in place may have come before the error; whatever the guest sees is in it.
        self.assertHealthy(self.parent)

    def test_unknown(self):
        """Named before anything is paused."""
        over = self.overlay("over0")
        for disks, what in (([("disk9", over)], "disk9"), ([("disk0", "over9")], "over9"),
                            ([("disk0", over), ("disk1", "")], "disk1")):
            self.assertNotIn("STOP", self.none(SHARED, disks, what))

    def test_same_twice(self):
        over = self.overlay("over0")
        self.none(SHARED, [("disk0", over), ("disk1", over)], "already in use")


if __name__ == "__main__":
    unittest.main()
