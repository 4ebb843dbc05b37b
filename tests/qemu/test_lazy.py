# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory on demand: a clone over an empty page cache reads what the snapshot had, asks for each page once, and can be
forked itself."""
import os
import struct
import unittest

import sfqemu
from sfqemu import (LAYERED, LOAD_BLOCK, LOAD_REQUEST, MAP, MAPPED, MAX_LAYERS, MAX_PRESENT, MIB, PAGE, RESUME,
                    SANDBOX, SHARED_BASE, ChannelError, Memtap, PageCache)

CLOCK_BYTES = 32    # struct pvclock_vcpu_time_info


class Base(sfqemu.TestCase):
    def cache(self, snapshot, **keywords):
        """A page cache for it, empty, and its memtap."""
        cache = PageCache(snapshot, **keywords)
        memtap = Memtap(cache)
        self.addCleanup(cache.close)
        self.addCleanup(memtap.close)
        return memtap

    def lazy(self, snapshot, memtap, *options, layers=None, flags=RESUME, **keywords):
        clone = self.vm(*options, paused=True, **keywords)
        clone.map(memtap, layers)
        clone.load_mapped(snapshot, flags)
        if flags & RESUME:
            clone.channel.running()
        return clone

    def stopped(self, vm):
        vm.qmp.call("stop")
        return vm.memory()


class Lazy(Base):
    """What a guest sees and does, TCG and KVM."""

    def fork(self, vcpus):
        parent = self.vm(vcpus=vcpus)
        parent.lines(vcpus)
        snapshot = self.take(parent)
        memtap = self.cache(snapshot)
        clones = [self.lazy(snapshot, memtap, vcpus=vcpus) for _ in range(2)]
        for i, clone in enumerate(clones):
            self.assertTrue(clone.command("s", i + 1))
            clone.lines(vcpus)
            self.assertContinues(snapshot, clone)
            self.assertEqual(clone.mode(), LAYERED)
            self.assertTrue(clone.lazy())
        parent.lines(vcpus)
        self.assertHealthy(parent)
        # All of RAM: what was not fetched yet is fetched now.
        other = self.lazy(snapshot, memtap, vcpus=vcpus, flags=0)
        self.assertSame(other.memory(), snapshot.content("pc.ram"), vcpus)
        self.assertIsNone(memtap.failure)
        # Each page came once, whoever asked for it.
        data = {offset for _, offset in memtap.faults if not memtap.cache.block("pc.ram").zero[offset // PAGE]}
        self.assertEqual(memtap.cache.resident("pc.ram"), len(data) * PAGE)

    def assertSame(self, found, expected, vcpus=1):
        """KVM keeps a clock per vCPU in guest memory, and counts up a version there when device state is loaded."""
        different = [i for i in range(len(expected)) if found[i] != expected[i]] if found != expected else []
        self.assertEqual(len(found), len(expected))
        self.assertLessEqual(len(different), vcpus * CLOCK_BYTES if self.accel == "kvm" else 0, different[:100])
        self.assertLessEqual(len({i // PAGE for i in different}), vcpus)

    def test_smp1(self):
        self.fork(1)

    def test_smp2(self):
        self.fork(2)

    def test_forks_again(self):
        """A clone of a clone, both over the same page cache; and back to the first."""
        parent = self.vm()
        parent.lines()
        parent.command("s", 1)
        parent.command("f", 4)
        first = self.take(parent)
        memtap = self.cache(first)
        below, vm = first, None
        for level in range(1, 4):
            vm = self.lazy(below, memtap, layers=below if level > 1 else None)
            vm.lines()
            self.assertContinues(below, vm)
            vm.command("s", 10 + level)
            vm.command("f", 1)
            fetched = memtap.cache.resident("pc.ram")
            vm.qmp.call("stop")
            snapshot = self.take(vm, below=below)
            self.assertEqual(memtap.cache.resident("pc.ram"), fetched, "a snapshot fetched pages")
            self.assertEqual(len(snapshot.block("pc.ram").layers), level)
            self.assertTrue(vm.lazy())
            then = vm.memory()
            clone = self.lazy(snapshot, memtap, layers=snapshot, flags=0)
            self.assertSame(clone.memory(), then)
            clone.close()
            vm.qmp.call("cont")
            vm.lines()
            self.assertHealthy(vm)
            below = snapshot
        self.assertIsNone(memtap.failure)


class LazyKvm(Lazy):
    accel = "kvm"


class Memory(Base):
    def setUp(self):
        super().setUp()
        self.parent = self.vm()
        self.parent.lines()
        self.parent.command("s", 1)
        self.parent.command("f", 4)

    def test_load_touches_little(self):
        """Device state that is loaded reads only a few pages; nobody else reads any before the guest runs."""
        snapshot = self.take(self.parent)
        memtap = self.cache(snapshot)
        self.lazy(snapshot, memtap, flags=0)
        self.assertLessEqual(len(memtap.faults), 8, memtap.faults)

    def test_map_touches_nothing(self):
        snapshot = self.take(self.parent)
        memtap = self.cache(snapshot)
        shell = self.vm(paused=True)
        shell.map(memtap)
        self.assertEqual((memtap.faults, memtap.cache.resident("pc.ram")), ([], 0))
        self.assertTrue(shell.lazy())
        self.assertEqual(shell.check(), [])

    def test_zero(self):
        """What the snapshot has no page of costs nothing: nobody is asked, no page of the cache is filled."""
        snapshot = self.take(self.parent)
        memtap = self.cache(snapshot)
        clone = self.lazy(snapshot, memtap, flags=0)
        before, resident = len(memtap.faults), memtap.cache.resident("pc.ram")
        private = clone.private()
        self.assertEqual(clone.memory(24 * MIB, 4 * MIB), bytes(4 * MIB))
        self.assertEqual((len(memtap.faults), memtap.cache.resident("pc.ram")), (before, resident))
        read_costs = clone.private() - private
        # And it can be written.
        clone.qmp.call("cont")
        clone.channel.running()
        clone.command("s", 9)
        clone.command("f", 12)
        content = self.stopped(clone)
        for at in range(16 * MIB, 28 * MIB, PAGE):
            self.assertEqual(struct.unpack_from("<I", content, at)[0], (at * 2654435761 & 0xffffffff) ^ 9, hex(at))
        self.need_shared_zero_page()
        self.assertLess(read_costs, MIB)

    def need_shared_zero_page(self):
        if sfqemu.reads_cost_memory():
            self.skipTest("this kernel has no shared page of zeros: all was tested but that reading zeros costs nothing")

    def test_small_extents(self):
        """Zero pages between others, answered by UFFDIO_ZEROPAGE or left anonymous: the same content, and no delta."""
        folded = []
        for merged in (0, 64 * 1024, 32 * MIB):
            with self.subTest(merged):
                snapshot = self.take(self.parent, SHARED_BASE)
                memtap = self.cache(snapshot, merged=merged)
                clone = self.lazy(snapshot, memtap, flags=0)
                then = snapshot.content("pc.ram")
                self.assertEqual(clone.memory(), then)
                again = self.take(clone)
                folded.append(again.block("pc.ram").folded)
                late = self.lazy(again, memtap, layers=again, flags=0)
                self.assertEqual(late.memory(), then)
                self.assertIsNone(memtap.failure)
        # All was read, next to nothing was written: zero pages are no content of the clone's own.
        self.need_shared_zero_page()
        self.assertLess(max(folded), MIB)

    def test_snapshot_waits_for_nobody(self):
        """While nobody answers, a clone that waits for no page can be forked: gaps in what it wrote are not fetched."""
        self.parent.qmp.call("stop")
        snapshot = self.take(self.parent)
        memtap = self.cache(snapshot)
        clone = self.lazy(snapshot, memtap, flags=0)
        block = memtap.cache.block("pc.ram")
        self.assertFalse(block.zero[16 * MIB // PAGE])
        memtap.allowed.clear()
        asked = len(memtap.faults)
        # Every second page of what is present but missing, as if the guest had overwritten it.
        wanted = {at: os.urandom(PAGE) for at in range(16 * MIB, 18 * MIB, 2 * PAGE)}
        for uffd, mapped in memtap.uffds.items():
            for at, data in wanted.items():
                sfqemu.uffd_copy(uffd, mapped[0][0] + at, data)
        taken = self.take(clone)
        self.assertEqual(len(memtap.faults), asked)
        held = taken.extents("pc.ram")
        for at in wanted:
            self.assertTrue(any(start <= at < start + length for start, length in held), hex(at))
            self.assertFalse(any(start <= at + PAGE < start + length for start, length in held), hex(at))
        # Where the pages between are there, extents are joined as ever.
        memtap.fill("pc.ram")
        joined = self.take(clone)
        self.assertLess(joined.block("pc.ram").layers[0].count, len(held) // 2)
        expected = bytearray(block.content)
        for at, data in wanted.items():
            expected[at:at + PAGE] = data
        memtap.allowed.set()
        for layers in (taken, joined):
            late = self.lazy(layers, memtap, layers=layers, flags=0)
            self.assertEqual(late.memory(), bytes(expected))

    def test_short_extents_of_a_layer(self):
        """More of them than can be mapped: they are put in place without fetching what lies below."""
        self.parent.close()                     # it would count all the time
        parent = self.vm(memory=128)
        parent.lines()
        parent.qmp.call("stop")
        snapshot = self.take(parent)
        block = snapshot.block("pc.ram")
        # A base with content below half of the extents, so that both kinds of memory get some.
        content = bytearray(snapshot.content("pc.ram"))
        content[32 * MIB:64 * MIB] = (b"below" + bytes(11)) * (2 * MIB)
        base = os.memfd_create("base")
        os.write(base, content)
        copy = sfqemu.copy_of(base, len(content))
        layer = sfqemu.scattered_layer(copy, 24 * MIB, 120 * MIB, long_pages=3, every=256)
        expected = os.pread(copy, len(content), 0)
        snapshot.fds += [base, copy, layer.delta, layer.extents]
        self.assertGreater(layer.count, 8192)
        snapshot.blocks[0] = block._replace(base=base)
        memtap = self.cache(snapshot)
        snapshot.blocks[0] = block._replace(base=base, layers=[layer])
        shell = self.vm(memory=128, paused=True)
        shell.map(memtap, layers=snapshot)
        self.assertEqual(memtap.faults, [])
        shell.load_mapped(snapshot, flags=0)
        self.assertTrue(shell.memory() == expected, "memory of the clone")
        again = self.take(shell, below=snapshot)
        self.assertTrue(again.content("pc.ram") == expected, "memory of the clone's snapshot")

    def test_userfaultfd_stays(self):
        """All other descriptors closed, a missing page is waited for, never zero."""
        snapshot = self.take(self.parent)
        memtap = self.cache(snapshot)
        shell = self.vm(paused=True)
        number, _ = shell.map(memtap)
        path = "/proc/%d/fd/%d" % (shell.process.pid, number)
        self.assertIn("userfaultfd", os.readlink(path))
        shell.load_mapped(snapshot, flags=0)
        memtap.close()
        memtap.uffds.clear()
        serial = self.read_memory(shell, 16 * MIB)
        self.assertFalse(os.path.exists(serial) and os.path.getsize(serial), "a page came from nowhere")
        # The one that QEMU kept, as a restarted daemon gets it: the fault is still in it.
        self.assertIn("userfaultfd", os.readlink(path))
        uffd = sfqemu.descriptor_of(shell.process.pid, number)
        again = Memtap(memtap.cache)
        self.addCleanup(again.close)
        again.attach(uffd, memtap.mapped)
        shell.qmp.answer()
        with open(serial, "rb") as f:
            self.assertEqual(f.read(), memtap.cache.block("pc.ram").content[16 * MIB:16 * MIB + PAGE])
        self.assertEqual(again.faults[0], ("pc.ram", 16 * MIB))

    def read_memory(self, vm, at):
        """Orders QEMU to write a page to a file, and waits until it is at it; the file."""
        path = os.path.join(vm.directory, "page")
        vm.qmp.send("pmemsave", val=at, size=PAGE, filename=path)

        def waits():
            for task in os.listdir("/proc/%d/task" % vm.process.pid):
                with open("/proc/%d/task/%s/wchan" % (vm.process.pid, task)) as f:
                    if "userfault" in f.read():
                        return True
            return False
        sfqemu.wait(waits, "QEMU waits for a page")
        return path

    def test_memtap_dies_with_a_fault(self):
        """The fault was read, and never answered: who takes over wakes all, and is asked again."""
        snapshot = self.take(self.parent)
        memtap = self.cache(snapshot)
        shell = self.vm(paused=True)
        number, _ = shell.map(memtap)
        shell.load_mapped(snapshot, flags=0)
        asked = len(memtap.faults)
        memtap.allowed.clear()
        path = self.read_memory(shell, 16 * MIB)
        sfqemu.wait(memtap.holds.is_set, "memtap has read the fault")
        again = Memtap(memtap.cache)
        self.addCleanup(again.close)
        again.attach(sfqemu.descriptor_of(shell.process.pid, number), memtap.mapped)
        shell.qmp.answer()
        with open(path, "rb") as f:
            self.assertEqual(f.read(), memtap.cache.block("pc.ram").content[16 * MIB:16 * MIB + PAGE])
        self.assertEqual((len(memtap.faults), again.faults[0]), (asked, ("pc.ram", 16 * MIB)))
        memtap.allowed.set()

    def test_killed_while_it_waits(self):
        """A clone whose pages never come can be ended."""
        snapshot = self.take(self.parent)
        memtap = self.cache(snapshot)
        clone = self.lazy(snapshot, memtap, flags=0)
        memtap.allowed.clear()
        self.addCleanup(memtap.allowed.set)
        self.read_memory(clone, 16 * MIB)
        clone.process.kill()
        clone.process.wait(sfqemu.PATIENCE)

    def test_complete_cache(self):
        """When all is there, also the zero pages between others, nobody is asked any more."""
        snapshot = self.take(self.parent)
        memtap = self.cache(snapshot)
        block = memtap.cache.block("pc.ram")
        memtap.fill("pc.ram")
        for offset, length in block.present:
            os.posix_fallocate(block.cache, offset, length)     # keeps what is there
        memtap.allowed.clear()
        self.addCleanup(memtap.allowed.set)
        clone = self.lazy(snapshot, memtap, flags=0)
        self.assertEqual(clone.memory(), block.content)
        self.assertEqual(memtap.faults, [])
        again = self.take(clone)
        late = self.lazy(again, memtap, layers=again, flags=0)
        self.assertEqual(late.memory(), block.content)
        self.assertEqual(memtap.faults, [])

    def test_several_blocks(self):
        """Two blocks on demand behind one userfaultfd; or one of them, and the other whole."""
        def make(**keywords):
            return self.vm(*sfqemu.two_nodes(), memory=64, ram="", **keywords)
        parent = make()
        parent.lines()
        parent.command("s", 5)
        parent.command("f", 40)
        parent.qmp.call("stop")
        then = parent.memory()
        snapshot = self.take(parent)
        for lazy in (("m0", "m1"), ("m0",), ("m1",)):
            with self.subTest(lazy):
                memtap = self.cache(snapshot)
                clone = make(paused=True)
                clone.map(memtap, whole=[b for b in snapshot.blocks if b.id not in lazy])
                self.assertEqual({name for name, block in clone.hello()[1].items() if block[2]}, set(lazy))
                clone.load_mapped(snapshot, flags=0)
                self.assertEqual(clone.memory(), then)
                self.assertEqual({name for name, _ in memtap.faults}, set(lazy))
                clone.qmp.call("cont")
                clone.channel.running()
                clone.lines()
                self.assertContinues(snapshot, clone)

    def test_descriptors(self):
        """MAP and LOAD leave one descriptor more than LOAD alone: the userfaultfd."""
        snapshot = self.take(self.parent)
        memtap = self.cache(snapshot)
        plain, lazy = self.vm(paused=True), self.vm(paused=True)
        plain.load(snapshot, flags=0)
        lazy.map(memtap)
        lazy.load_mapped(snapshot, flags=0)
        sfqemu.wait(lambda: lazy.descriptors() == plain.descriptors() + 1, "one descriptor more")

    def test_without_lazy_block(self):
        """MAP of a snapshot that is all here: no userfaultfd, and LOAD goes on from it."""
        snapshot = self.take(self.parent)
        payload, fds = snapshot.load_request(flags=0)
        payload = LOAD_REQUEST.pack(0, len(snapshot.blocks), 0) + payload[LOAD_REQUEST.size:]
        shell = self.vm(paused=True)
        device = sfqemu.userfaultfd()
        self.addCleanup(os.close, device)
        reply, got = shell.channel.call(MAP, payload, [device] + fds[1:])
        self.assertEqual(sfqemu.MAP_REPLY.unpack(reply)[:2], (0, -1))
        self.assertEqual(got, [])
        self.assertFalse(shell.lazy())
        shell.load_mapped(snapshot)
        shell.channel.running()
        shell.lines()
        self.assertContinues(snapshot, shell)

    def test_new_channel_between(self):
        """The daemon may be restarted between MAP and LOAD."""
        snapshot = self.take(self.parent)
        memtap = self.cache(snapshot)
        shell = self.vm(paused=True)
        shell.map(memtap)
        shell.attach()
        self.assertTrue(shell.lazy())
        shell.load_mapped(snapshot)
        shell.channel.running()
        shell.lines()
        self.assertContinues(snapshot, shell)

    def test_discards(self):
        """What the guest gives back is kept, as of every clone: the page cache gets no hole."""
        balloon = ("-device", "virtio-balloon-pci,free-page-reporting=on,disable-modern=on,romfile=")
        parent = self.vm(*balloon)
        parent.lines()
        parent.command("s", 3)
        parent.command("f", 4)
        snapshot = self.take(parent)
        memtap = self.cache(snapshot)
        memtap.fill("pc.ram")
        resident = memtap.cache.resident("pc.ram")
        clone = self.lazy(snapshot, memtap, *balloon)
        clone.lines()
        self.assertContinues(snapshot, clone)
        self.assertTrue(clone.command("b", 17))
        self.assertTrue(clone.command("r", 18))
        self.assertEqual(memtap.cache.resident("pc.ram"), resident)
        clone.lines()
        self.assertHealthy(clone)


class Refused(Base):
    """A bad MAP, or a LOAD that does not fit, says so; QEMU goes on."""

    def setUp(self):
        super().setUp()
        self.parent = self.vm()
        self.parent.lines()
        self.snapshot = self.take(self.parent)
        self.memtap = self.cache(self.snapshot)
        self.payload, self.fds = self.memtap.cache.map_request()
        self.addCleanup(os.close, self.fds[0])
        self.length = self.snapshot.blocks[0].length

    def request(self, flags=0, count=1, state=0, layers=0, block_flags=1, present=None, reserved=0):
        cache = self.memtap.cache.blocks[0]
        present = len(cache.present) if present is None else present
        return LOAD_REQUEST.pack(flags, count, state) + LOAD_BLOCK.pack(
            cache.id.encode(), cache.length, layers, block_flags, present, reserved,
            *([0] * MAX_LAYERS)) * min(count, 2)

    def extents(self, *pairs):
        fd = os.memfd_create("extents")
        self.addCleanup(os.close, fd)
        os.write(fd, b"".join(struct.pack("<QQ", *pair) for pair in pairs))
        return fd

    def refused(self, shell, request, fds, text, kind=MAP):
        with self.assertRaisesRegex(ChannelError, text):
            shell.channel.call(kind, request, fds)
        self.assertTrue(shell.alive())
        self.assertEqual(shell.status(), "prelaunch")

    def test_nothing_happened(self):
        """What is refused as a whole leaves QEMU as it was: a good MAP after all of them works."""
        device, base, table = self.fds
        _, mapped_fds = self.snapshot.load_request()
        null = os.open("/dev/null", os.O_RDWR)
        self.addCleanup(os.close, null)
        cases = [
            ("too short", b"", [], "bytes of payload"), ("flags", self.request(flags=1), self.fds, "malformed request"),
            ("mapped", self.request(flags=MAPPED), self.fds, "malformed request"),
            ("state", self.request(state=1), self.fds, "malformed request"),
            ("surplus", self.payload + b"x", self.fds, "malformed request"),
            ("17 blocks", self.request(count=17), self.fds, "malformed request"),
            ("2^32 blocks", self.request(count=2**32 - 1), self.fds, "malformed request"),
            ("no block", LOAD_REQUEST.pack(0, 0, 0), [device], "the configurations differ"),
            ("two blocks", self.request(count=2), self.fds + [base, table], "the configurations differ"),
            ("block flags", self.request(block_flags=2), self.fds, "block 0 is malformed"),
            ("reserved", self.request(reserved=1), self.fds, "block 0 is malformed"),
            ("not lazy", self.request(block_flags=0), self.fds, "block 0 is malformed"),
            ("layers", self.request(layers=MAX_LAYERS + 1), self.fds, "layers, at most"),
            ("many extents", self.request(present=MAX_PRESENT + 1), self.fds, "present extents, at most"),
            ("2^32 extents", self.request(present=2**32 - 1), self.fds, "present extents, at most"),
            ("no descriptors", self.payload, [], "0 descriptors, 3 are needed"),
            ("one missing", self.payload, self.fds[:2], "2 descriptors, 3 are needed"),
            ("one more", self.payload, self.fds + [base], "4 descriptors, 3 are needed"),
            ("layer without", self.request(layers=1), self.fds, "3 descriptors, 5 are needed"),
            ("no device", self.payload, [null, base, table], "no userfaultfd from the first descriptor"),
        ]
        shell = self.vm(paused=True)
        before = shell.descriptors()
        for name, request, fds, text in cases:
            with self.subTest(name):
                self.refused(shell, request, fds, text)
        with self.subTest("LOAD without MAP"):
            self.refused(shell, LOAD_REQUEST.pack(MAPPED, 0, self.snapshot.state_length), [self.snapshot.state],
                         "MAP comes first", kind=sfqemu.LOAD)
        with self.subTest("lazy LOAD"):
            self.refused(shell, self.request(state=self.snapshot.state_length), [self.snapshot.state, base, table],
                         "memory on demand is for MAP", kind=sfqemu.LOAD)
        with self.subTest("LOAD with MAPPED and blocks"):
            payload, _ = self.snapshot.load_request(flags=MAPPED)
            self.refused(shell, payload, mapped_fds, "malformed request; with MAPPED", kind=sfqemu.LOAD)
        sfqemu.wait(lambda: shell.descriptors() == before, "%d descriptors" % before)
        self.assertEqual(shell.mode(), sfqemu.SHARED)
        shell.map(self.memtap)
        shell.load_mapped(self.snapshot)
        shell.channel.running()
        shell.lines()
        self.assertContinues(self.snapshot, shell)

    def test_content(self):
        """Extents and files that are wrong; QEMU says so and lives, but is of no use any more."""
        device, base, table = self.fds
        empty = self.extents()
        short = os.memfd_create("short")
        self.addCleanup(os.close, short)
        os.ftruncate(short, self.length - PAGE)
        pipe, other = os.pipe()
        self.addCleanup(os.close, pipe)
        self.addCleanup(os.close, other)
        one, two = self.request(present=1), self.request(present=2)
        cases = {
            "unsorted": (two, base, self.extents((PAGE, PAGE), (0, PAGE)), "extent 1 of a page cache is malformed"),
            "overlap": (two, base, self.extents((0, 2 * PAGE), (PAGE, PAGE)), "extent 1 of a page cache is malformed"),
            "beyond": (one, base, self.extents((self.length, PAGE)), "extent 0 of a page cache is malformed"),
            "reaches beyond": (one, base, self.extents((self.length - PAGE, 2 * PAGE)), "extent 0 .* malformed"),
            "wraps": (one, base, self.extents((2**64 - PAGE, 2 * PAGE)), "extent 0 of a page cache is malformed"),
            "empty": (one, base, self.extents((0, 0)), "extent 0 of a page cache is malformed"),
            "odd": (one, base, self.extents((1, PAGE)), "extent 0 of a page cache is malformed"),
            "odd length": (one, base, self.extents((0, 1)), "extent 0 of a page cache is malformed"),
            "cut": (one, base, empty, "cannot read 1 extents"), "no file": (one, base, pipe, "cannot read 1 extents"),
            "short base": (self.payload, short, table, "the base is smaller"),
            "base no file": (self.payload, pipe, table, "the base is smaller"),
        }
        for name, (request, file, extents, text) in cases.items():
            with self.subTest(name):
                shell = self.vm(paused=True)
                self.refused(shell, request, [device, file, extents], text)
                self.refused(shell, self.payload, self.fds, "has failed to map its memory; start another one")
                self.refused(shell, LOAD_REQUEST.pack(MAPPED, 0, self.snapshot.state_length), [self.snapshot.state],
                             "no memory has been mapped", kind=sfqemu.LOAD)
                shell.close()

    def test_twice(self):
        shell = self.vm(paused=True)
        shell.map(self.memtap)
        self.refused(shell, self.payload, self.fds, "sf MAP: this QEMU has mapped its memory before")
        payload, fds = self.snapshot.load_request()
        self.refused(shell, payload, fds, "sf LOAD: this QEMU has mapped its memory before", kind=sfqemu.LOAD)
        shell.load_mapped(self.snapshot)
        shell.channel.running()
        shell.lines()
        self.assertContinues(self.snapshot, shell)
        with self.assertRaisesRegex(ChannelError, "sf MAP: this QEMU has been loaded before"):
            shell.channel.call(MAP, self.payload, self.fds)
        with self.assertRaisesRegex(ChannelError, "sf MAP: this QEMU has run"):
            self.parent.channel.call(MAP, self.payload, self.fds)
        shell.lines()
        self.assertHealthy(shell)

    def test_clone_cannot_thaw(self):
        clone = self.lazy(self.snapshot, self.memtap)
        for call in (clone.thaw, lambda: clone.fold(MIB)):
            with self.assertRaisesRegex(ChannelError, "clone"):
                call()
        clone.lines()


class Sandbox(Base):
    """As the daemon starts it: neither the system call nor the device is open to it, a passed descriptor is."""

    def test_sandbox(self):
        user = 65534 if os.getuid() == 0 else None
        parent = self.vm(*SANDBOX, user=user)
        parent.lines()
        snapshot = self.take(parent)
        memtap = self.cache(snapshot)
        clone = self.lazy(snapshot, memtap, *SANDBOX, user=user)
        clone.lines()
        self.assertContinues(snapshot, clone)
        taken = self.take(clone)
        again = self.lazy(taken, memtap, *SANDBOX, layers=taken, user=user)
        again.lines()
        self.assertContinues(taken, again)
        self.assertIsNone(memtap.failure)


if __name__ == "__main__":
    unittest.main()
