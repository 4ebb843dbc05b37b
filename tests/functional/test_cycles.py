#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Fork again and again: fifty cycles of ticket, clone 4, join, with no growth of processes, descriptors, memory and
files. Second forks while the first clones live, forty in a row of them, and clones that fork: three levels.
"""

import harness
import tiny
from harness import on_all

CYCLES = 50
CLONES = 4
FORKS = 40                         # more than a disk may have layers; the disk has more slots
WARM_UP = 5                        # cycles after which nothing may grow any more
GROWTH = 8 * harness.MIB           # of memory: the noise of allocator and translated code


class Measure:
    """What may not grow."""

    def __init__(self, case, vm):
        daemon = case.daemon
        self.footprint = daemon.footprint()
        self.parent_descriptors = dict(daemon.descriptors(vm.pid))
        self.parent = harness.anonymous(vm.pid)
        self.daemon = harness.anonymous(daemon.process.pid)
        self.memory = daemon.memory()


class Cycles(harness.Case):
    @classmethod
    def setUpClass(cls):
        cls.daemon = harness.Daemon()
        cls.addClassCleanup(cls.daemon.close)
        cls.daemon.start()

    def compare(self, vm, early, pool):
        """Settled, all is as it was after the warm-up."""
        late = None

        def same():
            nonlocal late
            late = Measure(self, vm)
            return late.footprint == early.footprint and late.parent_descriptors == early.parent_descriptors \
                and late.parent <= early.parent + GROWTH and late.memory <= early.memory + GROWTH
        try:
            harness.wait(same, harness.SHORT, "no growth")
        except AssertionError:
            self.fail("growth (before, after): %s" % harness.changes(
                {key: (getattr(early, key), getattr(late, key)) for key in vars(early)}))
        self.assertLess(late.daemon, early.daemon + GROWTH, "resident memory of sfvmmd")

    def test_from_outside(self):
        vm = tiny.start(self.daemon, pool=CLONES)
        self.addCleanup(vm.stop)
        early = None
        for cycle in range(CYCLES):
            if cycle == WARM_UP:
                self.settle(vm)
                early = Measure(self, vm)
            ticket = self.daemon.call("ticket.request", vm=vm.name, count=CLONES, all=True)["ticket"]["ticket"]
            self.daemon.call("clone", ticket=ticket)
            self.daemon.end_ticket(ticket)
        vm.counts_on()
        self.compare(vm, early, CLONES)

    def settle(self, vm):
        """Until the parent's memory is one again, no memfd but its own, and each of its disks has the layers it began
        with."""
        def settled():
            return self.daemon.memory() <= vm.info["memory"] + GROWTH and vm.disks_at_first() and \
                not self.daemon.call("ticket.list")["tickets"] and \
                not any(".qcow" in name and "(deleted)" in name for name in self.daemon.descriptors(vm.pid))
        harness.wait(settled, harness.SHORT, "one memory and one disk again")

    def test_from_the_guest(self):
        """Ticket, clone, exit and join by libsf; each clone hands back its id as status and a result."""
        vm = harness.linux(self.daemon, pool=CLONES)
        self.addCleanup(vm.stop)
        probe = vm.probe()
        probe("open m mem 32")
        probe("fill m 1")
        probe("cycles %d %d" % (WARM_UP, CLONES))
        self.settle(vm)
        early = Measure(self, vm)
        probe("cycles %d %d" % (CYCLES - WARM_UP, CLONES), timeout=2 * harness.LONG)
        probe("verify m 1")
        self.compare(vm, early, CLONES)


class Generations(harness.Case):
    @classmethod
    def setUpClass(cls):
        cls.daemon = harness.Daemon()
        cls.addClassCleanup(cls.daemon.close)
        cls.daemon.start()
        cls.parent = harness.linux(cls.daemon, pool=2, disks=[
            {"path": harness.blank_disk(cls.daemon, "data.raw", 4), "format": "raw"}])
        cls.probe = cls.parent.probe()

    def fork(self, vm, count=2):
        ticket = vm.clone(count)
        self.assertEqual([c["state"] for c in ticket["clones"]], ["running"] * count, ticket)
        return ticket["ticket"], self.daemon.clones(ticket)

    def end(self, ticket):
        self.daemon.end_ticket(ticket)

    def open(self):
        self.probe("open m mem 80")
        self.probe("open d dev /dev/vdc 0")
        self.addCleanup(self.probe, "close m")
        self.addCleanup(self.probe, "close d")

    def write(self, probes, number):
        on_all(probes, "fill m %d" % number)
        on_all(probes, "fill d %d" % number)

    def check(self, probes, number):
        on_all(probes, "verify m %d" % number)
        on_all(probes, "verify d %d" % number)

    def test_second_fork_while_clones_live(self):
        """Each generation of clones keeps what its parent had at its own fork."""
        self.open()
        tickets, generations = [], []
        for number in range(3):
            self.write([self.probe], number)
            ticket, vms = self.fork(self.parent)
            tickets.append(ticket)
            generations.append([harness.Probe(vm) for vm in vms])
        self.write([self.probe], 9)
        for number, probes in enumerate(generations):
            self.check(probes[:1], number)
            self.write(probes[1:], 20 + number)
        self.end(tickets[0])                     # out of order: the oldest, then the newest
        self.check(generations[1][:1], 1)
        self.end(tickets[2])
        self.check(generations[1][:1], 1)
        self.check(generations[1][1:], 21)
        self.check([self.probe], 9)
        self.end(tickets[1])
        self.check([self.probe], 9)

    def test_there_is_always_a_clone(self):
        """Forks that overlap, so that no layer of a disk can go back to the one below: not each of them adds one for good,
        and the blocks that were written between them are all there, in the parent and in a clone."""
        self.probe("open d dev /dev/vdc 0")
        self.addCleanup(self.probe, "close d")
        ticket, most = None, 0
        for number in range(FORKS):
            self.probe("fill d %d %d %d" % (number, FORKS, number))
            earlier = ticket
            ticket, vms = self.fork(self.parent, 1)
            if earlier:
                self.end(earlier)
            most = max(most, *(disk["layers"] for disk in self.parent.status()["disks"]))
        self.assertGreater(FORKS, most)
        for probe in (self.probe, harness.Probe(vms[0])):
            for number in range(FORKS):
                probe("verify d %d %d %d" % (number, FORKS, number))
        self.end(ticket)
        harness.wait(self.parent.disks_at_first, what="the layers the disks began with")
        for number in range(FORKS):
            self.probe("verify d %d %d %d" % (number, FORKS, number))

    def test_three_levels(self):
        """A clone forks, and so does its clone. The middle one may end before its children."""
        self.open()
        self.write([self.probe], 0)
        tickets, chain, vm = [], [self.probe], self.parent
        for level in range(1, 4):
            ticket, vms = self.fork(vm)
            tickets.append(ticket)
            probes = [harness.Probe(v) for v in vms]
            self.check(probes, level - 1)
            self.write(probes[:1], level)
            self.check(probes[1:], level - 1)
            chain.append(probes[0])
            vm = vms[0]
        for level, probe in enumerate(chain):
            self.check([probe], level)
        self.daemon.call("kill", vm=chain[2].vm.name)      # the middle of the chain dies
        self.check([chain[3]], 3)
        self.check([chain[1]], 1)
        self.write([chain[3]], 33)
        self.check([self.probe], 0)
        for ticket in reversed(tickets):
            self.end(ticket)
        self.check([self.probe], 0)


if __name__ == "__main__":
    harness.main()
