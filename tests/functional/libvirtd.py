# SPDX-License-Identifier: GPL-2.0-or-later
"""A real libvirtd of its own: private run, state, cache, log and configuration directories in a mount namespace.

    Libvirtd    starts and ends it; virsh(); the daemon and its domains leave nothing behind
    Daemon      a sfvmmd beside it, in the same mount namespace
    Session, UserDaemon     the same of an ordinary user, without a mount namespace
    Console     what a domain writes, and what is typed into it

Run as a program, this file is what keeps the libvirtd: it is the child subreaper of QEMUs (process 1 of a container may
take a second to reap them), and starts libvirtd anew when it ends, as systemd would.
"""
import contextlib
import ctypes
import grp
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
import xml.sax.saxutils

import harness

FOLDERS = ("/run/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt", "/etc/libvirt")
PID_FILE = "/run/libvirt/libvirtd.pid"
ACCOUNT_FILES = ("/etc/passwd", "/etc/group")
ACCOUNTS = {"libvirt-qemu": 64055, "sshd": 64056}     # the first is Debian's; of the second any will do
PR_SET_CHILD_SUBREAPER = 36
KVM = "/dev/kvm"
PAUSE = 0.1                     # before a libvirtd that has ended is started again


def need():
    """Paths of libvirtd and virsh, or a skip."""
    if os.geteuid() != 0:
        raise harness.unittest.SkipTest("a libvirtd with private directories needs root (mount namespaces)")
    for name in ("libvirtd", "virsh"):
        if not shutil.which(name):
            raise harness.unittest.SkipTest("%s is missing: install libvirt-daemon, libvirt-daemon-driver-qemu and "
                                            "libvirt-clients" % name)
    for folder in FOLDERS:
        os.makedirs(folder, exist_ok=True)


def share_kvm():
    """To the user of QEMUs, as udev would, if there is one: what libvirtd may open and they may not makes it ask the
    emulator anew what it can do, before each start of a domain."""
    user = harness.pwd.getpwnam(harness.qemu_user())
    if os.path.exists(KVM) and os.stat(KVM).st_mode & 0o7077 == 0:
        os.chown(KVM, -1, user.pw_gid)
        os.chmod(KVM, 0o660)


class Libvirtd:
    """One libvirtd, qemu:///system for whoever is in its mount namespace."""

    def __init__(self, group=None, tls=""):
        """group: its members may use it; None: everybody. tls: lines of libvirtd.conf for others to come by TLS."""
        need()
        self.group = group
        self.tls = tls
        self.top = tempfile.mkdtemp(prefix="sfl")
        os.chmod(self.top, 0o755)
        self.log = os.path.join(harness.logs(), "libvirtd-%s.log" % os.path.basename(self.top))
        self.uuid = str(uuid.uuid4())
        self.uri = "qemu:///system"
        self.keeper = None

    def folder(self, path):
        return self.top + path

    def write_configuration(self):
        for folder in FOLDERS:
            os.makedirs(self.folder(folder))
        etc = self.folder("/etc/libvirt")
        with open(os.path.join(etc, "libvirtd.conf"), "w") as file:
            file.write('host_uuid = "%s"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\nlog_outputs = "2:file:%s"\n'
                       % (self.uuid, self.log))
            file.write(self.tls or "listen_tls = 0\n")
            if self.group:
                file.write('unix_sock_group = "%s"\nunix_sock_rw_perms = "0770"\n' % self.group)
        user = harness.qemu_user()
        group = harness.pwd.getpwnam(user).pw_gid
        with open(os.path.join(etc, "qemu.conf"), "w") as file:
            file.write('user = "%s"\ngroup = "+%d"\ncgroup_controllers = []\nsecurity_driver = "none"\n'
                       'stdio_handler = "file"\n' % (user, group))

    def start(self):
        self.write_configuration()
        share_kvm()
        self.keeper = subprocess.Popen(["unshare", "-m", "--propagation", "private", sys.executable,
                                        os.path.abspath(__file__), self.top] + ["--listen"] * bool(self.tls),
                                       stdin=subprocess.DEVNULL)
        harness.wait(self.answers, harness.SHORT, "libvirtd's answer")
        return self

    def answers(self):
        if self.keeper.poll() is not None:
            raise AssertionError("libvirtd's keeper ended with %d" % self.keeper.returncode)
        return self.virsh("list", check=False) is not None

    def inside(self, command):
        """The command in the mount namespace of this libvirtd and below its root (a chroot perhaps)."""
        return ["nsenter", "-m", "-r", "-w", "-t", str(self.keeper.pid), "--"] + command

    def virsh(self, *words, check=True, text=None):
        """What virsh prints; None (check False) or an error when it fails."""
        result = subprocess.run(self.inside(["virsh", "-q", "-c", self.uri] + list(words)), input=text, text=True,
                                stdin=None if text else subprocess.DEVNULL, capture_output=True, timeout=harness.LONG)
        if result.returncode == 0:
            return result.stdout
        if check:
            raise AssertionError("virsh %s: %s" % (" ".join(words), result.stderr.strip()))
        return None

    def write_linux(self, name, **kwargs):
        """XML of a domain with the Debian of the tests, whose image stands on one that others may share: that one, and
        the XML's file. kwargs: of domain_xml()."""
        base = shutil.copy(harness.image("rootfs.qcow2"), os.path.join(self.top, "base.qcow2"))
        disk, path = (os.path.join(self.top, name + ending) for ending in (".qcow2", ".xml"))
        subprocess.run([harness.qemu_img(), "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, disk], check=True)
        boot = [shutil.copy(harness.image(file), self.top) for file in ("vmlinuz", "initrd.img")]
        with open(harness.image("cmdline")) as file:
            append = file.read().strip()
        with open(path, "w") as file:
            file.write(domain_xml(name, [(disk, "qcow2", False)], kernel=boot[0], initrd=boot[1], append=append, **kwargs))
        return base, path

    def domains(self, *states):
        """Names of its domains: running, paused or only defined."""
        return sorted(self.virsh("list", "--name", *(states or ("--all",))).split())

    def pid(self):
        """libvirtd's own: the child of its keeper with that name; others are QEMUs that it has started."""
        with open("/proc/%d/task/%d/children" % (self.keeper.pid, self.keeper.pid)) as file:
            children = [int(word) for word in file.read().split()]
        return next(pid for pid in children if harness.command_line(pid).split()[0] == "libvirtd")

    def kill(self, number=signal.SIGKILL):
        """End libvirtd; its keeper starts it again. Its domains go on."""
        os.kill(self.pid(), number)

    def close(self):
        if not self.keeper:
            return
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            for name in self.domains("--state-running") + self.domains("--state-paused"):
                self.virsh("destroy", name, check=False)
        self.keeper.terminate()
        self.keeper.wait(harness.LONG)
        self.keeper = None
        logs = self.folder("/var/log/libvirt/qemu")
        for name in os.listdir(logs) if os.path.isdir(logs) else []:
            shutil.copy(os.path.join(logs, name), "%s-%s" % (self.log, name))
        shutil.rmtree(self.top, ignore_errors=True)


class Session(Libvirtd):
    """The libvirtd of an ordinary user: qemu:///session."""

    def __init__(self, user):
        super().__init__()
        self.user = harness.pwd.getpwnam(user)
        os.chown(self.top, self.user.pw_uid, self.user.pw_gid)
        self.uri = "qemu:///session"

    def environment(self):
        """A command before the command of one who is that user already."""
        return ["env", "HOME=" + self.top, "XDG_RUNTIME_DIR=" + self.top]

    def inside(self, command):
        return ["setpriv", "--reuid", str(self.user.pw_uid), "--regid", str(self.user.pw_gid), "--clear-groups",
                *self.environment(), *command]

    def start(self):
        folder = os.path.join(self.top, ".config/libvirt")
        subprocess.run(self.inside(["mkdir", "-p", folder]), check=True)
        with open(os.path.join(folder, "qemu.conf"), "w") as file:
            file.write('stdio_handler = "file"\n')
        self.keeper = subprocess.Popen(self.inside([sys.executable, os.path.abspath(__file__)]),
                                       stdin=subprocess.DEVNULL)
        harness.wait(self.answers, harness.SHORT, "libvirtd's answer")
        return self


class Beside:
    """A sfvmmd that sees a libvirtd as qemu:///system: mixed into harness.Daemon or one of its kind."""

    def __init__(self, libvirtd, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.libvirtd = libvirtd

    def command(self):
        return self.libvirtd.inside(super().command())

    def sfctl(self, *words, check=True):
        result = subprocess.run([harness.program("sfvmm/cli/sfctl"), "--socket", self.socket_path] + list(words),
                                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=harness.LONG)
        if check and result.returncode:
            raise AssertionError("sfctl %s: %s" % (" ".join(words), result.stderr))
        return result


class Daemon(Beside, harness.Daemon):
    pass


class MemberDaemon(Daemon):
    """That of a user whose only right is to be in the group that may use this libvirtd."""

    def __init__(self, keeper, **kwargs):
        super().__init__(keeper, user=harness.account("daemon", "bin"), **kwargs)

    def credentials(self):
        return {}                       # to enter the libvirtd's mount namespace takes root

    def command(self):
        rights = ["setpriv", "--reuid", str(self.user.pw_uid), "--regid", str(self.user.pw_gid), "--groups",
                  str(grp.getgrnam(self.libvirtd.group).gr_gid), "--"]
        return self.libvirtd.inside(rights + harness.Daemon.command(self))


class UserDaemon(Daemon):
    """That of the user whose session it is."""

    def __init__(self, session, **kwargs):
        super().__init__(session, user=session.user.pw_name, **kwargs)

    def command(self):
        return self.libvirtd.environment() + harness.Daemon.command(self)


DOMAIN = """<domain type='qemu'>
  <name>%(name)s</name>
  <memory unit='MiB'>%(mib)d</memory>
  <vcpu>%(vcpus)d</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type>%(boot)s</os>
  <features><acpi/></features>
  %(cpu)s
  %(backing)s
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>%(emulator)s</emulator>
    %(disks)s
    <controller type='virtio-serial' ports='2'/>
    <serial type='pty'/>
    %(channel)s
    <memballoon model='virtio' freePageReporting='on'/>
    %(more)s
  </devices>
</domain>
"""
DISK = """<disk type='file' device='disk'><driver name='qemu' type='%(format)s'/><source file='%(path)s'/>
    <target dev='vd%(letter)s' bus='virtio'/>%(readonly)s</disk>"""
BACKING = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
CHANNEL = "<channel type='unix'><target type='virtio' name='org.snowflock.agent.0'/></channel>"
CPU = "<cpu mode='custom' match='exact'><model>qemu64</model>%s</cpu>" % "".join(
    "<feature policy='require' name='%s'/>" % name for name in ("ssse3", "sse4.1", "sse4.2", "popcnt", "rdrand"))


def domain_xml(name, disks, mib=256, vcpus=1, kernel=None, initrd=None, append=None, emulator=None, backing=BACKING,
               channel=CHANNEL, more=""):
    """disks: of (path, format, readonly)."""
    boot = "".join("<%s>%s</%s>" % (tag, xml.sax.saxutils.escape(text), tag)
                   for tag, text in (("kernel", kernel), ("initrd", initrd), ("cmdline", append)) if text)
    texts = [DISK % {"path": path, "format": kind, "letter": chr(ord("a") + i), "readonly": "<readonly/>" * readonly}
             for i, (path, kind, readonly) in enumerate(disks)]
    return DOMAIN % {"name": name, "mib": mib, "vcpus": vcpus, "boot": boot, "emulator": emulator or harness.qemu(),
                     "disks": "\n    ".join(texts), "backing": backing, "channel": channel, "cpu": CPU, "more": more}


class Console:
    """Reads a domain's console, a terminal on this machine, from when it is opened."""

    def __init__(self, libvirtd, name):
        path = libvirtd.virsh("ttyconsole", name).strip()
        self.fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        self.data = b""

    def whole(self):
        with contextlib.suppress(BlockingIOError, OSError):
            while True:
                more = os.read(self.fd, 1 << 16)
                if not more:
                    break
                self.data += more
        return self.data

    def write(self, text):
        """Typed into it; waits while the guest is slow to read."""
        data = text.encode()
        while data:
            with contextlib.suppress(BlockingIOError):
                data = data[os.write(self.fd, data):]
            if data:
                self.whole()
                select.select([], [self.fd], [])

    def close(self):
        os.close(self.fd)


def add_accounts(top):
    """libvirtd's default user and sshd's, which come with packages that are not needed otherwise."""
    for path in ACCOUNT_FILES:
        with open(path) as file:
            text = file.read()
        for name, number in ACCOUNTS.items():
            if not re.search("^%s:" % name, text, re.M):
                text += "%s:x:%d:%s\n" % (name, number, "" if path == "/etc/group" else
                                          "%d::/nonexistent:/usr/sbin/nologin" % number)
        os.makedirs(os.path.dirname(top + path), exist_ok=True)
        with open(top + path, "w") as file:
            file.write(text)


def keep(top_or_none=None, *more):
    """The program: mount (but for a session), run libvirtd, reap, until SIGTERM. more: of libvirtd's options."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if top_or_none:
        add_accounts(top_or_none)
        for path in FOLDERS + ACCOUNT_FILES:
            subprocess.run(["mount", "--bind", top_or_none + path, path], check=True)
    libvirtd = None
    command = ["libvirtd"]
    if top_or_none:
        command += ["--pid-file", PID_FILE, *more]     # its default is outside of the folders

    def end(*_):
        if libvirtd:
            libvirtd.terminate()
        raise SystemExit
    signal.signal(signal.SIGTERM, end)
    while True:
        libvirtd = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                    stderr=subprocess.DEVNULL)
        while os.waitpid(-1, 0)[0] != libvirtd.pid:
            pass
        time.sleep(PAUSE)


if __name__ == "__main__":
    keep(*sys.argv[1:])
