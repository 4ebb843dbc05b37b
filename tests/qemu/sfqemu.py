# SPDX-License-Identifier: GPL-2.0-or-later
"""Drives the patched QEMU without a daemon: QMP, the sf channel (sfvmm/wire/qemu_channel.h) and the tiny guest.

Environment: SF_QEMU is the binary, else SF_QEMU_PREFIX/bin/qemu-system-x86_64. SF_FIRMWARE are the directories for -L.
SF_TINY is the tiny guest's disk, else SF_BUILD/tests/tiny/tiny.img. What is missing skips the test.
"""
import array
import bisect
import collections
import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
import unittest

MIB = 1 << 20
PAGE = 4096
PIECE = 64 * MIB                # of a large memory, read at once
# No test measures time; this is when we call something hung. A KVM that emulates instructions is slow.
PATIENCE = 60

MAGIC = 0x31514653
VERSION = 3
HELLO, CHECK, SNAPSHOT, LOAD, FOLD, THAW, MAP, AVOIDED, SHARE = range(1, 10)
REPLY, ERROR, RUNNING = 0x8000, 0xffff, 0x4001
SHARED, FROZEN, LAYERED = range(3)
SHARED_BASE = 1
RESUME, MAPPED, OVERWRITES = 1, 2, 4
LAZY = 1
MAX_MESSAGE, MAX_FDS, MAX_BLOCKS, MAX_LAYERS, MAX_PRESENT, MAX_DISKS = 65536, 64, 16, 24, 4096, 32

UFFDIO_WAKE, UFFDIO_COPY, UFFDIO_ZEROPAGE = 0x8010aa02, 0xc028aa03, 0xc020aa04
PIDFD_GETFD = 438

HEADER = struct.Struct("<IHHII")
HELLO_REPLY = struct.Struct("<6I64s64s64s64s")
BLOCK = struct.Struct("<64sQII")
SNAPSHOT_REQUEST = struct.Struct("<II")
DISK = struct.Struct("<64s64s")
SNAPSHOT_REPLY = struct.Struct("<9QII")
SNAPSHOT_BLOCK = struct.Struct("<64sQQII")
EXTENT = struct.Struct("<QQ")
LOAD_REQUEST = struct.Struct("<IIQ")
LOAD_BLOCK = struct.Struct("<64sQIIII%dI" % MAX_LAYERS)
LOAD_REPLY = struct.Struct("<4Q")
MAP_REPLY = struct.Struct("<IiQ")
MAPPED_BLOCK = struct.Struct("<64sQQ")
FOLD_REPLY = struct.Struct("<3Q")


def text(field):
    return field.split(b"\0")[0].decode()


def environment(name, what):
    if not os.environ.get(name):
        raise unittest.SkipTest("%s is not set: %s" % (name, what))
    return os.environ[name]


def binary():
    path = os.environ.get("SF_QEMU") or os.path.join(environment("SF_QEMU_PREFIX", "where the patched QEMU is"),
                                                     "bin/qemu-system-x86_64")
    if not os.access(path, os.X_OK):
        raise unittest.SkipTest("%s: no such program" % path)
    return path


def firmware():
    return [word for path in environment("SF_FIRMWARE", "directories of QEMU's firmware").split(":")
            for word in ("-L", path)]


def tiny_image():
    path = os.environ.get("SF_TINY") or os.path.join(environment("SF_BUILD", "build directory"), "tests/tiny/tiny.img")
    if not os.path.exists(path):
        raise unittest.SkipTest("%s: no such file (tiny guest)" % path)
    return path


def need_kvm():
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        raise unittest.SkipTest("/dev/kvm: not there, or not for this user")


def userfaultfd():
    """A new open file of the device."""
    try:
        return os.open("/dev/userfaultfd", os.O_RDWR)
    except OSError as error:
        raise unittest.SkipTest("/dev/userfaultfd: %s" % error) from None


def uffd_copy(uffd, address, page):
    """Gives a process a page of its own, with that content."""
    data = ctypes.create_string_buffer(page, PAGE)
    fcntl.ioctl(uffd, UFFDIO_COPY, bytearray(struct.pack("<QQQQq", address, ctypes.addressof(data), PAGE, 0, 0)))


def descriptor_of(pid, number):
    """A duplicate of another process's descriptor."""
    pidfd = os.pidfd_open(pid)
    try:
        fd = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, pidfd, number, 0)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        return fd
    finally:
        os.close(pidfd)


def wait(condition, what, timeout=PATIENCE):
    """Until condition() is true; returns what it returned."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError("not within %d s: %s" % (timeout, what))
        select.select([], [], [], 0.01)


def anonymous_memory(pid):
    """Bytes of private anonymous memory that a process has."""
    with open("/proc/%d/smaps_rollup" % pid) as f:
        return int(re.search(r"^Anonymous:\s+(\d+) kB", f.read(), re.M).group(1)) * 1024


def reads_cost_memory():
    """Whether this kernel gives who reads fresh anonymous memory pages of its own, not the shared page of zeros."""
    with mmap.mmap(-1, 8 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        before = anonymous_memory(os.getpid())
        for at in range(0, len(area), PAGE):
            area[at:at + 1]
        return anonymous_memory(os.getpid()) - before > len(area) // 2


class ChannelError(Exception):
    """The ERROR reply."""


class Gone(Exception):
    """The peer hung up."""


class Channel:
    """One end of the sf channel."""

    def __init__(self, sock):
        self.sock = sock
        self.sock.settimeout(PATIENCE)
        self.serial = 0
        self.events = []

    def send(self, kind, payload=b"", fds=(), serial=None, magic=MAGIC, zero=0, length=None):
        """A request, or with the keywords something that looks like one."""
        if serial is None:
            self.serial += 1
            serial = self.serial
        data = HEADER.pack(magic, kind, zero, serial, len(payload) if length is None else length) + payload
        self.send_raw(data, fds)
        return serial

    def send_raw(self, data, fds=()):
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self.sock.sendmsg([data], control)
        except (BrokenPipeError, ConnectionResetError):
            raise Gone from None

    def receive(self):
        """(type, serial, payload, fds) of the next packet."""
        try:
            data, control, _, _ = self.sock.recvmsg(MAX_MESSAGE, socket.CMSG_SPACE(MAX_FDS * 4))
        except ConnectionResetError:
            raise Gone from None
        fds = array.array("i")
        for level, kind, content in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(content[:len(content) // 4 * 4])
        if not data:
            raise Gone
        magic, kind, zero, serial, length = HEADER.unpack_from(data)
        assert magic == MAGIC and zero == 0 and length == len(data) - HEADER.size, data[:HEADER.size]
        return kind, serial, data[HEADER.size:], list(fds)

    def answer(self, serial, kind):
        while True:
            got, number, payload, fds = self.receive()
            if number == 0:
                self.events.append((got, payload))
                continue
            assert number == serial, (number, serial)
            if got == ERROR:
                raise ChannelError(text(payload))
            assert got == kind | REPLY, hex(got)
            return payload, fds

    def call(self, kind, payload=b"", fds=()):
        return self.answer(self.send(kind, payload, fds), kind)

    def running(self):
        """Wait for EVENT_RUNNING; its time."""
        while not self.events:
            kind, serial, payload, _ = self.receive()
            assert serial == 0, kind
            self.events.append((kind, payload))
        kind, payload = self.events.pop(0)
        assert kind == RUNNING, hex(kind)
        return struct.unpack("<Q", payload)[0]

    def close(self):
        self.sock.close()


class Qmp:
    def __init__(self, sock):
        self.sock = sock
        self.sock.settimeout(PATIENCE)
        self.buffer = b""
        self.events = []
        self.line()
        self.call("qmp_capabilities")

    def line(self):
        while b"\n" not in self.buffer:
            data = self.sock.recv(65536)
            if not data:
                raise Gone
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def answer(self):
        while True:
            reply = self.line()
            if "event" in reply:
                self.events.append(reply["event"])
            elif "error" in reply:
                raise RuntimeError(reply["error"]["desc"])
            else:
                return reply["return"]

    def send(self, command, fds=(), **arguments):
        request = {"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}}
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([json.dumps(request).encode() + b"\n"], control)

    def call(self, command, fds=(), **arguments):
        self.send(command, fds, **arguments)
        return self.answer()


Layer = collections.namedtuple("Layer", "delta extents count")

# As sfvmmd starts QEMU.
SANDBOX = ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")


def two_nodes():
    """Options of a VM whose RAM is two blocks of 32 MiB, m0 and m1; goes with memory=64 and ram=""."""
    options = []
    for node in ("m0", "m1"):
        options += ["-object", "memory-backend-memfd,id=%s,share=on,size=32M" % node, "-numa", "node,memdev=" + node]
    return options


def copy_of(source, length):
    """A memfd with the same content, holes too; the caller's."""
    copy, at = os.memfd_create("copy"), 0
    os.ftruncate(copy, length)
    with contextlib.suppress(OSError):      # the end: there is no more data
        while True:
            at = os.lseek(source, at, os.SEEK_DATA)
            end = os.lseek(source, at, os.SEEK_HOLE)
            while at < end:
                at += os.pwrite(copy, os.pread(source, min(PIECE, end - at), at), at)
    return copy


def scattered_layer(content, start, end, long_pages, every):
    """A layer with an extent of one page at every second page from start to end, of long_pages where `every` divides
    the page's number. Their data is written to content, a file of the block's length, too. The descriptors are the
    caller's."""
    delta, table = os.memfd_create("delta"), os.memfd_create("extents")
    os.ftruncate(delta, os.fstat(content).st_size)
    extents = []
    for at in range(start, end, 2 * PAGE):
        length = long_pages * PAGE if at % (every * PAGE) == 0 else PAGE
        if extents and at < sum(extents[-1]):
            continue
        data = struct.pack("<Q", at) * (length // 8)
        os.pwrite(delta, data, at)
        os.pwrite(content, data, at)
        extents.append((at, length))
    os.write(table, b"".join(EXTENT.pack(*extent) for extent in extents))
    return Layer(delta, table, len(extents))


class Snapshot:
    """What SNAPSHOT gave, with the layers below it: all that LOAD wants. Owns its descriptors."""

    Block = collections.namedtuple("Block", "id length base layers folded")

    def __init__(self, payload, fds, below=None):
        head = SNAPSHOT_REPLY.unpack_from(payload)
        (self.at, self.pause, self.stop, self.device, self.ram, self.disk, self.start,
         self.state_length, self.device_length, count, _) = head
        self.fds = fds
        fds = list(fds)
        self.state = fds.pop(0)
        self.blocks = []
        for i in range(count):
            name, length, folded, has_delta, extents = SNAPSHOT_BLOCK.unpack_from(
                payload, SNAPSHOT_REPLY.size + i * SNAPSHOT_BLOCK.size)
            base = fds.pop(0)
            layers = list(below.block(text(name)).layers) if below else []
            if has_delta:
                layers.append(Layer(fds.pop(0), fds.pop(0), extents))
            self.blocks.append(self.Block(text(name), length, base, layers, folded))
        assert not fds, fds
        assert len(payload) == SNAPSHOT_REPLY.size + count * SNAPSHOT_BLOCK.size

    def block(self, name):
        return next(b for b in self.blocks if b.id == name)

    def load_request(self, flags=RESUME):
        payload = LOAD_REQUEST.pack(flags, len(self.blocks), self.state_length)
        fds = [self.state]
        for b in self.blocks:
            counts = [layer.count for layer in b.layers]
            payload += LOAD_BLOCK.pack(b.id.encode(), b.length, len(b.layers), 0, 0, 0,
                                       *(counts + [0] * (MAX_LAYERS - len(counts))))
            fds.append(b.base)
            for layer in b.layers:
                fds += [layer.delta, layer.extents]
        return payload, fds

    def extents(self, name, layer=-1):
        layer = self.block(name).layers[layer]
        data = os.pread(layer.extents, layer.count * EXTENT.size, 0)
        return list(EXTENT.iter_unpack(data))

    def content(self, name, start=0, length=None):
        """The block as the snapshot has it, or a part of it."""
        b = self.block(name)
        end = b.length if length is None else start + length
        data = bytearray(os.pread(b.base, end - start, start))
        for i, layer in enumerate(b.layers):
            extents = self.extents(name, i)         # sorted
            for offset, size in extents[max(0, bisect.bisect(extents, (start,)) - 1):bisect.bisect(extents, (end,))]:
                first, last = max(offset, start), min(offset + size, end)
                if first < last:
                    data[first - start:last - start] = os.pread(layer.delta, last - first, first)
        return bytes(data)

    def close(self):
        for fd in self.fds:
            os.close(fd)
        self.fds = []


class PageCache:
    """The memory of a snapshot on a host where it was not taken: a sparse memfd for each block, filled on demand.
    source: the snapshot where it was taken, which is read here and then not needed any more."""

    Block = collections.namedtuple("Block", "id length cache present table content zero")
    MERGED = 64 * 1024          # zeros shorter than this do not make two extents of one

    def __init__(self, source, merged=MERGED):
        self.blocks = []
        self.fds = []
        for b in source.blocks:
            content = source.content(b.id)
            zero = [content.count(0, at, at + PAGE) == PAGE for at in range(0, b.length, PAGE)]
            present = []
            for at in (i * PAGE for i, is_zero in enumerate(zero) if not is_zero):
                if present and at - sum(present[-1]) < max(merged, 1):
                    present[-1] = (present[-1][0], at + PAGE - present[-1][0])
                else:
                    present.append((at, PAGE))
            cache = os.memfd_create("cache")
            os.ftruncate(cache, b.length)
            table = os.memfd_create("present")
            os.write(table, b"".join(EXTENT.pack(*extent) for extent in present))
            self.fds += [cache, table]
            self.blocks.append(self.Block(b.id, b.length, cache, present, table, content, zero))

    def block(self, name):
        return next(b for b in self.blocks if b.id == name)

    def map_request(self, layers=None, whole=(), flags=0):
        """For MAP; layers: those of a snapshot that was taken of a VM over this cache; whole: blocks of the source that
        are not on demand."""
        payload = LOAD_REQUEST.pack(flags, len(self.blocks), 0)
        fds = [userfaultfd()]
        for b in self.blocks:
            source = next((w for w in whole if w.id == b.id), None)
            if source:
                payload += LOAD_BLOCK.pack(b.id.encode(), b.length, 0, 0, 0, 0, *[0] * MAX_LAYERS)
                fds.append(source.base)
                continue
            above = layers.block(b.id).layers if layers else []
            counts = [layer.count for layer in above]
            payload += LOAD_BLOCK.pack(b.id.encode(), b.length, len(above), LAZY, len(b.present), 0,
                                       *(counts + [0] * (MAX_LAYERS - len(counts))))
            # As others get it: nobody but who fills the cache can write to it.
            base = os.open("/proc/self/fd/%d" % b.cache, os.O_RDONLY)
            self.fds.append(base)
            fds += [base, b.table]
            for layer in above:
                fds += [layer.delta, layer.extents]
        return payload, fds

    def resident(self, name):
        """Bytes that were fetched."""
        return os.fstat(self.block(name).cache).st_blocks * 512

    def close(self):
        for fd in self.fds:
            os.close(fd)
        self.fds = []


class Memtap:
    """Answers the page faults of all VMs over one page cache, in a thread of its own."""

    MESSAGE = struct.Struct("<BxHIQQIxxxx")
    PAGEFAULT = 0x12

    def __init__(self, cache):
        self.cache = cache
        self.faults = []            # (block id, offset) in order
        self.times = []             # of each answer, ns
        self.allowed = threading.Event()
        self.allowed.set()
        self.holds = threading.Event()      # a fault was read while that is not allowed
        self.uffds = {}             # uffd: [(address, length, block)]
        self.mapped = None          # what attach() was told last
        self.wake, other = socket.socketpair()
        self.failure = None
        self.thread = threading.Thread(target=self.run, args=(other,), daemon=True)
        self.thread.start()

    def attach(self, uffd, mapped):
        """Takes uffd; mapped: {block id: (address, length)}."""
        self.mapped = mapped
        self.uffds[uffd] = [(address, length, self.cache.block(name)) for name, (address, length) in mapped.items()]
        for address, length, _ in self.uffds[uffd]:     # what another one has read and not answered
            fcntl.ioctl(uffd, UFFDIO_WAKE, struct.pack("<QQ", address, length))
        self.wake.send(b"x")

    def run(self, told):
        try:
            while True:
                ready, _, _ = select.select([told, *self.uffds], [], [])
                if told in ready and not told.recv(1):
                    break
                for uffd in ready:
                    if uffd is not told:
                        self.serve(uffd)
        except Exception as error:          # pylint: disable=broad-except
            self.failure = error
            raise
        finally:
            told.close()
            for uffd in self.uffds:
                os.close(uffd)

    def serve(self, uffd):
        try:
            data = os.read(uffd, 64 * self.MESSAGE.size)
        except BlockingIOError:
            return
        for i in range(0, len(data), self.MESSAGE.size):
            event, _, _, _, address, _ = self.MESSAGE.unpack_from(data, i)
            assert event == self.PAGEFAULT, event
            if not self.allowed.is_set():
                self.holds.set()
                self.allowed.wait()
            start = time.monotonic_ns()
            self.answer(uffd, address & ~(PAGE - 1))
            self.times.append(time.monotonic_ns() - start)

    def answer(self, uffd, address):
        start, _, block = next(m for m in self.uffds[uffd] if m[0] <= address < m[0] + m[1])
        offset = address - start
        self.faults.append((block.id, offset))
        assert any(at <= offset < at + length for at, length in block.present), "fault at %#x, not present" % offset
        if block.zero[offset // PAGE]:
            try:
                fcntl.ioctl(uffd, UFFDIO_ZEROPAGE, bytearray(struct.pack("<QQQq", address, PAGE, 0, 0)))
                return
            except FileExistsError:
                pass
        else:
            os.pwrite(block.cache, block.content[offset:offset + PAGE], offset)
        fcntl.ioctl(uffd, UFFDIO_WAKE, struct.pack("<QQ", address, PAGE))

    def fill(self, name):
        """All of a block, unasked."""
        block = self.cache.block(name)
        for i, is_zero in enumerate(block.zero):
            if not is_zero:
                os.pwrite(block.cache, block.content[i * PAGE:(i + 1) * PAGE], i * PAGE)

    def close(self):
        self.wake.close()
        self.thread.join(PATIENCE)


def numbers(output):
    """{vcpu: [numbers]} of what the tiny guest printed."""
    found = {}
    for cpu, value in re.findall(r"^cpu(\d+) (\d+)\n", output, re.M):
        found.setdefault(int(cpu), []).append(int(value))
    return found


# What the tiny guest says of a vCPU's memory: the sum that it kept, and that of what it reads now.
MEMORY_LINE = re.compile(r"^mem(\d+) .* sum (\w+) read (\w+) .*\n", re.M)


def damaged(output):
    return [found for found in MEMORY_LINE.findall(output) if found[1] != found[2]]


def consecutive(output):
    return all(values == list(range(len(values))) for values in numbers(output).values())


class Vm:
    """One QEMU process with a QMP connection, an sf channel when asked for, and a serial port."""

    count = 0

    def __init__(self, test, *options, accel="tcg", vcpus=1, memory=32, ram=None, machine="q35", disk=True, paused=False,
                 user=None):
        Vm.count += 1
        self.directory = os.path.join(test.directory, "vm%d" % Vm.count)
        os.mkdir(self.directory)
        program, libraries, image = binary(), firmware(), tiny_image()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        executable = None
        if user is not None:
            # Neither the program nor the disk need lie where that user can go.
            os.chown(self.directory, user, user)
            image = shutil.copy(image, self.directory)
            executable = os.open(program, os.O_RDONLY)
        serial_ours, serial_theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        if ram is None:
            ram = "memory-backend-memfd,id=pc.ram,share=on,size=%dM" % memory
        self.arguments = [program, *libraries, "-nodefaults", "-no-user-config", "-display", "none",
                          "-machine", machine + (",memory-backend=pc.ram" if ram else ""), "-accel", accel,
                          "-smp", str(vcpus), "-m", "%dM" % memory,
                          "-chardev", "socket,id=qmp,fd=%d" % theirs.fileno(), "-mon", "chardev=qmp,mode=control",
                          "-chardev", "socket,id=serial,fd=%d" % serial_theirs.fileno(), "-serial", "chardev:serial"]
        if ram:
            self.arguments += ["-object", ram]
        if disk:
            self.arguments += ["-blockdev", "driver=file,node-name=boot-file,filename=%s,read-only=on" % image,
                               "-blockdev", "driver=raw,node-name=boot,file=boot-file,read-only=on",
                               "-device", "virtio-blk-pci,drive=boot,romfile=,bootindex=0"]
        if paused:
            self.arguments.append("-S")
        self.arguments += options
        self.log = open(os.path.join(self.directory, "log"), "w+b")
        inherited = [theirs.fileno(), serial_theirs.fileno()] + ([executable] if executable else [])
        self.process = subprocess.Popen(self.arguments, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                                        executable="/proc/self/fd/%d" % executable if executable else None,
                                        pass_fds=inherited, user=user, group=user,
                                        extra_groups=[] if user is not None else None)
        if executable:
            os.close(executable)
        theirs.close()
        serial_theirs.close()
        test.addCleanup(self.close)
        self.serial = serial_ours
        self.serial.setblocking(False)
        self.output = ""
        self.channel = None
        self.history = ""               # what its ancestors had printed when it was forked off
        try:
            self.qmp = Qmp(ours)
        except (Gone, ConnectionResetError):
            self.process.wait(PATIENCE)
            ours.close()
            raise AssertionError("QEMU did not start: " + self.messages()) from None

    def messages(self):
        with open(self.log.name, errors="replace") as log:
            return log.read()

    def attach(self):
        """A new sf channel."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.qmp.call("getfd", fds=[theirs.fileno()], fdname="sf")
        theirs.close()
        self.qmp.call("sf-attach", fd="sf")
        if self.channel:
            self.channel.close()
        self.channel = Channel(ours)
        return self.channel

    def hello(self):
        """(fields, {id: (length, mode, flags)}), with the descriptors closed."""
        payload, fds = self.channel.call(HELLO, struct.pack("<II", VERSION, 0))
        for fd in fds:
            os.close(fd)
        fields = HELLO_REPLY.unpack_from(payload)
        blocks = [BLOCK.unpack_from(payload, HELLO_REPLY.size + i * BLOCK.size) for i in range(fields[1])]
        assert len(payload) == HELLO_REPLY.size + len(blocks) * BLOCK.size and len(fds) == len(blocks)
        return fields, {text(b[0]): b[1:] for b in blocks}

    def mode(self):
        return self.hello()[1]["pc.ram"][1]

    def lazy(self):
        return self.hello()[1]["pc.ram"][2] == LAZY

    def check(self):
        payload, fds = self.channel.call(CHECK)
        assert not fds
        return payload.decode().splitlines()

    def snapshot(self, flags=0, disks=(), below=None):
        payload = SNAPSHOT_REQUEST.pack(flags, len(disks))
        for node, overlay in disks:
            payload += DISK.pack(node.encode(), overlay.encode())
        return Snapshot(*self.channel.call(SNAPSHOT, payload), below=below)

    def load(self, snapshot, flags=RESUME):
        payload, fds = snapshot.load_request(flags)
        return LOAD_REPLY.unpack(self.channel.call(LOAD, payload, fds)[0])

    def map(self, memtap, layers=None, whole=(), flags=0):
        """Memory on demand: MAP, and memtap serves it; the number of the userfaultfd in QEMU, and ns."""
        request, sent = memtap.cache.map_request(layers, whole, flags)
        try:
            payload, fds = self.channel.call(MAP, request, sent)
        finally:
            os.close(sent[0])
        count, number, total = MAP_REPLY.unpack_from(payload)
        blocks = [MAPPED_BLOCK.unpack_from(payload, MAP_REPLY.size + i * MAPPED_BLOCK.size) for i in range(count)]
        assert len(payload) == MAP_REPLY.size + count * MAPPED_BLOCK.size and len(fds) == 1
        memtap.attach(fds[0], {text(name): (address, length) for name, address, length in blocks})
        return number, total

    def load_mapped(self, snapshot, flags=RESUME):
        payload = LOAD_REQUEST.pack(flags | MAPPED, 0, snapshot.state_length)
        return LOAD_REPLY.unpack(self.channel.call(LOAD, payload, [snapshot.state])[0])

    def fold(self, limit):
        return FOLD_REPLY.unpack(self.channel.call(FOLD, struct.pack("<Q", limit))[0])

    def thaw(self):
        return FOLD_REPLY.unpack(self.channel.call(THAW)[0])

    def share(self, limit):
        """Bytes copied, bytes left, ns."""
        return FOLD_REPLY.unpack(self.channel.call(SHARE, struct.pack("<Q", limit))[0])

    def overwritten(self):
        """Bytes that were not fetched because disk reads have filled them."""
        return struct.unpack("<Q", self.channel.call(AVOIDED)[0])[0]

    def status(self):
        return self.qmp.call("query-status")["status"]

    # The tiny guest

    def read(self):
        """What has come from the serial port so far."""
        while True:
            try:
                data = self.serial.recv(65536)
            except BlockingIOError:
                return self.output
            if not data:
                return self.output
            self.output += data.decode("ascii", "replace")

    def counters(self):
        return numbers(self.read())

    def lines(self, vcpus=1, more=2):
        """Wait until every vCPU has printed some more lines."""
        def seen():
            return {cpu: len(values) for cpu, values in self.counters().items()}
        before = seen()
        wait(lambda: len(seen()) >= vcpus and all(n >= before.get(cpu, 0) + more for cpu, n in seen().items()),
             "%d lines of each of %d vCPUs; %r" % (more, vcpus, self.output[-200:]))

    def command(self, letter, argument):
        self.read()
        mark = len(self.output)
        self.serial.send(letter.encode() + bytes([argument]))
        return wait(lambda: re.search("^(ok|no) %s$" % letter, self.read()[mark:], re.M),
                    "answer to %s%d" % (letter, argument)).group(1) == "ok"

    def memory(self, offset=0, length=None):
        """Guest-physical memory; the VM should stand still."""
        path = os.path.join(self.directory, "memory")
        if length is None:
            length = self.qmp.call("query-memory-size-summary")["base-memory"] - offset
        self.qmp.call("pmemsave", val=offset, size=length, filename=path)
        with open(path, "rb") as f:
            return f.read()

    def private(self):
        """Bytes of private anonymous memory, all of the process."""
        return anonymous_memory(self.process.pid)

    def descriptors(self):
        return len(os.listdir("/proc/%d/fd" % self.process.pid))

    def alive(self):
        return self.process.poll() is None

    def close(self):
        if self.alive():
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        if self.channel:
            self.channel.close()
        self.qmp.sock.close() if hasattr(self, "qmp") else None
        self.serial.close()
        self.log.close()


class TestCase(unittest.TestCase):
    """A directory, VMs that end with the test, and what every fork must fulfil."""

    accel = "tcg"

    def setUp(self):
        if self.accel == "kvm":
            need_kvm()
        self.directory = tempfile.mkdtemp(prefix="sf-qemu-")
        os.chmod(self.directory, 0o755)
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)

    def vm(self, *options, **keywords):
        keywords.setdefault("accel", self.accel)
        vm = Vm(self, *options, **keywords)
        vm.attach()
        return vm

    def take(self, vm, *arguments, **keywords):
        before = len(vm.history + vm.read())
        snapshot = vm.snapshot(*arguments, **keywords)
        self.addCleanup(snapshot.close)
        snapshot.printed = vm.history + vm.read()
        snapshot.printed_before = before
        return snapshot

    def clone(self, snapshot, *options, **keywords):
        clone = self.vm(*options, paused=True, **keywords)
        clone.load(snapshot)
        clone.channel.running()
        return clone

    def assertContinues(self, snapshot, vm):
        """vm goes on with the very character that the snapshot's guest would have printed next. That is known as
        somewhere between what was printed before the snapshot was ordered and when it was there: a wrong place shows as
        a line that lost characters or has some twice."""
        output = vm.read()
        for cut in range(snapshot.printed_before, len(snapshot.printed) + 1):
            vm.history = snapshot.printed[:cut]
            if consecutive(vm.history + output) and not damaged(vm.history + output):
                break
        else:
            self.fail("%r does not go on with %r" % (snapshot.printed[snapshot.printed_before - 100:], output))
        self.assertHealthy(vm)

    def assertHealthy(self, vm):
        """The guest never missed a number, and never read from its memory what it had not written."""
        output = vm.history + vm.read()
        self.assertTrue(consecutive(output), output[-1000:])
        self.assertTrue(MEMORY_LINE.search(output))
        self.assertEqual(damaged(output), [], "(vCPU, sum kept, sum read from memory)")
