#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that work on several machines, between clones and with no hand work: ssh and scp, an MPI job, a build by distcc."""
import os
import re
import unittest

import harness

CLONES = 2
HOSTS = ["sf-parent"] + ["sf-%d" % number for number in range(1, CLONES + 1)]
SUBNET = "10.77.0.0/16"
SOURCES = 6
BOOT_ID = "/proc/sys/kernel/random/boot_id"
BOUND = 120             # seconds in a guest, for what hangs
MPICH = "-genv LD_PRELOAD /usr/lib/x86_64-linux-gnu/snowflock/sf-mpich.so"

# Each process adds a digit of its own. By Python, as the image has MPICH's library but no headers.
MPI = r"""
import ctypes, socket
mpi = ctypes.CDLL("libmpich.so.12", mode=ctypes.RTLD_GLOBAL)
WORLD, INT, SUM = 0x44000000, 0x4c000405, 0x58000003        # as mpi.h of MPICH has them
rank, own, total = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
mpi.MPI_Init(None, None)
mpi.MPI_Comm_rank(WORLD, ctypes.byref(rank))
own.value = 10 ** rank.value
mpi.MPI_Allreduce(ctypes.byref(own), ctypes.byref(total), 1, INT, SUM, WORLD)
print("rank", rank.value, "of", socket.gethostname(), "sum", total.value, flush=True)
mpi.MPI_Finalize()
"""


@unittest.skipUnless(os.geteuid() == 0, "cluster networks need root")
class Programs(harness.Case):
    """One parent whose servers run before the fork."""

    @classmethod
    def setUpClass(cls):
        cls.daemon = harness.Daemon()
        cls.addClassCleanup(cls.daemon.close)
        cls.daemon.start()
        cls.parent = harness.linux(cls.daemon, name="red", network="cluster", pool=CLONES, tools=False)
        text = cls.parent.shell("for p in sshd mpiexec.hydra distccd gcc python3; do command -v $p || echo \"no $p\"; done",
                                check=False)
        if "no " in text:
            raise unittest.SkipTest("the guest image lacks" + ",".join(re.findall(r"no( \S+)", text)))
        cls.parent.shell("mkdir -p /run/sshd && /usr/sbin/sshd && distccd --daemon --allow %s --log-file=/tmp/distccd.log"
                         % SUBNET)
        cls.parent.shell("cat > /tmp/mpi.py << 'END'%sEND" % MPI)
        cls.boot_id = cls.parent.shell("cat " + BOOT_ID)
        ticket = cls.parent.clone(CLONES)
        cls.clones = [vm.follow(cls.parent) for vm in cls.daemon.clones(ticket)]

    def test_ssh(self):
        """Around, from each to the next, by a key that is the cluster's; files too."""
        everyone = [self.parent] + self.clones
        for number, vm in enumerate(everyone):
            host = HOSTS[(number + 1) % len(HOSTS)]
            vm.begin("timeout %d ssh -o BatchMode=yes %s 'echo at $(hostname)'" % (BOUND, host))
        names = [re.search(r"at (\S+)", vm.finish()).group(1) for vm in everyone]
        self.assertEqual(names[:CLONES], ["red-%d" % number for number in range(1, CLONES + 1)])
        self.clones[0].shell("echo from clone 1 > /tmp/file; timeout %d scp -q -o BatchMode=yes /tmp/file sf-parent:/tmp/copy"
                             % BOUND)
        self.assertIn("from clone 1", self.parent.shell("cat /tmp/copy"))
        self.assertIn('from="%s"' % SUBNET, self.parent.shell("cat /run/snowflock/ssh/authorized_keys"))

    def test_boot_id(self):
        """Each machine has its own, though its kernel had one before the fork: MPI takes equal ones for one machine."""
        found = [vm.shell("cat " + BOOT_ID) for vm in [self.parent] + self.clones]
        self.assertEqual(found[0], self.boot_id)
        self.assertEqual(len(set(found)), len(HOSTS), found)

    def test_mpi(self):
        text = self.parent.shell("timeout %d mpiexec %s -hosts %s -n %d -ppn 1 python3 /tmp/mpi.py" %
                                 (BOUND, MPICH, ",".join(HOSTS), len(HOSTS)))
        self.assertEqual(sorted(re.findall(r"rank (\d) of (\S+) sum (\d+)", text)),
                         [("0", "snowflock", "111"), ("1", "red-1", "111"), ("2", "red-2", "111")], text)

    def test_distcc(self):
        """Every object is compiled by a clone, none here."""
        self.parent.shell("cd /tmp; for n in $(seq %d); do echo \"int f$n(void) { return $n; }\" > f$n.c; done;"
                          "export DISTCC_HOSTS='%s' DISTCC_FALLBACK=0;"
                          "seq %d | xargs -P %d -I{} distcc gcc -c f{}.c -o f{}.o" %
                          (SOURCES, " ".join(HOSTS[1:]), SOURCES, SOURCES))
        self.assertEqual(self.parent.shell("ls /tmp/f*.o | wc -l").split()[-1], str(SOURCES))
        done = [int(vm.shell("grep -c COMPILE_OK /tmp/distccd.log; true").split()[-1]) for vm in self.clones]
        self.assertEqual(sum(done), SOURCES, done)
        self.assertGreater(min(done), 0, done)


if __name__ == "__main__":
    harness.main()
