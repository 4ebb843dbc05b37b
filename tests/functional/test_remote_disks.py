#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks of clones on another host: frozen content, own writes, each block once per host, locks, and who may read."""
import os
import re
import signal
import subprocess
import unittest

import harness
import hosts
import test_remote
from harness import on_all

SIZE = 24                       # MiB of the data disk


def listening_ports(pid):
    """TCP ports that a process listens at."""
    inodes = set()
    for number in os.listdir("/proc/%d/fd" % pid):
        try:
            found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink("/proc/%d/fd/%s" % (pid, number)))
        except OSError:
            continue
        if found:
            inodes.add(found.group(1))
    ports = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(table) as file:
            for line in list(file)[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in inodes:
                    ports.append(int(fields[1].split(":")[1], 16))
    return ports


class Disks(test_remote.Remote):
    """A parent with a data disk of its own, beside the root disk and a read-only one."""

    keys = {"pages": "tls"}

    @classmethod
    def setUpClass(cls):
        cls.keyring = hosts.Keys()
        cls.addClassCleanup(cls.keyring.close)
        cls.hosts = hosts.cluster(cls, cls.names, **cls.keys)
        cls.daemon = cls.a = cls.hosts["a"]
        cls.b = cls.hosts["b"]
        cls.data = harness.blank_disk(cls.a, "data.raw", SIZE)
        cls.parent = harness.linux(cls.a, memory=test_remote.MEMORY, pool=1, disks=[{"path": cls.data, "format": "raw"}])
        cls.probe = cls.parent.probe()
        cls.probe("open d dev /dev/vdc 0")

    def setUp(self):
        super().setUp()
        self.at("b")
        self.probe("fill d 1")

    def servers(self, host):
        return [pid for pid in host.processes() if "snowflock-nbd-" in harness.command_line(pid)]

    def server(self, host):
        """The host's only disk server; one that an earlier test used may still be ending."""
        harness.wait(lambda: len(self.servers(host)) == 1, what="one disk server on host " + host.name)
        return self.servers(host)[0]

    def finish(self, probes, slot=0):
        for probe in probes.values():
            probe.send("exit 0")
        self.assertEqual({state for state, _, _ in self.join(slot).values()}, {"exited"})
        self.probe("release %d" % slot)

    def test_content(self):
        """What the parent had; whatever is written afterwards stays with whoever wrote it."""
        _, probes = self.fork(2)
        self.probe("fill d 2")
        on_all(list(probes.values()), "verify d 1")
        probes[1]("fill d 3")
        probes[2]("verify d 1")
        self.probe("verify d 2")
        _, more = self.fork(1, slot=1)
        more[1]("verify d 2")
        probes[1]("verify d 3")
        self.finish(more, 1)
        self.finish(probes)
        self.probe("verify d 2")

        def one_layer():
            disks = {disk["id"]: disk["layers"] for disk in self.parent.status()["disks"]}
            return disks["disk2"] == 1
        harness.wait(one_layer, harness.LONG, "disks that are one again")

    def test_read_only(self):
        """The disk with the tools is there too, at the same place."""
        ticket = self.parent.clone(1)
        self.addCleanup(self.a.end_ticket, ticket["ticket"])
        clone = self.b.vm(ticket["clones"][0]["vm"])
        self.assertEqual(len(clone.info["disks"]), len(self.parent.info["disks"]))

    def test_each_block_once(self):
        """What one clone has read is on its host: a sibling reads it while the origin's server does not answer."""
        _, probes = self.fork(2)
        probes[1]("verify d 1")
        server = self.server(self.a)
        os.kill(server, signal.SIGSTOP)
        try:
            probes[2]("verify d 1")
        finally:
            os.kill(server, signal.SIGCONT)
        self.finish(probes)

    def test_origin_waits(self):
        """An origin that does not answer for a while: reads wait, and go on."""
        _, probes = self.fork(1)
        server = self.server(self.a)
        os.kill(server, signal.SIGSTOP)
        try:
            probes[1].send("verify d 1")
            with self.assertRaises(AssertionError):
                probes[1].reply(timeout=1)
        finally:
            os.kill(server, signal.SIGCONT)
        probes[1].reply()
        self.finish(probes)

    def test_killed_servers(self):
        """Both are killed: they are started anew, and reads only take longer. Then again after a restart of sfvmmd."""
        _, probes = self.fork(1)
        for host in (self.a, self.b):
            self.kill_server(host)
        probes[1]("verify d 1")
        self.b.restart_before(self.a, signal.SIGKILL)
        self.kill_server(self.b)
        probes[1]("verify d 1")
        self.finish(probes)

    def kill_server(self, host):
        killed = self.server(host)
        os.kill(killed, signal.SIGKILL)
        harness.wait(lambda: self.servers(host) not in ([killed], []), what="a new disk server on host " + host.name)

    def reserve(self):
        got = self.probe("ticket 0 1")
        self.assertEqual(got["granted"], "1")
        return got["ticket"]

    def check_fork(self, ticket):
        """The fork of a ticket in slot 0: the clone has the disk."""
        self.probe("clone 0")
        probes = self.probes(self.a.call("ticket.status", ticket=ticket)["ticket"])
        probes[1]("verify d 1")
        self.finish(probes)

    def test_killed_between_reserve_and_fork(self):
        """Servers are connected and have nothing to read from yet: what takes their place waits for the disks as well."""
        for hosts_killed in ([self.a], [self.b], [self.a, self.b]):
            with self.subTest(" ".join(host.name for host in hosts_killed)):
                ticket = self.reserve()
                for host in hosts_killed:
                    self.kill_server(host)
                self.check_fork(ticket)

    def test_killed_at_the_fork(self):
        """The origin's server is dead, and the new one not there yet, when the disks are frozen."""
        ticket = self.reserve()
        os.kill(self.server(self.a), signal.SIGKILL)
        self.check_fork(ticket)

    def test_restarted_between_reserve_and_fork(self):
        """An sfvmmd that finds a server which waits for its disks gives it the disks, or clones would read zeros."""
        for restarted in ([self.a], [self.b], [self.a, self.b]):
            with self.subTest(" ".join(host.name for host in restarted)):
                ticket = self.reserve()
                for host in restarted:
                    host.restart(signal.SIGKILL)
                self.b.wait_up("a")
                self.a.wait_up("b")
                self.check_fork(ticket)

    def test_locked(self):
        """Nobody writes to an image that clones stand on."""
        _, probes = self.fork(1)
        chain = [line.split()[-1] for line in subprocess.run(
            ["ls", "-l", "/proc/%d/fd" % self.server(self.a)], capture_output=True, text=True).stdout.splitlines()]
        self.assertIn(self.data, chain)
        tried = subprocess.run([os.path.join(os.path.dirname(harness.qemu_img()), "qemu-io"), "-f", "raw", "-c",
                                "write 0 512", self.data], capture_output=True, text=True)
        self.assertIn("lock", tried.stdout + tried.stderr)
        probes[1]("verify d 1")
        self.finish(probes)

    def test_confined(self):
        """Both servers run as the user that VMs run as, under seccomp, and see no key but that for pages."""
        _, probes = self.fork(1)
        for host in (self.a, self.b):
            with open("/proc/%d/status" % self.server(host)) as file:
                status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
            self.assertEqual(status["Seccomp"].strip(), "2")
            self.assertEqual(status["NoNewPrivs"].strip(), "1")
            if os.geteuid() == 0:
                self.assertNotEqual(status["Uid"].split()[0], "0")
        self.finish(probes)

    def test_who_may_read(self):
        """Hosts of the cluster by their page certificates alone."""
        _, probes = self.fork(1)
        ports = listening_ports(self.server(self.a))
        self.assertEqual(len(ports), 1)
        stranger = self.keyring.host("b")               # the right name, of another CA
        other = os.path.join(os.path.dirname(self.b.cluster["pki-directory"]), "b")

        def info(scheme, directory=None, export=""):
            certificates = "?tls-certificates=%s" % directory if directory else ""
            return subprocess.run(["nbdinfo", "--list", "%s://127.0.0.1:%d/%s%s" % (scheme, ports[0], export, certificates)],
                                  capture_output=True, text=True, timeout=harness.SHORT)
        try:
            self.assertNotEqual(info("nbd").returncode, 0)
        except FileNotFoundError:
            self.skipTest("nbdinfo is missing (libnbd-bin)")
        self.assertNotEqual(info("nbds", os.path.join(stranger, "pages")).returncode, 0)
        self.assertNotEqual(info("nbds", os.path.join(other, "host")).returncode, 0, "OU=host is not for pages")
        allowed = info("nbds", os.path.join(other, "pages"))
        self.assertEqual(allowed.returncode, 0, allowed.stderr)
        self.assertIn("disk2", allowed.stdout)
        self.finish(probes)

    def test_restart(self):
        """Both sfvmmds are killed and started: the servers go on, and end with the last clone."""
        _, probes = self.fork(1)
        self.a.restart(signal.SIGKILL)
        self.b.restart(signal.SIGKILL)
        self.a.wait_up("b")
        probes[1]("verify d 1")
        self.finish(probes)
        for host in (self.a, self.b):
            harness.wait(lambda host=host: not self.servers(host), what="end of the disk servers of " + host.name)


if __name__ == "__main__":
    harness.main()
