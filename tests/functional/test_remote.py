#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Clones on other hosts: two or three sfvmmds with run directories of their own, on the loopback interface."""
import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import unittest

import harness
import hosts
import test_security
import tiny
from harness import on_all

MEMORY = 256 * harness.MIB
AWAY_SECONDS = 10               # a host that is not heard of for so long has lost its clones


class Remote(harness.Case):
    """Hosts a (where the VM is) and b. A test says with at() where clones go."""

    names = ("a", "b")
    keys = {}
    link = None

    @classmethod
    def setUpClass(cls):
        cls.hosts = hosts.cluster(cls, cls.names, config={"identify-seconds": 60}, link=cls.link,
                                  **dict({"away-seconds": AWAY_SECONDS}, **cls.keys))
        cls.daemon = cls.a = cls.hosts["a"]
        cls.b = cls.hosts["b"]
        cls.parent = harness.linux(cls.a, memory=MEMORY, pool=2)
        cls.probe = cls.parent.probe()

    def setUp(self):
        self.others = [(host, host.footprint()) for host in self.hosts.values() if host is not self.a]
        super().setUp()
        self.addCleanup(self.compare_others)
        self.addCleanup(self.a.end_tickets)

    def compare_others(self):
        """On the other hosts nothing is left either."""
        for host, before in self.others:
            last = None

            def same():
                nonlocal last
                after = host.footprint()
                last = {key: (before[key], after[key]) for key in after if after[key] != before[key]}
                return not last
            try:
                harness.wait(same, harness.SHORT, "footprint of host " + host.name)
            except AssertionError:
                self.fail("left behind on host %s (before, after): %s" % (host.name, last))

    def at(self, *names):
        """Clones are placed on these hosts alone."""
        for host in self.hosts.values():
            self.a.call("host.drain", name=host.name, drain=host.name not in names)

    def fork(self, count, slot=0):
        """Ticket and clone by libsf. The TICKET, and the clones' probes by id."""
        got = self.probe("ticket %d %d" % (slot, count))
        self.assertEqual(got["granted"], str(count))
        reply = self.probe("clone %d" % slot)
        self.assertEqual((reply["id"], reply["count"]), ("0", "0"))
        state = self.a.call("ticket.status", ticket=got["ticket"])["ticket"]
        return state, self.probes(state)

    def probes(self, state):
        found = {}
        for clone in state["clones"]:
            probe = harness.Probe(self.hosts[clone["host"] or "a"].vm(clone["vm"]))
            answer = probe.reply()
            self.assertEqual((answer["id"], answer["count"]), (str(clone["id"]), str(len(state["clones"]))))
            found[clone["id"]] = probe
        return found

    def join(self, slot=0, command="join"):
        reply = self.probe("%s %d" % (command, slot))
        return {int(key[1:]): (value.split(":")[0], int(value.split(":")[1]), int(value.split(":")[2]))
                for key, value in reply.items() if re.match(r"m\d+$", key)}

    def places(self, state):
        return {place["host"]: place["count"] for place in state["places"]}

    def served_memory(self, state, at="a", to="b"):
        """The snapshot's memory as the page server of host `at` gives it to host `to`: the name of a file."""
        with open(os.path.join(self.hosts[at].run, "tickets", state["ticket"], "ticket.json")) as file:
            port = json.load(file)["pages_port"]
        path = os.path.join(self.a.top, "memory-" + state["ticket"])
        pages = os.path.join(self.hosts[to].cluster["pki-directory"], "pages")
        uri = "nbd" if self.keys["pages"] == "plain" else "nbds"
        uri += "://%s:%d/%s/ram0" % (self.hosts[at].ip, port, state["fork"]["snapshot"])
        enter = ["ip", "netns", "exec", self.link.ends[at][0]] if self.link else []
        if self.keys["pages"] != "plain":
            uri += "?tls-certificates=" + pages
        try:
            subprocess.run(enter + ["nbdcopy", uri, path], check=True, capture_output=True, text=True,
                           timeout=harness.LONG)
        except FileNotFoundError:
            raise unittest.SkipTest("nbdcopy is missing (package libnbd-bin)") from None
        except subprocess.CalledProcessError as error:
            self.fail("nbdcopy %s: %s" % (uri, error.stderr))
        self.addCleanup(os.unlink, path)
        return path

    def memfd(self, pid):
        """The memfd of guest memory that a process has."""
        folder = "/proc/%d/fd" % pid
        for number in os.listdir(folder):
            path = os.path.join(folder, number)
            with contextlib.suppress(OSError):
                if os.readlink(path).startswith("/memfd:") and os.stat(path).st_size == MEMORY:
                    return path
        self.fail("process %d has no memfd of %d bytes" % (pid, MEMORY))


class Basic:
    """What holds whatever the transport."""

    def test_results_and_statuses(self):
        self.at("b")
        state, probes = self.fork(2)
        self.assertEqual(self.places(state), {"b": 2})
        self.assertEqual([c["host"] for c in state["clones"]], ["b", "b"])
        probes[1]("sync 1000000 5")
        harness.wait(lambda: self.join(command="look")[1][2] == 1000000, what="the result of clone 1")
        self.probe("fetch 0 1 5")
        probes[1].send("exit 4")                            # its result stays
        probes[2].send("exit 5 800008 7")
        self.assertEqual(self.join(), {1: ("exited", 4, 1000000), 2: ("exited", 5, 800008)})
        self.probe("fetch 0 2 7")
        self.probe("release 0")

    def test_here_and_there(self):
        self.at("a", "b")
        state, probes = self.fork(4)
        self.assertEqual(self.places(state), {"a": 2, "b": 2})
        self.probe("open m mem 40")
        self.probe("fill m 1")
        on_all(list(probes.values()), "open m mem 20")
        for number, probe in probes.items():
            probe("fill m %d" % (10 + number))
        for number, probe in probes.items():
            probe("verify m %d" % (10 + number))
            probe.send("exit %d" % number)
        self.assertEqual(self.join(), {n: ("exited", n, 0) for n in (1, 2, 3, 4)})
        self.probe("verify m 1")
        self.probe("close m")
        self.probe("release 0")

    def test_memory_and_disk_of_the_parent(self):
        """What the parent had when it forked, whatever it writes afterwards; one layer, then two."""
        self.at("b")
        self.probe("open m mem 40")
        self.probe("fill m 1")
        state, probes = self.fork(1)
        self.probe("fill m 2")
        probes[1]("verify m 1")
        second, more = self.fork(1, slot=1)
        self.probe("fill m 3")
        more[1]("verify m 2")
        probes[1]("verify m 1")
        probes[1]("fill m 4")
        more[1]("verify m 2")
        for probe in (probes[1], more[1]):
            probe.send("exit 0")
        self.assertEqual(self.join(0), {1: ("exited", 0, 0)})
        self.assertEqual(self.join(1), {1: ("exited", 0, 0)})
        self.probe("verify m 3")
        self.probe("close m")
        self.probe("release 0")
        self.probe("release 1")

    def test_under_load(self):
        """A memory checker that runs in the guest when it is forked goes on, in the parent and in clones elsewhere."""
        self.at("b")
        self.probe("open c mem 24")
        self.addCleanup(self.probe, "close c")
        self.probe("churn c")
        self.probe("regs start")
        _, probes = self.fork(2)
        everyone = [self.probe, *probes.values()]
        for reply in on_all(everyone, "regs stop"):
            self.assertEqual(reply["bad"], "0")
        for reply in on_all(everyone, "settle c"):
            self.assertGreater(int(reply["written"]), 0)
        for probe in probes.values():
            probe.send("exit 0")
        self.assertEqual(self.join(), {1: ("exited", 0, 0), 2: ("exited", 0, 0)})
        self.probe("release 0")

    def test_kill_and_release(self):
        self.at("b")
        _, probes = self.fork(2)
        self.probe("kill 0")
        self.assertEqual({k: v[0] for k, v in self.join().items()}, {1: "killed", 2: "killed"})
        self.probe("release 0")
        self.fork(1)
        self.probe("release 0")                             # while it runs

    def test_host_and_its_pager_are_killed(self):
        """The page cache and the userfaultfds are found again in the clones' QEMUs."""
        self.at("b")
        self.probe("open m mem 40")
        self.addCleanup(self.probe, "close m")
        self.probe("fill m 1")
        state, probes = self.fork(2)
        record = os.path.join(self.b.run, "caches", "s-" + state["ticket"], "snapshot.json")
        harness.wait(lambda: os.path.exists(record), what="the record of the page cache")
        self.b.end(signal.SIGKILL)
        for pid in self.b.pagers():
            os.kill(pid, signal.SIGKILL)
            harness.wait(lambda pid=pid: not harness.alive(pid), what="the end of sf-pager")
        probes[1].send("verify m 1")                        # waits for pages that nobody can bring
        self.b.start()
        self.a.wait_up("b")
        probes[1].reply()
        probes[2]("verify m 1")
        made = probes[2].vm.clone(1)                        # over the same cache
        self.assertEqual([c["state"] for c in made["clones"]], ["running"], made)
        self.b.end_ticket(made["ticket"])
        for number, probe in probes.items():
            probe.send("exit %d 100000 %d" % (number, number))
        self.assertEqual(self.join(), {n: ("exited", n, 100000) for n in (1, 2)})
        self.probe("release 0")

    def test_confinement_of_pagers(self):
        """A user of their own: QEMU can neither signal nor trace them, nor they QEMU."""
        self.at("b")
        _, probes = self.fork(1)
        qemu = probes[1].vm.pid
        root = os.geteuid() == 0
        expected = {key: pwd.getpwnam(self.b.config[key]).pw_uid if root else os.geteuid()
                    for key in ("user", "pager-user")}
        for pager in self.a.pagers() + self.b.pagers():
            facts = test_security.status(pager)
            self.assertEqual(set(facts["Uid"].split()), {str(expected["pager-user"])})
            self.assertEqual((facts["Seccomp"], facts["NoNewPrivs"]), (test_security.SECCOMP_FILTER, "1"))
            for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
                self.assertEqual(int(facts[kind], 16), 0, kind)
        if root and expected["user"] != expected["pager-user"]:
            self.assertFalse(may_touch(expected["user"], pager))
            self.assertFalse(may_touch(expected["pager-user"], qemu))
        probes[1].send("exit 0")
        self.join()
        self.probe("release 0")

    def test_clone_of_a_clone(self):
        """It forks on the host where it is; its memory may not have come yet."""
        self.at("b")
        self.probe("open m mem 40")
        self.probe("fill m 1")
        _, probes = self.fork(1)
        child = probes[1]
        for host in self.hosts.values():                    # forks of this one stay on b
            if host is not self.b:
                self.b.call("host.drain", name=host.name)
                self.addCleanup(self.b.call, "host.drain", name=host.name, drain=False)
        child("ticket 1 1")
        child("clone 1")
        ticket = self.b.call("ticket.list")["tickets"][-1]
        self.assertEqual(ticket["vm"], child.vm.name)
        grandchild = harness.Probe(self.b.vm(ticket["clones"][0]["vm"]))
        grandchild.reply()
        grandchild("verify m 1")
        grandchild("fill m 2")
        child("verify m 1")
        grandchild.send("exit 9")
        self.assertIn("exited:9:0", child("join 1").values())
        child("release 1")
        child.send("exit 0")
        self.assertEqual(self.join(), {1: ("exited", 0, 0)})
        self.probe("release 0")
        self.probe("close m")


    def test_all_memory_is_the_snapshots(self):
        """Byte by byte, when all of it has come: of a snapshot of one layer, and of one of two."""
        self.at("b")
        self.probe("open m mem 40")
        for layers in (1, 2):
            self.probe("fill m %d" % layers)
            state, _ = self.fork(1, slot=layers - 1)
            expected = self.served_memory(state)
            if layers == 1 and not self.forked_before():
                self.assertTrue(same_content(self.memfd(self.parent.pid), expected), "the page server gives the memfd")
            self.a.call("complete", ticket=state["ticket"], timeout_ms=int(harness.LONG * 1000))
            pager = [pid for pid in self.b.pagers() if state["fork"]["snapshot"] in harness.command_line(pid)]
            self.assertEqual(len(pager), 1, self.b.pagers())
            self.assertTrue(same_content(self.memfd(pager[0]), expected), "host b has what the page server gives")
        for slot in (0, 1):
            self.probe("kill %d" % slot)
            self.join(slot)
            self.probe("release %d" % slot)
        self.probe("close m")

    def forked_before(self):
        """Then its memfd lies below a layer."""
        return len(self.a.call("ticket.list")["tickets"]) > 1


def may_touch(uid, pid):
    """May a process of that user signal that one, or look into its memory?"""
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setresuid(uid, uid, uid)
        touched = 0
        with contextlib.suppress(PermissionError):
            os.kill(pid, 0)
            touched = 1
        with contextlib.suppress(PermissionError):
            os.close(os.open("/proc/%d/mem" % pid, os.O_RDONLY))
            touched = 1
        os._exit(touched)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0


def same_content(left, right):
    with open(left, "rb") as one, open(right, "rb") as other:
        while True:
            data = one.read(harness.MIB)
            if data != other.read(harness.MIB):
                return False
            if not data:
                return True


class Restart(Remote):
    """Either sfvmmd ends, or a data plane; nothing is lost."""

    def busy(self):
        """A fork whose clones still lack most of their memory."""
        self.at("b")
        self.probe("open m mem 40")
        self.probe("fill m 1")
        self.addCleanup(self.probe, "close m")
        state, probes = self.fork(2)
        return state["ticket"], probes

    def finish(self, ticket, probes, statuses):
        for number, status in statuses.items():
            probes[number].send("exit %d 100000 %d" % (status, number))
        self.assertEqual(self.join(), {n: ("exited", status, 100000) for n, status in statuses.items()})
        for number in statuses:
            self.probe("fetch 0 %d %d" % (number, number))
        self.probe("verify m 1")
        self.probe("release 0")

    def other_host_ends(self, how):
        ticket, probes = self.busy()
        probes[1]("sync 300000 5")
        self.b.end(how)
        on_all(list(probes.values()), "verify m 1")         # their memory still comes
        self.probe.send("join 0")
        probes[2].send("exit 7 200000 8")                   # while nobody is there
        self.b.start()
        on_all([probes[1]], "verify m 1")
        probes[1].send("exit 3")
        reply = self.probe.reply()
        self.assertEqual([reply["m1"], reply["m2"]], ["exited:3:300000", "exited:7:200000"])
        self.probe("fetch 0 1 5")
        self.probe("fetch 0 2 8")
        self.probe("release 0")

    def test_other_host_ends(self):
        self.other_host_ends(signal.SIGTERM)

    def test_other_host_is_killed(self):
        self.other_host_ends(signal.SIGKILL)

    def origin_ends(self, how):
        """For longer than a host may be away: pages come from its sf-pager all the same."""
        ticket, probes = self.busy()
        self.a.end(how)
        probes[1]("verify m 1")
        probes[2].send("exit 7 200000 8")
        harness.wait(lambda: not harness.alive(probes[2].vm.pid), what="the end of clone 2")
        harness.wait(lambda: "not been heard of" in self.b.log_tail(), (AWAY_SECONDS + 10) * harness.SCALE,
                     "word that the origin is away")
        self.a.start()
        self.a.wait_up("b")
        on_all([probes[1]], "verify m 1")
        probes[1].send("exit 3 1000 9")
        self.assertEqual(self.join(), {1: ("exited", 3, 1000), 2: ("exited", 7, 200000)})
        self.probe("fetch 0 1 9")
        self.probe("fetch 0 2 8")
        self.probe("verify m 1")
        self.probe("release 0")

    def test_origin_ends(self):
        self.origin_ends(signal.SIGTERM)

    def test_origin_is_killed(self):
        self.origin_ends(signal.SIGKILL)

    def test_both(self):
        ticket, probes = self.busy()
        self.a.end(signal.SIGKILL)
        self.b.end(signal.SIGKILL)
        self.a.start()
        on_all(list(probes.values()), "verify m 1")
        self.b.start()
        self.a.wait_up("b")
        self.finish(ticket, probes, {1: 3, 2: 4})

    def test_killed_pagers(self):
        ticket, probes = self.busy()
        for host in (self.a, self.b):
            for pid in host.pagers():
                os.kill(pid, signal.SIGKILL)
        on_all(list(probes.values()), "verify m 1")
        self.finish(ticket, probes, {1: 3, 2: 4})

    def test_origin_and_its_pager_are_killed(self):
        """The memory is still the parent's; the next sfvmmd serves it at the same port."""
        ticket, probes = self.busy()
        self.a.end(signal.SIGKILL)
        for pid in self.a.pagers():
            os.kill(pid, signal.SIGKILL)
            harness.wait(lambda: not harness.alive(pid), what="the end of the page server")
        self.a.start()
        self.a.wait_up("b")
        on_all(list(probes.values()), "verify m 1")
        self.finish(ticket, probes, {1: 3, 2: 4})

    def test_killed_before_the_ticket_is_on_record(self):
        """The sf-pager of a reservation runs, and nothing says whose it is: the next sfvmmd ends it."""
        self.at("b")
        for host in (self.a, self.b):
            with self.subTest(host.name):
                ticket = self.a.call("ticket.request", vm=self.parent.name, count=1)["ticket"]["ticket"]
                harness.wait(self.b.pools_full, harness.LONG, "shells for it")
                pager, = host.pagers()
                host.end(signal.SIGKILL)
                for folder in ("tickets/", "caches/s-"):
                    shutil.rmtree(os.path.join(host.run, folder + ticket), ignore_errors=True)
                host.start()
                harness.wait(lambda: not harness.alive(pager), what="the end of the sf-pager")
                self.assertFalse(os.path.exists(os.path.join(host.run, "pager", "s-" + ticket)))
                self.a.wait_up("b")
                self.a.end_tickets()

    def test_working_set_is_kept(self):
        """What the first clone there needed is on record; the next sfvmmd writes the record anew, so it has read it."""
        family = os.path.join(self.a.run, "families", self.parent.name + ".json")

        def recorded():
            with open(family) as file:
                return json.load(file).get("working_set")
        self.at("b")
        _, probes = self.fork(1)
        harness.wait(recorded, what="the working set on record")
        before = recorded()
        probes[1].send("exit 0")
        self.join()
        self.probe("release 0")
        self.a.restart(signal.SIGKILL)
        self.a.wait_up("b")
        self.assertGreaterEqual(len(recorded()), len(before))
        _, probes = self.fork(1)
        probes[1].send("exit 0")
        self.join()
        self.probe("release 0")

    def test_forks_after_a_restart(self):
        """The clones that are there fork, and the parent forks to the same host again."""
        ticket, probes = self.busy()
        self.b.restart(signal.SIGKILL)
        self.a.restart(signal.SIGKILL)
        self.a.wait_up("b")
        second, more = self.fork(1, slot=1)
        more[1]("verify m 1")
        made = probes[1].vm.clone(1)
        self.assertEqual([c["state"] for c in made["clones"]], ["running"], made)
        self.b.end_ticket(made["ticket"])
        more[1].send("exit 0")
        self.assertEqual(self.join(1), {1: ("exited", 0, 0)})
        self.probe("release 1")
        self.finish(ticket, probes, {1: 3, 2: 4})


class Lost(Remote):
    """The source of pages goes for good, before and after a clone has all of its memory."""

    names = ("a", "b", "c")

    def setUp(self):
        super().setUp()
        self.probe("open m mem 60")
        self.addCleanup(self.probe, "close m")
        self.probe("fill m 1")
        self.at("b")

    def cut_source(self):
        """The origin's data plane ends, and nobody starts it anew for longer than others wait."""
        self.a.end(signal.SIGKILL)
        for pid in self.a.pagers():
            os.kill(pid, signal.SIGKILL)
            harness.wait(lambda: not harness.alive(pid), what="the end of the page server")

    def test_incomplete_clone_is_lost(self):
        _, probes = self.fork(1)
        self.cut_source()
        probes[1].send("verify m 1")                        # needs pages that nobody has
        harness.wait(lambda: not harness.alive(probes[1].vm.pid), harness.LONG, "the end of the clone")
        self.a.start()
        self.a.wait_up("b")
        self.assertEqual(self.join(), {1: ("lost", 0, 0)})
        state = self.a.call("ticket.list")["tickets"][-1]
        self.assertRegex(state["clones"][0]["reason"], r"host b: .*memory")
        self.probe("release 0")

    def test_complete_clone_does_not_notice(self):
        state, probes = self.fork(1)
        done = self.a.call("complete", ticket=state["ticket"], timeout_ms=int(harness.LONG * 1000))["ticket"]
        self.assertEqual([place["complete"] for place in done["places"]], [True])
        self.assertEqual(self.a.pagers(), [], "nobody needs the snapshot's pages any more")
        self.a.end(signal.SIGKILL)
        probes[1]("verify m 1")
        self.a.start()
        self.a.wait_up("b")
        probes[1].send("exit 6 1000 2")
        self.assertEqual(self.join(), {1: ("exited", 6, 1000)})
        self.probe("fetch 0 1 2")
        self.probe("release 0")

    def test_host_is_lost(self):
        """What becomes of clones whose host does not come back."""
        self.at("b", "c")
        state, probes = self.fork(2)
        self.assertEqual(self.places(state), {"b": 1, "c": 1})
        gone = next(c["id"] for c in state["clones"] if c["host"] == "c")
        rest = 3 - gone
        host = self.hosts["c"]
        host.end(signal.SIGKILL)
        for pid in host.processes():
            os.kill(pid, signal.SIGKILL)
        probes[rest]("verify m 1")
        probes[rest].send("exit 2")
        members = self.join()
        self.assertEqual({gone: members[gone][0], rest: members[rest][0]}, {gone: "lost", rest: "exited"})
        clone = self.a.call("ticket.status", ticket=state["ticket"])["ticket"]["clones"][gone - 1]
        self.assertRegex(clone["reason"], "host c has not been heard of for %d s" % AWAY_SECONDS)
        self.probe("release 0")
        host.start()
        self.a.wait_up("c")


class Cut(Remote):
    """The cable between the hosts is cut for longer than they need to notice, and mended."""

    keys = {"away-seconds": 120}

    @classmethod
    def setUpClass(cls):
        cls.link = hosts.Link(*cls.names)
        cls.addClassCleanup(cls.link.close)
        super().setUpClass()

    def test_in_the_middle_of_pages(self):
        self.at("b")
        self.probe("open m mem 60")
        self.addCleanup(self.probe, "close m")
        self.probe("fill m 1")
        _, probes = self.fork(1)
        probes[1].send("verify m 1")
        self.addCleanup(self.link.set, "up")
        self.link.set("down")
        self.a.wait_state("b", "down")                      # nothing was heard for some 10 s
        self.link.set("up")
        probes[1].reply()
        self.a.wait_up("b")
        probes[1].send("exit 3 100000 4")
        self.assertEqual(self.join(), {1: ("exited", 3, 100000)})
        self.probe("fetch 0 1 4")
        self.probe("release 0")

    def test_end_and_result_while_it_is_cut(self):
        self.at("b")
        state, probes = self.fork(2)
        self.a.call("complete", ticket=state["ticket"], timeout_ms=int(harness.LONG * 1000))
        self.addCleanup(self.link.set, "up")
        self.link.set("down")
        self.a.wait_state("b", "down")
        probes[1].send("exit 3 200000 4")
        harness.wait(lambda: not harness.alive(probes[1].vm.pid), what="the end of clone 1")
        self.link.set("up")
        self.a.wait_up("b")
        probes[2].send("exit 5")
        self.assertEqual(self.join(), {1: ("exited", 3, 200000), 2: ("exited", 5, 0)})
        self.probe("fetch 0 1 4")
        self.probe("release 0")


class Refusal(Remote):
    """A host that can't run the snapshot says so before it touches a shell; the clones go to another one."""

    names = ("a", "b", "c")

    def other_qemu(self, host, sed):
        """From now on QEMU tells host's sfvmmd something else of itself than it is."""
        path = os.path.join(host.top, "qemu")
        with open(path, "w") as file:
            file.write("#!/bin/sh\ncase \"$*\" in\n"
                       "*\"-machine none\"*) %s \"$@\" | sed -u '%s' ;;\n*) exec %s \"$@\" ;;\nesac\n"
                       % (harness.qemu(), sed, harness.qemu()))
        os.chmod(path, 0o755)
        host.qemu_path = path
        self.addCleanup(self.own_qemu, host)
        host.restart_before(self.a)

    def own_qemu(self, host):
        host.qemu_path = None
        host.restart_before(self.a)

    def test_other_version(self):
        self.other_qemu(self.b, 's/"micro": *[0-9]*/"micro": 99/')
        self.at("b", "c")
        state, probes = self.fork(2)
        self.assertEqual(self.places(state), {"c": 2})
        self.probe("kill 0")
        self.join()
        self.probe("release 0")

    def test_nobody_can(self):
        self.other_qemu(self.b, 's/"micro": *[0-9]*/"micro": 99/')
        self.at("b")
        with self.assertRaises(harness.ControlError) as caught:
            self.a.call("ticket.request", vm=self.parent.name, count=1)
        self.assertEqual(caught.exception.code, "no-capacity")
        self.assertRegex(caught.exception.message, r'host "b".*version')

    def test_missing_machine_type(self):
        self.other_qemu(self.b, 's/pc-q35-10.0/pc-q35-99.0/g')
        self.at("b", "c")
        state, _ = self.fork(1)
        self.assertEqual(self.places(state), {"c": 1})
        self.probe("kill 0")
        self.join()
        self.probe("release 0")

    def test_here_when_nobody_else_can(self):
        self.other_qemu(self.b, 's/"micro": *[0-9]*/"micro": 99/')
        self.at("a", "b")
        state, _ = self.fork(2)
        self.assertEqual(self.places(state), {"a": 2})
        self.probe("kill 0")
        self.join()
        self.probe("release 0")


class RemoteTiny(harness.Case):
    """The tiny guest, whose program checks its memory all the time; it has no agent."""

    accel = "tcg"

    @classmethod
    def setUpClass(cls):
        if cls.accel == "kvm" and not harness.have_kvm():
            raise unittest.SkipTest("/dev/kvm is missing or closed to this user")
        cls.hosts = hosts.cluster(cls, ("a", "b"))
        cls.daemon = cls.a = cls.hosts["a"]
        cls.b = cls.hosts["b"]

    def remote_fork(self, vcpus):
        parent = tiny.start(self.a, accel=self.accel, vcpus=vcpus, pool=1)
        self.addCleanup(parent.stop)
        self.a.call("host.drain", name="a")
        self.addCleanup(self.a.call, "host.drain", name="a", drain=False)
        for _ in range(2):
            before = parent.counts_on()
            ticket = parent.clone(2)
            self.assertEqual([(c["state"], c["host"]) for c in ticket["clones"]], [("running", "b")] * 2, ticket)
            clones = tiny.clones(self.b, ticket)
            for clone in clones:
                clone.counts_on()
                for cpu, value in clone.first_counters().items():
                    self.assertGreaterEqual(value, before[cpu], "%s went back before its fork" % clone.name)
            self.a.call("complete", ticket=ticket["ticket"], timeout_ms=int(harness.LONG * 1000))
            for vm in clones + [parent]:
                vm.counts_on()
            self.a.end_ticket(ticket["ticket"])

    def test_one_vcpu(self):
        self.remote_fork(1)

    def test_two_vcpus(self):
        self.remote_fork(2)


class RemoteTinyKvm(RemoteTiny):
    accel = "kvm"


class Tls(Basic, Remote):
    keys = {"pages": "tls"}


class Plain(Basic, Remote):
    keys = {"pages": "plain"}


if __name__ == "__main__":
    harness.main()
