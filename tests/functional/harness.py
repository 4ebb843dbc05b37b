# SPDX-License-Identifier: GPL-2.0-or-later
"""What the functional tests stand on: a private sfvmmd, its VMs, a client of the control socket, a guest's console.

    Daemon      one sfvmmd with a run directory of its own; start, stop, kill, restart; its footprint
    Control     one connection to the control socket: call(), events
    Vm          one VM: its console, and shell commands in its guest
    Probe       the program sf-probe (tests/guest/probe.c) in the foreground of a guest's console
    Case        a test case that compares the daemon's footprint before and after each test

A footprint is everything that a fork may leave behind: processes, descriptors of the daemon, files of the run
directory, memory in memfds. Nothing here sleeps for a fixed time: wait() polls a condition up to a bound, and says what
it last saw.
"""
import base64
import collections
import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import unittest

SCALE = float(os.environ.get("SF_TEST_TIMEOUT_SCALE", "1"))
POLL = 0.02                     # seconds between two looks at a condition
SHORT = 30 * SCALE              # bound for what takes well under a second on an idle machine
LONG = 180 * SCALE              # bound for what takes some seconds: a boot, a large check
BOOTS = 3                       # of a guest that stalls
BOOT_LOOK_MS = 5000             # how often it is looked at
TIMER = "no_timer_check"        # on a busy host a guest's first ticks come late, and its kernel would panic for that
MIB = 1 << 20
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SETTLE_MS = 100                 # after the last clone, until the daemon makes memory and disks one again
TOOLS = "/opt/sft"              # of the guest programs, in a guest
RESULT_CHUNK = 512 * 1024       # bytes of a result in one answer of the control socket


# ---------------------------------------------------------------- where things are

def environment(name, what):
    """The value of a variable that tests/run.py sets, or a skip that names it."""
    value = os.environ.get(name)
    if not value:
        raise unittest.SkipTest("%s is not set (%s): run scripts/test" % (name, what))
    return value


def need(path, what):
    if not os.path.exists(path):
        raise unittest.SkipTest("%s is missing: %s" % (what, path))
    return path


def program(path):
    """An executable of the project's build directory."""
    return need(os.path.join(environment("SF_BUILD", "build directory"), path), os.path.basename(path))


def qemu():
    prefix = environment("SF_QEMU_PREFIX", "the patched QEMU")
    return need(os.path.join(prefix, "bin/qemu-system-x86_64"), "patched QEMU")


def qemu_img():
    return need(os.path.join(environment("SF_QEMU_PREFIX", "the patched QEMU"), "bin/qemu-img"), "qemu-img")


def image(name, variable="SF_IMAGE"):
    return need(os.path.join(environment(variable, "the guest image"), name), "guest image: " + name)


def account(*names):
    """The first of these users that is there."""
    for name in names:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise unittest.SkipTest("none of the users " + ", ".join(names))


def qemu_user():
    """The account that QEMU runs as when sfvmmd is root."""
    return account("snowflock-qemu", "nobody")


def have_kvm():
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
        return True
    except OSError:
        return False


def logs():
    """Folder for the logs of this module, kept after the run."""
    top = os.environ.get("SF_TEST_LOGS") or os.path.join(tempfile.gettempdir(), "sf-test-logs")
    module = next((word for word in sys.argv if "test_" in word and word.endswith(".py")), "functional")
    name = os.path.join(top, "functional", os.path.splitext(os.path.basename(module))[0])
    os.makedirs(name, exist_ok=True)
    return name


# ---------------------------------------------------------------- waiting

def wait(condition, timeout=SHORT, what="the condition"):
    """Poll until condition() is true and return its value; AssertionError with the last one after `timeout` seconds."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError("%s: not within %.0f s (last: %r)" % (what, timeout, value))
        time.sleep(POLL)


def wait_empty(trace, what="nothing left"):
    """Poll until no value of the dictionary trace() is true; AssertionError with what is left after SHORT seconds."""
    end = time.monotonic() + SHORT
    while any((left := trace()).values()):
        if time.monotonic() > end:
            raise AssertionError("%s: not within %.0f s: %s" % (what, SHORT, left))
        time.sleep(POLL)


def alive(pid):
    """True while the process runs; a zombie does not."""
    try:
        with open("/proc/%d/stat" % pid) as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


# ---------------------------------------------------------------- control socket

class ControlError(Exception):
    """An error answer of sfvmmd."""

    def __init__(self, error):
        super().__init__("%s: %s (%s)" % (error.get("code"), error.get("message"), error.get("hint")))
        self.code = error.get("code")
        self.message = error.get("message") or ""
        self.hint = error.get("hint") or ""


class Control:
    """One connection. Answers may come in any order and between events; call() is for one thread."""

    def __init__(self, path, timeout=SHORT):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(path)
        except OSError:
            self.socket.close()
            raise
        self.data = b""
        self.events = []
        self.answers = {}
        self.last = 0

    def close(self):
        self.socket.close()

    def send(self, method, **params):
        """Send a request without waiting; returns its id for answer()."""
        self.last += 1
        self.raw(json.dumps({"id": self.last, "method": method, "params": params}).encode() + b"\n")
        return self.last

    def raw(self, data):
        self.socket.sendall(data)

    def line(self, timeout):
        """The next object of the daemon; None when it has closed the connection."""
        end = time.monotonic() + timeout
        while b"\n" not in self.data:
            left = end - time.monotonic()
            if left <= 0:
                raise AssertionError("sfvmmd did not answer within %.0f s" % timeout)
            self.socket.settimeout(left)
            try:
                more = self.socket.recv(1 << 16)
            except socket.timeout:
                continue
            except ConnectionError:
                return None
            if not more:
                return None
            self.data += more
        line, _, self.data = self.data.partition(b"\n")
        return json.loads(line)

    def answer(self, number, timeout=LONG):
        """The result of request `number`. ControlError: an error answer; ConnectionError: the daemon hung up."""
        while number not in self.answers:
            message = self.line(timeout)
            if message is None:
                raise ConnectionError("sfvmmd closed the connection")
            if "event" in message:
                self.events.append(message)
            elif message.get("id") is None:
                raise ControlError(message["error"])        # what we sent was not even understood as a request
            else:
                self.answers[message["id"]] = message
        message = self.answers.pop(number)
        if "error" in message:
            raise ControlError(message["error"])
        return message["result"]

    def call(self, method, timeout=LONG, **params):
        return self.answer(self.send(method, **params), timeout)

    def event(self, name, timeout=LONG, **match):
        """The next event `name` whose data has all of `match`; earlier ones are dropped."""
        while True:
            while self.events:
                event = self.events.pop(0)
                if event["event"] == name and all(event["data"].get(k) == v for k, v in match.items()):
                    return event["data"]
            message = self.line(timeout)
            if message is None:
                raise ConnectionError("sfvmmd closed the connection")
            if "event" in message:
                self.events.append(message)
            else:
                self.answers[message.get("id")] = message


# ---------------------------------------------------------------- the daemon

class Daemon:
    """A sfvmmd of its own. What it starts carries SF_TEST_RUN or the run directory's name, and is ended by close()."""

    def __init__(self, user=None, config=None, run_directory=None, path=None, groups=None):
        self.top = tempfile.mkdtemp(prefix="sft")
        os.chmod(self.top, 0o755)
        self.run = run_directory or os.path.join(self.top, "run")
        self.owner = not run_directory      # else the VMs in it are another daemon's
        os.makedirs(self.run, mode=0o755, exist_ok=True)
        self.user = pwd.getpwnam(user) if user else None
        if self.user:
            os.chown(self.top, self.user.pw_uid, self.user.pw_gid)
            os.chown(self.run, self.user.pw_uid, self.user.pw_gid)
        self.config = {"firmware": environment("SF_FIRMWARE", "firmware"), "settle-ms": SETTLE_MS,
                       "switch": program("sfvmm/net/sf-switch")}
        if os.geteuid() == 0 and not user:
            self.config["user"] = qemu_user()
            self.config["pager-user"] = account("snowflock-pager", "nobody")
        self.config.update(config or {})
        self.groups = dict(groups or {})        # of sfvmmd.conf, besides [sfvmmd]: {group: {key: value}}
        self.path = path or os.environ.get("SF_TEST_SFVMMD") or program("sfvmm/control/sfvmmd")
        if self.user:
            self.path = shutil.copy(self.path, self.top)    # the checkout may be closed to that user
            self.config["switch"] = shutil.copy(self.config["switch"], self.top)
        self.log_path = os.path.join(logs(), "sfvmmd-%s.log" % os.path.basename(self.top))
        self.socket_path = os.path.join(self.run, "control.sock")
        self.process = None
        self.control = None
        self.extra = []             # more arguments
        self.qemu_path = None       # a wrapper instead of the patched QEMU
        self.preexec = None

    # -- life

    def write_config(self):
        name = os.path.join(self.top, "sfvmmd.conf")
        self.config["qemu"] = self.qemu_path or qemu()
        self.config["qemu-img"] = qemu_img()
        with open(name, "w") as file:
            for group, keys in {"sfvmmd": self.config, **self.groups}.items():
                file.write("[%s]\n" % group)
                for key, value in keys.items():
                    file.write("%s=%s\n" % (key, value))
        os.chmod(name, 0o644)
        return name

    def command(self):
        return [self.path, "--config", self.write_config(), "--run-dir", self.run] + self.extra

    def credentials(self):
        """Those that the command is started with, for Popen."""
        if not self.user:
            return {}
        return {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}

    def start(self, expect_failure=False):
        """Start, and wait until it answers. With expect_failure: wait for its end; returns (status, text)."""
        env = dict(os.environ, SF_TEST_RUN=self.run, G_DEBUG="fatal-criticals")
        env.pop("SF_SOCKET", None)
        if self.user:
            env["HOME"] = self.top
            env["XDG_RUNTIME_DIR"] = self.top
        with open(self.log_path, "ab") as log:
            start = log.tell()
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env,
                                            preexec_fn=self.preexec, cwd="/", **self.credentials())
        if expect_failure:
            status = self.process.wait(SHORT)
            with open(self.log_path, errors="replace") as file:
                file.seek(start)
                return status, file.read()

        def answering():
            if self.process.poll() is not None:
                raise AssertionError("sfvmmd ended with %d: %s" % (self.process.returncode, self.log_tail()))
            control = None
            try:
                control = Control(self.socket_path)
                control.call("daemon.status")
                return control
            except OSError:
                if control:
                    control.close()
                return None
        self.control = wait(answering, what="sfvmmd's control socket " + self.socket_path)
        return self

    def end(self, number=signal.SIGTERM):
        """Send a signal, wait for the end; the VMs stay."""
        if self.control:
            self.control.close()
            self.control = None
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(SHORT)
        status = self.process.returncode if self.process else None
        self.process = None
        return status

    def restart(self, number=signal.SIGTERM):
        self.end(number)
        return self.start()

    def close(self):
        """Everything ends: VMs by the daemon, what is left by hand. Returns what had to be ended by hand."""
        left = []
        self.keep_logs()
        try:
            if self.owner and self.control and self.process.poll() is None:
                for vm in self.control.call("vm.list")["vms"]:
                    with contextlib.suppress(ControlError):
                        self.control.call("vm.stop", vm=vm["name"], force=True)
                with contextlib.suppress(AssertionError):
                    wait(lambda: not self.qemus(), what="the end of all QEMUs")
        except (OSError, AssertionError, ControlError):
            pass
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.end()
        for pid in self.processes() if self.owner else []:
            text = command_line(pid)
            if text:                    # without one it is about to be gone: its memory is
                left.append(text)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.top, ignore_errors=True)
        return left

    def keep_logs(self):
        """QEMU's and the guests' logs are kept beside the daemon's."""
        for folder, _, names in os.walk(self.run):
            for name in names:
                if name.endswith(".log"):
                    target = "%s-%s-%s" % (os.path.basename(self.top), os.path.basename(folder), name)
                    with contextlib.suppress(OSError):
                        shutil.copy(os.path.join(folder, name), os.path.join(logs(), target))

    def log_tail(self, length=2000):
        with open(self.log_path, "rb") as file:
            file.seek(max(0, os.path.getsize(self.log_path) - length))
            return file.read().decode(errors="replace")

    # -- calls

    def call(self, method, timeout=LONG, **params):
        return self.control.call(method, timeout=timeout, **params)

    def client(self):
        return Control(self.socket_path)

    def run_vm(self, **params):
        return Vm(self, self.call("vm.run", **params)["vm"])

    def vm(self, name):
        return Vm(self, self.call("vm.status", vm=name)["vm"])

    def clones(self, ticket):
        """Vm of each clone of a TICKET, in the order of the ids."""
        return [self.vm(clone["vm"]) for clone in sorted(ticket["clones"], key=lambda c: c["id"])]

    def end_ticket(self, ticket):
        """Kill what lives of a ticket and forget it; its last state, None when it had not forked."""
        self.call("kill", ticket=ticket)
        try:
            return self.call("join", ticket=ticket)["ticket"]
        except ControlError as error:
            if error.code != "no-such-ticket":
                raise
            return None

    def end_tickets(self):
        for ticket in self.call("ticket.list")["tickets"]:
            self.end_ticket(ticket["ticket"])

    def result(self, ticket, number):
        data = b""
        while True:
            piece = self.call("result", ticket=ticket, id=number, offset=len(data), length=RESULT_CHUNK)
            data += base64.b64decode(piece["data"])
            if len(data) >= piece["total"]:
                return data

    # -- what there is

    def processes(self):
        """Pids, other than the daemon's, that this daemon (or an earlier one of the same run directory) has started."""
        mine = {os.getpid()}
        if self.process:
            mine.add(self.process.pid)
        found = []
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) in mine:
                continue
            try:
                with open("/proc/%s/environ" % name, "rb") as file:
                    environ = file.read()
                with open("/proc/%s/cmdline" % name, "rb") as file:
                    text = file.read()
            except OSError:
                continue
            if ("SF_TEST_RUN=%s\0" % self.run).encode() in environ + b"\0" or (self.run + "/").encode() in text:
                if alive(int(name)):
                    found.append(int(name))
        return sorted(found)

    def qemus(self):
        """QEMUs that are VMs or shells; others have no machine: who serves disks, and who is asked what QEMU can do."""
        return [pid for pid in self.processes()
                if "qemu-system" in command_line(pid) and "-machine none" not in command_line(pid)]

    def descriptors(self, pid=None):
        """Descriptors of the daemon (or of a QEMU) by kind."""
        pid = pid or self.process.pid
        kinds = collections.Counter()
        for number in os.listdir("/proc/%d/fd" % pid):
            with contextlib.suppress(OSError):
                kinds[re.sub(r"\d+", "N", os.readlink("/proc/%d/fd/%s" % (pid, number)))] += 1
        return kinds

    def files(self):
        """Files of the run directory; shells, which come and go by number, under one name."""
        found = collections.Counter()
        for folder, _, names in os.walk(self.run):
            for name in names:
                path = os.path.relpath(os.path.join(folder, name), self.run)
                # Templates of overlays are made once for each size.
                if not re.search(r"-shell-\d+/|^template/", path):
                    path = re.sub(r"-shell-\d+-", "-shell-N-", path)
                    found[re.sub(r"-[0-9a-f]{16}\.qcow2$", "-HEX.qcow2", path)] += 1
        return found

    def memory(self):
        """Bytes in memfds that any process of this daemon, or it itself, holds or maps."""
        total, seen = 0, set()
        for pid in self.processes() + [self.process.pid]:
            folder = "/proc/%d/fd" % pid
            with contextlib.suppress(OSError):
                for number in os.listdir(folder):
                    path = os.path.join(folder, number)
                    if not os.readlink(path).startswith("/memfd:"):
                        continue
                    info = os.stat(path)
                    if (info.st_dev, info.st_ino) not in seen:
                        seen.add((info.st_dev, info.st_ino))
                        total += info.st_blocks * 512
        return total

    def pools_full(self):
        return all(vm.get("pool", {}).get("ready", 0) >= vm.get("pool", {}).get("target", 0)
                   for vm in self.call("vm.list")["vms"] if vm["role"] == "parent")

    def footprint(self):
        wait(self.pools_full, LONG, "full shell pools")
        usage = self.call("vm.usage")["vms"]
        known = sorted(vm["name"] for vm in usage if vm["role"] != "shell")
        return {
            "vms": known,
            "tickets": len(self.call("ticket.list")["tickets"]),
            "shells": sum(vm["role"] == "shell" for vm in usage),
            "processes": len(self.processes()) - len(usage),
            "descriptors": {k: v for k, v in self.descriptors().items()},
            "files": dict(self.files()),
        }


def command_line(pid):
    try:
        with open("/proc/%d/cmdline" % pid, "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def anonymous(pid):
    """Bytes of a process's own memory: heap, translated code, pages written in private mappings; not what lies in
    memfds, of which only as much is resident as has been touched since it was mapped.
    """
    with open("/proc/%d/smaps_rollup" % pid) as file:
        return int(re.search(r"^Anonymous:\s+(\d+) kB", file.read(), re.M).group(1)) * 1024


# ---------------------------------------------------------------- guests

class Console:
    """A serial console. Up to the first send() it is read from its log; then through its socket, because QEMU logs a
    byte twice that a full socket did not take. At its first send() the guest must be waiting for input.
    """

    def __init__(self, vm):
        self.log = vm.info["console_log"]
        self.path = vm.info["console"]
        self.socket = None
        self.early = b""            # of the log, when the socket was connected
        self.late = b""             # from the socket since
        self.position = 0           # in early + late: what is before has been used up

    def connect(self):
        if not self.socket:
            self.early = self.whole()
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(self.path)
            self.socket.setblocking(False)

    def whole(self):
        if self.socket:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                while True:
                    more = self.socket.recv(1 << 16)
                    if not more:
                        break
                    self.late += more
            return self.early + self.late
        with contextlib.suppress(OSError):
            with open(self.log, "rb") as file:
                return file.read()
        return b""

    def text(self):
        return self.whole()[self.position:]

    def send(self, text):
        self.connect()
        data = text.encode()
        end = time.monotonic() + SHORT
        while data:
            self.whole()
            try:
                data = data[self.socket.send(data):]
            except BlockingIOError:
                if time.monotonic() > end:
                    raise AssertionError("the guest does not take console input")
                time.sleep(POLL)

    def expect(self, pattern, timeout=LONG):
        """Wait for a regular expression; what is before and in it is used up. Returns (match, text before it)."""
        expression = re.compile(pattern.encode(), re.S)
        match = None

        def seen():
            nonlocal match
            match = expression.search(self.text())
            return match
        try:
            wait(seen, timeout, "console")
        except AssertionError:
            raise AssertionError("console: no %r within %.0f s; it ends in: %s" %
                                 (pattern, timeout, self.text()[-1500:].decode(errors="replace"))) from None
        text = match.string[:match.start()].decode(errors="replace")
        self.position += match.end()
        return match, text

    def close(self):
        if self.socket:
            self.socket.close()
            self.socket = None

    __del__ = close             # a clone's ends with the last use of it


class Vm:
    """A VM of the daemon. shell(): a command in its guest, over the console."""

    def __init__(self, daemon, info):
        self.daemon = daemon
        self.info = info
        self.name = info["name"]
        self.pid = info["pid"]
        self.console = Console(self)
        self.serial = 0
        self.stuck = False          # a command did not end: the next one has no chance

    def status(self):
        return self.daemon.call("vm.status", vm=self.name)["vm"]

    def kernel_stalls(self):
        with open(self.info["console_log"], "rb") as file:
            return b"detected stalls on CPUs" in file.read()

    def disks_at_first(self):
        """Each of its disks has the layers it began with: nothing is left of a fork, but for what clones still use."""
        def layers(info):
            return [disk["layers"] for disk in info["disks"]]
        return layers(self.status()) == layers(self.info)

    def stop(self):
        self.console.close()
        self.daemon.call("vm.stop", vm=self.name, force=True)

    def clone(self, count, **params):
        """Fork from outside; returns the TICKET."""
        return self.daemon.call("clone", vm=self.name, count=count, **params)["ticket"]

    def start_shell(self):
        """First contact with the guest's shell: echo, line editing and (Debian 13's ip and Python) colours off."""
        self.console.expect(r"[#$] $")
        self.console.send("exec bash --noediting --norc\nstty -echo; PS1=; PS2=; export NO_COLOR=1; echo sf-\"ready\"\n")
        self.console.expect(r"sf-ready\r?\n")

    def shell(self, command, timeout=LONG, check=True):
        """Run a command in the guest's shell and return its output."""
        self.begin(command)
        return self.finish(timeout, check)

    def begin(self, command):
        if self.stuck:
            raise AssertionError("guest %s: an earlier command in its shell has not ended" % self.name)
        self.serial += 1
        self.console.send("{ %s\n}; echo \"<\"\"<%d:$?>>\"\n" % (command, self.serial))

    def finish(self, timeout=LONG, check=True):
        self.stuck = True
        match, text = self.console.expect(r"<<%d:(\d+)>>\r?\n" % self.serial, timeout)
        self.stuck = False
        text = text.replace("\r\n", "\n")
        if check and int(match.group(1)):
            raise AssertionError("guest %s: status %s: %s" % (self.name, match.group(1).decode(), text))
        return text

    def follow(self, other):
        """This clone's guest is where `other`'s was: it goes on in the middle of the same command."""
        self.serial = other.serial
        return self

    def probe(self, memory=None):
        probe = Probe(self)
        self.console.send(TOOLS + "/sf-probe\n")
        probe.reply()
        return probe


class Probe:
    """sf-probe runs in the foreground of the console: one line in, one line out."""

    def __init__(self, vm):
        self.vm = vm

    def send(self, command):
        self.vm.console.send(command + "\n")

    def reply(self, timeout=LONG):
        match, _ = self.vm.console.expect(r"= (ok|bad)([^\r\n]*)\r?\n", timeout)
        text = match.group(2).decode().strip()
        if match.group(1) != b"ok":
            raise AssertionError("%s: sf-probe: %s" % (self.vm.name, text))
        return dict(part.split("=", 1) for part in text.split() if "=" in part)

    def __call__(self, command, timeout=LONG):
        self.send(command)
        return self.reply(timeout)

    def quit(self):
        self.send("quit")
        self.vm.console.expect("= ok quit\r?\n")

    def of(self, vm):
        """The same program as it goes on in a clone."""
        return Probe(vm)


def on_all(probes, command, timeout=LONG):
    """One command to many probes at once; their replies."""
    for probe in probes:
        probe.send(command)
    return [probe.reply(timeout) for probe in probes]


def tools_image(folder):
    """A raw disk with the guest programs as a tar archive: any guest can unpack it, no image needs to have them."""
    path = os.path.join(folder, "tools.img")
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in ("sf-probe", "sf-garbage", "sf-forkbench", "sf-tree"):
            archive.add(program("tests/guest/" + name), arcname=name)
    os.truncate(path, (os.path.getsize(path) + MIB - 1) // MIB * MIB)
    os.chmod(path, 0o644)
    return path


def boots(vm):
    """Wait for its agent. False: its kernel stalls, for want of a timer of one of its vCPUs."""
    end = time.monotonic() + LONG
    while True:
        try:
            vm.daemon.call("vm.wait", vm=vm.name, agent=True, timeout_ms=BOOT_LOOK_MS)
            return True
        except ControlError as error:
            if vm.kernel_stalls():
                return False
            if error.code != "timeout" or time.monotonic() > end:
                raise


def booted(daemon, **params):
    """A new VM when its agent is there. One that stalls as it boots (seen with four vCPUs under TCG, before anything was
    forked) is started anew: this is no test of booting."""
    for _ in range(BOOTS):
        vm = daemon.run_vm(**params)
        if boots(vm):
            return vm
        print("%s stalled as it booted" % vm.name, file=sys.stderr)
        vm.stop()
    raise AssertionError("%d guests stalled as they booted" % BOOTS)


def linux(daemon, memory=256 * MIB, vcpus=1, disks=(), pool=0, name=None, tools=True, more="", flavour="SF_IMAGE",
          **params):
    """Boot the guest image (of the flavour that this variable names), with `more` on its kernel's command line; returns a
    Vm with a shell. The root disk is never written: ephemeral."""
    with open(image("cmdline", flavour)) as file:
        append = " ".join([file.read().strip(), TIMER, more]).strip()
    all_disks = [{"path": image("rootfs.qcow2", flavour), "ephemeral": True}]
    if tools:
        all_disks.append({"path": tools_image(daemon.top), "format": "raw", "readonly": True})
    if name:
        params["name"] = name
    vm = booted(daemon, memory=memory, vcpus=vcpus, accel="tcg", kernel=image("vmlinuz", flavour),
                initrd=image("initrd.img", flavour), append=append, disks=all_disks + list(disks), pool=pool, **params)
    vm.start_shell()
    if tools:
        vm.shell("mkdir -p %s && tar -xf /dev/vdb -C %s" % (TOOLS, TOOLS))
    return vm


def blank_disk(daemon, name, mib):
    """A raw disk of zeros."""
    path = os.path.join(daemon.top, name)
    with open(path, "wb") as file:
        file.truncate(mib * MIB)
    os.chmod(path, 0o666)
    return path


# ---------------------------------------------------------------- test case

class Case(unittest.TestCase):
    """A class has its daemon in `daemon`, or a test starts one by start_daemon()."""

    daemon = None
    check_footprint = True

    def setUp(self):
        self.before = None
        if self.daemon and self.check_footprint:
            self.before = self.daemon.footprint()
            self.addCleanup(self.compare_footprint)

    def start_daemon(self, **kwargs):
        daemon = Daemon(**kwargs)
        self.addCleanup(self.end_daemon, daemon)
        daemon.start()
        return daemon

    def end_daemon(self, daemon):
        left = daemon.close()
        self.assertEqual(left, [], "processes that outlived their daemon")

    def compare_footprint(self):
        """Whatever the test did, the daemon is as it was. What goes in the background gets its time."""
        if self.before is None:
            return
        difference = None

        def same():
            nonlocal difference
            after = self.daemon.footprint()
            difference = {key: (self.before[key], after[key]) for key in after if after[key] != self.before[key]}
            return not difference
        try:
            wait(same, SHORT, "footprint")
        except AssertionError:
            self.fail("left behind (before, after): %s" % json.dumps(changes(difference), indent=1))

    def error(self, code, method, *words, **params):
        """The call must fail with this code; the message must name what it is about, the hint say what to do."""
        with self.assertRaises(ControlError) as caught:
            self.daemon.call(method, **params)
        self.assertEqual(caught.exception.code, code, str(caught.exception))
        for word in words:
            self.assertIn(word, caught.exception.message + " " + caught.exception.hint)
        return caught.exception


def changes(difference):
    """Of dicts only what differs."""
    result = {}
    for key, (before, after) in difference.items():
        if isinstance(before, dict):
            names = [name for name in set(before) | set(after) if before.get(name) != after.get(name)]
            result[key] = {name: (before.get(name, 0), after.get(name, 0)) for name in names}
        else:
            result[key] = (before, after)
    return result


def main():
    unittest.main(verbosity=2)
