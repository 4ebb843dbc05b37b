#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Saved snapshots: what is saved is what was, in open formats; clones of it, lazily, later, after the VM has ended and
sfvmmd was restarted; bad files and full disks.
"""
import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import unittest

import harness
import tiny
from harness import MIB, on_all


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while True:
            piece = file.read(MIB)
            if not piece:
                return digest.hexdigest()
            digest.update(piece)


class Saving(harness.Case):
    """Daemons with a folder of their own for what outlives a reboot."""

    @classmethod
    def setUpClass(cls):
        cls.daemon = harness.Daemon(config={"pager": harness.program("sfvmm/pager/sf-pager")})
        cls.addClassCleanup(cls.daemon.close)
        cls.daemon.config["state-directory"] = os.path.join(cls.daemon.top, "state")
        cls.store = os.path.join(cls.daemon.top, "state", "snapshots")
        cls.daemon.start()
        harness.wait(lambda: not cls.daemon.processes(), what="the end of what the daemon asks QEMU at its start")

    def save(self, vm, name):
        saved = self.daemon.call("snapshot.save", vm=vm.name, name=name)["snapshot"]
        self.addCleanup(self.remove, name)
        return saved

    def remove(self, name):
        """Clones of it may have been killed just now: that is not busy."""
        try:
            self.daemon.call("snapshot.rm", name=name)
        except harness.ControlError as error:
            self.assertEqual(error.code, "no-such-snapshot", error)

    def clone(self, name, count=1):
        ticket = self.daemon.call("snapshot.clone", name=name, count=count)["ticket"]
        self.addCleanup(self.end, ticket["ticket"])
        self.assertEqual([clone["state"] for clone in ticket["clones"]], ["running"] * count, ticket)
        return ticket

    def end(self, ticket):
        try:
            self.daemon.end_ticket(ticket)
        except harness.ControlError as error:
            self.assertEqual(error.code, "no-such-ticket")


class Files(Saving):
    """With the tiny guest: no agent."""

    def test_content(self):
        vm = tiny.start(self.daemon)
        self.addCleanup(vm.stop)
        saved = self.save(vm, "tiny.1")
        self.assertEqual(saved["state"], "saved")
        self.assertEqual(saved["vm"], vm.name)
        folder = os.path.join(self.store, "tiny.1")
        with open(os.path.join(folder, "snapshot.json")) as file:
            told = json.load(file)
        parts = told["blocks"] + told["disks"] + [told["descriptor"]]
        self.assertEqual(sorted(os.listdir(folder)), sorted(["snapshot.json"] + [part["file"] for part in parts]))
        for part in parts:
            path = os.path.join(folder, part["file"])
            self.assertEqual(os.path.getsize(path), part["bytes"])
            self.assertEqual(sha256(path), part["sha256"])
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        self.assertEqual(sum(block["bytes"] for block in told["blocks"]), vm.info["memory"])
        vm.counts_on()
        self.assertEqual([s["name"] for s in self.daemon.call("snapshot.list")["snapshots"]], ["tiny.1"])

    def test_clones(self):
        vm = tiny.start(self.daemon)
        self.save(vm, "tiny.2")
        vm.stop()
        for clone in tiny.clones(self.daemon, self.clone("tiny.2", 3)):
            clone.counts_on()
        self.error("busy", "snapshot.rm", "tiny.2", name="tiny.2")
        for clone in tiny.clones(self.daemon, self.clone("tiny.2")):
            clone.counts_on()

    def test_names(self):
        vm = tiny.start(self.daemon)
        self.addCleanup(vm.stop)
        self.save(vm, "taken")
        self.error("exists", "snapshot.save", "taken", vm=vm.name, name="taken")
        for name in ("", "..", "a/b", "-x", "x" * 81, "\u00e4"):
            self.error("bad-params", "snapshot.save", vm=vm.name, name=name)
        self.error("no-such-snapshot", "snapshot.clone", "nothing", name="nothing")
        self.error("no-such-snapshot", "snapshot.rm", "nothing", name="nothing")
        self.error("no-such-vm", "snapshot.save", "nobody", vm="nobody", name="x")
        self.error("bad-params", "snapshot.save", name="x")

    @contextlib.contextmanager
    def damaged(self, name):
        """A folder of a snapshot that may be changed for a while."""
        folder = os.path.join(self.store, name)
        subprocess.run(["cp", "-a", "--sparse=always", folder, folder + ".good"], check=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder)
            os.rename(folder + ".good", folder)

    def test_damaged(self):
        """Each is refused with an error that names the file, before a process is started for it."""
        vm = tiny.start(self.daemon)
        self.addCleanup(vm.stop)
        self.save(vm, "bad")
        with open(os.path.join(self.store, "bad", "snapshot.json")) as file:
            told = json.load(file)
        memory, disk = told["blocks"][0]["file"], told["disks"][0]["file"]

        def flip(path):
            with open(path, "r+b") as file:
                file.seek(os.path.getsize(path) // 2)
                byte = file.read(1)[0]
                file.seek(-1, 1)
                file.write(bytes([byte ^ 1]))

        def other_file(path):
            """A disk that names a file of this host as what stands below it, or as what holds its data."""
            os.unlink(path)
            subprocess.run([harness.qemu_img(), "create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", path,
                            "1M"], check=True)
            told["disks"][0]["bytes"] = os.path.getsize(path)
            with open(os.path.join(os.path.dirname(path), "snapshot.json"), "w") as file:
                json.dump(told, file)

        def cut(path):
            os.truncate(path, 100)
        for name, change, word in (("descriptor.dtb", flip, "descriptor.dtb"), ("snapshot.json", cut, "snapshot.json"),
                                   (memory, cut, memory), (memory, os.unlink, memory), (disk, other_file, "/etc/passwd")):
            with self.subTest(name), self.damaged("bad") as folder:
                change(os.path.join(folder, name))
                self.error("failed", "snapshot.clone", word, name="bad")
        for clone in tiny.clones(self.daemon, self.clone("bad")):
            clone.counts_on()

    def test_load(self):
        """A copy of the directory somewhere else; a copy that is damaged where nobody has looked yet."""
        vm = tiny.start(self.daemon)
        self.save(vm, "first")
        vm.stop()
        copy = os.path.join(self.daemon.top, "copy")
        subprocess.run(["cp", "-a", "--sparse=always", os.path.join(self.store, "first"), copy], check=True)
        self.addCleanup(shutil.rmtree, copy)
        loaded = self.daemon.call("snapshot.load", directory=copy, name="second")["snapshot"]
        self.addCleanup(self.remove, "second")
        self.assertTrue(loaded["linked"])
        for clone in tiny.clones(self.daemon, self.clone("second")):
            clone.counts_on()
        with open(os.path.join(copy, "snapshot.json")) as file:
            memory = os.path.join(copy, json.load(file)["blocks"][0]["file"])
        with open(memory, "r+b") as file:
            file.seek(-1, 2)
            file.write(b"!")
        self.error("failed", "snapshot.load", memory, directory=copy, name="third")
        self.error("bad-params", "snapshot.load", directory="copy", name="third")

    def served(self, command, socket, uri, damage=None):
        """Clones of a snapshot whose memory another program serves; the directory lacks it. Their TICKET."""
        vm = tiny.start(self.daemon)
        self.save(vm, "local")
        vm.stop()
        folder = os.path.join(self.daemon.top, "rest")
        memory = os.path.join(self.daemon.top, "memory")
        shutil.copytree(os.path.join(self.store, "local"), folder)
        self.addCleanup(shutil.rmtree, folder)
        os.makedirs(memory)
        self.addCleanup(shutil.rmtree, memory)
        os.rename(os.path.join(folder, "ram0.raw"), os.path.join(memory, "ram0.raw"))
        if damage:
            damage(os.path.join(memory, "ram0.raw"))
        server = subprocess.Popen(command(memory))
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        harness.wait(lambda: os.path.exists(socket) or server.poll() is not None, what="the server's socket")
        os.chmod(socket, 0o666)
        loaded = self.daemon.call("snapshot.load", directory=folder, name="served", memory_uri=uri)["snapshot"]
        self.addCleanup(self.remove, "served")
        self.assertEqual(loaded["memory_uri"], uri)
        ticket = self.clone("served", 2)
        for clone in tiny.clones(self.daemon, ticket):
            clone.counts_on()
        return ticket

    def nbdkit(self, damage=None):
        nbdkit = shutil.which("nbdkit")
        if not nbdkit:
            self.skipTest("nbdkit is missing")
        socket = os.path.join(self.daemon.top, "nbdkit.sock")
        self.addCleanup(lambda: os.path.exists(socket) and os.unlink(socket))
        return self.served(lambda memory: [nbdkit, "-f", "-r", "-U", socket, "file", "dir=" + memory], socket,
                           "nbd+unix:///{block}.raw?socket=" + socket, damage)

    def complete(self, ticket):
        self.daemon.call("complete", ticket=ticket["ticket"], timeout_ms=int(harness.LONG * 1000))

    def test_nbdkit(self):
        """When all of it has come, it is compared with what was saved."""
        ticket = self.nbdkit()
        self.complete(ticket)
        harness.wait(lambda: "is what was saved" in self.daemon.log_tail(), what="word that the memory was verified")
        for clone in tiny.clones(self.daemon, self.daemon.call("ticket.status", ticket=ticket["ticket"])["ticket"]):
            clone.counts_on()

    def test_other_memory(self):
        """The server gives a byte that was not saved: the clones are lost, and told why."""
        def change(path):
            with open(path, "r+b") as file:
                start = os.lseek(file.fileno(), 0, os.SEEK_DATA)
                end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
                file.seek(start)
                data = file.read(end - start).rstrip(b"\0")     # pages of zeros are not fetched
                file.seek(start + len(data) - 1)
                file.write(bytes([data[-1] ^ 1]))
        ticket = self.nbdkit(change)
        with contextlib.suppress(harness.ControlError):     # they may be lost before the call is answered
            self.complete(ticket)

        def lost():
            clones = self.daemon.call("ticket.status", ticket=ticket["ticket"])["ticket"]["clones"]
            return [clone["reason"] for clone in clones] if all(clone["state"] == "lost" for clone in clones) else None
        for reason in harness.wait(lost, what="the loss of the clones"):
            self.assertRegex(reason, "not what was saved: block ram0 has SHA-256 [0-9a-f]{64}, not [0-9a-f]{64}")

    def test_qemu_nbd(self):
        program = harness.need(os.path.join(os.path.dirname(harness.qemu_img()), "qemu-nbd"), "qemu-nbd")
        socket = os.path.join(self.daemon.top, "qemu-nbd.sock")
        self.served(lambda memory: [program, "-r", "-t", "-f", "raw", "-x", "anything", "-e", "0", "-k", socket,
                                    os.path.join(memory, "ram0.raw")], socket, "nbd+unix:///anything?socket=" + socket)

    def test_no_room(self):
        """A file system that is too small: an error, the VM goes on, nothing is left."""
        if os.geteuid() != 0:
            self.skipTest("mounting a small file system needs root")
        vm = tiny.start(self.daemon)
        self.addCleanup(vm.stop)
        os.makedirs(self.store, exist_ok=True)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "none", self.store]).returncode != 0:
            self.skipTest("mounting is not allowed here")
        try:
            error = self.error("failed", "snapshot.save", "make room", vm=vm.name, name="big")
            self.assertIn("big", error.message)
            self.assertEqual(os.listdir(self.store), [])
        finally:
            subprocess.run(["umount", "-l", self.store], check=True)
        vm.counts_on()
        self.save(vm, "big")


class Life(Saving):
    """Restarts of sfvmmd and deaths of its helpers, with the tiny guest."""

    check_footprint = False

    def test_later(self):
        """The VM has ended, its sfvmmd too, its run directory is gone: as after a reboot."""
        vm = tiny.start(self.daemon)
        self.save(vm, "later")
        vm.stop()
        harness.wait(lambda: not self.daemon.qemus(), what="end of the VM")
        self.daemon.end()
        shutil.rmtree(self.daemon.run)
        os.makedirs(self.daemon.run, mode=0o755)
        self.daemon.start()
        for clone in tiny.clones(self.daemon, self.clone("later", 2)):
            clone.counts_on()

    def test_restart(self):
        """Clones of a saved snapshot go on while sfvmmd is killed and started; then there are more of them."""
        vm = tiny.start(self.daemon)
        self.save(vm, "restart")
        vm.stop()
        clones = tiny.clones(self.daemon, self.clone("restart", 2))
        self.daemon.restart(signal.SIGKILL)
        for clone in clones:
            clone = tiny.Tiny(self.daemon, self.daemon.call("vm.status", vm=clone.name)["vm"])
            clone.counts_on()
        for clone in tiny.clones(self.daemon, self.clone("restart")):
            clone.counts_on()

    def test_killed_helpers(self):
        """The server of the memory files and the sf-pager are killed: clones wait, then go on."""
        vm = tiny.start(self.daemon)
        self.save(vm, "helpers")
        vm.stop()
        clones = tiny.clones(self.daemon, self.clone("helpers", 2))
        for word in ("snowflock-nbd-m-", "sf-pager"):
            pids = [pid for pid in self.daemon.processes() if word in harness.command_line(pid)]
            self.assertEqual(len(pids), 1, word)
            os.kill(pids[0], signal.SIGKILL)
        for clone in clones:
            clone.counts_on()
        for clone in tiny.clones(self.daemon, self.clone("helpers")):
            clone.counts_on()

    def test_killed_in_a_save(self):
        """sfvmmd is killed while it saves: nothing is left of that, and the VM does not notice."""
        vm = tiny.start(self.daemon, memory=256 * MIB)
        self.addCleanup(vm.stop)
        with contextlib.closing(self.daemon.client()) as client:
            client.send("snapshot.save", vm=vm.name, name="half")
            harness.wait(lambda: os.path.exists(os.path.join(self.store, ".half.part")) or
                         os.path.exists(os.path.join(self.store, "half")), what="the save")
        self.daemon.restart(signal.SIGKILL)
        names = [saved["name"] for saved in self.daemon.call("snapshot.list")["snapshots"]]
        left = sorted(os.listdir(self.store))
        self.assertIn(left, ([], ["half"]))
        self.assertEqual(names, left)
        tiny.Tiny(self.daemon, self.daemon.call("vm.status", vm=vm.name)["vm"]).counts_on()
        if left:
            self.remove("half")


class Linux(Saving):
    """Memory and disks by content, an agent."""

    def setUp(self):
        super().setUp()
        self.parent = harness.linux(self.daemon, disks=[
            {"path": harness.blank_disk(self.daemon, "data.raw", 8), "format": "raw"}])
        self.ended = False
        self.addCleanup(self.stop_parent)
        self.probe = self.parent.probe()
        self.probe("open m mem 48")
        self.probe("open d dev /dev/vdc 0")
        self.write([self.probe], 1)

    def stop_parent(self):
        if not self.ended:
            self.ended = True
            self.parent.stop()

    def write(self, probes, number):
        on_all(probes, "fill m %d" % number)
        on_all(probes, "fill d %d" % number)

    def check(self, probes, number):
        on_all(probes, "verify m %d" % number)
        on_all(probes, "verify d %d" % number)

    def probes(self, ticket):
        return [harness.Probe(vm) for vm in self.daemon.clones(ticket)]

    def test_memory_and_disks(self):
        self.save(self.parent, "warm")
        self.write([self.probe], 2)
        probes = self.probes(self.clone("warm", 2))
        self.check(probes, 1)
        self.write(probes[:1], 3)
        self.check(probes[1:], 1)
        self.check(probes[:1], 3)
        self.check([self.probe], 2)
        self.check(self.probes(self.clone("warm")), 1)

    def test_clone_is_saved(self):
        """A clone of a saved snapshot, most of whose memory is not there yet, and what its own clone was made from."""
        self.save(self.parent, "first")
        self.stop_parent()
        ticket = self.clone("first")
        clone = self.daemon.clones(ticket)[0]
        probe = harness.Probe(clone)
        probe("fill d 2")
        self.save(clone, "second")
        probe("fill d 3")
        again = clone.clone(1)
        saved = self.daemon.call("snapshot.save", ticket=again["ticket"], name="third")["snapshot"]
        self.addCleanup(self.remove, saved["name"])
        self.end(again["ticket"])
        self.end(ticket["ticket"])
        self.remove("first")
        for name, number in (("second", 2), ("third", 3)):
            probes = self.probes(self.clone(name))
            on_all(probes, "verify m 1")
            on_all(probes, "verify d %d" % number)

    def test_working_set(self):
        """What the first clone touched is there before the next ones ask for it."""
        self.save(self.parent, "again")
        self.stop_parent()
        path = os.path.join(self.store, "again", "working-set")
        faults = []
        for turn in range(2):
            ticket = self.clone("again")
            self.check(self.probes(ticket), 1)
            usage = [vm for vm in self.daemon.call("vm.usage")["vms"] if vm.get("ticket") == ticket["ticket"]][0]
            faults.append(usage["pages"]["demand_faults"])
            if turn == 0:
                harness.wait(lambda: os.path.exists(path), harness.LONG, "the recorded working set")
            self.end(ticket["ticket"])
        self.assertLess(faults[1], faults[0] / 2, faults)
        with open(path) as file:
            lines = file.read().splitlines()
        self.assertGreater(len(lines), 10)
        for line in lines:
            self.assertRegex(line, r"^ram0 \d+ \d+$")

    def test_fork_and_restart(self):
        """Saved again from the fork of a ticket; a restart between; clones of clones of saved ones."""
        self.before = None              # another daemon at the end
        ticket = self.parent.clone(1)
        self.addCleanup(self.end, ticket["ticket"])
        self.write([self.probe], 2)
        saved = self.daemon.call("snapshot.save", ticket=ticket["ticket"], name="of-a-fork")["snapshot"]
        self.addCleanup(self.remove, saved["name"])
        self.end(ticket["ticket"])
        self.check([self.probe], 2)
        self.stop_parent()
        self.daemon.restart()
        ticket = self.clone("of-a-fork")
        self.check(self.probes(ticket), 1)
        clone = self.daemon.clones(ticket)[0]
        again = clone.clone(2)
        self.addCleanup(self.end, again["ticket"])
        probes = self.probes(again)
        self.check(probes, 1)
        self.write(probes[:1], 4)
        self.check(probes[1:], 1)


class Checkpoints(Saving):
    """From within the guest, by libsf: saved now, cloned later, again and again."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.parent = harness.linux(cls.daemon, name="web")
        cls.probe = cls.parent.probe()
        cls.probe("open m mem 24")

    def setUp(self):
        super().setUp()
        self.probe("fill m 1")

    def checkpoint(self, name):
        self.addCleanup(self.remove, "web." + name)
        reply = self.probe("checkpoint " + name)
        self.assertEqual((reply["id"], reply["count"]), ("0", "0"))

    def create(self, name, count, slot=0):
        """The clones' probes: each goes on where the checkpoint was taken."""
        got = self.probe("create %d %s %d" % (slot, name, count))
        self.assertEqual(got["granted"], str(count))
        self.addCleanup(self.end, got["ticket"])
        ticket = self.daemon.call("ticket.status", ticket=got["ticket"])["ticket"]
        probes = {}
        for clone in ticket["clones"]:
            probes[clone["id"]] = harness.Probe(self.daemon.vm(clone["vm"]))
            reply = probes[clone["id"]].reply()
            self.assertEqual((reply["id"], reply["self"], reply["count"]), (str(clone["id"]),) * 2 + (str(count),))
        return probes

    def refused(self, number, command):
        with self.assertRaisesRegex(AssertionError, "errno=%d " % number):
            self.probe(command)

    def test_clones_later(self):
        self.checkpoint("warm")
        self.probe("fill m 2")
        for turn in range(2):
            probes = self.create("warm", 2)
            on_all(list(probes.values()), "verify m 1")
            for number, probe in probes.items():
                probe.send("exit %d 100000 %d" % (number, number))
            reply = self.probe("join 0")
            self.assertEqual((reply["m1"], reply["m2"]), ("exited:1:100000", "exited:2:100000"))
            for number in probes:
                self.probe("fetch 0 %d %d" % (number, number))
            self.refused(errno.EALREADY, "clone 0")
            self.probe("release 0")
        self.probe("verify m 2")
        self.probe("forget warm")
        self.refused(errno.ENOENT, "create 1 warm 1")

    def test_refusals(self):
        self.checkpoint("one")
        self.refused(errno.EEXIST, "checkpoint one")
        self.refused(errno.ENOENT, "create 1 two 1")
        self.refused(errno.ENOENT, "forget two")
        self.refused(errno.EINVAL, "checkpoint a.b")
        self.daemon.call("snapshot.save", vm="web", name="web.mine")
        self.addCleanup(self.remove, "web.mine")
        self.refused(errno.ENOENT, "create 1 mine 1")           # an operator's
        self.refused(errno.ENOENT, "forget mine")
        probes = self.create("one", 1)
        self.refused(errno.EBUSY, "forget one")
        child = probes[1]
        with self.assertRaisesRegex(AssertionError, "errno=%d " % errno.EOPNOTSUPP):
            child("checkpoint x")
        child.send("exit 0")
        self.probe("join 0")
        self.probe("release 0")
        for number in range(6):                                 # as if taken: each would take some ten seconds
            self.addCleanup(self.remove, "web.n%d" % number)
            subprocess.run(["cp", "-al", *(os.path.join(self.store, name) for name in ("web.one", "web.n%d" % number))],
                           check=True)
        self.refused(errno.EDQUOT, "checkpoint last")

    def test_restart(self):
        """sfvmmd is restarted between the two, and while the clones run."""
        self.before = None
        self.checkpoint("warm")
        self.daemon.restart(signal.SIGKILL)
        probes = self.create("warm", 2)
        self.daemon.restart(signal.SIGKILL)
        on_all(list(probes.values()), "verify m 1")
        for probe in probes.values():
            probe.send("exit 5")
        reply = self.probe("join 0")
        self.assertEqual((reply["m1"], reply["m2"]), ("exited:5:0", "exited:5:0"))
        self.probe("release 0")


if __name__ == "__main__":
    harness.main()
