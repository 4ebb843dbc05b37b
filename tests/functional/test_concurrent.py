#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Four clusters at once: parents on four hosts in network namespaces, each with a clone on every host, in cycles of ticket,
clone, task, join. Every output is right, none is another's, and nothing is left.
"""
import os
import threading
import unittest

import cycling
import harness
import hosts

NAMES = ("a", "b", "c", "d")
TURNS = 2
CLONES = len(NAMES)             # of each parent: policy spread has one on each host
ROUNDS = 20000                  # of a task: it lasts until all clones of its ticket run, and no more
LOOK_SECONDS = 0.1


@unittest.skipUnless(os.geteuid() == 0, "network namespaces need root")
class Concurrent(harness.Case):
    check_footprint = False     # of all hosts, by the test

    @classmethod
    def setUpClass(cls):
        cls.link = hosts.Bridge(*NAMES)
        cls.addClassCleanup(cls.link.close)
        cls.hosts = list(hosts.cluster(cls, NAMES, config={"identify-seconds": 120}, link=cls.link,
                                       policy="spread").values())
        cls.parents = cycling.booted(cls.hosts, pool=1)

    def watch(self):
        """Which parents' clones each host has; looked at until `done`."""
        clients = [host.client() for host in self.hosts]
        while not self.done.wait(LOOK_SECONDS):
            for host, client in zip(self.hosts, clients):
                for vm in client.call("vm.list")["vms"]:
                    if vm["role"] == "clone":
                        self.seen[host.name].add(vm["ticket"])
        for client in clients:
            client.close()

    def test_four_clusters(self):
        before = [host.footprint() for host in self.hosts]
        self.seen, self.done = {name: set() for name in NAMES}, threading.Event()
        watcher = threading.Thread(target=self.watch)
        watcher.start()
        try:
            cycling.begin(self.parents, TURNS, CLONES, ROUNDS)
            cycling.finish(self.parents, TURNS, CLONES, ROUNDS, 2 * harness.LONG)
        finally:
            self.done.set()
            watcher.join()
        for name, tickets in self.seen.items():
            self.assertGreater(len(tickets), TURNS, "host %s had clones of one parent only: %s" % (name, tickets))
        for host, was in zip(self.hosts, before):
            harness.wait(lambda host=host, was=was: host.footprint() == was, harness.SHORT,
                         "nothing left on host " + host.name)


if __name__ == "__main__":
    harness.main()
