#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The examples in a real guest: what quickstart runs gives the same alignments forked and not, of a part of its reads."""
import unittest

import harness

CLONES = 8
MEMORY = 1024 * harness.MIB
BOUND = 3 * harness.LONG          # an alignment under TCG
READS = "/usr/share/doc/bowtie2/examples/reads"
PAIRS = 2501                      # of 10,000; clones get slices of two lengths
RECORD = 4                        # lines of a read in a FASTQ file


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
        # sf-bowtie2 unpacks what is not in its work folder yet.
        self.parent.shell("mkdir /var/tmp/work && cd /var/tmp/work && "
                          "for i in 1 2; do zcat -f %s/reads_$i.fq* | head -n %d > reads_$i.fq; done" % (READS, RECORD * PAIRS))
        self.parent.shell("sf-bowtie2 --work . --plain -o plain.sam", timeout=BOUND)
        forked = self.parent.shell("sf-bowtie2 --work . -n %d -o forked.sam" % CLONES, timeout=BOUND)
        text = self.parent.shell("sf-bowtie2-compare plain.sam forked.sam; cd /", timeout=BOUND)
        self.assertIn("same: %d alignments" % (2 * PAIRS), text, forked)

    def test_hello(self):
        for name in ("sf-hello", "sf-hello.sh"):
            with self.subTest(name):
                self.have(name)
                self.parent.shell(name, timeout=BOUND)


if __name__ == "__main__":
    harness.main()
