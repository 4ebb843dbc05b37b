#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What programs do with libsf, in a guest with two CPUs: hierarchical tickets, the Python module."""
import re

import harness

VCPUS = 2
WORKERS = 5                     # of three clones, the last with one
CLONES = (WORKERS + VCPUS - 1) // VCPUS
MEMORY = 512 * harness.MIB


class Apps(harness.Case):
    """One booted parent for all tests."""

    @classmethod
    def setUpClass(cls):
        cls.daemon = harness.Daemon()
        cls.addClassCleanup(cls.daemon.close)
        cls.daemon.start()
        cls.parent = harness.linux(cls.daemon, memory=MEMORY, vcpus=VCPUS, pool=CLONES)

    def setUp(self):
        super().setUp()
        self.addCleanup(self.daemon.end_tickets)

    def tree(self, *arguments):
        """{id: (state, status, signal, result, text)}"""
        text = self.parent.shell("%s/sf-tree %d %s" % (harness.TOOLS, WORKERS, " ".join(arguments)))
        self.assertEqual(re.findall(r"^granted (\d+)$", text, re.M), [str(WORKERS)], text)
        lines = re.findall(r'^worker (\d+) (\w+) (-?\d+) (\d+) "([^"]*)" (.*)$', text, re.M)
        return {int(line[0]): (line[1], int(line[2]), int(line[3]), line[4], line[5]) for line in lines}

    def check_results(self, workers):
        """Ids over all clones, two in each, and the processes of a clone differ."""
        names, processes = {}, set()
        for number, worker in workers.items():
            match = re.fullmatch(r"(\d+) of (\d+) on (\S+), process (\d+)", worker[3])
            self.assertTrue(match, worker)
            self.assertEqual((int(match.group(1)), int(match.group(2))), (number, WORKERS))
            names.setdefault(match.group(3), []).append(number)
            processes.add((match.group(3), match.group(4)))
        self.assertEqual(sorted(names.values()), [[1, 2], [3, 4], [5]])
        self.assertEqual(len(processes), WORKERS)

    def test_hierarchical_ticket(self):
        workers = self.tree()
        self.assertEqual({number: worker[:3] for number, worker in workers.items()},
                         {1: ("exited", 1, 0), 2: ("exited", 2, 0), 3: ("lost", 0, 11), 4: ("lost", 0, 0),
                          5: ("exited", 5, 0)})
        self.assertIn("signal 11 (Segmentation fault)", workers[3][4])
        self.assertIn("status 4, without sf_exit()", workers[4][4])
        self.check_results(workers)

    def test_hierarchical_kill(self):
        workers = self.tree("hold")
        self.assertEqual([workers[number][0] for number in (2, 4)], ["killed", "killed"], workers)
        self.assertEqual([workers[number][:2] for number in (1, 3)], [("exited", 1), ("exited", 3)])
        self.check_results(workers)

    def test_python(self):
        """map() over workers, its exceptions, and an array, in one program; three forks."""
        text = self.parent.shell("""python3 -c '
import os, snowflock
print(snowflock.map(lambda x: x * x, range(10), clones=%d, hierarchical=True))
try:
    snowflock.map(lambda x: 6 // (x - 2), range(4), clones=2)
except ZeroDivisionError as error:
    print("raised", error)
with snowflock.Ticket(%d, hierarchical=True) as ticket:
    array = snowflock.Array(ticket, "d", 10)
    id = ticket.clone()
    if id:
        for slot in range(id - 1, len(array), ticket.granted):
            array[slot] = slot / 2
        array.exit()
    print([clone.state for clone in ticket.join()], sum(array))
'""" % (WORKERS, WORKERS))
        self.assertEqual(text.splitlines(), [str([x * x for x in range(10)]),
                                             "raised integer division or modulo by zero",
                                             "%s 22.5" % (["exited"] * WORKERS)])


if __name__ == "__main__":
    harness.main()
