# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests of cluster networks share: what guests and outside servers run, a look at the frames of a namespace, a host
with an outside (Lab), and tests of what members see, whatever their network is made of (Members).
"""
import concurrent.futures
import ctypes
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile

import harness
from harness import wait

CLONE_NEWNET = 0x40000000
ETH_P_ALL = 3
SO_ATTACH_FILTER, SO_RCVBUFFORCE = 26, 33
PARENT = "10.77.0.1"    # the default: clones have the next addresses
GATEWAY = "10.77.255.254"
HOST, OUTSIDE = "192.0.2.1", "192.0.2.9"        # of a Lab
ALLOWED, REFUSED = 80, 81
CLONES = 3

# In a guest: answers each line with its own address, the peer's, and the line. It listens when this is done.
SERVE = r"""perl -MIO::Socket::INET -e '
$s = IO::Socket::INET->new(LocalPort => 7, Listen => 20, ReuseAddr => 1) or die "listen: $!";
$SIG{CHLD} = "IGNORE";
while ($c = $s->accept) { next if fork; while ($l = <$c>) { print $c $c->sockhost, " ", $c->peerhost, " $l" } exit }
' > /dev/null 2>&1 &
until (exec 3<> /dev/tcp/127.0.0.1/7) 2> /dev/null; do sleep 0.1; done"""

# One line to a member and back.
ASK = r"""perl -MIO::Socket::INET -e '
$s = IO::Socket::INET->new(PeerAddr => "%s", PeerPort => 7, Timeout => 20) or do { print "no: $!\n"; exit };
print $s "%s\n"; print scalar <$s>;'"""

# Outside and on the host: answers each line with the peer's address; says on its output who has connected.
SERVER = r"""
import socketserver, sys
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        print("connection from", self.client_address[0], flush=True)
        for line in self.rfile:
            self.wfile.write(self.client_address[0].encode() + b" " + line)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
servers = [Server(("0.0.0.0", int(port)), Handler) for port in sys.argv[1:]]
print("ready", flush=True)
import threading
for server in servers[1:]:
    threading.Thread(target=server.serve_forever, daemon=True).start()
servers[0].serve_forever()
"""


def member(number):
    """Address of the parent (0) or of a clone."""
    return "10.77.0.%d" % (number + 1)


def setns(path):
    with open(path) as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")


def in_namespace(path, function):
    """What it starts there stays there; the caller's thread never leaves its own."""
    def look():
        setns(path)
        return function()
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        return threads.submit(look).result()


# Instructions of a packet filter (linux/filter.h): IPv4 and UDP. Memory that travels is TCP, and much.
UDP_ONLY = [(0x28, 0, 0, 12), (0x15, 0, 3, 0x800), (0x30, 0, 0, 23), (0x15, 0, 1, 17), (0x06, 0, 0, 0xffff), (0x06, 0, 0, 0)]


class Capture:
    """All frames on all devices of a network namespace, from now on; or those that hold UDP."""

    def __init__(self, path, udp_only=False):
        self.socket = in_namespace(path, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)))
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
        if udp_only:
            program = b"".join(struct.pack("HBBI", *each) for each in UDP_ONLY)
            buffer = ctypes.create_string_buffer(program, len(program))
            self.socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER,
                                   struct.pack("HP", len(UDP_ONLY), ctypes.addressof(buffer)))
        self.socket.setblocking(False)
        self.frames = []

    def devices(self, text):
        """Where frames with this text have been seen."""
        try:
            while True:
                frame, address = self.socket.recvfrom(1 << 16)
                self.frames.append((address[0], frame))
        except BlockingIOError:
            pass
        return {device for device, frame in self.frames if text in frame}

    def close(self):
        self.socket.close()


class Wire:
    """What tshark captures in a network namespace on all devices, from now on; of it what a capture filter takes."""

    def __init__(self, path, file, taken=""):
        self.file = file
        self.program = shutil.which("tshark")
        if not self.program:
            raise harness.unittest.SkipTest("tshark is missing (package tshark)")
        with open(file, "wb") as output:
            self.process = subprocess.Popen(["nsenter", "--net=" + path, self.program, "-n", "-q", "-i", "any", "-w", "-",
                                             "-f", taken],
                                            stdout=output, stderr=subprocess.DEVNULL)
        wait(lambda: os.path.getsize(file), what="tshark's first bytes: it captures")

    @classmethod
    def in_test(cls, test, path, taken=""):
        """Until the test ends."""
        handle, file = tempfile.mkstemp(suffix=".pcap")
        os.close(handle)
        test.addCleanup(os.unlink, file)
        wire = cls(path, file, taken)
        test.addCleanup(wire.close)
        return wire

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait()

    def matching(self, expression, field="frame.number"):
        """That field of each captured frame that this display filter takes; ends the capture."""
        self.close()
        found = subprocess.run([self.program, "-n", "-r", self.file, "-Y", expression, "-T", "fields", "-e", field],
                               check=True, capture_output=True, text=True)
        return found.stdout.split()

    def fields(self, text, field="frame.number"):
        """The same of each that has this text."""
        return self.matching('frame contains "%s"' % text, field)

    def frames(self, text):
        """How many of what was captured have this text."""
        return len(self.fields(text))


def namespaces(daemon):
    """Those of the clusters that a daemon has on its host, by its descriptors: {inode: path}."""
    folder = "/proc/%d/fd" % daemon.process.pid
    paths = [os.path.join(folder, name) for name in os.listdir(folder)]
    return {os.readlink(path): path for path in paths if os.readlink(path).startswith("net:")}


class Server:
    """SERVER in a network namespace, until close()."""

    def __init__(self, path, *ports):
        self.process = subprocess.Popen(["nsenter", "--net=" + path, sys.executable, "-c", SERVER] +
                                        [str(port) for port in ports], stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline() != "ready\n":
            self.close()
            raise AssertionError("the server did not start")
        os.set_blocking(self.process.stdout.fileno(), False)

    def heard(self):
        """What it has said since it was asked last."""
        try:
            return os.read(self.process.stdout.fileno(), 1 << 16).decode()
        except BlockingIOError:
            return ""

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class Lab:
    """Two namespaces: the host's, in which the daemon is started, and the outside."""

    def __init__(self):
        self.holders, self.servers = [], []
        self.host, self.outside = self.namespace(), self.namespace()
        self.run(self.host, "ip link add wan type veth peer name lan netns %d; ip address add %s/24 dev wan;"
                            "ip link set wan up; ip link set lo up; echo 1 > /proc/sys/net/ipv4/ip_forward" % (self.outside, HOST))
        self.run(self.outside, "ip address add %s/24 dev lan; ip link set lan up; ip link set lo up" % OUTSIDE)

    def namespace(self):
        holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        self.holders.append(holder)
        own = os.readlink("/proc/self/ns/net")
        wait(lambda: os.readlink("/proc/%d/ns/net" % holder.pid) != own, what="a network namespace")
        return holder.pid

    def run(self, where, command):
        return subprocess.run(["nsenter", "--net=/proc/%d/ns/net" % where, "sh", "-ec", command], check=True,
                              capture_output=True, text=True).stdout

    def serve(self, where, *ports):
        self.servers.append(Server("/proc/%d/ns/net" % where, *ports))
        return self.servers[-1]

    def leftovers(self):
        """Lines about devices, filter tables and routes of the host that are a cluster's."""
        return re.findall(r".*\bsfn.*", self.run(self.host, "ip -brief link; nft list tables; ip route show table all"))

    def close(self):
        for server in self.servers:
            server.close()
        for holder in self.holders:
            holder.kill()
            holder.wait()


class Members:
    """For test cases: tests of members of one cluster in a Lab, whose policy allows one port outside."""

    FORKS = 20      # that a connection of the parent outlives

    @classmethod
    def open_lab(cls, daemon):
        """Boots the parent."""
        cls.lab = Lab()
        cls.addClassCleanup(cls.lab.close)
        cls.server = cls.lab.serve(cls.lab.outside, ALLOWED, REFUSED)
        cls.own = cls.lab.serve(cls.lab.host, ALLOWED)
        cls.daemon = daemon
        cls.addClassCleanup(daemon.close)
        cls.start_in_lab()
        cls.parent = cls.boot_parent(["%s tcp %d" % (OUTSIDE, ALLOWED)])
        cls.parent.shell(SERVE)

    @classmethod
    def start_in_lab(cls):
        in_namespace("/proc/%d/ns/net" % cls.lab.host, cls.daemon.start)

    @classmethod
    def boot_parent(cls, outside):
        return harness.linux(cls.daemon, name="red", network="cluster", pool=CLONES, tools=False, outside=outside)

    def fork(self, parent=None, count=CLONES):
        """Parent and clones."""
        parent = parent or self.parent
        ticket = parent.clone(count)
        self.addCleanup(self.end, ticket["ticket"])
        self.assertEqual([c["state"] for c in ticket["clones"]], ["running"] * count, ticket)
        return ticket["ticket"], [parent] + [vm.follow(parent) for vm in self.daemon.clones(ticket)]

    def end(self, ticket):
        if ticket in [each["ticket"] for each in self.daemon.call("ticket.list")["tickets"]]:
            self.daemon.end_ticket(ticket)

    def all_reach_all(self, everyone):
        for number, vm in enumerate(everyone):
            vm.begin("; ".join(ASK % (member(other), "hello") for other in range(len(everyone))))
        for number, vm in enumerate(everyone):
            self.assertEqual(re.findall(r"(\S+) (\S+) hello", vm.finish()),
                             [(member(other), member(number)) for other in range(len(everyone))], vm.name)

    @staticmethod
    def words(vm, command):
        """What a command prints, without what the agent says on the console of a fresh clone."""
        return re.sub(r"sf-agent: .*\n", "", vm.shell(command)).split()

    def test_identity(self):
        """Each has a MAC, an address and names of its own; all reach each other, by name too; then nothing is left."""
        before = self.lab.leftovers()
        ticket, everyone = self.fork()
        inodes = {self.words(vm, "stat -c %i /etc/hosts")[0] for vm in everyone}
        self.assertEqual(len(inodes), 1, "the parent has written it for all, before the fork")
        for number, vm in enumerate(everyone):
            text = vm.shell("ip address show eth0; ip route; cat /etc/hosts; sf address; sf address parent; sf address 2")
            self.assertIn("link/ether 02:5f:0a:4d:00:%02x " % (number + 1), text)
            self.assertEqual(re.findall(r"inet6? (\S+)/", text), [member(number), "fe80::5f:aff:fe4d:%x" % (number + 1)])
            self.assertIn("default via %s dev eth0" % GATEWAY, text)
            self.assertIn("\n%s sf-2 red-2\n" % member(2), text)
            self.assertEqual(text.split()[-3:], [member(number), PARENT, member(2)])
        self.all_reach_all(everyone)
        self.assertIn(member(1), everyone[3].shell(ASK % ("sf-1", "hello")))
        self.assertEqual([vm["address"] for vm in self.daemon.call("vm.list")["vms"]], [member(n) for n in range(4)])
        self.end(ticket)
        self.assertEqual(self.lab.leftovers(), before, "what is the parent's: a cable, its routes and its table")

    def test_changed_since(self):
        """What has changed in the parent since its agent prepared a fork: clones have it as it is."""
        self.end(self.fork(count=1)[0])
        self.parent.shell("ip route add 203.0.113.0/24 via %s src %s; echo 192.0.2.9 another > /etc/hosts" % (GATEWAY, PARENT))
        self.addCleanup(self.parent.shell, "ip route del 203.0.113.0/24")
        clone = self.fork(count=1)[1][1]
        text = clone.shell("ip route; cat /etc/hosts")
        self.assertIn("203.0.113.0/24 via %s dev eth0 src %s" % (GATEWAY, member(1)), text)
        self.assertIn("\n%s sf-1 red-1\n" % member(1), text)
        self.assertIn("\n192.0.2.9 another\n", text)

    def test_outside(self):
        """The policy's port is reached, by NAT, nothing else. A connection of the parent outlives many forks; a clone's
        copy of it ends at once.
        """
        ask = "echo %s >&%d; read -t 60 -u %d answer; echo \"= $? $answer\""
        self.parent.shell("exec 5<>/dev/tcp/%s/%d" % (OUTSIDE, ALLOWED))
        self.addCleanup(self.parent.shell, "exec 5>&-")
        for number in range(self.FORKS):
            ticket = self.parent.clone(1, wait="resumed" if number else "answered")
            if number == 0:
                self.outside_from_clone(self.daemon.clones(ticket)[0].follow(self.parent), ask)
            self.assertIn("= 0 %s word%d" % (HOST, number), self.parent.shell(ask % ("word%d" % number, 5, 5)))
            self.end(ticket["ticket"])
        self.assertEqual(self.own.heard(), "", "who has reached the host itself")
        self.assertEqual(set(self.server.heard().splitlines()), {"connection from " + HOST})

    def outside_from_clone(self, clone, ask):
        text = clone.shell("read -t 60 -u 5 answer; echo \"= $?\"")
        self.assertIn("= 1", text, "more than 128: the connection was not ended, the read timed out")
        self.assertIn("= 0 %s new" % HOST, clone.shell("exec 6<>/dev/tcp/%s/%d; " % (OUTSIDE, ALLOWED) + ask % ("new", 6, 6)))
        for address, port in ((OUTSIDE, REFUSED), (HOST, ALLOWED), ("169.254.169.254", 80), ("198.18.0.0", ALLOWED)):
            text = clone.shell("timeout 60 bash -c '< /dev/tcp/%s/%d' 2>&1; echo \"= $?\"" % (address, port))
            self.assertIn("= 1", text, "refused at once: %s %d: %s" % (address, port, text))
        text = clone.shell("timeout 2 bash -c '< /dev/tcp/%s/%d' 2>&1; echo \"= $?\"" % (GATEWAY, ALLOWED))
        self.assertNotIn("= 0", text, "the gateway has no services")

    def test_restart(self):
        """sfvmmd is killed: members go on talking; the next one finds the network again and forks into it."""
        ticket, everyone = self.fork(count=2)
        self.parent.shell("exec 5<>/dev/tcp/%s/7" % member(1))
        self.daemon.end(signal.SIGKILL)
        self.assertIn(member(1), self.parent.shell("echo during >&5; read -t 60 -u 5 answer; echo $answer"))
        self.start_in_lab()
        self.assertIn("after", self.parent.shell("echo after >&5; read -t 60 -u 5 answer; echo $answer; exec 5>&-"))
        self.all_reach_all(everyone)
        _, more = self.fork(count=1)
        self.assertEqual(self.words(more[1], "sf address"), [member(3)])
        self.assertIn(member(1), more[1].shell(ASK % (member(1), "hello")))
