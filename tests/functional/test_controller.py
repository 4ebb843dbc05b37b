# SPDX-License-Identifier: GPL-2.0-or-later
"""examples/controller: a spike of real load over three hosts with a libvirtd each; workers come by forks, and go."""
import base64
import os
import unittest

import fleet
import harness
import libvirtd

SIZE = 3                            # of the fleet, a worker on each host
SPIKE_SECONDS = 300                 # at most; it ends when all serve
FOLDER = "/usr/lib/python3*/json"   # a small index: it is not timed here
LINE = 64                           # characters that a terminal takes at once, easily
RUN = "python3 /tmp/worker --address %s --folder %s >/dev/null 2>&1 &"


def setUpModule():
    fleet.need()


class Controller(unittest.TestCase):
    def start_worker(self, host):
        """In a guest whose init does not: by its console, where root is logged in."""
        console = libvirtd.Console(host.libvirtd, fleet.NAME)
        self.addCleanup(console.close)
        harness.wait(lambda: console.whole().rstrip().endswith(b"#"), harness.LONG, "the prompt of the guest")
        with open(os.path.join(fleet.EXAMPLE, "sf-fleet-worker"), "rb") as file:
            text = base64.b64encode(file.read()).decode()
        lines = [text[i:i + LINE] for i in range(0, len(text), LINE)]
        console.write("base64 -d > /tmp/worker << END\n%s\nEND\n" % "\n".join(lines))
        console.write(RUN % (fleet.ADDRESS, FOLDER) + " echo st''arted\n")
        harness.wait(lambda: b"started" in console.whole(), harness.LONG, "the worker in the guest")

    def test_spike(self):
        """The fleet grows to all hosts, all workers serve, then it shrinks; hosts have nothing left but the parent."""
        with fleet.several_hosts() as hosts:
            fleet.start_parent(hosts[0], lambda: self.start_worker(hosts[0]))
            capacity = fleet.scale_up(hosts, SIZE, SPIKE_SECONDS)
            self.assertEqual((capacity["size"], capacity["hosts"]), (SIZE, list(fleet.NAMES)))
            for host in hosts:
                parents = [fleet.NAME] if host is hosts[0] else []
                harness.wait(lambda: host.libvirtd.domains() == parents, what="only the parent left")
                self.assertEqual(host.call("ticket.list")["tickets"], [])


if __name__ == "__main__":
    unittest.main()
