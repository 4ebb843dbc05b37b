# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests of cluster networks share: what guests and outside servers run, and a look at the frames of a namespace."""
import ctypes
import os
import socket
import struct
import subprocess
import sys
import threading

CLONE_NEWNET = 0x40000000
ETH_P_ALL = 3
SO_ATTACH_FILTER, SO_RCVBUFFORCE = 26, 33
PARENT = "10.77.0.1"    # the default: clones have the next addresses

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


# Instructions of a packet filter (linux/filter.h): IPv4 and UDP. Memory that travels is TCP, and much.
UDP_ONLY = [(0x28, 0, 0, 12), (0x15, 0, 3, 0x800), (0x30, 0, 0, 23), (0x15, 0, 1, 17), (0x06, 0, 0, 0xffff), (0x06, 0, 0, 0)]


class Capture:
    """All frames on all devices of a network namespace, from now on; or those that hold UDP."""

    def __init__(self, path, udp_only=False):
        def look():
            setns(path)
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        thread = threading.Thread(target=look)      # it never has to find its way back
        thread.start()
        thread.join()
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
