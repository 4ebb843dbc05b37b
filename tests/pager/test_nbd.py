# SPDX-License-Identifier: GPL-2.0-or-later
"""The page server with real NBD tools, with TLS of all kinds, and with clients that break the rules."""
import array
import json
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
import unittest

BOUND = 60                      # seconds for anything that a test waits for
MIB = 1 << 20
UNIT = 65536
SIZE = 16 * MIB                 # of pc.ram
CACHE = MIB
STATE = 5000
PAGE = 4096
SYSTEM_PYTHON = "/usr/bin/python3"      # the one that Debian's python3-libnbd is for

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SERVERS = [os.environ.get("SF_PAGE_SERVER", "")] + [
    os.path.join(build, "tests", "pager", "page_server")
    for build in (os.path.join(ROOT, "build-asan"), os.environ.get("SF_BUILD", ""))]
SERVER = next((path for path in SERVERS if os.path.exists(path)), SERVERS[-1])

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS, OPT_INFO, OPT_GO, OPT_STRUCTURED = 1, 2, 3, 5, 6, 7, 8
REP_ACK, REP_INFO = 1, 3
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_TLS_REQD, ERR_UNKNOWN, ERR_SHUTDOWN, ERR_TOO_BIG = \
    (0x80000000 + n for n in (1, 2, 3, 5, 6, 7, 9))
READ, WRITE, DISC, TRIM, CACHE_COMMAND = 0, 1, 2, 4, 5
EPERM, EINVAL = 1, 22


def tool(name):
    """The program's path; the test is skipped without it."""
    prefix = os.environ.get("SF_QEMU_PREFIX")
    if name.startswith("qemu-") and prefix and os.path.exists(os.path.join(prefix, "bin", name)):
        return os.path.join(prefix, "bin", name)
    found = shutil.which(name)
    if not found:
        raise unittest.SkipTest(name + " is not installed")
    return found


def run(*command, fails=False, stdin=None):
    """Its output; as a failure when it fails, or when it should and does not."""
    result = subprocess.run(command, capture_output=True, timeout=BOUND, input=stdin)
    said = "%s\n%s%s" % (" ".join(command), result.stdout[-2000:].decode(errors="replace"),
                         result.stderr.decode(errors="replace"))
    if fails:
        if result.returncode == 0:
            raise AssertionError("did not fail: " + said)
        return result.stderr.decode(errors="replace")
    if result.returncode != 0:
        raise AssertionError(said)
    return result.stdout.decode(errors="replace")


def fill(offset, length, layer):
    base = (layer << 56 | offset) + 1
    return array.array("Q", range(base, base + (length + 7) // 8 * 8, 8)).tobytes()[:length]


def pc_ram():
    units = []
    for at in range(0, SIZE, UNIT):
        which = at // UNIT
        units.append(fill(at, UNIT, 1) if which == 1 else bytes(UNIT) if which % 3 == 2 else fill(at, UNIT, 0))
    return b"".join(units)


class Server:
    def __init__(self, case, *arguments, unix=False):
        if not os.path.exists(SERVER):
            raise unittest.SkipTest("page_server is not built: " + SERVER)
        self.folder = case.folder
        self.socket = os.path.join(self.folder, "nbd.sock")
        where = ["--unix", self.socket] if unix else ["--tcp", "127.0.0.1"]
        self.errors = open(os.path.join(self.folder, "server.log"), "w+")
        self.process = subprocess.Popen([SERVER, *where, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=self.errors, text=True)
        case.addCleanup(self.end, case)
        line = self.process.stdout.readline().split()
        if not line:
            raise AssertionError("page_server did not start: " + self.log())
        self.port = int(line[1])
        self.unix = unix

    def say(self, text):
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().split()
        if answer[:1] != ["ok"]:
            raise AssertionError("page_server said %r to %r: %s" % (answer, text, self.log()))
        return [int(word) for word in answer[1:]]

    def connections(self):
        return self.say("stats")[0]

    def log(self):
        self.errors.flush()
        self.errors.seek(0)
        return self.errors.read()

    def end(self, case):
        """In good order, whatever clients it has had: a sanitizer's report makes the status."""
        if self.process.poll() is None:
            self.process.stdin.write("quit\n")
            self.process.stdin.close()
        try:
            status = self.process.wait(BOUND)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self.process.stdout.close()
        print(self.log())
        case.assertEqual(status, 0, self.log())
        self.errors.close()

    def uri(self, export="s-1/pc.ram", scheme="nbd", query=""):
        if self.unix:
            return "%s+unix:///%s?socket=%s%s" % (scheme, export, self.socket, "&" + query if query else "")
        return "%s://127.0.0.1:%d/%s%s" % (scheme, self.port, export, "?" + query if query else "")

    def connect(self):
        if self.unix:
            stream = socket.socket(socket.AF_UNIX)
            stream.connect(self.socket)
        else:
            stream = socket.create_connection(("127.0.0.1", self.port))
        return Client(stream)


class Closed(Exception):
    pass


class Client:
    """NBD by hand."""

    def __init__(self, stream):
        self.stream = stream
        self.stream.settimeout(BOUND)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()

    def send(self, data):
        try:
            self.stream.sendall(data)
        except OSError as error:
            raise Closed from error

    def receive(self, n):
        data = b""
        while len(data) < n:
            try:
                more = self.stream.recv(n - len(data))
            except (ConnectionError, ssl.SSLError) as error:
                raise Closed from error
            if not more:
                raise Closed
            data += more
        return data

    def greet(self, flags=3):
        assert self.receive(18) == b"NBDMAGICIHAVEOPT\0\3"
        self.send(struct.pack(">I", flags))
        return self

    def option(self, option, data=b"", length=None):
        self.send(b"IHAVEOPT" + struct.pack(">II", option, len(data) if length is None else length) + data)

    def reply(self):
        magic, _, kind, length = struct.unpack(">QIII", self.receive(20))
        assert magic == 0x3e889045565a9
        return kind, self.receive(length)

    def ask(self, option, data=b""):
        """The last reply to an option."""
        self.option(option, data)
        while True:
            kind, text = self.reply()
            if kind == REP_ACK or kind >= 0x80000000:
                return kind

    def go(self, export="s-1/pc.ram", structured=True):
        if structured:
            assert self.ask(OPT_STRUCTURED) == REP_ACK
        return self.ask(OPT_GO, struct.pack(">I", len(export)) + export.encode() + b"\0\0")

    def request(self, kind, offset, length, flags=0, cookie=1):
        self.send(struct.pack(">IHHQQI", 0x25609513, flags, kind, cookie, offset, length))

    def chunk(self):
        magic, flags, kind, cookie, length = struct.unpack(">IHHQI", self.receive(20))
        assert magic == 0x668e33ef, hex(magic)
        return flags, kind, cookie, self.receive(length)

    def read(self, offset, length, flags=0):
        """Content, or the error as a number."""
        self.request(READ, offset, length, flags)
        data = bytearray(length)
        done = 0
        while not done:
            done, kind, _, text = self.chunk()
            if kind >= 0x8000:
                return struct.unpack(">I", text[:4])[0]
            if kind == 1:
                at = struct.unpack(">Q", text[:8])[0] - offset
                data[at:at + len(text) - 8] = text[8:]
        return bytes(data)

    def is_closed(self):
        """Waits for the end; what comes before is thrown away."""
        try:
            while self.stream.recv(1 << 16):
                pass
        except (ConnectionError, ssl.SSLError):
            pass
        return True


class Case(unittest.TestCase):
    maxDiff = 1000

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def path(self, name):
        return os.path.join(self.folder, name)

    def content(self, path):
        with open(path, "rb") as file:
            return file.read()

    def same(self, one, other):
        if one != other:
            first = next((i for i in range(min(len(one), len(other))) if one[i] != other[i]), "end")
            self.fail("%d and %d bytes differ at %s" % (len(one), len(other), first))

    def until(self, condition, what):
        deadline = time.monotonic() + BOUND
        while not condition():
            self.assertLess(time.monotonic(), deadline, what)
            time.sleep(0.02)


# ---------------------------------------------------------------- tools

class Tools(Case):
    def test_nbdinfo(self):
        nbdinfo = tool("nbdinfo")
        server = Server(self, unix=True)
        found = json.loads(run(nbdinfo, "--json", "--list", server.uri("")))
        exports = {export["export-name"]: export for export in found["exports"]}
        self.assertEqual(sorted(exports), ["s-1/cache", "s-1/cache/0", "s-1/pc.ram", "s-1/pc.ram/0", "s-1/pc.ram/1",
                                           "s-1/state"])
        self.assertEqual(exports["s-1/pc.ram"]["export-size"], SIZE)
        self.assertEqual(exports["s-1/state"]["export-size"], STATE)
        self.assertTrue(exports["s-1/pc.ram"]["is_read_only"])
        self.assertTrue(exports["s-1/pc.ram"]["can_multi_conn"])
        self.assertEqual(exports["s-1/pc.ram"]["contexts"], ["base:allocation"])
        self.assertEqual(found["protocol"], "newstyle-fixed")

    def test_nbdinfo_map(self):
        nbdinfo = tool("nbdinfo")
        server = Server(self, unix=True)
        extents = json.loads(run(nbdinfo, "--json", "--map", server.uri()))
        holes = sum(extent["length"] for extent in extents if extent["type"] == 3)
        self.assertEqual(holes, len([at for at in range(0, SIZE, UNIT) if at // UNIT % 3 == 2]) * UNIT)
        self.assertEqual(sum(extent["length"] for extent in extents), SIZE)
        # A layer alone: what it does not cover is a hole.
        extents = json.loads(run(nbdinfo, "--json", "--map", server.uri("s-1/pc.ram/1")))
        self.assertEqual([(e["offset"], e["length"], e["type"]) for e in extents],
                         [(0, UNIT, 3), (UNIT, UNIT, 0), (2 * UNIT, SIZE - 2 * UNIT, 3)])

    def test_nbdcopy(self):
        nbdcopy = tool("nbdcopy")
        server = Server(self, unix=True)
        for connections, requests in ((1, 1), (4, 64)):
            path = self.path("copy")
            run(nbdcopy, "-C", str(connections), "-R", str(requests), server.uri(), path)
            self.same(self.content(path), pc_ram())
            os.unlink(path)
        run(nbdcopy, server.uri("s-1/state"), self.path("state"))
        self.same(self.content(self.path("state")), fill(0, STATE, 2))
        run(nbdcopy, server.uri("s-1/pc.ram/1"), self.path("layer"))
        self.same(self.content(self.path("layer")), bytes(UNIT) + fill(UNIT, UNIT, 1) + bytes(SIZE - 2 * UNIT))

    def test_qemu_img(self):
        qemu_img = tool("qemu-img")
        server = Server(self, unix=True)
        self.assertEqual(json.loads(run(qemu_img, "info", "--output=json", server.uri()))["virtual-size"], SIZE)
        run(qemu_img, "convert", "-O", "raw", server.uri(), self.path("copy"))
        self.same(self.content(self.path("copy")), pc_ram())
        run(qemu_img, "convert", "-O", "qcow2", server.uri(), self.path("copy.qcow2"))
        run(qemu_img, "compare", self.path("copy.qcow2"), self.path("copy"))
        extents = json.loads(run(qemu_img, "map", "--output=json", server.uri()))
        self.assertEqual([extent["data"] for extent in extents[:3]], [True, False, True])

    def test_nbdsh(self):
        tool("nbdsh")
        if subprocess.run([SYSTEM_PYTHON, "-c", "import nbd"], capture_output=True).returncode != 0:
            self.skipTest("python3-libnbd is not installed")
        server = Server(self, unix=True)
        script = """
import errno
h.connect_uri(%r)
h.set_strict_mode(0)
assert h.pread(5000, 60000)
assert h.pread(65536, 100, nbd.CMD_FLAG_DF)
assert len(h.pread(32 << 20 >> 1, 0)) == 32 << 20 >> 1
h.cache(1 << 20, 0)
def fails(number, call, *arguments):
    try:
        call(*arguments)
    except nbd.Error as error:
        assert error.errnum == number, error
        return
    raise AssertionError("no error")
fails(errno.EPERM, h.pwrite, b"x" * 4096, 0)
fails(errno.EPERM, h.trim, 4096, 0)
fails(errno.EPERM, h.zero, 4096, 0)
fails(errno.EOVERFLOW, h.pread, 131072, 0, nbd.CMD_FLAG_DF)
fails(errno.EINVAL, h.pread, 4096, 1 << 40)
assert h.pread(4096, 0)
h.shutdown()
""" % server.uri()
        run(SYSTEM_PYTHON, "-c", "import nbd\nh = nbd.NBD()" + script)

    def test_nbdfuse(self):
        nbdfuse = tool("nbdfuse")
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            self.skipTest("/dev/fuse is missing or closed to this user")
        server = Server(self, unix=True)
        mounted = self.path("mount")
        os.mkdir(mounted)
        process = subprocess.Popen([nbdfuse, "-r", mounted, server.uri()], stderr=subprocess.PIPE)

        def unmount():
            subprocess.run(["umount", mounted], capture_output=True)
            process.kill()
            process.wait()
            process.stderr.close()
        self.addCleanup(unmount)
        path = os.path.join(mounted, "nbd")
        while not os.path.exists(path):
            if process.poll() is not None:
                self.skipTest("nbdfuse can't mount here: " + process.stderr.read().decode(errors="replace").strip())
            time.sleep(0.02)
        self.same(self.content(path), pc_ram())

    def test_old_clients(self):
        """Without structured replies, and by NBD_OPT_EXPORT_NAME."""
        server = Server(self, unix=True)
        expected = pc_ram()
        with server.connect() as client:
            client.greet(flags=1)
            client.option(OPT_EXPORT_NAME, b"s-1/pc.ram")
            size, _ = struct.unpack(">QH", client.receive(10))
            self.assertEqual((size, client.receive(124)), (SIZE, bytes(124)))
            client.request(READ, 0, SIZE, cookie=9)
            self.assertEqual(struct.unpack(">IIQ", client.receive(16)), (0x67446698, 0, 9))
            client.request(WRITE, 0, 0)         # its reply must not come into the data
            self.same(client.receive(SIZE), expected)
            self.assertEqual(struct.unpack(">IIQ", client.receive(16)), (0x67446698, EPERM, 1))
            client.request(DISC, 0, 0)
            self.assertTrue(client.is_closed())

    def test_cache(self):
        """What this host has not got is fetched; what can't be had is an error of that read alone."""
        server = Server(self, unix=True)
        with server.connect() as client:
            client.greet()
            self.assertEqual(client.go("s-1/cache"), REP_ACK)
            self.same(client.read(0, CACHE // 2), fill(0, CACHE // 2, 0))
            self.assertEqual(client.read(CACHE - PAGE, PAGE), 5)
            at = CACHE // 2 + 100
            self.same(client.read(at, 3 * PAGE), fill(CACHE // 2, 4 * PAGE, 0)[100:100 + 3 * PAGE])
            self.same(client.read(CACHE - 2 * PAGE, PAGE, flags=4), fill(CACHE - 2 * PAGE, PAGE, 0))
            self.assertEqual(client.read(0, CACHE), 5)
            client.request(CACHE_COMMAND, 0, CACHE - PAGE)
            self.assertEqual(client.chunk()[:2], (1, 0))
        with server.connect() as client:        # simple replies
            client.greet()
            self.assertEqual(client.go("s-1/cache", structured=False), REP_ACK)
            client.request(READ, 0, CACHE)
            self.assertEqual(struct.unpack(">IIQ", client.receive(16))[1], 5)
            client.request(READ, 0, CACHE - PAGE)
            self.assertEqual(struct.unpack(">IIQ", client.receive(16))[1], 0)
            self.same(client.receive(CACHE - PAGE), fill(0, CACHE - PAGE, 0))


# ---------------------------------------------------------------- before the fork

class Pending(Case):
    def test_go_waits(self):
        server = Server(self, "--wait", unix=True)
        with server.connect() as client, server.connect() as other:
            client.greet()
            self.assertEqual(client.ask(OPT_STRUCTURED), REP_ACK)
            self.assertEqual(client.ask(OPT_LIST), REP_ACK)
            self.assertEqual(client.ask(OPT_INFO, struct.pack(">I", 3) + b"s-2\0\0"), ERR_UNKNOWN)
            client.option(OPT_GO, struct.pack(">I", 10) + b"s-1/pc.ram\0\0")
            other.greet()
            other.option(OPT_GO, struct.pack(">I", 5) + b"s-1/x\0\0")
            client.stream.settimeout(0.3)
            self.assertRaises(TimeoutError, client.stream.recv, 1)
            client.stream.settimeout(BOUND)
            server.say("set")
            while client.reply()[0] != REP_ACK:
                pass
            self.assertEqual(other.reply()[0], ERR_UNKNOWN)
            self.same(client.read(0, UNIT), fill(0, UNIT, 0))

    def test_go_waits_no_longer(self):
        server = Server(self, "--wait", "--limit", "pending=1", unix=True)
        with server.connect() as client:
            client.greet()
            self.assertEqual(client.go(), ERR_SHUTDOWN)
            server.say("set")
            self.assertEqual(client.go(), REP_ACK)

    def test_gone_while_waiting(self):
        server = Server(self, "--wait", unix=True)
        with server.connect() as client:
            client.greet()
            client.option(OPT_GO, struct.pack(">I", 10) + b"s-1/pc.ram\0\0")
            self.until(lambda: server.connections() == 1, "connected")
        self.until(lambda: server.connections() == 0, "its end is noticed")
        server.say("set")


# ---------------------------------------------------------------- TLS

class Pki:
    """Certificates by certtool: a folder for each client."""

    def __init__(self, folder):
        self.folder = folder
        self.certtool = tool("certtool")
        os.makedirs(folder)
        self.key("ca")
        self.sign("ca", None, 'cn = "test CA"\nca\ncert_signing_key\nexpiration_days = 30\n')
        self.host("server", "server", "tls_www_server")

    def path(self, name):
        return os.path.join(self.folder, name)

    def key(self, name):
        run(self.certtool, "--generate-privkey", "--key-type=ecdsa", "--curve=secp256r1", "--outfile",
            self.path(name + "-key.pem"))

    def sign(self, name, ca, template):
        with open(self.path("template"), "w") as file:
            file.write(template)
        by = ["--generate-certificate", "--load-ca-certificate", self.path("ca-cert.pem"), "--load-ca-privkey",
              self.path("ca-key.pem")] if ca else ["--generate-self-signed"]
        run(self.certtool, *by, "--load-privkey", self.path(name + "-key.pem"), "--template", self.path("template"),
            "--outfile", self.path(name + "-cert.pem"))

    def host(self, name, cn, purpose, unit="pages", when="expiration_days = 30\n"):
        self.key(name)
        self.sign(name, "ca", 'cn = "%s"\nunit = "%s"\n%s\ndns_name = "localhost"\nip_address = "127.0.0.1"\n'
                  'signing_key\n%s' % (cn, unit, purpose, when))

    def client(self, name, cn=None, ca=None, **how):
        """A directory for a client with this certificate; ca: the PKI whose certificate it believes."""
        self.host(name, cn or name, how.pop("purpose", "tls_www_client"), **how)
        folder = self.path("dir-" + name)
        os.makedirs(folder)
        shutil.copy((ca or self).path("ca-cert.pem"), os.path.join(folder, "ca-cert.pem"))
        for part in ("cert", "key"):
            shutil.copy(self.path("%s-%s.pem" % (name, part)), os.path.join(folder, "client-%s.pem" % part))
        return folder


class Tls(Case):
    @classmethod
    def setUpClass(cls):
        cls.all = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.all.cleanup)
        cls.pki = Pki(os.path.join(cls.all.name, "pki"))
        cls.good = cls.pki.client("host-a")

    def server(self, *arguments, allow="host-a"):
        server = Server(self, "--tls", self.pki.folder, "--unit", "pages", *arguments)
        server.say("allow " + allow)
        return server

    def info(self, server, folder, **how):
        return run(tool("nbdinfo"), "--size", server.uri(scheme="nbds", query="tls-certificates=" + folder), **how)

    def handshake(self, server, folder, maximum=None, show=True):
        """A TLS client by hand."""
        client = server.connect().greet()
        self.assertEqual(client.ask(OPT_STARTTLS), REP_ACK)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(os.path.join(folder, "ca-cert.pem"))
        if show:
            context.load_cert_chain(os.path.join(folder, "client-cert.pem"),
                                    os.path.join(folder, "client-key.pem"))
        if maximum:
            context.maximum_version = maximum
        try:
            client.stream = context.wrap_socket(client.stream, server_hostname="127.0.0.1")
        except OSError as error:
            client.stream.close()
            raise Closed from error
        return client

    def test_tools(self):
        server = self.server()
        query = "tls-certificates=" + self.good
        self.assertEqual(int(self.info(server, self.good)), SIZE)
        self.assertIn("s-1/pc.ram/1", run(tool("nbdinfo"), "--list", server.uri("", "nbds", query)))
        run(tool("nbdcopy"), server.uri(scheme="nbds", query=query), self.path("copy"))
        self.same(self.content(self.path("copy")), pc_ram())

    def test_qemu_img(self):
        qemu_img = tool("qemu-img")
        server = self.server()
        if "tls-creds-x509" not in run(qemu_img, "--help") and subprocess.run(
                [qemu_img, "info", "--object", "tls-creds-x509,id=t,endpoint=client,dir=" + self.good, "/dev/null"],
                capture_output=True).returncode != 0:
            self.skipTest("this qemu-img is built without GnuTLS")
        target = "driver=nbd,host=127.0.0.1,port=%d,export=s-1/pc.ram,tls-creds=t" % server.port
        run(qemu_img, "convert", "--object", "tls-creds-x509,id=t,endpoint=client,dir=" + self.good, "--image-opts",
            target, "-O", "raw", self.path("copy"))
        self.same(self.content(self.path("copy")), pc_ram())

    def test_keys(self):
        keys = self.path("keys")
        with open(keys, "w") as file:
            file.write("host-a:00112233445566778899aabbccddeeff\nhost-b:ffeeddccbbaa99887766554433221100\n")
        server = Server(self, "--psk", keys)
        server.say("allow host-a")
        uri = "nbds://%s@127.0.0.1:%d/s-1/pc.ram?tls-psk-file=%s"
        run(tool("nbdcopy"), uri % ("host-a", server.port, keys), self.path("copy"))
        self.same(self.content(self.path("copy")), pc_ram())
        run(tool("nbdinfo"), uri % ("host-b", server.port, keys), fails=True)
        with open(self.path("other"), "w") as file:
            file.write("host-a:ffffffffffffffffffffffffffffffff\nhost-c:ffffffffffffffffffffffffffffffff\n")
        run(tool("nbdinfo"), uri % ("host-a", server.port, self.path("other")), fails=True)
        run(tool("nbdinfo"), uri % ("host-c", server.port, self.path("other")), fails=True)

    def test_no_tls(self):
        server = self.server()
        run(tool("nbdinfo"), server.uri(), fails=True)
        with server.connect() as client:
            client.greet()
            for option in (OPT_LIST, OPT_STRUCTURED, 99):
                self.assertEqual(client.ask(option), ERR_TLS_REQD)
            self.assertEqual(client.go(structured=False), ERR_TLS_REQD)
            client.option(OPT_EXPORT_NAME, b"s-1/pc.ram")
            self.assertTrue(client.is_closed())

    def test_plain_server(self):
        """It offers no TLS, and listens to nobody outside."""
        server = Server(self)
        with server.connect() as client:
            client.greet()
            self.assertEqual(client.ask(OPT_STARTTLS), ERR_POLICY)
        result = subprocess.run([SERVER, "--tcp", "0.0.0.0"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                timeout=BOUND)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("loopback", result.stderr)

    def test_missing_files(self):
        result = subprocess.run([SERVER, "--tcp", "127.0.0.1", "--tls", self.folder], stdin=subprocess.DEVNULL,
                                capture_output=True, text=True, timeout=BOUND)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("ca-cert.pem", result.stderr)

    def refused(self, folder, reason):
        server = self.server()
        self.info(server, folder, fails=True)
        self.until(lambda: reason in server.log(), "the server says why: " + reason)
        self.assertEqual(int(self.info(server, self.good)), SIZE)

    def test_wrong_ca(self):
        other = Pki(self.path("other"))
        self.refused(other.client("host-a", ca=self.pki), "certificate")

    def test_expired(self):
        self.refused(self.pki.client("old", cn="host-a", when='activation_date = "2020-01-01"\n'
                                                                 'expiration_date = "2020-02-01"\n'), "expired")

    def test_not_yet(self):
        self.refused(self.pki.client("new", cn="host-a", when='activation_date = "2090-01-01"\n'
                                                                 'expiration_date = "2091-01-01"\n'), "certificate")

    def test_wrong_purpose(self):
        self.refused(self.pki.client("backwards", cn="host-a", purpose="tls_www_server"), "certificate")

    def test_wrong_unit(self):
        self.refused(self.pki.client("unit", cn="host-a", unit="host"), "(OU)")

    def test_no_certificate(self):
        server = self.server()
        try:
            client = self.handshake(server, self.good, show=False)      # the client is done before the server has looked
            self.assertTrue(client.is_closed())
            client.stream.close()
        except Closed:
            pass
        self.until(lambda: "ertificate" in server.log(), "the server says why")
        self.assertEqual(int(self.info(server, self.good)), SIZE)

    def test_not_allowed(self):
        server = self.server()
        stranger = self.pki.client("host-x")
        self.info(server, stranger, fails=True)
        with self.handshake(server, stranger) as client:
            self.assertEqual(client.ask(OPT_LIST), ERR_POLICY)
            self.assertEqual(client.go(), ERR_POLICY)
            server.say("allow host-a host-x")           # the same connection may go on now
            self.assertEqual(client.go(), REP_ACK)
            self.same(client.read(0, PAGE), fill(0, PAGE, 0))
            server.say("allow host-a")
            self.assertTrue(client.is_closed())
        self.assertEqual(int(self.info(server, self.good)), SIZE)

    def test_old_tls(self):
        server = self.server()
        self.assertRaises(Closed, self.handshake, server, self.good, ssl.TLSVersion.TLSv1_2)
        self.handshake(server, self.good).stream.close()

    def test_nothing_of_before_counts(self):
        """What was said in clear is no part of the session inside TLS, and bytes behind STARTTLS end it."""
        server = self.server()
        with server.connect() as client:
            client.greet()
            client.send(b"IHAVEOPT" + struct.pack(">II", OPT_STARTTLS, 0) + b"IHAVEOPT" + struct.pack(">II", OPT_LIST, 0))
            self.assertTrue(client.is_closed())
        self.assertIn("in clear", server.log())

    def test_garbage_handshake(self):
        server = self.server()
        with self.handshake(server, self.good) as good:
            self.assertEqual(good.go(), REP_ACK)
            for data in (b"\x16\x03\x01\xff\xff" + bytes(70000), b"GET / HTTP/1.0\r\n\r\n", b"\x80" * 40000, bytes(20000)):
                with server.connect() as client:
                    client.greet()
                    self.assertEqual(client.ask(OPT_STARTTLS), REP_ACK)
                    try:
                        client.send(data)
                    except Closed:
                        pass
                    self.assertTrue(client.is_closed())
            self.same(good.read(0, PAGE), fill(0, PAGE, 0))

    def test_garbage_records(self):
        server = self.server()
        client = self.handshake(server, self.good)
        raw = socket.socket(fileno=os.dup(client.stream.fileno()))
        self.assertEqual(client.go(), REP_ACK)
        raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        self.assertTrue(client.is_closed())
        raw.close()
        client.stream.close()

    def test_per_peer(self):
        server = self.server("--limit", "per-peer=2", allow="host-a host-b")
        clients = [self.handshake(server, self.good) for _ in range(2)]
        try:
            third = self.handshake(server, self.good)
            self.assertTrue(third.is_closed())
            third.stream.close()
            other = self.handshake(server, self.pki.client("host-b"))
            self.assertEqual(other.go(), REP_ACK)
            other.stream.close()
        finally:
            for client in clients:
                client.stream.close()


# ---------------------------------------------------------------- hostile clients

class Hostile(Case):
    def setUp(self):
        super().setUp()
        self.expected = fill(0, PAGE, 0)

    def served(self, server):
        """Others are served meanwhile."""
        with server.connect() as client:
            client.greet()
            self.assertEqual(client.go(), REP_ACK)
            self.same(client.read(0, PAGE), self.expected)

    def test_not_nbd(self):
        server = Server(self)
        for data in (b"GET / HTTP/1.0\r\n\r\n", b"\0\0\0\0", struct.pack(">I", 0xffffffff), struct.pack(">I", 3) + bytes(64)):
            with server.connect() as client:
                client.send(data)
                self.assertTrue(client.is_closed())
        self.served(server)

    def test_lengths(self):
        server = Server(self)
        with server.connect() as client:
            client.greet()
            client.option(OPT_INFO, bytes(9000))
            self.assertEqual(client.reply()[0], ERR_TOO_BIG)
            for data in (b"", b"\xff\xff\xff\xff", struct.pack(">I", 5) + b"s-1", struct.pack(">I", 1) + b"x\xff\xff",
                         struct.pack(">I", 1) + b"\0\0\0", struct.pack(">I", 1) + b"x\0\0rest"):
                self.assertEqual(client.ask(OPT_GO, data), ERR_INVALID)
            self.assertEqual(client.ask(OPT_LIST, b"x"), ERR_INVALID)
            self.assertEqual(client.go(), REP_ACK)
        with server.connect() as client:
            client.greet()
            client.option(77, length=0xffffffff)
            self.assertTrue(client.is_closed())
        self.served(server)

    def test_unknown_options(self):
        server = Server(self)
        with server.connect() as client:
            client.greet()
            for option in (0, 4, 11, 12, 0xffffffff):
                self.assertEqual(client.ask(option, b"some data"), ERR_UNSUP)
            self.assertEqual(client.go(), REP_ACK)

    def test_option_flood(self):
        server = Server(self)
        with server.connect() as client:
            client.greet()
            try:
                for _ in range(3000):
                    client.option(OPT_LIST)
            except Closed:
                pass
            self.served(server)
            self.assertTrue(client.is_closed())

    def test_names(self):
        server = Server(self)
        with server.connect() as client:
            client.greet()
            for name in ("", "s-1", "s-1/", "s-1/nothing", "s-1/pc.ram/", "s-1/pc.ram/2", "s-1/pc.ram/00", "s-1/pc.ram/01",
                         "s-1/pc.ram/-1", "s-1/pc.ram/99999999999", "s-2/pc.ram", "pc.ram", "s-1/state/0", "x" * 4000):
                self.assertEqual(client.go(name), ERR_UNKNOWN, name)
            self.assertEqual(client.go("s-1/pc.ram/1"), REP_ACK)

    def test_requests(self):
        server = Server(self)
        with server.connect() as client:
            client.greet()
            self.assertEqual(client.go(), REP_ACK)
            for offset, length in ((SIZE, 1), (SIZE - 1, 2), (1 << 63, PAGE), (0xffffffffffffffff, 0xffffffff), (0, 0),
                                   (0, 0xffffffff)):
                self.assertEqual(client.read(offset, length) if length < SIZE else self.error(client, offset, length),
                                 EINVAL)
            client.request(WRITE, 0, 100000)
            client.send(b"w" * 100000)
            self.assertEqual(struct.unpack(">I", client.chunk()[3][:4])[0], EPERM)
            client.request(TRIM, 0, PAGE)
            self.assertEqual(struct.unpack(">I", client.chunk()[3][:4])[0], EPERM)
            client.request(7, 0, PAGE)          # no context was chosen
            self.assertEqual(struct.unpack(">I", client.chunk()[3][:4])[0], EINVAL)
            client.request(1234, 0, PAGE)
            self.assertEqual(struct.unpack(">I", client.chunk()[3][:4])[0], EINVAL)
            self.same(client.read(0, PAGE), self.expected)
            client.request(WRITE, 0, 0xffffffff)
            self.assertTrue(client.is_closed())
        with server.connect() as client:
            client.greet()
            self.assertEqual(client.go(), REP_ACK)
            client.send(bytes(28))
            self.assertTrue(client.is_closed())
        self.served(server)

    @staticmethod
    def error(client, offset, length):
        client.request(READ, offset, length)
        return struct.unpack(">I", client.chunk()[3][:4])[0]

    def test_silent(self):
        server = Server(self, "--limit", "hello=1")
        with server.connect() as client, server.connect() as known:
            known.greet()
            self.assertEqual(known.ask(OPT_LIST), REP_ACK)
            self.assertTrue(client.is_closed())
            self.assertEqual(known.go(), REP_ACK)       # one that has said something may take its time
        self.assertIn("did not say who it is", server.log())

    def test_half_messages(self):
        server = Server(self, "--limit", "message=1")
        with server.connect() as option, server.connect() as request, server.connect() as idle:
            option.greet()
            self.assertEqual(option.ask(OPT_LIST), REP_ACK)
            option.send(b"IHAVEOPT\0\0")
            for client in (request, idle):
                client.greet()
                self.assertEqual(client.go(), REP_ACK)
            request.send(struct.pack(">IH", 0x25609513, 0))
            self.assertTrue(option.is_closed())
            self.assertTrue(request.is_closed())
            self.same(idle.read(0, PAGE), self.expected)
        self.assertIn("half a message", server.log())

    def test_slow_drip(self):
        """A byte now and then does not prolong the bound of a message."""
        server = Server(self, "--limit", "message=1")
        with server.connect() as client:
            client.greet()
            self.assertEqual(client.go(), REP_ACK)
            message = struct.pack(">IHHQQI", 0x25609513, 0, READ, 1, 0, PAGE)[:27]
            deadline = time.monotonic() + BOUND
            try:
                for i in range(10 ** 6):
                    self.assertLess(time.monotonic(), deadline, "it is still served")
                    client.send(message[i:i + 1] if i < len(message) - 1 else b"")
                    client.stream.settimeout(0.1)
                    try:
                        if not client.stream.recv(1):
                            break
                    except TimeoutError:
                        pass
            except (Closed, ConnectionError):
                pass
        self.served(server)

    def test_never_reads(self):
        """A client that asks for everything and takes nothing holds no one up, and is cut off."""
        server = Server(self, "--limit", "output=2")
        client = server.connect()
        client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.greet()
        self.assertEqual(client.go(), REP_ACK)
        client.stream.settimeout(0.2)
        try:
            while True:
                client.request(READ, 0, SIZE)
        except (Closed, TimeoutError):
            pass
        self.served(server)
        self.until(lambda: server.connections() == 0, "it is closed")
        self.assertIn("took nothing", server.log())
        client.stream.close()

    def test_strangers(self):
        """Connections that say nothing keep nobody out."""
        server = Server(self, "--limit", "connections=8")
        with server.connect() as known:
            known.greet()
            self.assertEqual(known.go(), REP_ACK)
            strangers = [server.connect() for _ in range(40)]
            self.served(server)
            self.same(known.read(0, PAGE), self.expected)
            self.assertLessEqual(server.connections(), 8)
            for stranger in strangers:
                stranger.stream.close()

    def test_full(self):
        """Known clients are not closed for new ones."""
        server = Server(self, "--limit", "connections=2")
        with server.connect() as one, server.connect() as two:
            for client in (one, two):
                client.greet()
                self.assertEqual(client.go(), REP_ACK)
            with server.connect() as three:
                self.assertTrue(three.is_closed())
            for client in (one, two):
                self.same(client.read(0, PAGE), self.expected)

    def test_vanishing(self):
        """Clients that hang up anywhere leave nothing behind."""
        server = Server(self)
        conversation = struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", OPT_STRUCTURED, 0) + \
            b"IHAVEOPT" + struct.pack(">II", OPT_GO, 16) + struct.pack(">I", 10) + b"s-1/pc.ram\0\0" + \
            struct.pack(">IHHQQI", 0x25609513, 0, READ, 1, 0, SIZE) * 3
        for n in range(0, len(conversation) + 1, 3):
            with server.connect() as client:
                client.send(conversation[:n])
        self.until(lambda: server.connections() == 0, "all are gone")
        self.served(server)

    def test_many_in_flight(self):
        """More requests at once than are read from the socket; small ones pass large ones."""
        server = Server(self)
        content = pc_ram()
        with server.connect() as client:
            client.greet()
            self.assertEqual(client.go(), REP_ACK)
            client.request(READ, 0, SIZE, cookie=1)
            for i in range(400):
                client.request(READ, 3 * i * UNIT % SIZE, PAGE, cookie=2 + i)
            done, order = 0, []
            data = bytearray(SIZE)
            while done < 401:
                flags, kind, cookie, text = client.chunk()
                self.assertIn(kind, (1, 2))
                at = struct.unpack(">Q", text[:8])[0]
                if kind == 1 and cookie == 1:
                    data[at:at + len(text) - 8] = text[8:]
                elif kind == 1:
                    self.same(text[8:], content[at:at + PAGE])
                if flags:
                    done += 1
                    order.append(cookie)
            self.same(bytes(data), content)
            self.assertGreater(order.index(1), 60, "small reads waited for a large one")


if __name__ == "__main__":
    unittest.main(argv=sys.argv)
