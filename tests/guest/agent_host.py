# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's end of the agent protocol, for tests without a VM.

A unix socket stands for the virtio-serial port. The codec is written anew from guest_protocol.h, not taken from
libsf/wire, so that the two check each other.
"""
import os
import re
import select
import shutil
import socket
import struct
import subprocess
import tempfile
import time
import tty
import zlib

BOUND = 60  # seconds that anything may take before a test gives up

HELLO, IDENTITY, NETWORK, LINK = 1, 2, 3, 4
TICKET, CLONE, SYNC, EXIT, JOIN, FETCH, KILL, RELEASE, SELF = 16, 17, 18, 19, 20, 21, 22, 23, 32
CHECKPOINT, CREATE, FORGET, WHO = 24, 25, 26, 27
REPLY, ERROR = 0x80, 0xff
MAX_CHUNK = 32768
TEXT, NAME, SEED = 256, 64, 64
STARTING, RUNNING, EXITED, FAILED, LOST, KILLED = range(6)


def header(kind, request, length):
    return struct.pack('<BBHII', 1, kind, 0, request, length)


def packet(kind, request, payload=b''):
    return header(kind, request, len(payload)) + payload


def cobs_encode(data):
    out = bytearray()
    for piece in data.split(b'\0'):
        while len(piece) >= 254:
            out += b'\xff' + piece[:254]
            piece = piece[254:]
        out += bytes([len(piece) + 1]) + piece
    return bytes(out)


def cobs_decode(data):
    out, at = bytearray(), 0
    while at < len(data):
        code = data[at]
        run = data[at + 1:at + code]
        if code == 0 or len(run) != code - 1 or 0 in run:
            raise ValueError('broken COBS')
        out += run
        at += code
        if code < 255 and at < len(data):
            out.append(0)
    return bytes(out)


def frame(kind, request, payload=b''):
    message = packet(kind, request, payload)
    return cobs_encode(message + struct.pack('<I', zlib.crc32(message))) + b'\0'


def unframe(data):
    decoded = cobs_decode(data)
    message, crc = decoded[:-4], struct.unpack('<I', decoded[-4:])[0]
    if zlib.crc32(message) != crc:
        raise ValueError('bad CRC')
    version, kind, zero, request, length = struct.unpack('<BBHII', message[:12])
    if version != 1 or zero != 0 or length != len(message) - 12:
        raise ValueError('bad header')
    return kind, request, message[12:]


def is_who(data):
    try:
        return unframe(data)[0] == WHO
    except (ValueError, IndexError, struct.error):
        return False


def hello(nonce, request=1):
    return frame(HELLO, request, struct.pack('<IIQ', 1, 0, nonce))


def identity(ticket, ident, count, clone_request=0, request=2, realtime=None, hostname=None, parent='vm1'):
    return frame(IDENTITY, request, struct.pack(
        '<QIIIIQ', ticket, ident, count, clone_request, 0, time.time_ns() if realtime is None else realtime)
        + os.urandom(SEED) + (hostname or 'vm1-%d' % ident).encode().ljust(NAME, b'\0')
        + parent.encode().ljust(NAME, b'\0'))


def network(address, ident=0, count=0, ticket=0, parent='10.77.0.1', first='10.77.0.2', gateway='0.0.0.0', prefix=16,
            request=2, name='vm1'):
    """NETWORK; addresses are texts."""
    numbers = [struct.unpack('>I', socket.inet_aton(text))[0]
               for text in (address, parent, first if count else '0.0.0.0', gateway)]
    return frame(NETWORK, request, struct.pack('<QIIIIIIII', ticket, ident, count, *numbers, prefix, 0)
                 + name.encode().ljust(NAME, b'\0'))


def member(ident, count, state=EXITED, status=0, length=0, text=''):
    return struct.pack('<IIiIQ', ident, state, status, count, length) + text.encode().ljust(TEXT, b'\0')


def error(number, text):
    return struct.pack('<I', number) + text.encode().ljust(TEXT, b'\0')


class Gone(Exception):
    """The agent hung up."""


class Host:
    """Listens where the agent looks for its port; one connection at a time."""

    def __init__(self, directory):
        self.path = os.path.join(directory, 'port')
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(self.path)
        self.listener.listen(1)
        self.listener.settimeout(BOUND)
        self.connection = None
        self.pending = b''
        self.nonce = 0

    def accept(self):
        self.drop()
        self.connection, _ = self.listener.accept()
        self.connection.settimeout(BOUND)
        self.pending = b''

    def drop(self):
        if self.connection:
            self.connection.close()
            self.connection = None

    def close(self):
        self.drop()
        self.listener.close()

    def send(self, data):
        self.connection.sendall(data)

    def raw(self):
        """The next frame's bytes, without its zero."""
        while b'\0' not in self.pending:
            data = self.connection.recv(65536)
            if not data:
                raise Gone()
            self.pending += data
        data, self.pending = self.pending.split(b'\0', 1)
        return data

    def receive(self, who=False):
        """The next message: kind, request, payload. WHO, which each new agent asks at some time, only if it is wanted."""
        while True:
            data = self.raw()
            if data and (who or not is_who(data)):
                return unframe(data)

    def silent(self, wait=0):
        """True if nothing more of the agent is there; ask after a round trip."""
        while select.select([self.connection], [], [], wait)[0]:
            data = self.connection.recv(65536)
            if not data:
                return False
            self.pending += data
        self.pending = b'\0'.join(each for each in self.pending.split(b'\0') if not is_who(each))
        return not self.pending.strip(b'\0')

    def greet(self):
        """A new nonce, as after a (re)connection."""
        self.nonce += 1
        self.send(b'\0' + hello(self.nonce))
        self.expect_hello()

    def expect_hello(self):
        while True:
            kind, request, payload = self.receive()
            if kind == HELLO | REPLY and struct.unpack('<IIQ', payload) == (1, 0, self.nonce):
                return request

    def round_trip(self):
        """Everything that the agent sent before this is received or in self.pending."""
        self.send(hello(self.nonce))
        kind, _, _ = self.receive()
        assert kind == HELLO | REPLY, kind

    def expect(self, kind):
        got, request, payload = self.receive()
        assert got == kind, 'message %d instead of %d' % (got, kind)
        return request, payload

    def reply(self, kind, request, payload=b''):
        self.send(frame(kind | REPLY, request, payload))

    def refuse(self, request, number, text):
        self.send(frame(ERROR, request, error(number, text)))

    def grant(self, ticket=0x1122334455667788, granted=None):
        request, payload = self.expect(TICKET)
        count = struct.unpack('<II', payload)[0]
        self.reply(TICKET, request, struct.pack('<QII', ticket, granted or count, 0))
        return count


class Pty:
    """A serial port that is one: the agent opens the slave. Has what Host needs of a socket."""

    def __init__(self):
        self.master, self.slave = os.openpty()
        tty.setraw(self.slave)  # as it is before the agent opens it; what is sent until then must not be echoed
        self.path = os.ttyname(self.slave)

    def recv(self, length):
        if not select.select([self.master], [], [], BOUND)[0]:
            raise TimeoutError('the agent is silent')
        return os.read(self.master, length)

    def sendall(self, data):
        while data:
            data = data[os.write(self.master, data):]

    def fileno(self):
        return self.master

    def close(self):
        os.close(self.master)
        os.close(self.slave)


class Guest:
    """A temporary directory with a host, an agent, and ways to run programs against it."""

    def __init__(self, *options, skip='rng,clock,hostname', prefix=(), pty=False, boot_id=False):
        self.directory = tempfile.mkdtemp(prefix='sf-guest-')
        self.socket = os.path.join(self.directory, 'agent.sock')
        self.hooks = os.path.join(self.directory, 'hooks')
        self.names = os.path.join(self.directory, 'names')
        self.log = os.path.join(self.directory, 'log')
        self.host = Host(self.directory)
        if pty:
            self.host.connection = Pty()
        port = self.host.connection.path if pty else self.host.path
        self.programs = []
        self.sockets = []
        self.command = [*prefix, os.path.join(os.environ['SF_BUILD'], 'guest-agent', 'sf-agent'), '--verbose',
                        '--port', port, '--socket', self.socket, '--run-dir', self.directory,
                        '--hooks', self.hooks, '--names', self.names, '--mode', '0600', '--group', 'root',
                        *options, '--skip', skip + (',' if skip else '') + ('' if boot_id else 'boot-id')]
        self.agent = None
        self.start()

    def start(self):
        with open(self.log, 'ab') as log:
            self.agent = subprocess.Popen(self.command, stderr=log, stdin=subprocess.DEVNULL)
        if not isinstance(self.host.connection, Pty):
            self.host.accept()
        self.host.greet()

    def stop_agent(self):
        self.agent.terminate()
        return self.agent.wait(BOUND)

    def close(self):
        for program in self.sockets:
            program.close()
        for program in self.programs:
            if program.poll() is None:
                program.kill()
            program.communicate()
        status = self.stop_agent()
        self.host.close()
        with open(self.log, encoding='utf-8', errors='replace') as log:
            text = log.read()
        shutil.rmtree(self.directory)
        if status != 0 or re.search('Sanitizer|runtime error', text):
            raise AssertionError('sf-agent ended with status %d:\n%s' % (status, text))

    def connect(self):
        """A program without libsf."""
        program = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sockets.append(program)
        program.connect(self.socket)
        program.settimeout(BOUND)
        return program

    def environment(self, **more):
        return dict(os.environ, SF_AGENT_SOCKET=self.socket, **more)

    def sf(self, *arguments, stdin=subprocess.DEVNULL, **more):
        """The command sf, running."""
        return self.run(os.path.join(os.environ['SF_BUILD'], 'libsf', 'sf', 'sf'), *arguments, stdin=stdin, **more)

    def run(self, *command, stdin=subprocess.DEVNULL, **more):
        program = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   env=self.environment(**more))
        self.programs.append(program)
        return program

    def finish(self, program, data=None):
        """Its exit status, standard output and standard error."""
        out, err = program.communicate(data, timeout=BOUND)
        return program.returncode, out, err

    def become_clone(self, ident=3, count=8, ticket=0x99, clone_request=0, before=b'', **more):
        """What a clone's port sees: its parent's bytes broken off, then its own host."""
        self.host.nonce += 1
        self.host.send(b'\x07half a fr' + b'\0' + hello(self.host.nonce) + before
                       + identity(ticket, ident, count, clone_request, **more))


def answer_of(program):
    """Kind, request and payload of the next packet of a program without libsf; None when it was cut off."""
    try:
        data = program.recv(65536)
    except ConnectionResetError:
        return None
    if not data:
        return None
    return data[1], struct.unpack('<I', data[4:8])[0], data[12:]


def error_of(payload):
    return struct.unpack('<I', payload[:4])[0]
