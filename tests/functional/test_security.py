#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU runs as a user of its own, without capabilities, under its sandbox; clones hold the snapshot read-only."""
import os
import pwd
import re
import stat
import unittest

import harness
import tiny

CLONES = 2
ACCESS = 0o3
SECCOMP_FILTER = "2"


def status(pid):
    with open("/proc/%d/status" % pid) as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


def memfds(pid):
    """[(name, flags)] of the memfds that a process has open."""
    found = []
    for number in os.listdir("/proc/%d/fd" % pid):
        name = os.readlink("/proc/%d/fd/%s" % (pid, number))
        if name.startswith("/memfd:"):
            with open("/proc/%d/fdinfo/%s" % (pid, number)) as file:
                found.append((name, int(re.search(r"flags:\s+0?(\d+)", file.read()).group(1), 8)))
    return found


class Confinement(harness.Case):
    user = None

    def setUp(self):
        self.daemon = self.start_daemon(user=self.user)
        self.parent = tiny.start(self.daemon, pool=1)
        self.ticket = self.parent.clone(CLONES)
        self.clones = tiny.clones(self.daemon, self.ticket)
        self.assertEqual(len(self.clones), CLONES)
        harness.wait(self.daemon.pools_full, what="a full pool")      # a shell that is just starting is not confined yet

    def expected_uid(self):
        return pwd.getpwnam(self.daemon.config["user"]).pw_uid if os.geteuid() == 0 and not self.user \
            else pwd.getpwnam(self.user).pw_uid if self.user else os.geteuid()

    def test_confinement(self):
        pids = self.daemon.qemus()
        self.assertGreaterEqual(len(pids), CLONES + 1)
        uid = self.expected_uid()
        for pid in pids:
            facts = status(pid)
            self.assertEqual(set(facts["Uid"].split()), {str(uid)}, harness.command_line(pid))
            self.assertEqual(facts["Seccomp"], SECCOMP_FILTER)
            self.assertEqual(facts["NoNewPrivs"], "1")
            for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
                self.assertEqual(int(facts[kind], 16), 0, kind)
            if os.geteuid() == 0:
                self.assertNotIn("0", facts["Groups"].split())
        # What a clone holds of memory it may only read; its own pages are private to it.
        for clone in self.clones:
            shared = [(name, flags) for name, flags in memfds(clone.pid) if "pc.ram" in name]
            for name, flags in shared:
                self.assertEqual(flags & ACCESS, os.O_RDONLY, "%s of %s" % (name, clone.name))
            with open("/proc/%d/maps" % clone.pid) as file:
                for line in file:
                    if "/memfd:" in line and "pc.ram" in line:
                        self.assertEqual(line.split()[1][3], "p", "a clone maps a snapshot shared: " + line)
        # The socket and the state are for the owner alone.
        mode = stat.S_IMODE(os.stat(self.daemon.socket_path).st_mode)
        self.assertEqual(mode & 0o007, 0, "control socket %o" % mode)
        for name in ("tickets", "vm"):
            folder = os.path.join(self.daemon.run, name)
            if os.path.exists(folder):
                self.assertEqual(os.stat(folder).st_mode & 0o006, 0, folder)
        # No QEMU may read another's directory: each has its console and its agent's socket there.
        for vm in self.clones + [self.parent]:
            for name in os.listdir(vm.info["directory"]):
                if name.endswith(".sock"):
                    self.assertEqual(os.stat(os.path.join(vm.info["directory"], name)).st_mode & 0o007, 0, name)
        self.daemon.end_ticket(self.ticket["ticket"])


class ConfinementOfUser(Confinement):
    """sfvmmd as a plain user: everything works without root."""
    user = "nobody"

    def setUp(self):
        if os.geteuid():
            self.skipTest("only root can start a daemon as somebody else; the other class runs as you")
        super().setUp()


if __name__ == "__main__":
    harness.main()
