# SPDX-License-Identifier: GPL-2.0-or-later
"""Anonymous memory becomes a memfd: in steps, with the guest running on between them; then it forks as any other."""
import unittest

import sfqemu
from sfqemu import ChannelError, FROZEN, LAYERED, MIB, PAGE, SHARE, SHARED

ANONYMOUS = "memory-backend-ram,id=pc.ram,size=32M"
STEP = 4 * MIB
ALL = 1 << 40


class Share(sfqemu.TestCase):
    def anonymous(self, *options, **keywords):
        vm = self.vm(*options, ram=ANONYMOUS, **keywords)
        vm.lines(keywords.get("vcpus", 1))
        self.assertEqual(vm.hello()[1], {})
        self.assertEqual(vm.check(), [])
        return vm

    def fork(self, parent, vcpus=1):
        snapshot = self.take(parent)
        clone = self.clone(snapshot, vcpus=vcpus)
        clone.lines(vcpus)
        self.assertContinues(snapshot, clone)
        self.assertEqual((parent.mode(), clone.mode()), (FROZEN, LAYERED))
        parent.lines(vcpus)
        self.assertHealthy(parent)

    def test_steps(self):
        """The guest writes while it is done, two vCPUs of it; nothing is lost, and little is copied."""
        vm = self.anonymous(vcpus=2)
        vm.command("s", 1)
        vm.command("f", 8)
        before = vm.private()
        copied, left, steps = 0, 32 * MIB, 0
        while left:
            more, now, pause = vm.share(STEP)
            self.assertEqual(now, left - STEP)
            self.assertGreater(pause, 0)
            copied, left, steps = copied + more, now, steps + 1
            vm.command("s", steps + 1)
            vm.lines(2, more=1)
        self.assertEqual(steps, 8)
        self.assertGreaterEqual(copied, 8 * MIB)
        self.assertLess(copied, 32 * MIB)
        self.assertLess(vm.private(), before - 4 * MIB)
        self.assertEqual(vm.mode(), SHARED)
        self.assertEqual(vm.share(STEP), (0, 0, 0))
        self.assertEqual(vm.qmp.call("query-memdev")[0]["share"], True)
        self.assertHealthy(vm)
        self.fork(vm, 2)

    def test_content(self):
        """Byte by byte, of a guest that stands still, and it goes on standing."""
        vm = self.anonymous()
        vm.command("s", 1)
        vm.command("f", 8)
        vm.qmp.call("stop")
        then = vm.memory()
        self.assertEqual(vm.share(5 * PAGE + 1)[1], 32 * MIB - 5 * PAGE)
        self.assertEqual(vm.memory(), then)
        self.assertEqual(vm.share(1)[1], 32 * MIB - 6 * PAGE)
        self.assertEqual(vm.share(ALL)[1], 0)
        self.assertEqual((vm.memory(), vm.status()), (then, "paused"))
        self.assertEqual(self.take(vm).content("pc.ram"), then)

    def test_two_blocks(self):
        vm = self.vm("-object", "memory-backend-ram,id=m0,size=32M", "-object", "memory-backend-memfd,id=m1,share=on,size=32M",
                     "-object", "memory-backend-ram,id=m2,size=32M", "-numa", "node,memdev=m0", "-numa", "node,memdev=m1",
                     "-numa", "node,memdev=m2", memory=96, ram="")
        vm.lines()
        self.assertEqual([vm.share(ALL)[1] for _ in range(2)], [32 * MIB, 0])
        self.assertEqual({name: block[1] for name, block in vm.hello()[1].items()}, dict.fromkeys(("m0", "m1", "m2"), SHARED))
        self.take(vm)

    def test_refused(self):
        """What can't be forked anyhow is not copied; a VM that has been half shared is not forked, and goes on."""
        vm = self.anonymous("-blockdev", "driver=null-co,node-name=n,size=1048576,read-zeroes=on", "-device",
                            "pcie-root-port,id=rp0")
        self.assertEqual(vm.share(STEP)[1], 28 * MIB)
        with self.assertRaisesRegex(ChannelError, "pc.ram: the memory is no memfd"):
            vm.snapshot()
        vm.qmp.call("device_add", driver="nvme", drive="n", serial="1", id="late", bus="rp0")
        with self.assertRaisesRegex(ChannelError, "nvme"):
            vm.share(STEP)
        for payload in (b"", bytes(7), bytes(9)):
            with self.assertRaises(ChannelError):
                vm.channel.call(SHARE, payload)
        vm.lines(more=1)
        self.assertHealthy(vm)


class ShareKvm(Share):
    accel = "kvm"


if __name__ == "__main__":
    unittest.main()
