# SPDX-License-Identifier: GPL-2.0-or-later
"""A fork: clones go on from the very number, memory is isolated both ways, layers stack, and the parent comes back."""
import os
import struct
import unittest

import sfqemu
from sfqemu import FROZEN, LAYERED, MIB, PAGE, SANDBOX, SHARED, SHARED_BASE

CLONES = 4


class Fork(sfqemu.TestCase):
    def fork_twice(self, vcpus):
        parent = self.vm(vcpus=vcpus)
        parent.lines(vcpus)
        for fork in range(2):
            snapshot = self.take(parent)
            self.assertEqual(parent.status(), "running")
            self.assertEqual(parent.mode(), FROZEN)
            clones = [self.clone(snapshot, vcpus=vcpus) for _ in range(CLONES)]
            for i, clone in enumerate(clones):
                self.assertTrue(clone.command("s", i + 1))
            for clone in clones:
                clone.lines(vcpus)
                self.assertContinues(snapshot, clone)
                self.assertEqual(clone.mode(), LAYERED)
                self.assertEqual(clone.hello()[0][5], 1)
            parent.lines(vcpus)
            self.assertHealthy(parent)
            for clone in clones:
                clone.close()

    def test_smp1(self):
        self.fork_twice(1)

    def test_smp2(self):
        self.fork_twice(2)

    def test_smp4(self):
        self.fork_twice(4)


class ForkKvm(Fork):
    accel = "kvm"


class Memory(sfqemu.TestCase):
    """What is in memory, byte by byte."""

    def setUp(self):
        super().setUp()
        self.parent = self.vm()
        self.parent.lines()
        self.parent.command("s", 1)
        self.parent.command("f", 8)

    def frozen(self, vm):
        """The whole RAM of vm, standing still."""
        vm.qmp.call("stop")
        data = vm.memory()
        vm.qmp.call("cont")
        return data

    def test_isolation(self):
        """Snapshot taken of a paused guest: all of it must be in it, and nothing that anybody writes later."""
        self.parent.qmp.call("stop")
        then = self.parent.memory()
        snapshot = self.take(self.parent)
        self.assertEqual(self.parent.status(), "paused")
        self.assertEqual(snapshot.content("pc.ram"), then)

        left = self.vm(paused=True)
        left.load(snapshot, flags=0)
        self.assertEqual(left.memory(), then)
        left.qmp.call("cont")
        left.channel.running()
        right = self.clone(snapshot)
        self.parent.qmp.call("cont")
        for i, vm in enumerate((left, right, self.parent)):
            vm.command("s", 10 + i)
            vm.command("f", 4)
            vm.lines()
        self.assertContinues(snapshot, left)
        self.assertContinues(snapshot, right)
        pages = {bytes(self.frozen(vm)[16 * MIB:20 * MIB]) for vm in (left, right, self.parent)}
        self.assertEqual(len(pages), 3)
        self.assertEqual(snapshot.content("pc.ram"), then)
        late = self.vm(paused=True)
        late.load(snapshot, flags=0)
        self.assertEqual(late.memory(), then)
        for vm in (left, right, self.parent):
            self.assertHealthy(vm)

    def test_delta_while_clones_live(self):
        first = self.take(self.parent)
        base = first.content("pc.ram")
        clone = self.clone(first)
        clone.lines()
        self.assertContinues(first, clone)
        self.parent.command("s", 2)
        self.parent.command("f", 2)
        self.parent.qmp.call("stop")
        then = self.parent.memory()
        second = self.take(self.parent, SHARED_BASE)
        self.assertEqual(len(second.block("pc.ram").layers), 1)
        self.assertEqual(self.parent.mode(), FROZEN)
        self.assertEqual(second.content("pc.ram"), then)
        self.assertEqual(first.content("pc.ram"), base)
        late = self.vm(paused=True)
        late.load(second, flags=0)
        self.assertEqual(late.memory(), then)
        self.assertEqual(sum(length for _, length in second.extents("pc.ram")), second.block("pc.ram").folded)
        self.parent.qmp.call("cont")
        self.assertHealthy(clone)

    def test_fold_in_place(self):
        first = self.take(self.parent)
        clone = self.clone(first)
        clone.close()
        first.close()
        self.parent.command("s", 3)
        self.parent.command("f", 8)
        self.parent.qmp.call("stop")
        then = self.parent.memory()
        second = self.take(self.parent)
        self.assertEqual(second.block("pc.ram").layers, [])
        self.assertGreaterEqual(second.block("pc.ram").folded, 8 * MIB)
        self.assertEqual(second.content("pc.ram"), then)
        self.assertEqual(self.parent.memory(), then)

    def test_three_levels(self):
        snapshot, vm = self.take(self.parent), self.parent
        for level in range(1, 4):
            vm = self.clone(snapshot)
            vm.lines()
            self.assertContinues(snapshot, vm)
            vm.command("s", 20 + level)
            vm.command("f", 2 * level)
            vm.qmp.call("stop")
            then = vm.memory()
            snapshot = self.take(vm, below=snapshot)
            self.assertEqual(len(snapshot.block("pc.ram").layers), level)
            self.assertEqual(snapshot.content("pc.ram"), then)
            again = self.take(vm, below=self.below(snapshot))
            self.assertEqual(again.content("pc.ram"), then)
            vm.qmp.call("cont")
            self.assertEqual(vm.mode(), LAYERED)

    def below(self, snapshot):
        """The snapshot without its own layer: what the VM it was taken of had been loaded from."""
        stripped = sfqemu.Snapshot.__new__(sfqemu.Snapshot)
        stripped.blocks = [b._replace(layers=b.layers[:-1]) for b in snapshot.blocks]
        return stripped

    def test_thaw(self):
        self.assertEqual(self.parent.thaw()[0], 0)
        snapshot = self.take(self.parent)
        self.parent.command("s", 4)
        self.parent.command("f", 8)
        self.parent.qmp.call("stop")
        then = self.parent.memory()
        self.parent.qmp.call("cont")
        folded, left, _ = self.parent.fold(2 * MIB)
        self.assertEqual(folded, 2 * MIB)
        self.assertGreaterEqual(left, 6 * MIB)
        self.assertEqual(self.parent.mode(), FROZEN)
        folded, _, _ = self.parent.thaw()
        self.assertGreaterEqual(folded, 6 * MIB)
        self.assertEqual(self.parent.mode(), SHARED)
        # The memfd is the guest's memory again: what the guest writes is there.
        base = snapshot.block("pc.ram").base
        self.assertEqual(os.pread(base, 8 * MIB, 16 * MIB), then[16 * MIB:24 * MIB])
        self.parent.command("s", 5)
        self.parent.command("f", 1)
        data = os.pread(base, MIB, 16 * MIB)
        self.assertEqual(struct.unpack_from("<I", data)[0], (16 * MIB * 2654435761 & 0xffffffff) ^ 5)
        self.parent.lines()
        self.assertHealthy(self.parent)
        self.take(self.parent)
        self.assertEqual(self.parent.mode(), FROZEN)

    def test_clone_cannot_thaw(self):
        clone = self.clone(self.take(self.parent))
        for call in (clone.thaw, lambda: clone.fold(MIB)):
            with self.assertRaisesRegex(sfqemu.ChannelError, "clone"):
                call()
        clone.lines()

    def test_no_growth(self):
        """Again and again: no descriptor, no private memory is left behind."""
        self.take(self.parent).close()
        self.parent.thaw()
        descriptors, private = self.parent.descriptors(), self.parent.private()
        for _ in range(20):
            self.parent.snapshot().close()
            self.parent.command("f", 2)
            self.parent.snapshot(SHARED_BASE).close()
            self.parent.thaw()
        sfqemu.wait(lambda: self.parent.descriptors() <= descriptors, "descriptors back to %d" % descriptors)
        self.assertLess(self.parent.private(), private + 4 * MIB)

    def test_readonly_descriptors(self):
        """Whoever gets a snapshot cannot write to it, by the descriptor or by opening it once more."""
        first = self.take(self.parent)
        delta = self.take(self.parent, SHARED_BASE)
        for fd in first.fds + delta.fds:
            with self.assertRaises(OSError):
                os.pwrite(fd, b"x", 0)
        if os.getuid() == 0:
            pid = os.fork()
            if not pid:
                status = 1
                try:
                    os.setuid(65534)
                    os.open("/proc/self/fd/%d" % first.block("pc.ram").base, os.O_RDWR)
                except PermissionError:
                    status = 0
                finally:
                    os._exit(status)
            self.assertEqual(os.waitpid(pid, 0)[1], 0)

    def test_clean_overlap(self):
        """A clone never sees its own shell's memory: no page is left from before."""
        self.parent.qmp.call("stop")
        then = self.parent.memory()
        snapshot = self.take(self.parent)
        shell = self.vm(paused=True)
        shell.memory()
        shell.load(snapshot, flags=0)
        self.assertEqual(shell.memory(), then)

    def test_loads_at_once(self):
        """Many clones read one state at the same time."""
        snapshot = self.take(self.parent, 0)
        delta = self.take(self.parent, SHARED_BASE)
        shells = [self.vm(paused=True) for _ in range(8)]
        serials = []
        for i, shell in enumerate(shells):
            payload, fds = (snapshot, delta)[i % 2].load_request()
            serials.append(shell.channel.send(sfqemu.LOAD, payload, fds))
        for shell, serial in zip(shells, serials):
            shell.channel.answer(serial, sfqemu.LOAD)
        for i, shell in enumerate(shells):
            shell.channel.running()
            shell.lines()
            self.assertContinues((snapshot, delta)[i % 2], shell)

    def test_scattered_delta(self):
        """More extents than the kernel has mappings for one process."""
        self.parent.close()                     # it would count all the time
        memory = 576
        parent = self.vm(memory=memory)
        parent.lines()
        parent.qmp.call("stop")
        first = self.take(parent)
        block = first.block("pc.ram")
        expected = sfqemu.copy_of(block.base, block.length)
        # Some extents are longer, and worth a mapping.
        layer = sfqemu.scattered_layer(expected, 32 * MIB, block.length, long_pages=9, every=256)
        first.fds += [layer.delta, layer.extents, expected]
        self.assertGreater(layer.count, 66000)
        first.blocks[0] = block._replace(layers=[layer])
        clone = self.vm(memory=memory, paused=True)
        clone.load(first, flags=0)
        for at in range(0, block.length, sfqemu.PIECE):
            self.assertTrue(clone.memory(at, sfqemu.PIECE) == os.pread(expected, sfqemu.PIECE, at), "memory of the clone")
        # What was copied is private, and so part of the clone's own delta.
        second = self.take(clone, below=first)
        for at in range(0, block.length, sfqemu.PIECE):
            self.assertTrue(second.content("pc.ram", at, sfqemu.PIECE) == os.pread(expected, sfqemu.PIECE, at),
                            "memory of the clone's snapshot")

    def memfds(self, vm, name):
        directory = "/proc/%d/fd" % vm.process.pid
        return {os.stat(os.path.join(directory, fd)).st_ino for fd in os.listdir(directory)
                if os.readlink(os.path.join(directory, fd)).startswith("/memfd:" + name)}

    def test_deltas_are_kept(self):
        """A daemon that was restarted finds the layers of a clone, and the newest delta, in /proc/PID/fd."""
        def inodes(layer):
            return {os.fstat(layer.delta).st_ino}
        self.take(self.parent).close()
        self.assertEqual(self.memfds(self.parent, "sf-delta"), set())
        old = self.take(self.parent, SHARED_BASE)
        self.assertEqual(self.memfds(self.parent, "sf-delta"), inodes(old.block("pc.ram").layers[0]))
        new = self.take(self.parent, SHARED_BASE)
        self.assertEqual(self.memfds(self.parent, "sf-delta"), inodes(new.block("pc.ram").layers[0]))
        self.assertEqual(len(self.memfds(self.parent, "sf-extents")), 1)
        clone = self.clone(old)
        self.assertEqual(self.memfds(clone, "sf-delta"), inodes(old.block("pc.ram").layers[0]))
        self.parent.thaw()
        self.assertEqual(self.memfds(self.parent, "sf-"), set())

    def test_other_firmware(self):
        """ROMs are not part of a snapshot; a clone whose firmware is another one is refused by name."""
        snapshot = self.take(self.parent)
        source = next((path for path in (os.path.join(d, "bios-256k.bin") for d in sfqemu.firmware()[1::2])
                       if os.path.exists(path)), None)
        if not source:
            self.skipTest("bios-256k.bin: not in SF_FIRMWARE")
        with open(source, "rb") as f:
            data = bytearray(f.read())
        data[0x100] ^= 1
        other = os.path.join(self.directory, "other-bios.bin")
        with open(other, "wb") as f:
            f.write(data)
        shell = self.vm("-bios", other, paused=True)
        with self.assertRaisesRegex(sfqemu.ChannelError, "pc.bios: the firmware differs"):
            shell.load(snapshot)

    def test_several_blocks(self):
        def make(**keywords):
            return self.vm(*sfqemu.two_nodes(), memory=64, ram="", **keywords)
        parent = make()
        parent.lines()
        parent.qmp.call("stop")
        then = parent.memory()
        snapshot = self.take(parent)
        self.assertEqual(len(snapshot.blocks), 2)
        clone = make(paused=True)
        clone.load(snapshot, flags=0)
        self.assertEqual(clone.memory(), then)
        clone.qmp.call("cont")
        clone.channel.running()
        clone.lines()
        self.assertContinues(snapshot, clone)


class Sandbox(sfqemu.TestCase):
    """As the daemon starts it: an unprivileged user, and the sandbox on."""

    def test_sandbox(self):
        user = 65534 if os.getuid() == 0 else None
        parent = self.vm(*SANDBOX, user=user)
        parent.lines()
        first = self.take(parent)
        self.continues(first, user)
        second = self.take(parent, SHARED_BASE)
        clone = self.continues(second, user)
        self.continues(self.take(clone, below=second), user)
        parent.thaw()
        parent.lines()
        self.assertHealthy(parent)

    def continues(self, snapshot, user):
        clone = self.clone(snapshot, *SANDBOX, user=user)
        clone.lines()
        self.assertContinues(snapshot, clone)
        return clone


if __name__ == "__main__":
    unittest.main()
