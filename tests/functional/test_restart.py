#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""sfvmmd may be restarted, or die, at any moment: VMs, clones, tickets, results and waiting programs lose nothing."""
import os
import random
import signal
import time
import unittest

import harness
import tiny
from harness import on_all

CLONES = 3
ROUNDS = 6


class Restart(harness.Case):
    @classmethod
    def setUpClass(cls):
        cls.daemon = harness.Daemon()
        cls.addClassCleanup(cls.daemon.close)
        cls.daemon.start()
        cls.parent = harness.linux(cls.daemon, pool=CLONES,
                                   disks=[{"path": harness.blank_disk(cls.daemon, "data.raw", 4), "format": "raw"}])
        cls.probe = cls.parent.probe()

    def fork(self):
        got = self.probe("ticket 0 %d" % CLONES)
        self.probe("clone 0")
        probes = []
        for clone in self.daemon.call("ticket.status", ticket=got["ticket"])["ticket"]["clones"]:
            probes.append(harness.Probe(self.daemon.vm(clone["vm"])))
            probes[-1].reply()
        return got["ticket"], probes

    def test_nothing_is_lost(self):
        """Clones work, sync and exit while nobody is there; the parent already waits in join."""
        for how in (signal.SIGTERM, signal.SIGKILL):
            with self.subTest(how.name):
                self.probe("open m mem 40")
                self.probe("open d dev /dev/vdc 0")
                self.probe("fill m 1")
                self.probe("fill d 1")
                ticket, probes = self.fork()
                pids = {vm["name"]: vm["pid"] for vm in self.daemon.call("vm.list")["vms"]}
                probes[0]("sync 300000 5")
                probes[1].send("sync 30000000 6")              # in the middle of a result
                self.probe.send("join 0")
                self.daemon.end(how)
                on_all([probes[0], probes[2]], "verify m 1")
                on_all([probes[0], probes[2]], "fill d 2")
                probes[2].send("exit 7 100000 8")              # while nobody is there
                self.daemon.start()
                self.assertEqual({vm["name"]: vm["pid"] for vm in self.daemon.call("vm.list")["vms"]
                                  if vm["name"] != probes[2].vm.name},
                                 {name: pid for name, pid in pids.items() if name != probes[2].vm.name})
                probes[1].reply()
                on_all(probes[:2], "verify m 1")
                probes[0]("verify d 2")
                probes[1]("verify d 1")
                probes[0].send("exit 3")
                probes[1].send("exit 4")
                reply = self.probe.reply()
                self.assertEqual([reply["m%d" % n] for n in (1, 2, 3)],
                                 ["exited:3:300000", "exited:4:30000000", "exited:7:100000"])
                for number, seed in ((1, 5), (2, 6), (3, 8)):
                    self.probe("fetch 0 %d %d" % (number, seed))
                self.probe("verify m 1")
                self.probe("verify d 1")
                self.probe("release 0")
                self.probe("close m")
                self.probe("close d")
                self.compare_footprint()

    def test_clone_dies_while_daemon_is_away(self):
        _, probes = self.fork()
        self.daemon.end(signal.SIGKILL)
        os.kill(probes[0].vm.pid, signal.SIGKILL)
        harness.wait(lambda: not harness.alive(probes[0].vm.pid), what="the clone's end")
        self.daemon.start()
        harness.wait(lambda: self.probe("look 0")["m1"].startswith("lost"), what="the end of clone 1")
        self.probe("kill 0")
        self.probe("join 0")
        self.probe("release 0")

    def test_fork_after_restart(self):
        """Also with the snapshot of an earlier fork still in use, and its clones forking."""
        ticket, probes = self.fork()
        self.probe("open m mem 40")
        self.probe("fill m 3")
        self.daemon.restart(signal.SIGKILL)
        second = self.parent.clone(2)
        third = probes[0].vm.clone(2)
        for made in (second, third):
            self.assertEqual([c["state"] for c in made["clones"]], ["running"] * 2, made)
        on_all([harness.Probe(vm) for vm in self.daemon.clones(second)], "verify m 3")
        self.daemon.restart(signal.SIGTERM)
        for made in (third["ticket"], second["ticket"], ticket):
            self.daemon.end_ticket(made)
        self.probe("verify m 3")
        self.probe("close m")

    def test_layers_of_the_last_fork_go(self):
        """sfvmmd was killed when the last clone had gone, and memory and disks had not been made one again yet."""
        harness.wait(self.parent.disks_at_first, harness.LONG, "no other fork")
        for made in (self.parent.clone(1) for _ in range(2)):
            self.daemon.end_ticket(made["ticket"])
            self.daemon.restart(signal.SIGKILL)
            harness.wait(self.parent.disks_at_first, harness.LONG, "disks as they were at first")
            self.daemon.end_tickets()       # sfvmmd may not have come to forget the one that was joined

    def test_killed_at_random_points_of_a_guests_fork(self):
        """The program in the guest sees nothing of it: its call returns in the parent and in every clone made."""
        seed = int(os.environ.get("SF_TEST_SEED") or time.time_ns() % 1000000)
        chance = random.Random(seed)
        start = time.monotonic()
        self.probe("cycles 1 %d" % CLONES)
        length = time.monotonic() - start
        for turn in range(ROUNDS):
            with self.subTest("round %d, seed %d" % (turn, seed)):
                self.probe.send("cycles 1 %d" % CLONES)
                time.sleep(chance.random() * length)            # anywhere in the cycle: the point of the test
                self.daemon.restart(signal.SIGKILL)
                self.probe.reply()
        self.probe("cycles 1 %d" % CLONES)


class RestartIdle(harness.Case):
    def test_idle_vm_and_pool_survive(self):
        daemon = self.daemon = self.start_daemon()
        vm = tiny.start(daemon, pool=2)
        harness.wait(daemon.pools_full, what="full pools")
        before = sorted(daemon.qemus())
        for how in (signal.SIGTERM, signal.SIGKILL):
            daemon.restart(how)
            harness.wait(daemon.pools_full, what="full pools")
            vm.counts_on()
            self.assertEqual(sorted(daemon.qemus()), before, "the shells were taken over, not made anew")
        ticket = vm.clone(2)
        for clone in tiny.clones(daemon, ticket):
            clone.counts_on()
        daemon.end_ticket(ticket["ticket"])


if __name__ == "__main__":
    harness.main()
