# SPDX-License-Identifier: GPL-2.0-or-later
"""VMs of the tiny guest (tests/tiny): no agent, up in a moment, count on the console. For what needs no Linux."""
import os
import re
import shutil

import harness

MEMORY = 32 * harness.MIB
KVM_CPU = "qemu64"              # a KVM that emulates instructions does not have all registers of "host"


def image():
    return harness.need(os.path.join(harness.environment("SF_BUILD", "build directory"), "tests/tiny/tiny.img"),
                        "tiny guest")


class Tiny(harness.Vm):
    """A tiny guest. What it prints says whether it was forked right, and is checked each time it is looked at."""

    def numbers(self):
        """{vcpu: its numbers, oldest first}. None may be missing or come twice, and no word of RAM may be lost."""
        found = {}
        for line in self.console.whole().decode(errors="replace").split("\n")[1:-1]:     # whole lines only
            match = re.fullmatch(r"cpu(\d+) (\d+)\r?", line)
            if match:
                found.setdefault(int(match.group(1)), []).append(int(match.group(2)))
            match = re.fullmatch(r"mem(\d+) loops \w+ sum (\w+) read (\w+) seed \w+ pit \w+\r?", line)
            if match and match.group(2) != match.group(3):
                raise AssertionError("%s: memory is not what was written: %s" % (self.name, line))
        for cpu, numbers in found.items():
            for before, after in zip(numbers, numbers[1:]):
                if after != before + 1:
                    raise AssertionError("%s: vCPU %d counts %d after %d" % (self.name, cpu, after, before))
        return found

    def counters(self):
        """{vcpu: newest number}"""
        return {cpu: numbers[-1] for cpu, numbers in self.numbers().items()}

    def first_counters(self):
        """{vcpu: oldest number}; of a clone: where its parent was, as far as whole lines tell."""
        return {cpu: numbers[0] for cpu, numbers in self.numbers().items()}

    def counts_on(self, vcpus=None, timeout=harness.SHORT):
        """Wait until every vCPU has counted further than now."""
        before = self.counters()
        vcpus = vcpus or self.info["vcpus"]

        def further():
            now = self.counters()
            return len(now) >= vcpus and all(value > before.get(cpu, -1) for cpu, value in now.items()) and now
        return harness.wait(further, timeout, "%s counts on from %s" % (self.name, before))


def start(daemon, accel="tcg", vcpus=1, disks=(), memory=MEMORY, **params):
    if accel == "kvm":
        params.setdefault("cpu", KVM_CPU)
    path = shutil.copy(image(), daemon.top)
    os.chmod(path, 0o644)
    info = daemon.call("vm.run", memory=memory, vcpus=vcpus, accel=accel,
                       disks=[{"path": path, "format": "raw", "ephemeral": True}] + list(disks), **params)["vm"]
    vm = Tiny(daemon, info)
    vm.counts_on(timeout=harness.LONG)
    return vm


def clones(daemon, ticket):
    """Tiny of each clone that runs."""
    return [Tiny(daemon, daemon.call("vm.status", vm=clone["vm"])["vm"])
            for clone in sorted(ticket["clones"], key=lambda c: c["id"]) if clone["state"] == "running"]
