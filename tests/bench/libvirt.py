#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/bench libvirt: what a fork of a libvirt domain costs, beside the same without libvirt.

    libvirt.return.N        `sf-virsh sf-clone --count N` is started -> the last agent has answered; the shells are there
    libvirt.return.N.exec   the same of a VM that sfvmmd itself has started, by `sfctl clone`, in turn with the other
    libvirt.return.32x4     32 clones over four hosts with a libvirtd each; the first of its forks, which makes the shells at
                            the other hosts, is not counted
    libvirt.pause           Suspended -> Resumed of the parent, as `virsh event` tells them, in whole milliseconds: of each
                            fork, and of each time that its memory is made one again after a fork
    libvirt.create          `virsh create --paused` of a domain with our QEMU, as virsh times it; libvirt.create.stock:
                            the same XML with the QEMU that SF_QEMU_STOCK names, else Debian's

    libvirt.copy            a domain whose memory is anonymous, at its first fork: ms until all of it is a memfd; .longest: the longest
                            of the pauses for that, .pauses: their number, .mib: what was copied
    libvirt.scaleup         examples/controller over three hosts with a libvirtd each, from a spike of its load until each of
                            the workers that it asks for has served a request: workers that are forked off a warm one
    libvirt.boot            the same with workers that boot

The guest is the Debian of the other benches, with 1 GiB, under TCG. A real libvirtd with directories of its own, so
root is needed. NAME.ratio is made of the medians of the two figures.
"""
import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "functional")]

import fleet                                        # noqa: E402
import harness                                      # noqa: E402
import libvirtd                                     # noqa: E402
from lib import guest, run                          # noqa: E402
from lib.daemon import daemon                       # noqa: E402

MIB = harness.MIB
GUEST_MIB = 1024
COUNTS = (1, 8, 32)
TURNS = {1: 8, 8: 5, 32: 3}
HOSTS = "abcd"
NS_PER_MS = 1e6
MS_PER_S = 1e3
FORK_SECONDS, BOOT_SECONDS = 60, 200        # of load, at most
NAME = "web"
WORKER = "/usr/local/bin/sf-fleet-worker"
INITTAB = "web:2:respawn:%s --address %s >/dev/null 2>&1\n" % (WORKER, fleet.ADDRESS)
SF_VIRSH = os.path.join(harness.ROOT, "sfvmm/virsh/sf-virsh")

BARS = {"libvirt.return.32.ratio": 2, "libvirt.create.ratio": 0.5, "libvirt.pause": 50, "libvirt.scaleup.ratio": 0.3}


# ---------------------------------------------------------------- VMs

@contextlib.contextmanager
def bench_libvirtd():
    keeper = libvirtd.Libvirtd()
    try:
        yield keeper.start()
    finally:
        keeper.close()


def write_domain(keeper, name, emulator=None, append=None, **kwargs):
    """XML of a domain with the guest image; its file. kwargs: of libvirtd.domain_xml()."""
    if append is None:
        with open(harness.image("cmdline")) as file:
            append = file.read().strip()
    disk = os.path.join(keeper.top, name + ".qcow2")
    boot = [shutil.copy(harness.image(file), keeper.top) for file in ("vmlinuz", "initrd.img")]
    if not os.path.exists(disk):
        shutil.copy(harness.image("rootfs.qcow2"), disk)
    text = libvirtd.domain_xml(name, [(disk, "qcow2", False)], mib=GUEST_MIB, kernel=boot[0], initrd=boot[1],
                               append=append, emulator=emulator, **kwargs)
    path = os.path.join(keeper.top, name + ".xml")
    with open(path, "w") as file:
        file.write(text)
    return path


class Domain:
    """The parent as sfvmmd has it; its console is libvirt's."""

    def __init__(self, server):
        self.daemon, self.name = server, NAME
        self.info = self.status()

    def status(self):
        return self.daemon.call("vm.status", vm=self.name)["vm"]

    disks_at_first = harness.Vm.disks_at_first


def domain_vm(keeper, server, pool, **kwargs):
    """The domain, booted and taken by sfvmmd."""
    keeper.virsh("create", write_domain(keeper, NAME, **kwargs))
    server.call("domain.adopt", domain=NAME, pool=pool)
    server.call("vm.wait", vm=NAME, agent=True, timeout_ms=int(harness.LONG * 1000))
    return Domain(server)


def ready(vm):
    """As if it had never been forked, with all its shells."""
    harness.wait(vm.disks_at_first, harness.LONG, "disks of %s made one again" % vm.name)
    harness.wait(vm.daemon.pools_full, harness.LONG, "full pool")


# ---------------------------------------------------------------- forks

def fork(vm, command, environment=None):
    """ms from the start of a command that forks the VM until the last of its clones has answered."""
    ready(vm)
    begin = time.monotonic_ns()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=harness.LONG,
                          env=dict(os.environ, **(environment or {})))
    if done.returncode:
        raise RuntimeError("%s: %s" % (" ".join(command), done.stderr))
    ticket = json.loads(done.stdout)["ticket"]
    answered = [clone["answered"] for clone in ticket["clones"]]
    bad = [clone for clone in ticket["clones"] if not clone["answered"]]
    vm.daemon.end_ticket(ticket["ticket"])
    if bad:
        raise RuntimeError("clone %d: %s: %s" % (bad[0]["id"], bad[0]["state"], bad[0]["reason"]))
    return (max(answered) - begin) / NS_PER_MS


def fork_domain(keeper, vm, count):
    tools = os.path.dirname(harness.program("sfvmm/cli/sfctl"))
    return fork(vm, keeper.inside([SF_VIRSH, "sf-clone", NAME, "--count", str(count), "--json"]),
                {"PATH": tools + ":" + os.environ["PATH"], "SF_SOCKET": vm.daemon.socket_path})


def fork_exec(vm, count):
    return fork(vm, [harness.program("sfvmm/cli/sfctl"), "--socket", vm.daemon.socket_path, "--json", "clone", vm.name,
                     "--count", str(count)])


def measure_return(figures, quick):
    counts = COUNTS[:2] if quick else COUNTS
    with bench_libvirtd() as keeper, daemon(functools.partial(libvirtd.Daemon, keeper)) as with_libvirt, \
            daemon() as without:
        domain = domain_vm(keeper, with_libvirt, max(counts))
        vm = harness.linux(without, memory=GUEST_MIB * MIB, pool=max(counts), tools=False)
        for count in counts:

            def both():
                for each in (domain, vm):       # neither fork runs while the other's shells are made anew
                    ready(each)
                first = fork_domain(keeper, domain, count)
                ready(domain)
                return first, fork_exec(vm, count)
            pairs = run.repeat("return %d" % count, 2 if quick else TURNS[count], both)
            name = "libvirt.return.%d" % count
            figures.add(name, "ms", [pair[0] for pair in pairs])
            figures.add(name + ".exec", "ms", [pair[1] for pair in pairs])
            add_ratio(figures, name + ".ratio", name, name + ".exec")
        vm.stop()


def add_ratio(figures, name, over, under):
    figures.add(name, "ratio", [figures.get(over)["median"] / figures.get(under)["median"]])


def measure_hosts(figures, quick):
    count, turns = (8, 1) if quick else (32, 4)
    fleet.need()
    with fleet.several_hosts(HOSTS) as found:
        vm = domain_vm(found[0].libvirtd, found[0], count // len(HOSTS))

        def spread():
            for host in found:
                harness.wait(host.pools_full, harness.LONG, "full pool of host " + host.name)
            return fork_domain(found[0].libvirtd, vm, count)
        times = run.repeat("return %d over %d hosts" % (count, len(HOSTS)), turns, spread)
    figures.add("libvirt.return.%dx%d" % (count, len(HOSTS)), "ms", times)


# ---------------------------------------------------------------- pause

def events_ms(text, event):
    """Times of the lifecycle events of a parent, in ms of their day."""
    found = re.findall(r"^\S+ (\d+):(\d+):(\d+)\.(\d+)\S*: event 'lifecycle' for domain '?%s'?: %s" % (NAME, event), text,
                       re.M)
    return [((int(h) * 60 + int(m)) * 60 + int(s)) * 1000 + int(ms) for h, m, s, ms in found]


def measure_pause(figures, quick):
    turns = 2 if quick else 10
    with bench_libvirtd() as keeper, daemon(functools.partial(libvirtd.Daemon, keeper)) as server:
        vm = domain_vm(keeper, server, 1)
        watcher = subprocess.Popen(keeper.inside(["virsh", "event", NAME, "--event", "lifecycle", "--loop",
                                                  "--timestamp"]),
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        try:
            run.repeat("pause", turns, lambda: fork_domain(keeper, vm, 1))
        finally:
            watcher.send_signal(signal.SIGINT)
            text = watcher.communicate(timeout=harness.LONG)[0]
    begins, ends = events_ms(text, "Suspended"), events_ms(text, "Resumed")
    if len(begins) != len(ends) or len(begins) <= turns:
        raise RuntimeError("virsh tells of %d pauses in %d forks: %s" % (len(begins), turns + 1, text))
    figures.add("libvirt.pause", "ms", [end - begin for begin, end in zip(begins[1:], ends[1:])])


# ---------------------------------------------------------------- anonymous memory

def copy():
    """What vm.status says of it, of a domain that has just booted."""
    with bench_libvirtd() as keeper, daemon(functools.partial(libvirtd.Daemon, keeper)) as server:
        vm = domain_vm(keeper, server, 1, backing="")
        fork_domain(keeper, vm, 1)
        return vm.status()["copied"]


def measure_copy(figures, quick):
    found = [copy() for _ in range(1 if quick else 3)]
    figures.add("libvirt.copy", "ms", [one["total"] / NS_PER_MS for one in found])
    figures.add("libvirt.copy.longest", "ms", [one["longest"] / NS_PER_MS for one in found])
    figures.add("libvirt.copy.pauses", "", [one["pauses"] for one in found])
    figures.add("libvirt.copy.mib", "MiB", [one["bytes"] / MIB for one in found])


# ---------------------------------------------------------------- create

def create(keeper, path):
    """ms, as virsh times it."""
    text = keeper.virsh("-t", "create", "--paused", path)
    keeper.virsh("destroy", NAME)
    return float(re.search(r"\(Time: ([\d.]+) ms\)", text).group(1))


def measure_create(figures, quick):
    stock = os.environ.get("SF_QEMU_STOCK") or shutil.which("qemu-system-x86_64")
    if not stock:
        raise harness.unittest.SkipTest("no stock QEMU: install qemu-system-x86, or set SF_QEMU_STOCK")
    with bench_libvirtd() as keeper:
        ours = write_domain(keeper, NAME)
        with open(ours) as file:
            text = file.read()
        other = os.path.join(keeper.top, "stock.xml")
        with open(other, "w") as file:
            file.write(text.replace("<emulator>%s</emulator>" % harness.qemu(), "<emulator>%s</emulator>" % stock))
        pairs = run.repeat("create", 3 if quick else 12, lambda: (create(keeper, ours), create(keeper, other)))
    figures.add("libvirt.create", "ms", [pair[0] for pair in pairs])
    figures.add("libvirt.create.stock", "ms", [pair[1] for pair in pairs])
    add_ratio(figures, "libvirt.create.ratio", "libvirt.create", "libvirt.create.stock")


# ---------------------------------------------------------------- scale-up

@contextlib.contextmanager
def worker_image():
    """The guest image with a worker that init starts."""
    with tempfile.NamedTemporaryFile("w") as inittab:
        with open(os.path.join(harness.ROOT, "scripts/guest-files/etc/inittab")) as file:
            inittab.write(file.read() + INITTAB)
        inittab.flush()
        with guest.image(more={WORKER: os.path.join(fleet.EXAMPLE, "sf-fleet-worker"), "/etc/inittab": inittab.name}):
            yield


def measure_scaleup(figures, quick):
    size, turns = (3, 1) if quick else (4, 5)
    fleet.need()
    with worker_image(), fleet.several_hosts() as found:
        base = fleet.start_parent(found[0])
        forks = run.repeat("scaleup", turns, lambda: fleet.scale_up(found, size, FORK_SECONDS))
        boots = [fleet.scale_up(found, size, BOOT_SECONDS, ["--boot", found[0].libvirtd.top, "--image", base,
                                                            "--qemu-img", harness.qemu_img()])]
    if any(turn["size"] != size for turn in forks + boots) or any(len(fork["hosts"]) < len(found) for fork in forks):
        raise RuntimeError("not all workers, or not on all hosts: %s, %s" % (forks, boots))
    figures.add("libvirt.scaleup", "ms", [fork["took"] * MS_PER_S for fork in forks])
    figures.add("libvirt.boot", "ms", [boot["took"] * MS_PER_S for boot in boots])
    add_ratio(figures, "libvirt.scaleup.ratio", "libvirt.scaleup", "libvirt.boot")


def no_plot(_figures, _path):
    raise harness.unittest.SkipTest("this bench draws nothing")


class Bench:
    name = "libvirt"
    about = "What a fork of a libvirt domain costs, beside the same without libvirt."
    bars = BARS
    groups = {"return": measure_return, "hosts": measure_hosts, "pause": measure_pause, "copy": measure_copy,
              "create": measure_create, "scaleup": measure_scaleup}
    plot = staticmethod(no_plot)

    @staticmethod
    def prepare():
        libvirtd.need()
        return contextlib.nullcontext()


if __name__ == "__main__":
    run.main(Bench)
