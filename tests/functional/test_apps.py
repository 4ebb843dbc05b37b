#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What programs do with libsf, in a guest with two CPUs: hierarchical tickets, the Python module, `sf mapreduce`,
`sf-mpiexec`, and the applications of examples/apps in their small size, sandboxes."""
import os
import re
import unittest

import harness
import test_network_programs

VCPUS = 2
WORKERS = 5                     # of three clones, the last with one
CLONES = (WORKERS + VCPUS - 1) // VCPUS
MEMORY = 512 * harness.MIB
APPS = "/usr/share/snowflock/apps"
APP_CLONES = 2                  # more are more translation under TCG, and no other test
SANDBOX_KIB = 4                 # that a sandbox may print
README_DATA = ("/usr/share/ncbi/data/Combined16SrRNA_2-12-2008", "/usr/share/ncbi/data/16SCore")
BOUND = 3 * harness.LONG        # an application under TCG
ROOT = os.geteuid() == 0
needs_network = unittest.skipUnless(ROOT, "cluster networks need root")


class Apps(harness.Case):
    """One booted parent for all tests."""

    @classmethod
    def setUpClass(cls):
        cls.daemon = harness.Daemon()
        cls.addClassCleanup(cls.daemon.close)
        cls.daemon.start()
        cls.parent = harness.linux(cls.daemon, memory=MEMORY, vcpus=VCPUS, pool=CLONES, name="red",
                                   **({"network": "cluster"} if ROOT else {}))

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
import snowflock
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

    def test_mapreduce(self):
        run = self.parent.shell
        run("mkdir -p /var/tmp/mr && cd /var/tmp/mr && for i in 1 2 3 4 5 6 7; do seq $i 3 200 > f$i; done")
        plain = run("for SF_FILE in f*; do echo $SF_FILE; grep 7 < $SF_FILE; done | tee all | sort | uniq -c")
        self.assertEqual(run("sf mapreduce -n %d --map 'echo $SF_FILE; grep 7' f* | cmp - all && echo same"
                             % WORKERS), "same\n")
        self.assertEqual(run("sf mapreduce -n %d --map 'echo $SF_FILE; grep 7' --reduce 'sort | uniq -c' f*"
                             % WORKERS), plain)
        failed = run("sf mapreduce -n %d --map 'grep 199' --reduce 'echo reduced' f*; echo $?; cd /; rm -r /var/tmp/mr"
                     % WORKERS)
        self.assertIn("sf mapreduce: f2: the map command failed", failed)
        self.assertTrue(failed.endswith("\n1\n") and "reduced" not in failed, failed)

    def need(self, *programs):
        for program in programs:
            if self.parent.shell("command -v %s || echo none" % program).strip() == "none":
                self.skipTest("%s is not in the guest image" % program)

    @needs_network
    def test_mpiexec(self):
        """Ranks in two clones, two in the first; input to rank 0; a rank that fails; a proxy that is killed."""
        self.need("mpiexec.hydra", "python3")
        run = self.parent.shell
        run("cat > /tmp/mpi.py << 'END'%sEND" % test_network_programs.MPI)
        text = run("sf-mpiexec -n 3 python3 /tmp/mpi.py", timeout=BOUND)
        self.assertEqual(sorted(re.findall(r"rank (\d) of (\S+) sum (\d+)", text)),
                         [("0", "red-1", "111"), ("1", "red-1", "111"), ("2", "red-2", "111")], text)
        text = run("echo given | sf-mpiexec -n 3 sh -c '[ $PMI_RANK != 0 ] || { read x; echo 0 $x; };"
                   " exit $((PMI_RANK % 2 * 5))' 2>&1; echo = $?")
        self.assertIn("0 given\n", text)
        self.assertIn("= 5\n", text)
        text = run("sf-mpiexec -n 1 sh -c 'kill -9 $PPID' 2>&1; echo = $?", timeout=harness.SHORT * 2)
        self.assertRegex(text, r"= [1-9]")

    def application(self, name, *programs):
        """The forked run's output is that of the unchanged program."""
        self.need(*programs)
        digests = []
        for way in "--plain", "-n %d" % APP_CLONES:
            text = self.parent.shell("%s/%s %s" % (APPS, name, way), timeout=BOUND)
            match = re.search(r"%s: [0-9.]+ s, (\d+) bytes, sha256 (\w+)" % name, text)
            self.assertTrue(match and int(match.group(1)) > 0, text)
            digests.append(match.group(2))
            print(match.group(0))
        self.assertEqual(*digests)

    def test_blast(self):
        self.application("blast", "blastn")

    def test_bowtie2(self):
        self.application("bowtie2", "bowtie2")

    def test_clustalw(self):
        self.application("clustalw", "clustalw")

    def test_readme(self):
        """README's application in C, shell and Python says in clones what it says without."""
        self.need("blastn", "gcc")
        with open(os.path.join(harness.ROOT, "README.md")) as file:
            blocks = dict(re.findall(r"^```(\w+)\n(.*?)^```$", file.read().split("## One application")[1], re.M | re.S))
        run = self.parent.shell
        run("mkdir /var/tmp/readme && cd /var/tmp/readme && export BLAST_USAGE_REPORT=false\n"
            "for f in %s.n*; do ln -s $f rna.${f##*.}; done\n"
            "blastdbcmd -db %s -entry all -outfmt %%f > all\n"
            "for i in 1 2 3 4; do awk -v n=$i '/^>/ { q++ } q == n' < all > q.$i.fa; done\n"
            "for i in 1 2 3 4; do blastn -db rna -query q.$i.fa -outfmt 6; done > plain; wc -l < plain" % README_DATA)
        for language, command in (("c", "gcc -o app app.c -lsf && ./app"), ("bash", "bash app.bash"),
                                  ("python", "python3 app.python")):
            text = run("cat > app.%s << 'END'\n%sEND\n%s > out; cmp out plain && echo same" % (
                language, blocks[language], command), timeout=BOUND)
            self.assertEqual(text, "same\n", language)
        self.assertGreater(int(run("wc -l < plain; cd /; rm -r /var/tmp/readme")), 4)

    @needs_network
    def test_distcc(self):
        self.application("distcc", "distccd", "gcc", "make")

    def test_povray(self):
        self.application("povray", "povray")

    def test_quantlib(self):
        self.application("quantlib", APPS + "/quantlib")

    def test_sandboxes(self):
        """Commands that nobody trusts: what they print and how they end, and what they cannot do."""
        lines = ["echo one; id -u; sleep 0.5; echo two", "exit 3", "kill -SEGV $$", "sleep 100", "ip -o link | wc -l",
                 "sf id", "dd if=/dev/zero of=/dev/null bs=200M count=1", "yes"]
        text = self.parent.shell("printf '%%s\\n' %s | sf-pool --seconds %d --memory 64 --output %d; echo = $?" % (
            " ".join("'%s'" % line for line in lines), 15 * harness.SCALE, SANDBOX_KIB), timeout=BOUND)
        ended = dict(re.findall(r"^(\d+)= (.*)$", text, re.M))
        printed = {}
        for number, line in re.findall(r"^(\d+)> (.*)$", text, re.M):
            printed.setdefault(int(number), []).append(line)
        self.assertEqual([ended[str(number)] for number in range(1, len(lines) + 1)],
                         ["0", "3", "139", "124", "0", "3", "1", "153"], text[-3000:])
        self.assertEqual(printed[1], ["one", "65534", "two"])
        self.assertEqual(printed[5], ["1"])
        self.assertIn("only root and members of its group may use it", printed[6][0])
        self.assertIn("memory exhausted", " ".join(printed[7]))
        self.assertEqual((set(printed[8]), len(printed[8])), ({"y"}, SANDBOX_KIB * 1024 // 2))
        self.assertTrue(text.rstrip().endswith("= 1"))
        text = self.parent.shell("echo 'import decimal; print(decimal.Decimal(1) / 3)' | sf-pool --import decimal")
        self.assertIn("1> 0.3333333333333333333333333333\n1= 0", text)


if __name__ == "__main__":
    harness.main()
