# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever comes over the sf channel, the VM runs on, and a good request later is answered."""
import os
import socket
import struct
import unittest

import sfqemu
from sfqemu import (CHECK, DISK, FOLD, HELLO, LOAD, LOAD_BLOCK, LOAD_REQUEST, MAX_DISKS, MAX_FDS, MAX_LAYERS,
                    MAX_MESSAGE, SNAPSHOT, SNAPSHOT_REQUEST, THAW, VERSION, ChannelError,
                    Gone)


class Malformed(sfqemu.TestCase):
    def setUp(self):
        super().setUp()
        self.parent = self.vm()
        self.parent.lines()

    def lives(self, vm=None):
        vm = vm or self.parent
        self.assertTrue(vm.alive())
        self.assertEqual(vm.status(), "running")
        vm.attach()
        self.assertEqual(vm.check(), [])
        vm.lines(more=1)

    def drops(self, channel):
        with self.assertRaises(Gone):
            channel.receive()

    def test_no_message(self):
        """What is no message drops the channel."""
        hello = struct.pack("<II", VERSION, 0)
        cases = {
            "magic": {"magic": 0x12345678}, "zero": {"zero": 1}, "short length": {"length": 4},
            "long length": {"length": 1 << 30}, "reply": {"kind": HELLO | 0x8000}, "error": {"kind": 0xffff},
        }
        descriptors = self.parent.descriptors()
        for name, case in cases.items():
            with self.subTest(name):
                channel = self.parent.attach()
                channel.send(case.pop("kind", HELLO), hello, fds=[0], **case)
                self.drops(channel)
                self.lives()
        for name, data in (("one byte", b"x"), ("header cut", b"SFQ1" + bytes(8)), ("too long", bytes(MAX_MESSAGE + 1))):
            with self.subTest(name):
                channel = self.parent.attach()
                try:
                    channel.send_raw(data)
                except OSError:
                    continue                # the kernel's limit is lower
                self.drops(channel)
                self.lives()
        with self.subTest("too many descriptors"):
            channel = self.parent.attach()
            channel.send(HELLO, hello, fds=[0] * (MAX_FDS + 1))
            self.drops(channel)
            self.lives()
        # QEMU closes what came with a request after it has answered.
        sfqemu.wait(lambda: self.parent.descriptors() == descriptors, "%d descriptors" % descriptors)

    def test_bad_requests(self):
        """A message with a wrong content is answered by an error."""
        disk = DISK.pack(b"a", b"b")
        cases = [
            (0x42, b"", 0), (HELLO, b"", 0), (HELLO, struct.pack("<II", 1, 0), 0), (HELLO, bytes(4000), 0),
            (HELLO, struct.pack("<II", VERSION, 0), 1), (CHECK, b"x", 0), (CHECK, b"", 3),
            (SNAPSHOT, b"", 0), (SNAPSHOT, SNAPSHOT_REQUEST.pack(2, 0), 0), (SNAPSHOT, SNAPSHOT_REQUEST.pack(0, 1), 0),
            (SNAPSHOT, SNAPSHOT_REQUEST.pack(0, 0xffffffff), 0), (SNAPSHOT, SNAPSHOT_REQUEST.pack(0, 0) + b"x", 0),
            (SNAPSHOT, SNAPSHOT_REQUEST.pack(0, MAX_DISKS + 1) + disk * (MAX_DISKS + 1), 0),
            (SNAPSHOT, SNAPSHOT_REQUEST.pack(0, 1) + disk, 0), (SNAPSHOT, SNAPSHOT_REQUEST.pack(0, 0), 1),
            (SNAPSHOT, SNAPSHOT_REQUEST.pack(0, 1) + b"x" * DISK.size, 0),
            (FOLD, b"", 0), (FOLD, bytes(16), 0), (FOLD, bytes(8), 1), (THAW, b"x", 0), (THAW, b"", 1),
            (LOAD, b"", 0), (LOAD, LOAD_REQUEST.pack(0, 0, 0), 1),
        ]
        descriptors = self.parent.descriptors()
        for kind, payload, fds in cases:
            with self.subTest(kind=kind, payload=payload[:16], fds=fds):
                with self.assertRaises(ChannelError):
                    self.parent.channel.call(kind, payload, [0] * fds)
        # QEMU closes what came with a request after it has answered.
        sfqemu.wait(lambda: self.parent.descriptors() == descriptors, "%d descriptors" % descriptors)
        self.assertEqual(self.parent.mode(), sfqemu.SHARED)
        self.lives()

    def test_bad_loads(self):
        """A shell that got a bad LOAD says so and does not run."""
        snapshot = self.take(self.parent)
        payload, fds = snapshot.load_request()
        block = snapshot.blocks[0]
        empty = os.memfd_create("empty")
        self.addCleanup(os.close, empty)
        size = os.fstat(snapshot.state).st_size
        noise = os.memfd_create("noise")
        self.addCleanup(os.close, noise)
        os.pwrite(noise, b"\x13\x37" * (size // 2 + 1), 0)
        os.ftruncate(noise, size)
        cut = os.memfd_create("cut")
        self.addCleanup(os.close, cut)
        os.pwrite(cut, os.pread(snapshot.state, size, 0)[:-1000], 0)
        pipe, other = os.pipe()
        self.addCleanup(os.close, pipe)
        self.addCleanup(os.close, other)

        def load(flags=1, count=1, length=size, name=block.id.encode(), bytes_=block.length, layers=0, extents=()):
            return LOAD_REQUEST.pack(flags, count, length) + LOAD_BLOCK.pack(
                name, bytes_, layers, 0, 0, 0, *(list(extents) + [0] * (MAX_LAYERS - len(extents)))) * min(count, 2)

        def extents(*pairs):
            fd = os.memfd_create("extents")
            self.addCleanup(os.close, fd)
            os.write(fd, b"".join(struct.pack("<QQ", *pair) for pair in pairs))
            return fd
        delta = os.memfd_create("delta")
        self.addCleanup(os.close, delta)
        os.ftruncate(delta, block.length)
        page = 4096
        cases = {
            "flags": (load(flags=2), fds), "no block": (LOAD_REQUEST.pack(1, 0, size), fds[:1]),
            "two blocks": (load(count=2), fds + fds[1:]), "17 blocks": (load(count=17), fds),
            "2^32 blocks": (LOAD_REQUEST.pack(1, 0xffffffff, size), fds),
            "fds missing": (load(), fds[:1]), "no fds": (load(), []), "fds surplus": (load(), fds + fds),
            "name": (load(name=b"other"), fds), "name not ended": (load(name=b"x" * 64), fds),
            "length": (load(bytes_=block.length * 2), fds), "layers": (load(layers=25), fds),
            "2^32 layers": (load(layers=0xffffffff), fds),
            "state length": (load(length=size + 1), fds), "huge state": (load(length=1 << 63), fds),
            "empty base": (load(), [fds[0], empty]), "base no file": (load(), [fds[0], pipe]),
            "noise": (load(), [noise] + fds[1:]), "cut state": (load(length=size - 1000), [cut] + fds[1:]),
            "state no file": (load(), [pipe] + fds[1:]),
            "extents cut": (load(layers=1, extents=[1]), fds + [delta, empty]),
            "extents 2^32": (load(layers=1, extents=[0xffffffff]), fds + [delta, empty]),
            "delta short": (load(layers=1, extents=[1]), fds + [empty, extents((0, page))]),
            "extent beyond": (load(layers=1, extents=[1]), fds + [delta, extents((block.length, page))]),
            "extent wraps": (load(layers=1, extents=[1]), fds + [delta, extents((2**64 - page, 2 * page))]),
            "extent empty": (load(layers=1, extents=[1]), fds + [delta, extents((0, 0))]),
            "extent odd": (load(layers=1, extents=[1]), fds + [delta, extents((1, page))]),
            "extents overlap": (load(layers=1, extents=[2]), fds + [delta, extents((0, 2 * page), (page, page))]),
            "extents unsorted": (load(layers=1, extents=[2]), fds + [delta, extents((page, page), (0, page))]),
        }
        for name, (request, descriptors) in cases.items():
            with self.subTest(name):
                shell = self.vm(paused=True)
                with self.assertRaises(ChannelError):
                    shell.channel.call(LOAD, request, descriptors)
                self.assertTrue(shell.alive())
                self.assertEqual(shell.status(), "prelaunch")
                shell.close()
        self.clone(snapshot).lines()
        self.lives()

    def test_second_load(self):
        snapshot = self.take(self.parent)
        clone = self.clone(snapshot)
        for vm in (clone, self.parent):
            with self.assertRaisesRegex(ChannelError, "start another one"):
                vm.load(snapshot)
            self.lives(vm)

    def test_other_configuration(self):
        """A shell with another device does not take the state, and says what to do."""
        snapshot = self.take(self.parent)
        for options, keywords in ((("-device", "virtio-rng-pci"), {}), ((), {"vcpus": 2}), ((), {"memory": 64})):
            with self.subTest(options=options, **keywords):
                shell = self.vm(*options, paused=True, **keywords)
                with self.assertRaises(ChannelError):
                    shell.load(snapshot)
                self.assertTrue(shell.alive())

    def test_hang_up(self):
        """The daemon dies at any moment."""
        descriptors = self.parent.descriptors()
        for kind, payload in ((HELLO, struct.pack("<II", VERSION, 0)), (CHECK, b""),
                              (SNAPSHOT, SNAPSHOT_REQUEST.pack(0, 0)), (THAW, b"")):
            channel = self.parent.attach()
            channel.send(kind, payload)
            channel.close()
            self.parent.channel = None
            self.lives()
        self.parent.thaw()
        sfqemu.wait(lambda: self.parent.descriptors() <= descriptors, "descriptors back to %d" % descriptors)

    def test_deaf_peer(self):
        """Requests without end and no reply taken: the VM does not care, and nothing piles up."""
        channel = self.parent.attach()
        channel.sock.setblocking(False)
        with self.assertRaises(BlockingIOError):
            while True:
                channel.send(HELLO, struct.pack("<II", VERSION, 0))
                self.parent.status()
        self.parent.lines(more=1)
        channel.sock.setblocking(True)
        channel.sock.settimeout(sfqemu.PATIENCE)
        for serial in range(1, channel.serial):
            for fd in channel.answer(serial, HELLO)[1]:
                os.close(fd)
        self.lives()

    def test_attach(self):
        qmp = self.parent.qmp
        with self.assertRaises(RuntimeError):
            qmp.call("sf-attach", fd="unknown")
        for family, kind in ((socket.AF_UNIX, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_DGRAM)):
            sock = socket.socket(family, kind)
            qmp.call("getfd", fds=[sock.fileno()], fdname="sf")
            with self.assertRaisesRegex(RuntimeError, "SEQPACKET"):
                qmp.call("sf-attach", fd="sf")
            sock.close()
        with open("/dev/null", "rb") as null:
            qmp.call("getfd", fds=[null.fileno()], fdname="sf")
        with self.assertRaisesRegex(RuntimeError, "SEQPACKET"):
            qmp.call("sf-attach", fd="sf")
        self.assertEqual(self.parent.check(), [])
        old = self.parent.channel
        self.parent.channel = None
        self.parent.attach()
        self.drops(old)
        old.close()
        self.lives()

    def test_pipelined(self):
        """Answers come in the order of the requests."""
        channel = self.parent.channel
        serials = [channel.send(kind) for kind in (CHECK, THAW, 0x42, CHECK)]
        channel.answer(serials[0], CHECK)
        channel.answer(serials[1], THAW)
        with self.assertRaises(ChannelError):
            channel.answer(serials[2], 0x42)
        channel.answer(serials[3], CHECK)


class Monitor(sfqemu.TestCase):
    """Requests of QMP in one packet, in pieces, and more of them than the queue holds."""

    def setUp(self):
        super().setUp()
        self.guest = self.vm()

    def test_many_at_once(self):
        request = b'{"execute":"query-status","id":%d}\r\n'
        self.guest.qmp.sock.sendall(b"".join(request % i for i in range(500)))
        for i in range(500):
            reply = self.guest.qmp.line()
            self.assertEqual(reply["id"], i)
            self.assertIn("return", reply)

    def test_pieces(self):
        for byte in b'{"execute":"query-status","id":"x"}':
            self.guest.qmp.sock.sendall(bytes([byte]))
        self.assertEqual(self.guest.qmp.line()["id"], "x")

    def test_garbage_between(self):
        self.guest.qmp.sock.sendall(b'{"execute":"query-status","id":1}}]\xff"{"execute":"query-status","id":2}\n')
        ids, errors = [], 0
        while 1 not in ids:
            reply = self.guest.qmp.line()
            ids.append(reply.get("id"))
            errors += "error" in reply
        self.guest.qmp.sock.sendall(b'\n{"execute":"query-status","id":3}\n')
        while 3 not in ids:
            reply = self.guest.qmp.line()
            ids.append(reply.get("id"))
            errors += "error" in reply
        self.assertGreaterEqual(errors, 1)


if __name__ == "__main__":
    unittest.main()
