#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Forks of forks over hosts: each level starts on another host than the one below it, whose memory has not all come."""
import harness
import test_remote


class Levels:
    """The VM on a, its clone on b, that one's clone on c, and the last one's on a again."""

    names = ("a", "b", "c")

    def setUp(self):
        super().setUp()
        for name in ("b", "c"):
            self.addCleanup(self.send_forks, name, *self.names)

    def send_forks(self, host, *names):
        """Forks on that host are placed on these alone."""
        for other in self.names:
            self.hosts[host].call("host.drain", name=other, drain=other not in names)

    def fork_at(self, host, probe, slot, to):
        """A clone on `host` forks itself to another one. The TICKET there, and its clone's probe."""
        self.hosts[to].call("host.drain", name=to, drain=False)     # it may have said that it takes nothing new
        self.send_forks(host, to)
        self.hosts[host].wait_up(to)
        self.assertEqual(probe("ticket %d 1" % slot)["granted"], "1")
        self.assertEqual(probe("clone %d" % slot)["id"], "0")
        ticket = [t for t in self.hosts[host].call("ticket.list")["tickets"] if t["vm"] == probe.vm.name][-1]
        self.assertEqual(self.places(ticket), {to: 1})
        clone = harness.Probe(self.hosts[to].vm(ticket["clones"][0]["vm"]))
        answer = clone.reply()
        self.assertEqual((answer["id"], answer["count"]), ("1", "1"))
        return ticket, clone

    def three_levels(self):
        self.at("b")
        self.probe("open m mem 40")
        self.addCleanup(self.probe, "close m")
        self.probe("fill m 1")
        _, probes = self.fork(1)
        first = probes[1]
        first("verify m 1")
        first("fill m 2")                                   # a layer of its own over memory that comes from a
        middle, second = self.fork_at("b", first, 1, "c")
        first("fill m 3")
        second("verify m 2")
        second("open n mem 16")
        second("fill n 4")
        top, third = self.fork_at("c", second, 2, "a")
        third("verify m 2")
        third("verify n 4")
        third("fill m 5")
        second("verify m 2")
        first("verify m 3")
        return (middle, top), (first, second, third)

    def test_content(self):
        """All of the last one's memory is that of the snapshot which the host before it serves."""
        (_, top), (first, second, third) = self.three_levels()
        expected = self.served_memory(top, at="c", to="a")
        self.hosts["c"].call("complete", ticket=top["ticket"], timeout_ms=int(harness.LONG * 1000))
        pager = [pid for pid in self.a.pagers() if top["fork"]["snapshot"] in harness.command_line(pid)]
        self.assertEqual(len(pager), 1, self.a.pagers())
        self.assertTrue(test_remote.same_content(self.memfd(pager[0]), expected))
        third.send("exit 3 1000 3")
        self.assertIn("exited:3:1000", second("join 2").values())
        second("release 2")
        second.send("exit 2")
        self.assertIn("exited:2:0", first("join 1").values())
        first("release 1")
        first.send("exit 1")
        self.assertEqual(self.join(), {1: ("exited", 1, 0)})
        self.probe("release 0")

    def test_ends_in_any_order(self):
        """Who has forked is told to have ended when its clones have: they need the host that it came from."""
        _, (first, second, third) = self.three_levels()
        first.send("exit 1 1000 6")
        harness.wait(lambda: not harness.alive(first.vm.pid), what="the end of the first clone")
        second.send("exit 2")
        harness.wait(lambda: not harness.alive(second.vm.pid), what="the end of the second clone")
        third("verify m 5")
        third("verify n 4")
        third("open o mem 24")                              # touches what nobody has touched yet
        self.probe.send("join 0")
        third.send("exit 3")
        self.assertEqual(self.probe.reply()["m1"], "exited:1:1000")
        self.probe("fetch 0 1 6")
        self.probe("release 0")


class Tls(Levels, test_remote.Remote):
    keys = {"pages": "tls"}


class Plain(Levels, test_remote.Remote):
    keys = {"pages": "plain"}


if __name__ == "__main__":
    harness.main()
