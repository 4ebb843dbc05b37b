#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The same fork under -accel kvm, with the tiny guest: timer interrupts and counters go on in each clone from where
they were. Under TCG too, so that what fails is told apart. Four clones, twice, with one and with two vCPUs.
"""
import unittest

import harness
import tiny

CLONES = 4
ROUNDS = 2


class ForkTiny(harness.Case):
    accel = "tcg"

    @classmethod
    def setUpClass(cls):
        if cls.accel == "kvm" and not harness.have_kvm():
            raise unittest.SkipTest("/dev/kvm is missing or closed to this user")
        cls.daemon = harness.Daemon()
        cls.addClassCleanup(cls.daemon.close)
        cls.daemon.start()

    def fork_twice(self, vcpus):
        parent = tiny.start(self.daemon, accel=self.accel, vcpus=vcpus, pool=CLONES)
        self.addCleanup(parent.stop)
        self.assertEqual(parent.info["accel"], self.accel)
        tickets, families = [], []
        for _ in range(ROUNDS):
            before = parent.counts_on()
            ticket = parent.clone(CLONES)
            self.assertEqual([c["state"] for c in ticket["clones"]], ["running"] * CLONES, ticket)
            family = tiny.clones(self.daemon, ticket)
            for clone in family:
                clone.counts_on()
                for cpu, value in clone.first_counters().items():
                    self.assertGreaterEqual(value, before[cpu], "%s went back before its fork" % clone.name)
            parent.counts_on()
            tickets.append(ticket["ticket"])
            families += family
        for vm in families + [parent]:              # the clones of both forks live at once, and all count
            vm.counts_on()
        for ticket in tickets:
            self.assertEqual(self.daemon.call("kill", ticket=ticket)["killed"], CLONES)
            self.daemon.call("join", ticket=ticket)
        parent.counts_on()

    def test_one_vcpu(self):
        self.fork_twice(1)

    def test_two_vcpus(self):
        self.fork_twice(2)


class ForkTinyKvm(ForkTiny):
    accel = "kvm"


class NoKvm(harness.Case):
    """Asked for KVM where there is none: a clear refusal. Asked for auto: TCG, and the reason is told."""

    def test_accelerator_is_told(self):
        self.daemon = self.start_daemon()
        status = self.daemon.call("daemon.status")
        self.assertIn(status["accel"], ("kvm", "tcg"))
        self.assertTrue(status["accel_reason"])
        vm = tiny.start(self.daemon, accel="auto")
        self.assertEqual(vm.info["accel"], status["accel"])

    def test_kvm_refused_without_device(self):
        if harness.have_kvm():
            self.skipTest("/dev/kvm is here")
        self.daemon = self.start_daemon()
        self.error("failed", "vm.run", "/dev/kvm", memory=tiny.MEMORY, accel="kvm",
                   disks=[{"path": tiny.image(), "format": "raw", "ephemeral": True}])


if __name__ == "__main__":
    harness.main()
