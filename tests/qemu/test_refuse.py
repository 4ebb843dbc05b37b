# SPDX-License-Identifier: GPL-2.0-or-later
"""What cannot be forked is refused by name, and the guest is not paused for it."""
import os
import unittest

import sfqemu
from sfqemu import ChannelError

NULL_DISK = ("-blockdev", "driver=null-co,node-name=n,size=1048576,read-zeroes=on")


class Refuse(sfqemu.TestCase):
    def refused(self, what, *options, mended=False, **keywords):
        """mended: SHARE does, so CHECK does not name it."""
        try:
            vm = self.vm(*options, **keywords)
        except AssertionError as error:
            if "QEMU did not start" not in str(error):
                raise
            self.skipTest(str(error))
        vm.lines(more=1)
        obstacles = vm.check()
        self.assertEqual(any(what in line for line in obstacles), not mended, obstacles)
        with self.assertRaisesRegex(ChannelError, what):
            vm.snapshot()
        self.assertEqual(vm.status(), "running")
        self.assertNotIn("STOP", vm.qmp.events)
        vm.lines(more=1)
        return vm

    def test_anonymous(self):
        self.refused("pc.ram: the memory is no memfd", ram="memory-backend-ram,id=pc.ram,size=32M", mended=True)

    def test_private_memfd(self):
        self.refused("pc.ram: the memfd is not mapped shared", ram="memory-backend-memfd,id=pc.ram,share=off,size=32M")

    def test_file(self):
        path = os.path.join(self.directory, "ram")
        self.refused("pc.ram: the memory is no memfd",
                     ram="memory-backend-file,id=pc.ram,share=on,size=32M,mem-path=" + path)

    def test_prealloc(self):
        self.refused("pc.ram: preallocated", ram="memory-backend-memfd,id=pc.ram,share=on,prealloc=on,size=32M")

    def test_huge_pages(self):
        with open("/proc/sys/vm/nr_hugepages") as f:
            if int(f.read()) < 16:
                self.skipTest("/proc/sys/vm/nr_hugepages is less than 16")
        self.refused("pc.ram: huge pages", ram="memory-backend-memfd,id=pc.ram,share=on,hugetlb=on,size=32M")

    def test_second_backend(self):
        self.refused("m1: the memory is no memfd", "-object", "memory-backend-memfd,id=m0,share=on,size=32M", "-object",
                     "memory-backend-ram,id=m1,size=32M", "-numa", "node,memdev=m0", "-numa", "node,memdev=m1",
                     memory=64, ram="", mended=True)

    def test_locked_memory(self):
        self.refused("machine: locked memory", "-overcommit", "mem-lock=on")

    def test_non_migratable_device(self):
        self.refused("nvme", *NULL_DISK, "-device", "nvme,drive=n,serial=1")

    def test_shared_memory_device(self):
        self.refused("shm: ivshmem-plain", "-object", "memory-backend-memfd,id=s,share=on,size=1M", "-device",
                     "ivshmem-plain,id=shm,memdev=s,master=on")

    def test_vhost_device(self):
        if not os.path.exists("/dev/vhost-vsock"):
            self.skipTest("/dev/vhost-vsock: not there")
        self.refused("vs: vhost-vsock-pci", "-device", "vhost-vsock-pci,id=vs,guest-cid=12345")

    def test_large_video_memory(self):
        self.refused("vga.vram", "-device", "VGA,vgamem_mb=32,romfile=")

    def test_state(self):
        vm = self.vm()
        vm.qmp.call("stop")
        self.assertEqual(vm.check(), [])
        shell = self.vm("-incoming", "defer")
        self.assertTrue(any("inmigrate" in line for line in shell.check()), shell.check())
        with self.assertRaisesRegex(ChannelError, "inmigrate"):
            shell.snapshot()

    def test_hot_plugged(self):
        """An obstacle may come and go."""
        vm = self.vm(*NULL_DISK, "-device", "pcie-root-port,id=rp0")
        vm.lines(more=1)
        vm.qmp.call("device_add", driver="nvme", drive="n", serial="1", id="late", bus="rp0")
        self.assertTrue(any("nvme" in line for line in vm.check()))
        with self.assertRaises(ChannelError):
            vm.snapshot()
        self.assertEqual(vm.status(), "running")

    def test_migration_after_fork(self):
        """What takes the memfd for the guest's memory must not get it any more."""
        vm = self.vm()
        self.take(vm)
        vm.qmp.call("migrate-set-parameters", mode="cpr-transfer")
        with self.assertRaisesRegex(RuntimeError, "copy-on-write"):
            vm.qmp.call("migrate", channels=[
                {"channel-type": kind, "addr": {"transport": "socket", "type": "unix", "path": "/nowhere/" + kind}}
                for kind in ("main", "cpr")])
        vm.lines(more=1)


if __name__ == "__main__":
    unittest.main()
