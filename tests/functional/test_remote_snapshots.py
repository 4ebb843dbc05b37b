#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Clones of a saved snapshot on several hosts: the host that has it loaded is their origin, or where its memory lies."""
import os
import shutil
import signal
import subprocess

import harness
import hosts
import test_remote
from harness import on_all


class Saved(test_remote.Remote):
    """A snapshot of the parent, whose memory m is filled with 1 then and with 2 afterwards."""

    check_footprint = False         # tests restart daemons

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.store = os.path.join(cls.a.config["state-directory"], "snapshots")
        cls.probe("open m mem 40")
        cls.probe("fill m 1")
        cls.a.call("snapshot.save", vm=cls.parent.name, name="warm")
        cls.probe("checkpoint point")
        cls.probe("fill m 2")

    def setUp(self):
        super().setUp()
        self.at("a", "b")

    def clone(self, count, name="warm"):
        """The TICKET, and its clones' probes by id."""
        ticket = self.a.call("snapshot.clone", name=name, count=count)["ticket"]
        self.assertEqual([clone["state"] for clone in ticket["clones"]], ["running"] * count, ticket)
        return ticket, {clone["id"]: harness.Probe(self.hosts[clone["host"] or "a"].vm(clone["vm"]))
                        for clone in ticket["clones"]}

    def check(self, probes):
        on_all(list(probes.values()), "verify m 1")

    def use(self, probes):
        """Each writes what is its own; the others have what was saved."""
        numbers = sorted(probes)
        for number in numbers:
            probes[number]("verify m 1")
            probes[number]("fill m %d" % (10 + number))
        for number in numbers:
            probes[number]("verify m %d" % (10 + number))

    def pagers_of(self, host, snapshot):
        return [pid for pid in host.pagers() if snapshot in harness.command_line(pid)]

    def same_memory(self, pid):
        return test_remote.same_content(self.memfd(pid), os.path.join(self.store, "warm", "ram0.raw"))


class Basic:
    """What holds whatever the transport."""

    def test_here_and_there(self):
        ticket, probes = self.clone(4)
        self.assertEqual(self.places(ticket), {"a": 2, "b": 2})
        self.use(probes)
        again, more = self.clone(2)                         # from the same page cache here
        self.check(more)
        self.assertEqual(len(self.pagers_of(self.a, ticket["fork"]["snapshot"])), 1)
        self.assertEqual(again["fork"]["snapshot"], ticket["fork"]["snapshot"])
        self.a.end_ticket(ticket["ticket"])
        self.at("b")
        _, late = self.clone(1)                             # served still, though the first ticket has gone
        self.check(late)

    def test_there_alone(self):
        """All of the memory is compared with the file, byte by byte."""
        self.at("b")
        ticket, probes = self.clone(2)
        self.assertEqual(self.places(ticket), {"b": 2})
        self.check(probes)
        done = self.a.call("complete", ticket=ticket["ticket"], timeout_ms=int(harness.LONG * 1000))["ticket"]
        self.assertEqual([place["complete"] for place in done["places"]], [True])
        pager = self.pagers_of(self.b, "s-" + ticket["ticket"])
        self.assertEqual(len(pager), 1, self.b.pagers())
        self.assertTrue(self.same_memory(pager[0]), "host b has what was saved")
        self.check(probes)

    def test_create_clones(self):
        """sf_create_clones() in the guest: its clones are joined as those of a fork."""
        got = self.probe("create 3 point 2")
        self.assertEqual(got["granted"], "2")
        ticket = self.a.call("ticket.status", ticket=got["ticket"])["ticket"]
        self.assertEqual(self.places(ticket), {"a": 1, "b": 1})
        probes = self.probes(ticket)
        self.check(probes)
        for number, probe in probes.items():
            probe.send("exit %d 100000 %d" % (number, number))
        self.assertEqual(self.join(3), {n: ("exited", n, 100000) for n in (1, 2)})
        for number in probes:
            self.probe("fetch 3 %d %d" % (number, number))
        self.probe("release 3")


class Tls(Basic, Saved):
    keys = {"pages": "tls"}

    def test_restarts(self):
        """Each sfvmmd is killed, and the origin's sf-pager; then more clones are made."""
        ticket, probes = self.clone(2)
        self.a.end(signal.SIGKILL)
        self.b.end(signal.SIGKILL)
        on_all(list(probes.values()), "verify m 1")
        self.a.start()
        self.b.start()
        self.a.wait_up("b")
        for pid in self.pagers_of(self.a, ticket["fork"]["snapshot"]):
            os.kill(pid, signal.SIGKILL)
        self.use(probes)
        again, more = self.clone(2)
        self.assertEqual(self.places(again), {"a": 1, "b": 1})
        self.check(more)
        self.assertEqual([clone["state"] for clone in
                          self.a.call("ticket.status", ticket=ticket["ticket"])["ticket"]["clones"]], ["running"] * 2)


class Plain(Basic, Saved):
    keys = {"pages": "plain"}

    def serve(self, folder):
        """The memory of the snapshot, served by nbdkit over TCP. Its URI."""
        nbdkit = shutil.which("nbdkit")
        if not nbdkit:
            self.skipTest("nbdkit is missing")
        port = hosts.free_port()
        server = subprocess.Popen([nbdkit, "-f", "-r", "-i", hosts.ADDRESS, "-p", str(port), "file", "dir=" + folder])
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        return "nbd://%s:%d/{block}.raw" % (hosts.ADDRESS, port)

    def test_memory_elsewhere(self):
        """Other hosts fetch it where it lies, and go on when the host that loaded it has ended."""
        folder = os.path.join(self.a.top, "loaded")
        shutil.copytree(os.path.join(self.store, "warm"), folder)
        self.addCleanup(shutil.rmtree, folder)
        os.unlink(os.path.join(folder, "ram0.raw"))
        uri = self.serve(os.path.join(self.store, "warm"))
        self.a.call("snapshot.load", directory=folder, name="far", memory_uri=uri)
        self.addCleanup(self.a.call, "snapshot.rm", name="far")
        self.addCleanup(self.a.end_tickets)
        ticket, probes = self.clone(2, "far")
        self.assertEqual(self.places(ticket), {"a": 1, "b": 1})
        there = next(clone["id"] for clone in ticket["clones"] if clone["host"] == "b")
        self.a.end(signal.SIGKILL)
        for pid in self.pagers_of(self.a, ticket["fork"]["snapshot"]):
            os.kill(pid, signal.SIGKILL)
            harness.wait(lambda pid=pid: not harness.alive(pid), what="the end of the origin's sf-pager")
        probes[there]("open n mem 20")                      # touches what is free; its disks come from host a still
        probes[there]("verify m 1")
        self.a.start()
        self.a.wait_up("b")


if __name__ == "__main__":
    harness.main()
