#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The first test: the parent resumes, whatever fails.

Every test makes a fork fail in its own way, and asks three things: the parent counts on, the error names what failed,
and the next fork of the same parent, with nothing in its way, succeeds. VMs are tiny guests, which need neither Linux
nor an agent.
"""
import os
import random
import signal
import subprocess
import threading
import time
import unittest

import harness
import tiny
import wrapper

CLONES = 3
KILL_ROUNDS = 12
RESTART_ROUNDS = 12
SMALL_DISK = 8 * harness.MIB       # the run directory's own file system
ENDED = ("exited", "failed", "lost", "killed")


class Resume(harness.Case):
    pool = 0

    def setUp(self):
        self.seed = int(os.environ.get("SF_TEST_SEED") or time.time_ns() % 1000000)
        self.random = random.Random(self.seed)
        daemon = harness.Daemon()
        self.daemon = daemon
        self.addCleanup(self.end_daemon, daemon)
        self.wrapper = wrapper.Wrapper(daemon.top)
        daemon.qemu_path = self.wrapper.path

    def begin(self, **params):
        self.daemon.start()
        self.parent = tiny.start(self.daemon, pool=self.pool, **params)
        self.before = self.daemon.footprint()
        return self.parent

    def failed_fork(self, *words):
        """A fork that must not succeed; returns all that was said about it. The parent counts on."""
        text = ""
        try:
            ticket = self.parent.clone(CLONES)
            self.assertFalse([c for c in ticket["clones"] if c["state"] == "running"], "a clone runs: %s" % ticket)
            text = " ".join([ticket.get("reason") or ""] + [c.get("reason") or "" for c in ticket["clones"]])
            self.daemon.call("join", ticket=ticket["ticket"])
        except harness.ControlError as error:
            text = str(error)
        for word in words:
            self.assertIn(word, text)
        self.parent.counts_on()
        return text

    def good_fork(self):
        ticket = self.parent.clone(CLONES)
        self.assertEqual([c["state"] for c in ticket["clones"]], ["running"] * CLONES, ticket)
        for clone in tiny.clones(self.daemon, ticket):
            clone.counts_on()
        self.parent.counts_on()
        self.end_fork(ticket)

    def end_fork(self, ticket):
        self.daemon.call("kill", ticket=ticket["ticket"])
        joined = self.daemon.call("join", ticket=ticket["ticket"])["ticket"]
        for clone in joined["clones"]:
            self.assertIn(clone["state"], ENDED)
        self.compare_footprint()

    # -- shells

    def test_shell_does_not_start(self):
        self.begin()
        self.wrapper.rule(shell="echo 'no such machine' >&2; exit 1")
        self.failed_fork()
        self.wrapper.clear()
        self.good_fork()

    def test_shell_is_not_executable(self):
        self.begin()
        os.rename(self.wrapper.path, self.wrapper.path + ".away")
        self.failed_fork()
        os.rename(self.wrapper.path + ".away", self.wrapper.path)
        self.good_fork()

    def test_shell_hits_a_limit_of_memory(self):
        self.begin()
        self.wrapper.rule(shell="ulimit -v 200000")
        self.failed_fork()
        self.wrapper.clear()
        self.good_fork()

    def test_shell_hits_a_limit_of_descriptors(self):
        self.begin()
        self.wrapper.rule(shell="ulimit -n 12")
        self.failed_fork()
        self.wrapper.clear()
        self.good_fork()

    def test_one_shell_of_several_does_not_start(self):
        """The first two attempts fail, so one clone is retried or reported; the others run."""
        self.begin()
        flag = os.path.join(self.wrapper.folder, "once")
        self.wrapper.rule(shell="mkdir %s 2>/dev/null && exit 1" % flag)
        os.chmod(self.wrapper.folder, 0o777)
        ticket = self.parent.clone(CLONES)
        running = [c for c in ticket["clones"] if c["state"] == "running"]
        self.assertGreaterEqual(len(running), CLONES - 1, ticket)
        for clone in ticket["clones"]:
            self.assertIn(clone["state"], ("running", "failed"))
            self.assertTrue(clone["state"] == "running" or clone["reason"])
        self.parent.counts_on()
        self.wrapper.clear()
        self.end_fork(ticket)

    # -- state and devices

    def test_shell_refuses_the_state(self):
        """The parent has a device that the shells have not: its state is in the stream, and loading it fails."""
        self.wrapper.rule(parent="extra+=(-device pci-bridge,chassis_nr=7,id=odd0)")
        self.begin()
        self.failed_fork()
        self.parent.counts_on()

    def test_unsupported_device_is_refused_by_name(self):
        self.wrapper.rule(parent="extra+=(-device nvme,id=bad0,serial=1)")
        self.begin()
        check = self.daemon.call("vm.check", vm=self.parent.name)
        self.assertFalse(check["forkable"])
        self.assertIn("nvme", " ".join(check["obstacles"]))
        self.failed_fork("refused", "nvme")
        self.assertEqual(self.daemon.call("vm.usage")["vms"][0]["name"], self.parent.name)

    def test_memory_without_memfd_is_refused(self):
        self.wrapper.rule(parent="extra+=(-object memory-backend-ram,id=extra0,size=2M -device pc-dimm,memdev=extra0 "
                                 "-m slots=1,maxmem=1G)")
        try:
            self.begin()
        except harness.ControlError as error:
            self.skipTest("this QEMU does not start so: %s" % error)
        self.failed_fork()

    # -- clones that die

    def test_clone_killed_at_each_step(self):
        """A thread kills each QEMU that appears, after a delay that sweeps the time a fork takes."""
        self.begin()
        start = time.monotonic()
        self.good_fork()
        length = time.monotonic() - start
        keep = {self.parent.pid}
        for turn in range(KILL_ROUNDS):
            delay = length * turn / KILL_ROUNDS
            stop = threading.Event()

            def killer():
                seen = {}
                while not stop.is_set():
                    now = time.monotonic()
                    for pid in self.daemon.qemus():
                        if pid not in keep and now - seen.setdefault(pid, now) >= delay:
                            try:
                                os.kill(pid, signal.SIGKILL)
                            except ProcessLookupError:
                                pass
            thread = threading.Thread(target=killer)
            thread.start()
            try:
                ticket = self.parent.clone(CLONES)
            except harness.ControlError:
                ticket = None
            finally:
                stop.set()
                thread.join()
            self.parent.counts_on()
            if ticket:
                self.end_fork(ticket)
        self.good_fork()

    def test_parent_killed_during_the_fork(self):
        """Nothing hangs, nothing is left; the daemon serves others."""
        self.begin()
        for turn in range(KILL_ROUNDS // 2):
            control = self.daemon.client()
            number = control.send("clone", vm=self.parent.name, count=CLONES)
            time.sleep(self.random.random() * 0.1)            # anywhere in the fork: the point of the test
            os.kill(self.parent.pid, signal.SIGKILL)
            try:
                ticket = control.answer(number)["ticket"]
                self.daemon.end_ticket(ticket["ticket"])
            except harness.ControlError:
                pass
            control.close()
            harness.wait(lambda: not self.daemon.qemus(), what="the end of parent and clones (seed %d)" % self.seed)
            harness.wait(lambda: not self.daemon.call("ticket.list")["tickets"], what="the end of its tickets")
            harness.wait(self.start_again, what="the name of the parent that was killed to be free again")
        self.good_fork()

    def start_again(self):
        """The daemon learns of the end of the last process a moment after we do; until then the name is taken."""
        try:
            self.parent = tiny.start(self.daemon, pool=self.pool, name=self.parent.name)
        except harness.ControlError as error:
            if error.code != "exists":
                raise
            return False
        return True

    # -- disk full

    def test_disk_full(self):
        if os.geteuid():
            self.skipTest("mounting a small file system needs root")
        folder = os.path.join(self.daemon.top, "small")
        os.mkdir(folder)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=%d,mode=755" % SMALL_DISK, "sf-test", folder], check=True)
        self.addCleanup(subprocess.run, ["umount", "-l", folder], check=True)
        self.daemon.run = folder
        self.daemon.socket_path = os.path.join(folder, "control.sock")
        disk = harness.blank_disk(self.daemon, "data.raw", 4)
        self.begin(disks=[{"path": disk, "format": "raw"}])
        self.good_fork()
        filler = os.path.join(folder, "filler")
        with open(filler, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        text = self.failed_fork()
        self.assertRegex(text.lower(), "space|full")
        os.unlink(filler)
        self.good_fork()

    # -- the daemon dies

    def test_daemon_killed_during_the_fork(self):
        """SIGKILL at a random point, then a restart: the parent has gone on, the ticket ends and join tells how."""
        self.begin()
        start = time.monotonic()
        self.good_fork()
        length = time.monotonic() - start
        for turn in range(RESTART_ROUNDS):
            ticket = self.daemon.call("ticket.request", vm=self.parent.name, count=CLONES)["ticket"]
            control = self.daemon.client()
            control.send("clone", ticket=ticket["ticket"])
            time.sleep(self.random.random() * length)          # anywhere in the fork: the point of the test
            self.daemon.end(signal.SIGKILL)
            control.close()
            where = "round %d, seed %d" % (turn, self.seed)
            with self.subTest(where):
                self.parent.counts_on()
                self.daemon.start()
                self.parent.counts_on()
                self.assertEqual(self.parent.status()["pid"], self.parent.pid)
                known = [t["ticket"] for t in self.daemon.call("ticket.list")["tickets"]]
                self.assertIn(ticket["ticket"], known)

                def settled():
                    state = self.daemon.call("ticket.status", ticket=ticket["ticket"])["ticket"]
                    return state if state["state"] not in ("forking",) and not \
                        [c for c in state.get("clones", []) if c["state"] == "starting"] else None
                state = harness.wait(settled, harness.LONG, "the end of the fork")
                for clone in tiny.clones(self.daemon, state):
                    clone.counts_on()
                self.daemon.end_ticket(ticket["ticket"])
                self.compare_footprint()
        self.good_fork()


class ResumeWarm(Resume):
    """The same with a pool of shells: they are there before the failure begins."""
    pool = CLONES

    # These are about starting a shell during the fork.
    test_shell_does_not_start = None
    test_shell_is_not_executable = None
    test_shell_hits_a_limit_of_memory = None
    test_shell_hits_a_limit_of_descriptors = None
    test_one_shell_of_several_does_not_start = None
    test_unsupported_device_is_refused_by_name = None
    test_memory_without_memfd_is_refused = None


if __name__ == "__main__":
    harness.main()
