# SPDX-License-Identifier: GPL-2.0-or-later
"""Clones of a domain on another host, through the libvirtd of that one: domains there, and nothing stays."""
import json
import os
import shutil
import signal
import subprocess
import unittest

import harness
import hosts
import libvirtd
import test_libvirt

HERE, THERE = "a", "b"
CLONES = 4


def setUpModule():
    libvirtd.need()


class Host(libvirtd.Beside, hosts.Host):
    pass


class Case(test_libvirt.Case):
    """The host of self.daemon and self.libvirtd, and another one: forks are placed there unless a test says else."""

    @classmethod
    def setUpClass(cls):
        cls.keys = hosts.Keys()
        cls.addClassCleanup(cls.keys.close)
        cls.libvirtd, cls.daemon = cls.host(HERE)
        cls.libvirtd_there, cls.there = cls.host(THERE)
        cls.daemon.add(cls.there)
        cls.there.add(cls.daemon)
        cls.send_forks(THERE)

    @classmethod
    def host(cls, name):
        keeper = libvirtd.Libvirtd()
        cls.addClassCleanup(keeper.close)
        keeper.start()
        host = Host(keeper, name, cls.keys, config={"pool": 0})
        cls.addClassCleanup(host.close)
        return keeper, host.start()

    @classmethod
    def send_forks(cls, *names):
        for name in (HERE, THERE):
            cls.daemon.call("host.drain", name=name, drain=name not in names)

    def nothing_left(self):
        super().nothing_left()

        def trace():
            return {"vms": self.there.call("vm.list")["vms"], "tickets": self.there.call("ticket.list")["tickets"],
                    "domains": self.libvirtd_there.domains(), "processes": self.there.processes(),
                    "folders": os.listdir(os.path.join(self.there.run, "vm"))}
        harness.wait(lambda: not any(trace().values()), harness.SHORT, "nothing left of it there (%s)" % trace())

    def domains_there(self, ticket):
        names = {vm["name"]: vm["domain"] for vm in self.there.call("vm.list")["vms"] if vm["role"] == "clone"}
        return [names[clone["vm"]] for clone in ticket["clones"] if clone["host"] == THERE]


class Tiny(Case):
    def test_fork(self):
        """Clones are domains of the other host; they run on from its memory and disk; the end is told both ways."""
        parent = self.tiny_domain()
        self.daemon.call("domain.adopt", domain=parent)
        ticket = self.fork(parent, 3)
        self.assertEqual({clone["host"] for clone in ticket["clones"]}, {THERE})
        self.assertEqual(self.libvirtd.domains(), [parent])
        names = self.domains_there(ticket)
        self.assertEqual(sorted(names), self.libvirtd_there.domains("--state-running"))
        for name in names:
            self.counts_on(name, self.libvirtd_there)
        self.counts_on(parent)
        self.libvirtd_there.virsh("destroy", names[0])
        state = harness.wait(lambda: self.state_of(ticket, ticket["clones"][0]["id"])["state"] == "lost" and
                             self.state_of(ticket, ticket["clones"][0]["id"]), what="the end of a destroyed clone")
        self.assertIn("destroyed", state["reason"])
        self.there.restart(signal.SIGKILL)
        self.there.wait_up(HERE)
        self.counts_on(names[1], self.libvirtd_there)
        self.assertEqual(self.state_of(ticket, ticket["clones"][1]["id"])["state"], "running")
        self.daemon.end_ticket(ticket["ticket"])
        harness.wait(lambda: not self.libvirtd_there.domains("--state-running"), what="the end of the clones' domains")

    def test_here_only(self):
        """A domain with a device that another host can't have forks where it is."""
        self.send_forks(HERE, THERE)
        self.addCleanup(self.send_forks, THERE)
        parent = self.tiny_domain(more="<serial type='udp'><source mode='connect' host='127.0.0.1' service='9'/></serial>")
        self.daemon.call("domain.adopt", domain=parent)
        ticket = self.fork(parent)
        self.assertEqual({clone["host"] for clone in ticket["clones"]}, {""})


class Linux(Case):
    def test_agents(self):
        """`sfctl clone` of a domain to both hosts: each clone's agent answers, and it is joined."""
        self.send_forks(HERE, THERE)
        self.addCleanup(self.send_forks, THERE)
        base = shutil.copy(harness.image("rootfs.qcow2"), os.path.join(self.libvirtd.top, "base.qcow2"))
        root = os.path.join(self.libvirtd.top, "root.qcow2")
        subprocess.run([harness.qemu_img(), "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, root], check=True)
        with open(harness.image("cmdline")) as file:
            append = file.read().strip()
        boot = [shutil.copy(harness.image(name), self.libvirtd.top) for name in ("vmlinuz", "initrd.img")]
        text = libvirtd.domain_xml("Web_1", [(root, "qcow2", False)], kernel=boot[0], initrd=boot[1], append=append,
                                   more="<interface type='user'><model type='virtio'/></interface>")
        self.libvirtd.virsh("create", self.write_xml(text))
        self.assertEqual(self.daemon.sfctl("domain", "adopt", "Web_1").stdout.strip(), "web-1")
        self.daemon.call("vm.wait", vm="web-1", agent=True, timeout_ms=int(harness.LONG * 1000))
        result = json.loads(self.daemon.sfctl("--json", "clone", "Web_1", "--count", str(CLONES)).stdout)
        clones = result["ticket"]["clones"]
        self.assertEqual([bool(clone["answered"]) for clone in clones], [True] * CLONES, clones)
        self.assertEqual({clone["host"] for clone in clones}, {"", THERE})
        here = [self.domain_of(clone) for clone in clones if not clone["host"]]
        there = self.domains_there(result["ticket"])
        self.assertEqual(self.libvirtd.domains("--state-running"), sorted(["Web_1"] + here))
        self.assertEqual(self.libvirtd_there.domains("--state-running"), sorted(there))
        for keeper, names in ((self.libvirtd, here), (self.libvirtd_there, there)):
            for name in names:
                keeper.virsh("destroy", name)
        joined = json.loads(self.daemon.sfctl("--json", "join", result["ticket"]["ticket"]).stdout)
        self.assertEqual(len(joined["ticket"]["clones"]), CLONES)
        self.assertEqual(self.libvirtd.domains(), ["Web_1"])
        self.assertIn(base, self.libvirtd.virsh("dumpxml", "Web_1"))


if __name__ == "__main__":
    unittest.main()
