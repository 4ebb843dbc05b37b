# SPDX-License-Identifier: GPL-2.0-or-later
"""The same work by what stock QEMU has: a template whose RAM is a shared file, saved with the migration capability
x-ignore-shared, and new QEMUs that map that file privately and load the saved state.

    template (share=on) --stop, migrate file:STATE--> STATE        restored (share=off, -incoming defer) x n
          RAM file  <-------------------------- mapped copy-on-write --------'

The template must not run on once something was restored from it, as both would see its writes: what stock QEMU does is
a launch of copies, not a fork. Where the parent is to run on, all RAM must be copied into the stream ("copy" below).

SF_QEMU_STOCK names an unpatched QEMU of the same version; without it the patched one does it, by code that the patches
do not touch. Machine and devices are those of sfvmm/vm/command_line.c; nobody speaks to the restored guests, so what
makes clones unique is not in these figures.
"""
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time

import harness

BOUND = 120                     # seconds for anything that QEMU is asked
PROMPT = re.compile(rb"[#$] $")


def binary():
    return os.environ.get("SF_QEMU_STOCK") or harness.qemu()


class Qmp:
    """One QMP connection, made before QEMU is up: the listening socket is ours."""

    def __init__(self, connection):
        self.socket = connection
        self.socket.settimeout(BOUND)
        self.data = b""
        self.events = []

    def line(self):
        while b"\n" not in self.data:
            more = self.socket.recv(1 << 16)
            if not more:
                raise ConnectionError("QEMU has ended")
            self.data += more
        line, _, self.data = self.data.partition(b"\n")
        return json.loads(line)

    def greet(self):
        """Wait until QEMU is up."""
        self.line()
        self.call("qmp_capabilities")

    def call(self, command, **arguments):
        self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = self.line()
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise RuntimeError("QMP %s: %s" % (command, answer["error"]["desc"]))
            else:
                return answer["return"]

    def event(self, name, **match):
        """The next event `name` with these members of its data, and its time in seconds since the epoch."""
        while True:
            while self.events:
                event = self.events.pop(0)
                if event.get("data", {}).get("status") == "failed":
                    raise RuntimeError("QEMU: migration failed")
                if event["event"] == name and match.items() <= event.get("data", {}).items():
                    stamp = event["timestamp"]
                    return stamp["seconds"] + stamp["microseconds"] / 1e6
            message = self.line()
            if "event" in message:
                self.events.append(message)


class Process:
    """One stock QEMU."""

    def __init__(self, folder, name, memory_mib, ram, share, disk, extra):
        self.console_log = os.path.join(folder, name + ".console")
        path = os.path.join(folder, name + ".qmp")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(1)
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)
        os.unlink(path)
        command = [binary(), "-name", name, "-nodefaults", "-no-user-config", "-display", "none"]
        for directory in os.environ.get("SF_FIRMWARE", "").split(":"):
            command += ["-L", directory] if directory else []
        command += [
            "-machine", "q35,memory-backend=ram0,vmport=off,smm=off,sata=off,smbus=off,dump-guest-core=off,mem-merge=off",
            "-object", "memory-backend-file,id=ram0,size=%dM,mem-path=%s,share=%s" % (memory_mib, ram, share),
            "-m", "%dM" % memory_mib, "-accel", "tcg", "-cpu", "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand",
            "-global", "apic-common.vapic=off",
            "-chardev", "socket,id=qmp,fd=%d,server=on,wait=off" % listener.fileno(), "-mon", "chardev=qmp,mode=control",
            "-chardev", "file,id=console,path=%s" % self.console_log, "-serial", "chardev:console",
            "-chardev", "null,id=agent", "-device", "virtio-serial-pci,max_ports=2,addr=0x2",
            "-device", "virtserialport,chardev=agent,name=org.snowflock.agent.0,nr=1",
            "-device", "virtio-balloon-pci,free-page-reporting=on,addr=0x3",
            "-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci,rng=rng,addr=0x4",
            "-drive", "file=%s,format=qcow2,if=none,id=disk" % disk,
            "-device", "virtio-blk-pci,drive=disk,num-queues=1,addr=0x8"] + extra
        self.started = time.time()
        with open(os.path.join(folder, name + ".log"), "wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            pass_fds=[listener.fileno()])
        listener.close()
        self.qmp = Qmp(connection)

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.qmp.socket.close()


class Stock:
    """A template VM and what is restored from it. close() ends all and removes the files."""

    def __init__(self, memory_mib=1024):
        self.memory_mib = memory_mib
        self.folder = tempfile.mkdtemp(prefix="sfs")
        self.state = os.path.join(self.folder, "state")
        self.ram = os.path.join(self.folder, "ram")
        self.processes = []
        self.serial = 0
        self.template = None

    def close(self):
        for process in self.processes:
            process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def overlay(self, base):
        self.serial += 1
        path = os.path.join(self.folder, "disk%d.qcow2" % self.serial)
        subprocess.run([harness.qemu_img(), "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", path], check=True)
        return path

    def start(self, name, ram, share, disk, extra):
        process = Process(self.folder, name, self.memory_mib, ram, share, disk, extra)
        self.processes.append(process)
        return process

    def end(self, process):
        process.kill()
        self.processes.remove(process)

    # -- what is measured; seconds

    def boot(self):
        """Boot the template (again); from the start of QEMU to the prompt of the guest's shell."""
        if self.template:
            self.end(self.template)
            os.unlink(self.ram)
        with open(harness.image("cmdline")) as file:
            append = file.read().strip()
        self.disk = self.overlay(harness.image("rootfs.qcow2"))
        self.template = self.start("template", self.ram, "on", self.disk, [
            "-kernel", harness.image("vmlinuz"), "-initrd", harness.image("initrd.img"), "-append", append])
        self.template.qmp.greet()

        def prompt():
            with open(self.template.console_log, "rb") as file:
                return PROMPT.search(file.read())
        harness.wait(prompt, BOUND, "prompt of the stock guest")
        took = time.time() - self.template.started
        self.template.qmp.call("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
        return took

    def pause(self, copy=False, run_on=True):
        """Save the template; from its stop to its going on. With copy its RAM is in the stream, so it may go on."""
        qmp = self.template.qmp
        qmp.events.clear()
        qmp.call("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": not copy}])
        if copy:
            qmp.call("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        begin = time.time()
        qmp.call("stop")
        qmp.call("migrate", uri="file:" + self.state)
        qmp.event("MIGRATION", status="completed")
        while qmp.call("query-status")["status"] != "postmigrate":      # the event is told a moment too early
            pass
        if not run_on:
            return None
        qmp.call("cont")
        return qmp.event("RESUME") - begin

    def restore(self, count, warm):
        """From the order to the first instruction of the last of `count`; warm: their QEMUs wait already."""
        disks = [self.overlay(self.disk) for _ in range(count)]
        order = threading.Event()
        running = [None] * count
        begin = time.time()
        processes = [self.start("restored%d" % i, self.ram, "off", disks[i], ["-incoming", "defer"])
                     for i in range(count)]
        ready = threading.Barrier(count + 1)

        def load(i):
            qmp = processes[i].qmp
            qmp.greet()
            qmp.call("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": True},
                                                               {"capability": "events", "state": True}])
            if warm:
                ready.wait(BOUND)
                order.wait(BOUND)
            qmp.call("migrate-incoming", uri="file:" + self.state)
            qmp.event("MIGRATION", status="completed")
            qmp.call("cont")                    # it was saved stopped
            running[i] = qmp.event("RESUME")
        threads = [threading.Thread(target=load, args=(i,)) for i in range(count)]
        for thread in threads:
            thread.start()
        if warm:
            ready.wait(BOUND)
            begin = time.time()
            order.set()
        for thread in threads:
            thread.join()
        if None in running:
            raise RuntimeError("a stock QEMU could not be restored; its reason stands above")
        for process, disk in zip(processes, disks):
            self.end(process)
            os.unlink(disk)
        return max(running) - begin
