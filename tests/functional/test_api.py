#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The API in the guest: tickets and quotas, ids, results up to their limit, join, kill, several programs at once,
hooks, identity, and the command `sf`.
"""
import os
import re
import signal
import time
import unittest

import harness
from harness import on_all
from test_isolation import pattern

CLONES = 3
PER_TICKET = 6
PER_VM = 8
MAX_RESULT = 64 * harness.MIB
IDENTIFY_SECONDS = 20            # bound for a clone's agent; one test waits for it
MEMORY = 384 * harness.MIB       # two results of full size in the guest at once
ECHILD, EAGAIN, ENOTSUP = 10, 11, 95
LONG_AGO = 1600000000            # seconds since the epoch


class Guest(harness.Case):
    """One booted parent for all tests; sf-probe in front of its shell where a test wants it."""

    @classmethod
    def setUpClass(cls):
        cls.daemon = harness.Daemon(config={"clones-per-ticket": PER_TICKET, "clones-per-vm": PER_VM,
                                            "identify-seconds": IDENTIFY_SECONDS})
        cls.addClassCleanup(cls.daemon.close)
        cls.daemon.start()
        cls.parent = harness.linux(cls.daemon, memory=MEMORY, pool=CLONES)

    def setUp(self):
        super().setUp()
        self.addCleanup(self.daemon.end_tickets)           # a test that fails half-way leaves none to the next

    def ticket_of(self, reply):
        """What the daemon says of the ticket that the guest got."""
        return self.daemon.call("ticket.status", ticket=reply["ticket"])["ticket"]


class Api(Guest):
    def setUp(self):
        super().setUp()
        self.probe = self.parent.probe()
        self.addCleanup(self.probe.quit)

    def bad(self, command, *words):
        with self.assertRaises(AssertionError) as caught:
            self.probe(command)
        text = str(caught.exception)
        self.assertIn("sf-probe", text)
        for word in words:
            self.assertIn(word, text)
        return text

    def fork(self, count=CLONES, slot=0):
        """Ticket and clone by libsf. Returns the TICKET, and the clones' probes by id."""
        got = self.probe("ticket %d %d" % (slot, count))
        self.assertEqual(got["granted"], str(count))
        reply = self.probe("clone %d" % slot)
        self.assertEqual((reply["id"], reply["self"], reply["count"]), ("0", "0", "0"))
        state = self.ticket_of(got)
        probes = {}
        for clone in state["clones"]:
            probe = harness.Probe(self.daemon.vm(clone["vm"]))
            answer = probe.reply()
            self.assertEqual((answer["id"], answer["self"], answer["count"]), (str(clone["id"]),) * 2 + (str(count),))
            probes[clone["id"]] = probe
        self.assertEqual(sorted(probes), list(range(1, count + 1)))
        self.assertTrue(all(c["state"] == "running" for c in self.ticket_of(got)["clones"]))
        return state, probes

    def join(self, slot=0, command="join"):
        """{id: (state, status, result length)}"""
        reply = self.probe("%s %d" % (command, slot))
        return {int(key[1:]): (value.split(":")[0], int(value.split(":")[1]), int(value.split(":")[2]))
                for key, value in reply.items() if re.match(r"m\d+$", key)}

    def look(self, slot=0):
        """As join, but at once."""
        return self.join(slot, "look")

    # -- tickets

    def test_tickets_and_quotas(self):
        first = self.probe("ticket 0 100")
        self.assertEqual(first["granted"], str(PER_TICKET))
        self.assertEqual(self.probe("ticket 1 100")["granted"], str(PER_VM - PER_TICKET))
        self.bad("ticket 2 1", "errno=%d" % EAGAIN)
        self.bad("ticket 2 1 1", "errno=%d" % EAGAIN)
        self.probe.send("ticket 2 1 60000")
        harness.wait(lambda: self.daemon.call("daemon.status")["waiting"], what="a request that waits")
        self.daemon.call("kill", ticket=first["ticket"])
        self.assertEqual(self.probe.reply()["granted"], "1")
        self.probe("release 1")
        self.probe("release 2")
        self.bad("ticket 0 0", "errno=")
        self.bad("ticket 0 1025", "errno=")
        self.bad("ticket 0 4294967295", "errno=")
        self.probe("ticket 0 1")
        self.probe("release 0")
        self.bad("clone 0", "errno=")
        self.bad("join 0", "errno=")
        self.bad("sync 10 1", "errno=%d" % ENOTSUP)

    def test_ticket_is_used_once(self):
        state, probes = self.fork(1)
        self.bad("clone 0", "errno=")
        probes[1].send("exit 0")
        self.assertEqual(self.join(), {1: ("exited", 0, 0)})
        self.bad("clone 0", "errno=")
        self.probe("release 0")

    def test_parents_ticket_in_a_clone(self):
        self.probe("ticket 1 1")
        _, probes = self.fork(1)
        with self.assertRaises(AssertionError) as caught:
            probes[1]("clone 1")
        self.assertIn("errno=%d" % ECHILD, str(caught.exception))
        with self.assertRaises(AssertionError):
            probes[1]("join 0")
        self.probe("kill 0")
        self.join()
        self.probe("release 0")
        self.probe("release 1")

    # -- ids, statuses, results

    def test_ids_and_statuses(self):
        _, probes = self.fork()
        statuses = {1: 0, 2: 1, 3: 255}
        for number, status in statuses.items():
            probes[number].send("exit %d" % status)
        self.assertEqual(self.join(), {number: ("exited", status, 0) for number, status in statuses.items()})
        self.probe("release 0")

    def test_sync_and_results(self):
        state, probes = self.fork()
        probes[1]("sync 1000000 5")
        self.assertEqual(self.look()[1], ("running", 0, 1000000))
        self.probe("fetch 0 1 5")
        probes[1]("sync 16 6")                             # a shorter one replaces it whole
        self.assertEqual(self.probe("fetch 0 1 6")["length"], "16")
        probes[1].send("exit 4")                           # the last result stays
        probes[2].send("exit 5 800008 7")
        probes[3].send("exit 6 0 0")
        self.assertEqual(self.join(), {1: ("exited", 4, 16), 2: ("exited", 5, 800008), 3: ("exited", 6, 0)})
        self.assertEqual(self.probe("fetch 0 2 7")["length"], "800008")
        self.assertEqual(self.daemon.result(state["ticket"], 2), pattern(7, 0, 800008))
        self.probe("release 0")
        self.assertEqual([t for t in self.daemon.call("ticket.list")["tickets"] if t["ticket"] == state["ticket"]], [])

    def test_largest_result(self):
        state, probes = self.fork(1)
        with self.assertRaises(AssertionError):
            probes[1]("sync %d 1" % (MAX_RESULT + 1))
        probes[1].send("exit 0 %d 9" % MAX_RESULT)
        self.assertEqual(self.join(), {1: ("exited", 0, MAX_RESULT)})
        self.assertEqual(self.probe("fetch 0 1 9")["length"], str(MAX_RESULT))
        self.probe("release 0")

    # -- ends

    def test_kill(self):
        state, probes = self.fork()
        probes[1]("sync 64 1")
        self.probe("kill 0")
        self.assertEqual(self.join(), {1: ("killed", 0, 64), 2: ("killed", 0, 0), 3: ("killed", 0, 0)})
        self.probe("fetch 0 1 1")
        self.probe("release 0")

    def test_clones_that_die(self):
        """One by an operator, one by a crash of its QEMU, one by powering itself off; join tells them apart and why."""
        state, probes = self.fork()
        self.daemon.call("kill", vm=state["clones"][0]["vm"])
        os.kill(probes[2].vm.pid, signal.SIGKILL)
        harness.wait(lambda: self.look()[2][0] == "lost", what="the end of clone 2")
        probes[3].send("exit 0")
        ends = {number: end[0] for number, end in self.join().items()}
        self.assertEqual(ends, {1: "killed", 2: "lost", 3: "exited"})
        reasons = {c["id"]: c.get("reason") for c in self.ticket_of(state)["clones"]}
        self.assertTrue(reasons[1])
        self.assertTrue(reasons[2])
        self.probe("release 0")

    def test_release_ends_clones(self):
        state, probes = self.fork()
        self.probe("release 0")
        harness.wait(lambda: not [p for p in probes.values() if harness.alive(p.vm.pid)], what="the end of the clones")

    # -- several at once

    def test_threads(self):
        self.probe("threads 3 2 2")

    def test_programs(self):
        self.probe("programs 3 2 2")

    # -- identity

    def test_identity(self):
        """Random numbers, clock and host name of each clone are its own, before sf_clone() has returned."""
        self.probe("setclock %d" % LONG_AGO)
        _, probes = self.fork()
        everyone = [self.probe] + list(probes.values())
        for command in ("rng", "urandom"):
            values = [reply["random"] for reply in on_all(everyone, command)]
            self.assertEqual(len(set(values)), len(values), "%s: %s" % (command, values))
        names = [reply["name"] for reply in on_all(everyone, "host")]
        self.assertEqual(len(set(names)), len(names), names)
        before = time.time_ns()
        real = [int(reply["real"]) for reply in on_all(everyone, "time")]
        self.assertLess(abs(real[0] // 10**9 - LONG_AGO), 10**6, "the parent's clock is left alone")
        for value in real[1:]:
            # Within a minute of the host's: the guest's clock was decades away before.
            self.assertLess(abs(value - before), 60 * 10**9)
        mono = [int(reply["mono"]) for reply in on_all(everyone, "time")]
        self.assertLess(max(mono) - min(mono), harness.LONG * 10**9, "CLOCK_MONOTONIC goes on in all")
        self.probe("kill 0")
        self.join()
        self.probe("release 0")

    def test_two_forks_differ(self):
        """Two clones of equal id of two forks have different random numbers."""
        seen = set()
        for _ in range(2):
            _, probes = self.fork(1)
            seen.add(probes[1]("rng")["random"])
            self.probe("kill 0")
            self.join()
            self.probe("release 0")
        self.assertEqual(len(seen), 2)


class Shell(Guest):
    """What scripts and administrators do."""

    def test_sf_script(self):
        self.parent.shell("""mkdir -p /tmp/parts; cat > /tmp/job.sh <<'END'
eval "$(sf clone -n %d)" || exit 9
if [ "$SF_ID" -gt 0 ]; then
    echo "part $SF_ID of $SF_COUNT from $(hostname)" | sf exit $((SF_ID - 1)) --result -
fi
sf join --results /tmp/parts
echo "joined $?"
END""" % CLONES)
        text = self.parent.shell("bash /tmp/job.sh; cat /tmp/parts/*")
        self.assertIn("joined 1", text)                     # clones 2 and 3 exited with another status than 0
        for number in range(1, CLONES + 1):
            self.assertRegex(text, r"part %d of %d from \S+-%d" % (number, CLONES, number))
        self.parent.shell("rm -r /tmp/parts")
        self.daemon.end_tickets()

    def test_hooks(self):
        """A hook runs in each clone before the fork returns. One that fails costs its clone alone."""
        self.parent.shell("""mkdir -p /etc/snowflock/clone.d
printf '#!/bin/sh\\necho "$SF_ID" > /run/hook-ran\\n' > /etc/snowflock/clone.d/10-mark
printf '#!/bin/sh\\ntest "$SF_ID" != 2 || { echo no luck >&2; exit 7; }\\n' > /etc/snowflock/clone.d/20-pick
chmod +x /etc/snowflock/clone.d/*""")
        self.addCleanup(self.parent.shell, "rm -f /etc/snowflock/clone.d/?0-* /run/hook-ran")
        ticket = self.parent.clone(CLONES)
        clones = {c["id"]: c for c in ticket["clones"]}
        self.assertEqual({n: c["state"] for n, c in clones.items()}, {1: "running", 2: "failed", 3: "running"}, ticket)
        self.assertIn("20-pick", clones[2]["reason"])
        for number in (1, 3):
            vm = self.daemon.vm(clones[number]["vm"])
            # Before or behind what sf-agent says on the console.
            self.assertIn(str(number), vm.shell("cat /run/hook-ran").split())
        self.assertEqual(self.parent.shell("cat /run/hook-ran 2>/dev/null || echo none").strip(), "none")
        self.daemon.end_tickets()

    def test_hook_that_hangs(self):
        self.parent.shell("""mkdir -p /etc/snowflock/clone.d
printf '#!/bin/sh\\nexec sleep 1000\\n' > /etc/snowflock/clone.d/30-hang
chmod +x /etc/snowflock/clone.d/30-hang""")
        self.addCleanup(self.parent.shell, "rm -f /etc/snowflock/clone.d/30-hang")
        ticket = self.parent.clone(1)
        self.assertEqual([c["state"] for c in ticket["clones"]], ["failed"], ticket)
        self.assertTrue(ticket["clones"][0]["reason"])
        self.parent.shell("true")
        self.daemon.end_tickets()

    def test_agent_that_does_not_answer(self):
        """A clone that can't be made unique is killed and reported; the parent's agent works again when it is let."""
        self.parent.shell("kill -STOP $(pidof sf-agent)")
        try:
            ticket = self.parent.clone(1)
        finally:
            self.parent.shell("kill -CONT $(pidof sf-agent)")
        self.assertEqual([c["state"] for c in ticket["clones"]], ["failed"], ticket)
        self.assertIn("agent", ticket["clones"][0]["reason"])
        self.daemon.end_tickets()
        ticket = self.parent.clone(1)
        self.assertEqual([c["state"] for c in ticket["clones"]], ["running"], ticket)
        self.daemon.end_tickets()

    def test_agent_is_killed(self):
        """init starts it anew; a program's next call works."""
        self.parent.shell("old=$(pidof sf-agent); kill -9 $old; "
                          "until new=$(pidof sf-agent) && test \"$new\" != \"$old\"; do sleep 0.1; done")
        self.daemon.call("vm.wait", vm=self.parent.name, agent=True, timeout_ms=int(harness.LONG * 1000))
        text = self.parent.shell('eval "$(sf clone -n 1)"; test "$SF_ID" = 0 || sf exit 0; sf join; echo "joined $?"')
        self.assertIn("joined 0", text)
        self.daemon.end_tickets()


if __name__ == "__main__":
    harness.main()
