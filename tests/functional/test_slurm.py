#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Tickets as allocations of a real Slurm: granted, used, released, taken back, found again after a crash of sfvmmd."""
import os
import shutil
import signal

import harness
import hosts
import slurm
import tiny

CPUS = {"a": 2, "b": 4}
ALL = sum(CPUS.values())
MINUTES = 7                     # time limit of the jobs
ACCOUNT = "research"            # without a database of accounts Slurm takes any


class Slurm(harness.Case):
    """Hosts a and b, whose namespaces are nodes of the same names; a tiny VM on a."""

    @classmethod
    def setUpClass(cls):
        slurm.version()
        cls.link = hosts.Link(*CPUS)
        cls.addClassCleanup(cls.link.close)
        cls.slurm = slurm.Slurm(cls.link, CPUS)
        cls.addClassCleanup(cls.slurm.close)
        cls.hosts = hosts.cluster(cls, CPUS, link=cls.link, **{"resource-manager": "slurm"},
                                  groups={"slurm": {"conf": cls.slurm.conf, "minutes": MINUTES, "poll-seconds": 1,
                                                    "account": ACCOUNT, "partition": slurm.PARTITION,
                                                    "constraint": slurm.FEATURE}})
        cls.daemon = cls.hosts["a"]
        cls.vm = tiny.start(cls.daemon, pool=1)

    def setUp(self):
        super().setUp()
        self.addCleanup(self.restore)

    def restore(self):
        """Nothing of a test is left in Slurm."""
        if not self.daemon.control:
            self.daemon.start()
        self.daemon.end_tickets()
        harness.wait(lambda: self.slurm.run("sinfo", "-h", "-o", "%T %D") == "idle 2\n", what="idle nodes")
        self.assertEqual(self.slurm.jobs(), {})

    def request(self, count, **params):
        return self.daemon.call("ticket.request", vm=self.vm.name, count=count, **params)["ticket"]

    def status(self, ticket):
        return self.daemon.call("ticket.status", ticket=ticket["ticket"])["ticket"]

    def places(self, ticket):
        return {place["host"]: place["count"] for place in ticket["places"]}

    def job(self, ticket):
        """The nodes and CPUs of a ticket's job, which must have its name; None: it has ended."""
        found = self.slurm.jobs().get(int(ticket["allocation"]))
        if found:
            self.assertEqual(found[0], "snowflock-a-" + ticket["ticket"])
        return found and found[1]

    def wait_no_job(self, ticket):
        harness.wait(lambda: not self.job(ticket), what="the end of job " + ticket["allocation"])

    def clone(self, ticket):
        """Forks; all clones count on, where the ticket has places."""
        made = self.daemon.call("clone", ticket=ticket["ticket"])["ticket"]
        for clone in made["clones"]:
            host = self.hosts[clone["host"] or "a"]
            tiny.Tiny(host, host.call("vm.status", vm=clone["vm"])["vm"]).counts_on()
        return made

    def test_ticket_is_a_job(self):
        """Slots on both hosts are CPUs of one job with a time limit, as it was configured, which ends with the ticket: by
        join, by kill."""
        self.assertEqual(self.daemon.call("host.list")["resource_manager"], "slurm")
        ticket = self.request(5)
        self.assertEqual(ticket["granted"], 5)
        self.assertEqual(self.job(ticket), self.places(ticket))
        self.assertGreater(len(self.places(ticket)), 1)
        said = self.slurm.run("scontrol", "show", "job", ticket["allocation"])
        for text in ("TimeLimit=00:%02d:00" % MINUTES, "Account=" + ACCOUNT, "Partition=" + slurm.PARTITION,
                     "Features=" + slurm.FEATURE):
            self.assertIn(text, said)
        self.clone(ticket)
        self.assertEqual(self.job(ticket), self.places(ticket))
        self.assertEqual(self.daemon.end_ticket(ticket["ticket"])["state"], "done")
        self.wait_no_job(ticket)
        unused = self.request(1)
        self.daemon.call("kill", ticket=unused["ticket"])
        self.wait_no_job(unused)
        self.vm.counts_on()

    def test_busy(self):
        """What Slurm does not have is not granted: fewer, a clear error, or later, as it was asked."""
        most = self.request(9)
        self.assertEqual(most["granted"], ALL)
        self.error("no-capacity", "ticket.request", "Slurm gives none", "busy", vm=self.vm.name, count=1)
        self.error("no-capacity", "ticket.request", "Slurm gives none", vm=self.vm.name, count=1, queue_ms=2000)
        waiting = self.daemon.client()
        self.addCleanup(waiting.close)
        number = waiting.send("ticket.request", vm=self.vm.name, count=2, all=True, queue_ms=600000)
        harness.wait(lambda: "PENDING" in self.slurm.run("squeue", "-h", "-o", "%T"), what="a job that waits")
        self.assertEqual(self.daemon.call("daemon.status")["waiting"], 1)
        self.daemon.end_ticket(most["ticket"])
        second = waiting.answer(number)["ticket"]
        self.assertEqual(second["granted"], 2)
        third = self.request(8)
        self.assertEqual(third["granted"], ALL - 2)
        self.daemon.end_ticket(second["ticket"])
        self.error("no-capacity", "ticket.request", vm=self.vm.name, count=3, all=True)

    def test_taken_back(self):
        """Slurm ends a job: its clones end, the ticket says why, the parent goes on; an unused ticket can't be used."""
        events = self.daemon.client()
        self.addCleanup(events.close)
        events.call("subscribe")
        used, unused = self.request(2), self.request(1)
        self.clone(used)
        self.slurm.run("scancel", used["allocation"], unused["allocation"])
        reason = "Slurm ended its job %s: CANCELLED" % used["allocation"]
        self.assertEqual(events.event("ticket.revoked", ticket=used["ticket"])["revoked"], reason)
        joined = self.daemon.call("join", ticket=used["ticket"])["ticket"]
        self.assertEqual([(clone["state"], clone["reason"]) for clone in joined["clones"]], [("killed", reason)] * 2)
        harness.wait(lambda: self.status(unused)["state"] == "revoked", what="the ticket that is revoked")
        self.error("no-capacity", "clone", "CANCELLED", "ask for another", ticket=unused["ticket"])
        failed = self.request(ALL)
        self.clone(failed)
        self.slurm.run("scontrol", "update", "nodename=b", "state=down", "reason=test")
        self.addCleanup(self.slurm.run, "scontrol", "update", "nodename=b", "state=resume", check=False)
        joined = self.daemon.call("join", ticket=failed["ticket"])["ticket"]
        self.assertRegex(joined["clones"][0]["reason"], "NODE_FAIL|COMPLETING")  # as long as the other node has it
        self.vm.counts_on()

    def test_crash(self):
        """sfvmmd dies: it knows its jobs again; one without a ticket is cancelled, a ticket without a job revoked.
        Slurm dies: nothing is concluded."""
        lost, kept, ended = self.request(1), self.request(2), self.request(1)
        self.assertEqual(self.places(lost), {"a": 1})       # nobody else has to forget it
        self.clone(kept)
        self.daemon.end(signal.SIGKILL)
        shutil.rmtree(os.path.join(self.daemon.run, "tickets", lost["ticket"]))
        self.slurm.run("scancel", ended["allocation"])
        self.daemon.start()
        self.wait_no_job(lost)
        harness.wait(lambda: self.status(ended)["state"] == "revoked", what="the ticket that is revoked")
        self.assertEqual(self.job(kept), self.places(self.status(kept)))
        self.slurm.end_daemons()
        self.error("scheduler", "ticket.request", "Slurm gives none", vm=self.vm.name, count=1)
        self.slurm.start_daemons()
        harness.wait(lambda: self.slurm.run("squeue", "-h", check=False), harness.LONG, "slurmctld")
        self.assertEqual(self.status(kept)["revoked"], "")
        self.assertEqual({clone["state"] for clone in self.status(kept)["clones"]}, {"running"})
        self.daemon.end_ticket(kept["ticket"])
        self.wait_no_job(kept)

    def test_hosts_that_cannot_be_used(self):
        """A node that drains here gets nothing, and Slurm gives another one."""
        self.daemon.call("host.drain", name="b")
        self.addCleanup(self.daemon.call, "host.drain", name="b", drain=False)
        ticket = self.request(2)
        self.assertEqual(self.places(ticket), {"a": 2})
        self.assertEqual(self.job(ticket), {"a": 2})
        self.error("no-capacity", "ticket.request", vm=self.vm.name, count=1)

    def test_wrong_configuration(self):
        self.addCleanup(self.daemon.restart)
        self.addCleanup(self.daemon.groups["slurm"].update, partition=slurm.PARTITION)
        self.daemon.groups["slurm"]["partition"] = "nowhere"
        self.daemon.restart()
        self.error("scheduler", "ticket.request", "Invalid partition", vm=self.vm.name, count=1)


if __name__ == "__main__":
    harness.main()
