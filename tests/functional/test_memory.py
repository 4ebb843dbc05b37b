#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What gives memory back to the host (free-page reporting, the balloon) never changes a snapshot.

Clones that have not touched their pages yet still see the snapshot's memory itself: while they wait, the parent frees,
gives back and reuses all it can; then a clone does. Nobody may see a byte of it.
"""
import json
import os
import socket
import unittest

import harness
import wrapper
from harness import on_all

CLONES = 2
MEMORY = 256 * harness.MIB
SMALL = 96 * harness.MIB         # what the balloon leaves


class Qmp:
    """A monitor of the test's own, which the wrapper gives to each QEMU."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(harness.LONG)
        self.socket.connect(path)
        self.file = self.socket.makefile("rw")
        self.file.readline()
        self.call("qmp_capabilities")

    def call(self, command, **arguments):
        json.dump({"execute": command, "arguments": arguments}, self.file)
        self.file.write("\n")
        self.file.flush()
        while True:
            answer = json.loads(self.file.readline())
            if "error" in answer:
                raise AssertionError("%s: %s" % (command, answer["error"]["desc"]))
            if "return" in answer:
                return answer["return"]

    def balloon(self, size):
        """Ask for a size, wait until the guest has gone as far as it goes (it may keep some)."""
        self.call("balloon", value=size)
        before = self.call("query-balloon")["actual"]
        harness.wait(lambda: abs(self.call("query-balloon")["actual"] - size) < harness.MIB, harness.LONG,
                     "the balloon from %d to %d" % (before, size))

    def close(self):
        self.file.close()
        self.socket.close()


class Memory(harness.Case):
    @classmethod
    def setUpClass(cls):
        cls.daemon = harness.Daemon()
        cls.addClassCleanup(cls.daemon.close)
        rules = wrapper.Wrapper(cls.daemon.top)
        cls.daemon.qemu_path = rules.path
        cls.monitors = os.path.join(cls.daemon.top, "qmp")
        os.mkdir(cls.monitors)
        os.chmod(cls.monitors, 0o777)
        monitor = "extra+=(-qmp unix:%s/$$.sock,server=on,wait=off)" % cls.monitors
        rules.rule(parent=monitor, shell=monitor)
        cls.daemon.start()
        cls.parent = harness.linux(cls.daemon, memory=MEMORY, pool=CLONES)
        cls.probe = cls.parent.probe()

    def qmp(self, vm):
        qmp = Qmp(os.path.join(self.monitors, "%d.sock" % vm.pid))
        self.addCleanup(qmp.close)
        return qmp

    def fork(self):
        ticket = self.parent.clone(CLONES)
        self.ticket = ticket["ticket"]
        self.assertEqual([c["state"] for c in ticket["clones"]], ["running"] * CLONES, ticket)
        self.vms = self.daemon.clones(ticket)
        return [harness.Probe(vm) for vm in self.vms]

    def end_fork(self):
        self.daemon.end_ticket(self.ticket)

    def free_and_use(self, probe, number):
        """Give all memory back to the guest's kernel, which reports it, and use it again for something else."""
        probe("close m")
        for turn in range(3):
            slots = int(probe("open m mem 0")["slots"])
            probe("fill m %d" % (number + turn))
            probe("verify m %d" % (number + turn))
            probe("close m")
        return slots

    def test_free_page_reporting(self):
        self.probe("open m mem 0")
        self.probe("fill m 1")
        first, second = self.fork()
        self.free_and_use(self.probe, 10)
        first("verify m 1")                        # the parent's freeing did not change the snapshot
        self.free_and_use(first, 20)
        second("verify m 1")                       # nor did a clone's
        self.probe("open m mem 0")
        self.probe("fill m 30")
        self.free_and_use(second, 40)
        self.probe("verify m 30")                  # and a clone never reaches its parent
        self.end_fork()
        self.probe("verify m 30")                  # memory has been made one again
        self.probe("close m")

    def test_balloon(self):
        self.probe("open m mem 60")
        self.probe("fill m 1")                     # touched, so that the next store takes only what is left
        self.probe("open free mem 0")
        self.probe("fill free 2")
        first, second = self.fork()
        self.probe("close free")
        parent = self.qmp(self.parent)
        parent.balloon(SMALL + 64 * harness.MIB)
        first("verify m 1")
        first("verify free 2")
        first("close free")
        self.qmp(self.vms[0]).balloon(SMALL + 64 * harness.MIB)
        second("verify m 1")
        second("verify free 2")
        self.probe("verify m 1")
        parent.balloon(MEMORY)
        self.probe("open free mem 0")
        self.probe("fill free 3")
        second("verify free 2")
        self.probe("verify free 3")
        self.end_fork()
        self.probe("verify m 1")
        self.probe("verify free 3")
        self.probe("close m")
        self.probe("close free")

    def test_ballooned_parent(self):
        """A fork while the balloon is inflated; deflated afterwards in parent and clones."""
        parent = self.qmp(self.parent)
        self.probe("open m mem 40")
        self.probe("fill m 1")
        parent.balloon(SMALL + 64 * harness.MIB)
        probes = self.fork()
        parent.balloon(MEMORY)
        for vm in self.vms:
            self.qmp(vm).balloon(MEMORY)
        everyone = [self.probe] + probes
        on_all(everyone, "verify m 1")
        on_all(everyone, "open n mem 0")
        for index, probe in enumerate(everyone):
            probe.send("fill n %d" % (50 + index))
        for probe in everyone:
            probe.reply()
        for index, probe in enumerate(everyone):
            probe.send("verify n %d" % (50 + index))
        for probe in everyone:
            probe.reply()
        on_all(everyone, "verify m 1")
        self.end_fork()
        self.probe("close n")
        self.probe("close m")


if __name__ == "__main__":
    harness.main()
