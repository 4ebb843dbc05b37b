#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The examples in a real guest: what quickstart runs gives the same alignments forked and not."""
import unittest

import harness

CLONES = 8
MEMORY = 1024 * harness.MIB
BOUND = 3 * harness.LONG          # an alignment under TCG


class Examples(harness.Case):
    @classmethod
    def setUpClass(cls):
        cls.daemon = harness.Daemon()
        cls.addClassCleanup(cls.daemon.close)
        cls.daemon.start()
        cls.parent = harness.linux(cls.daemon, memory=MEMORY, pool=CLONES)

    def have(self, name):
        if self.parent.shell("command -v %s || echo none" % name).strip() == "none":
            self.skipTest("%s is not in the guest image" % name)

    def test_alignments(self):
        self.have("sf-bowtie2")
        self.have("bowtie2")
        self.parent.shell("sf-bowtie2 --plain -o /var/tmp/plain.sam", timeout=BOUND)
        forked = self.parent.shell("sf-bowtie2 -n %d -o /var/tmp/forked.sam" % CLONES, timeout=BOUND)
        text = self.parent.shell("sf-bowtie2-compare /var/tmp/plain.sam /var/tmp/forked.sam", timeout=BOUND)
        self.assertIn("same: 20000 alignments", text, forked)

    def test_hello(self):
        for name in ("sf-hello", "sf-hello.sh"):
            with self.subTest(name):
                self.have(name)
                self.parent.shell(name, timeout=BOUND)


if __name__ == "__main__":
    harness.main()
