# SPDX-License-Identifier: GPL-2.0-or-later
"""A real Slurm: munged, slurmctld and one slurmd per host of a Link or Bridge, each in that host's network namespace
and under its name. No systemd, no cgroups, nothing outside one directory.
"""
import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import tempfile
import unittest

import harness

CLONE_NEWUTS = 0x04000000
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
CONTROL_PORT, NODE_PORT = 6817, 6818    # in namespaces of their own
MEMORY = 4096                           # MiB that each node is said to have
PARTITION, FEATURE = "all", "clones"    # the one that there is; what all nodes have
MESSAGE_TIMEOUT = int(4 * max(harness.SCALE, 1))    # seconds that a command asks for a controller that is not there
CGROUPLESS = (23, 2)            # the first version that can be told to leave cgroups alone

CONF = """
ClusterName=sft
SlurmctldHost={control}({address})
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={top}/munge.sock
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmctldPort={control_port}
SlurmdPort={node_port}
StateSaveLocation={top}/state
SlurmdSpoolDir={top}/spool-%n
SlurmctldPidFile={top}/slurmctld.pid
SlurmdPidFile={top}/slurmd-%n.pid
SlurmctldLogFile={logs}/slurmctld.log
SlurmdLogFile={logs}/slurmd-%n.log
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=1
MessageTimeout={message_timeout}
{nodes}
PartitionName={partition} Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""


def version():
    """(major, minor), or a skip."""
    for name in ("munged", "slurmctld", "slurmd", "salloc"):
        if not shutil.which(name, path=PATH):
            raise unittest.SkipTest("%s is missing (packages munge, slurmctld, slurmd, slurm-client)" % name)
    text = subprocess.run([shutil.which("slurmctld", path=PATH), "-V"], capture_output=True, text=True, check=True).stdout
    return tuple(int(number) for number in re.search(r"(\d+)\.(\d+)", text).groups())


class Slurm:
    """nodes: {host of the link: CPUs}. The first one has the controller."""

    def __init__(self, link, nodes):
        self.version = version()
        self.link = link
        self.control = next(iter(nodes))
        self.nodes = nodes
        self.top = tempfile.mkdtemp(prefix="sfslurm")
        self.conf = os.path.join(self.top, "slurm.conf")
        self.processes = {}
        try:
            self.configure()
            self.start()
        except BaseException:
            self.close()
            raise

    def configure(self):
        lines = ["NodeName=%s NodeAddr=%s CPUs=%d RealMemory=%d Feature=%s State=UNKNOWN" %
                 (name, self.link.ends[name][1], cpus, MEMORY, FEATURE) for name, cpus in self.nodes.items()]
        os.mkdir(os.path.join(self.top, "state"))
        with open(self.conf, "w") as file:
            file.write(CONF.format(control=self.control, address=self.link.ends[self.control][1], top=self.top,
                                   control_port=CONTROL_PORT, node_port=NODE_PORT, logs=harness.logs(),
                                   message_timeout=MESSAGE_TIMEOUT, nodes="\n".join(lines),
                                   names=",".join(self.nodes), partition=PARTITION))
        if self.version >= CGROUPLESS:
            with open(os.path.join(self.top, "cgroup.conf"), "w") as file:
                file.write("CgroupPlugin=disabled\n")
        with open(os.path.join(self.top, "munge.key"), "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(os.urandom(1024))

    def start(self):
        socket = os.path.join(self.top, "munge.sock")
        self.spawn("munged", self.control, "munged", "--foreground", "--force", "--socket=" + socket,
                   *("--%s-file=%s/munge.%s" % (what, self.top, what) for what in ("key", "pid", "log", "seed")))
        harness.wait(lambda: os.path.exists(socket), what="munged's socket")
        self.start_daemons()
        harness.wait(lambda: self.run("sinfo", "-h", "-o", "%T %D", check=False) == "idle %d\n" % len(self.nodes),
                     harness.LONG, "idle nodes")

    def start_daemons(self):
        """Nodes' daemons start with the controller: at their start they meet it, later after minutes."""
        self.spawn("slurmctld", self.control, "slurmctld", "-D", "-f", self.conf)
        for name in self.nodes:
            self.spawn("slurmd-" + name, name, "slurmd", "-D", "-f", self.conf)

    def end_daemons(self):
        """The controller has time to save its jobs: killed, it would know those of an earlier moment, seconds ago as a rule."""
        for key in [key for key in self.processes if key.startswith("slurm")]:
            self.end(key, kill=key != "slurmctld")

    def spawn(self, key, host, *command):
        with open(os.path.join(harness.logs(), key + ".out"), "ab") as log:
            self.processes[key] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env(), cwd="/",
                preexec_fn=lambda: self.enter(host))

    def enter(self, host):
        """In a child: to a host, under its name."""
        libc = ctypes.CDLL(None, use_errno=True)
        self.link.enter(host)
        if libc.unshare(CLONE_NEWUTS) or libc.sethostname(host.encode(), len(host)):
            raise OSError(ctypes.get_errno(), "unshare")

    def env(self):
        return dict(os.environ, SLURM_CONF=self.conf, PATH=PATH)

    def run(self, *command, check=True):
        """One of Slurm's commands at the controller's host; its output."""
        done = subprocess.run(command, preexec_fn=lambda: self.enter(self.control), env=self.env(), cwd="/",
                              capture_output=True, text=True)
        if check and done.returncode:
            raise AssertionError("%s: %s" % (" ".join(command), done.stderr))
        return done.stdout

    def jobs(self):
        """{job: (name, {node: CPUs})} of those that run."""
        found = {}
        for line in self.run("squeue", "-h", "-t", "RUNNING", "-o", "%A %j").splitlines():
            number, name = line.split()
            text = self.run("scontrol", "-o", "-d", "show", "job", number)
            nodes = {}
            for node, ids in re.findall(r" Nodes=(\S+) CPU_IDs=(\S+)", text):
                for each in self.run("scontrol", "show", "hostnames", node).split():
                    nodes[each] = sum(int(last or first) - int(first) + 1
                                      for first, last in re.findall(r"(\d+)(?:-(\d+))?", ids))
            found[int(number)] = (name, nodes)
        return found

    def end(self, key, kill=False):
        process = self.processes.pop(key)
        process.kill() if kill else process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(harness.SHORT)
        if process.poll() is None:
            process.kill()
            process.wait()

    def close(self):
        for key in list(reversed(self.processes)):
            self.end(key)
        shutil.rmtree(self.top, ignore_errors=True)
