# SPDX-License-Identifier: GPL-2.0-or-later
"""VMs of the tiny guest (tests/tiny): no agent, up in a moment, count on the console. For what needs no Linux."""
import os
import re

import harness

MEMORY = 32 * harness.MIB


def image():
    return harness.need(os.path.join(harness.environment("SF_BUILD", "build directory"), "tests/tiny/tiny.img"),
                        "tiny guest")


class Tiny(harness.Vm):
    """A tiny guest. Each of its vCPUs prints a line with a growing number."""

    def counters(self):
        """{vcpu: newest number} of what the console has so far."""
        found = {}
        text = self.console.whole().decode(errors="replace")
        for match in re.finditer(r"cpu(\d+) (\d+)\r?\n", text):
            found[int(match.group(1))] = int(match.group(2))
        return found

    def counts_on(self, vcpus=1, timeout=harness.SHORT):
        """Wait until every vCPU has counted further than now."""
        before = self.counters()
        harness.wait(lambda: len(self.counters()) >= vcpus and
                     all(value > before.get(cpu, -1) for cpu, value in self.counters().items()),
                     timeout, "%s counts on from %s" % (self.name, before))
        return self.counters()


def start(daemon, accel="tcg", vcpus=1, disks=(), memory=MEMORY, **params):
    info = daemon.call("vm.run", memory=memory, vcpus=vcpus, accel=accel,
                       disks=[{"path": image(), "format": "raw", "ephemeral": True}] + list(disks), **params)["vm"]
    vm = Tiny(daemon, info)
    vm.counts_on(vcpus)
    return vm


def clones(daemon, ticket):
    """Tiny of each clone that runs."""
    return [Tiny(daemon, daemon.call("vm.status", vm=clone["vm"])["vm"])
            for clone in sorted(ticket["clones"], key=lambda c: c["id"]) if clone["state"] == "running"]
