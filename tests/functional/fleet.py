# SPDX-License-Identifier: GPL-2.0-or-later
"""examples/controller over hosts with a libvirtd each: from a spike of the load until all workers that it asks for serve.

    host a: parent "web", warmed up       hosts b, c
      |                                      |
    sf-fleet --- sf-clone, or boots ---> workers on all three <--- balancer <--- sf-fleet-load: one client, then many
"""
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request

import harness
import hosts
import libvirtd

NAMES = ("a", "b", "c")
NAME = "web"
MIB = 512
EXAMPLE = os.path.join(harness.ROOT, "examples/controller")
ADDRESS = "10.0.2.15/24"            # of QEMU's own network
QUERY = "/search?q=lock"
PER_WORKER = 2
IDLE_SECONDS = 2


class Host(libvirtd.Beside, hosts.Host):
    def uri(self):
        """Its libvirtd, seen from outside of its mount namespace."""
        return "qemu+unix:///system?socket=" + self.libvirtd.folder("/run/libvirt/libvirt-sock")


def need():
    """python3-libvirt, or a skip."""
    libvirtd.need()
    if subprocess.run([sys.executable, "-c", "import libvirt_qemu"], cwd="/", capture_output=True).returncode:
        raise harness.unittest.SkipTest("python3-libvirt is missing")


@contextlib.contextmanager
def several_hosts(names=NAMES):
    with contextlib.ExitStack() as stack:
        keys = hosts.Keys()
        stack.callback(keys.close)
        found = []
        for name in names:
            keeper = libvirtd.Libvirtd()
            stack.callback(keeper.close)
            keeper.start()
            overlays = tempfile.mkdtemp(prefix="sfo", dir="/var/tmp")
            stack.callback(shutil.rmtree, overlays, ignore_errors=True)
            os.chmod(overlays, 0o755)
            host = Host(keeper, name, keys, config={"pool": 0, "overlay-directory": overlays})
            stack.callback(host.close)
            found.append(host.start())
        hosts.introduce(found)
        yield found


def start_parent(host, start_worker=lambda: None):
    """The domain, which has made its index. start_worker: for an image whose init does not. The image below its disk."""
    base, path = host.libvirtd.write_linux(NAME, mib=MIB, more="<interface type='user'><model type='virtio'/></interface>")
    host.libvirtd.virsh("create", path)
    start_worker()
    port = hosts.free_port()
    host.libvirtd.virsh("qemu-monitor-command", NAME, "--hmp", "hostfwd_add hostnet0 tcp:127.0.0.1:%d-:80" % port)

    def ready():
        with contextlib.suppress(OSError):
            return urllib.request.urlopen("http://127.0.0.1:%d/ready" % port, timeout=5).status == 200
    harness.wait(ready, harness.LONG, "the first worker's index")
    host.call("domain.adopt", domain=NAME)
    host.call("vm.wait", vm=NAME, agent=True, timeout_ms=int(harness.LONG * 1000))
    return base


class Fleet:
    """A run of sf-fleet, and what it says."""

    def __init__(self, found, more):
        self.port = hosts.free_port()
        first = found[0]
        command = [sys.executable, os.path.join(EXAMPLE, "sf-fleet"), "--domain", NAME, "--listen", str(self.port),
                   "--per-worker", str(PER_WORKER), "--idle", str(IDLE_SECONDS), "--virsh-uri", "qemu:///system",
                   "--virsh", os.path.join(harness.ROOT, "sfvmm/virsh/sf-virsh"), *more]
        for host in found:
            command += ["--host", "%s=%s,127.0.0.1" % (host.name, host.uri())]
        tools = os.path.dirname(harness.program("sfvmm/cli/sfctl"))
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=dict(
            os.environ, PATH=tools + ":" + os.environ["PATH"], SF_SOCKET=first.socket_path))
        self.said = []

    def wait(self, event):
        """The next line of that event."""
        for line in self.process.stdout:
            self.said.append(json.loads(line))
            if self.said[-1]["event"] == event:
                return self.said[-1]
        raise RuntimeError("sf-fleet ended before it said \"%s\": %s" % (event, self.said))

    def load(self, *phases):
        return subprocess.Popen([sys.executable, os.path.join(EXAMPLE, "sf-fleet-load"),
                                 "http://127.0.0.1:%d%s" % (self.port, QUERY), *phases], stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, text=True)

    def end(self):
        self.process.terminate()
        self.process.communicate(timeout=harness.LONG)


def scale_up(found, size, seconds, more=()):
    """One spike, of at most so many seconds: sf-fleet's line about the capacity that it led to; then the fleet is small
    again, and ends."""
    fleet = Fleet(found, ["--max", str(size), *more])
    try:
        fleet.wait("ready")
        load = fleet.load("1:2", "%d:%d" % (size * PER_WORKER, seconds))
        capacity = fleet.wait("capacity")
        load.terminate()
        load.communicate()
        fleet.wait("shrunk")
        return capacity
    finally:
        fleet.end()
