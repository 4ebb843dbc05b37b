# SPDX-License-Identifier: GPL-2.0-or-later
"""Domains of a real libvirtd as VMs: forked, ended by anybody, through restarts of everything; and nothing stays."""
import json
import os
import re
import shutil
import signal
import subprocess
import unittest

import harness
import hosts
import libvirtd
import tiny

NAMESPACE = "urn:snowflock:domain:1"
TINY_MIB = 32
SF_VIRSH = os.path.join(harness.ROOT, "sfvmm/virsh/sf-virsh")
SSHD = """Port %(port)d
ListenAddress 127.0.0.1
HostKey %(top)s/host
AuthorizedKeysFile %(top)s/user.pub
PidFile none
StrictModes no
SetEnv SF_SOCKET=%(socket)s PATH=%(tools)s:/usr/bin:/bin:/usr/sbin
"""
CLONES = 2
FEW = 4
MANY = 16
WRITTEN = "sf-written-after-the-fork"
TRANSIENT = 4                   # descriptors that a QEMU may just have open for a moment


def setUpModule():
    libvirtd.need()


class Case(unittest.TestCase):
    """A libvirtd and a sfvmmd for all tests of a class; each test has its own domain."""

    config = {}

    @classmethod
    def setUpClass(cls):
        cls.libvirtd, cls.daemon = cls.make()
        cls.addClassCleanup(cls.libvirtd.close)
        cls.addClassCleanup(cls.daemon.close)
        cls.libvirtd.start()
        cls.prepare()
        cls.daemon.start()

    @classmethod
    def make(cls):
        keeper = libvirtd.Libvirtd()
        return keeper, libvirtd.Daemon(keeper, config=dict({"pool": 0}, **cls.config))

    @classmethod
    def prepare(cls):
        """Before sfvmmd starts."""

    def setUp(self):
        self.bases = {}                 # images that domains share, and when they were last written
        self.addCleanup(self.nothing_left)

    # -- domains

    def write_xml(self, text):
        path = os.path.join(self.libvirtd.top, self.id().rpartition(".")[2] + ".xml")
        with open(path, "w") as file:
            file.write(text)
        return path

    def tiny_image(self, name):
        path = shutil.copy(tiny.image(), os.path.join(self.libvirtd.top, name + ".img"))
        os.chmod(path, 0o644)
        owner = os.stat(self.libvirtd.top)
        os.chown(path, owner.st_uid, owner.st_gid)      # of a session; else libvirt gives it to its QEMU's user
        return path

    def tiny_domain(self, name="tiny", **kwargs):
        """A running transient domain with the tiny guest, which counts."""
        text = libvirtd.domain_xml(name, [(self.tiny_image(name), "raw", False)], mib=TINY_MIB, **kwargs)
        self.libvirtd.virsh("create", self.write_xml(text))
        self.counts_on(name)
        return name

    def linux_domain(self, name, **kwargs):
        """A running transient domain with the Debian of the tests; returns the name of its image, which others share."""
        base, path = self.libvirtd.write_linux(name, **kwargs)
        self.bases[base] = os.stat(base).st_mtime_ns
        self.libvirtd.virsh("create", path)
        return base

    def counts_on(self, name, keeper=None):
        """The guest of a domain (of another libvirtd perhaps) runs: the number on its console grows."""
        console = libvirtd.Console(keeper or self.libvirtd, name)
        self.addCleanup(console.close)

        def number():
            found = re.findall(rb"cpu0 (\d+)\r?\n", console.whole())
            return found and int(found[-1])
        first = harness.wait(number, harness.LONG, "a number on the console of " + name)
        harness.wait(lambda: number() > first, harness.LONG, "the next number on the console of " + name)
        return first

    def owners_of_clones(self, parent):
        """Forks it: each clone runs, and still does when sfvmmd has been killed. The users of their QEMUs."""
        ticket, owners = self.fork(parent), set()
        for clone in ticket["clones"]:
            name = self.domain_of(clone)
            self.assertIn("running", self.libvirtd.virsh("domstate", name))
            self.counts_on(name)
            pid = self.daemon.call("vm.status", vm=clone["vm"])["vm"]["pid"]
            owners.add(os.stat("/proc/%d" % pid).st_uid)
        self.daemon.restart(signal.SIGKILL)
        self.assertEqual([clone["state"] for clone in self.ticket(ticket)["clones"]], ["running"] * CLONES)
        self.counts_on(parent)
        return owners

    def lineage(self, name):
        text = self.libvirtd.virsh("metadata", name, NAMESPACE, check=False) or ""
        return dict(re.findall(r"(\w+)=\"([^\"]*)\"", text))

    # -- forks

    def fork(self, name, count=CLONES):
        return self.daemon.call("clone", vm=name, count=count, wait="resumed")["ticket"]

    def domain_of(self, clone):
        return self.daemon.call("vm.status", vm=clone["vm"])["vm"]["domain"]

    def ticket(self, ticket):
        return self.daemon.call("ticket.status", ticket=ticket["ticket"])["ticket"]

    def state_of(self, ticket, number):
        return next(clone for clone in self.ticket(ticket)["clones"] if clone["id"] == number)

    def overlays(self):
        folder = os.path.join(self.daemon.run, "disk")
        return [name for name in os.listdir(folder) if name.endswith(".qcow2")] if os.path.isdir(folder) else []

    def nothing_left(self):
        """Every test ends all it has; then libvirt and sfvmmd have no trace of it."""
        if not self.daemon.control:
            self.daemon.start()
        self.daemon.end_tickets()
        for name in self.libvirtd.domains("--state-running") + self.libvirtd.domains("--state-paused"):
            self.libvirtd.virsh("destroy", name, check=False)
        for name in self.libvirtd.domains("--all", "--persistent"):
            self.libvirtd.virsh("undefine", name)

        def trace():
            return {"vms": self.daemon.call("vm.list")["vms"], "tickets": self.daemon.call("ticket.list")["tickets"],
                    "domains": self.libvirtd.domains(), "processes": self.daemon.processes(),
                    "folders": os.listdir(os.path.join(self.daemon.run, "vm")), "overlays": self.overlays()}
        harness.wait_empty(trace, "nothing left of it")
        self.assertEqual({base: os.stat(base).st_mtime_ns for base in self.bases}, self.bases)


class Tiny(Case):
    def test_fork(self):
        """Clones are domains with a title and a lineage; disks are apart; the end of the ticket is their end."""
        parent = self.tiny_domain()
        vm = self.daemon.call("domain.adopt", domain=parent, pool=1)["vm"]
        self.assertEqual((vm["domain"], vm["uri"], vm["role"]), (parent, "qemu:///system", "parent"))
        harness.wait(self.daemon.pools_full, what="the pool")
        shells = [name for name in self.libvirtd.domains("--state-paused") if name.startswith("sf-tiny-")]
        self.assertEqual(len(shells), 1)
        self.assertEqual(self.lineage(shells[0])["role"], "shell")

        ticket = self.fork(parent)
        clones = {self.domain_of(clone): clone for clone in ticket["clones"]}
        self.assertIn(shells[0], clones, "a clone was not made of the shell that was ready")
        images = set()
        for name, clone in clones.items():
            self.counts_on(name)
            harness.wait(lambda: self.lineage(name).get("role") == "clone", what="the lineage of " + name)
            self.assertEqual(self.lineage(name), {
                "role": "clone", "owner": self.daemon.run, "name": clone["vm"], "parent": parent,
                "ticket": ticket["ticket"], "snapshot": "s-" + ticket["ticket"], "id": str(clone["id"])})
            self.assertIn(clone["vm"], self.libvirtd.virsh("list", "--title"))
            self.assertIn("running", self.libvirtd.virsh("domstate", name))
            images.add(self.libvirtd.virsh("domblklist", name).split()[1])
        self.assertEqual(len(images), CLONES)
        self.counts_on(parent)
        self.daemon.end_ticket(ticket["ticket"])
        harness.wait(lambda: not set(clones) & set(self.libvirtd.domains()), what="the end of the clones' domains")
        self.counts_on(parent)
        self.assertEqual(len(self.fork(parent)["clones"]), CLONES, "it does not fork a second time")

    def test_ended_by_hand(self):
        """A clone that is destroyed, or whose QEMU is killed, has exited; the others do not notice."""
        parent = self.tiny_domain()
        ticket = self.fork(self.daemon.call("domain.adopt", domain=parent)["vm"]["name"], 3)
        first, second, third = ticket["clones"]
        self.libvirtd.virsh("destroy", self.domain_of(first))
        state = harness.wait(lambda: self.state_of(ticket, first["id"])["state"] == "lost" and
                             self.state_of(ticket, first["id"]), what="the end of a destroyed clone")
        self.assertIn("destroyed", state["reason"])
        os.kill(self.daemon.call("vm.status", vm=second["vm"])["vm"]["pid"], signal.SIGKILL)
        harness.wait(lambda: self.state_of(ticket, second["id"])["state"] == "lost", what="the end of a killed clone")
        self.counts_on(self.domain_of(third))
        self.counts_on(parent)

    def test_shell_destroyed_early(self):
        """A shell that is destroyed before it has told us its process: another is made, nothing is left of it."""
        parent = self.tiny_domain()
        before = self.daemon.call("domain.adopt", domain=parent, pool=1)["vm"]["domain"]
        for _ in range(3):
            shell = harness.wait(lambda: [name for name in self.libvirtd.domains() if name != before],
                                 what="a shell's domain")[0]
            self.libvirtd.virsh("destroy", shell, check=False)
        harness.wait(self.daemon.pools_full, what="the pool")
        self.assertEqual([clone["state"] for clone in self.fork(parent)["clones"]], ["running"] * CLONES)

    def test_parent_destroyed(self):
        """A parent that is destroyed leaves its snapshot to its clones."""
        parent = self.tiny_domain()
        ticket = self.fork(self.daemon.call("domain.adopt", domain=parent)["vm"]["name"])
        names = [self.domain_of(clone) for clone in ticket["clones"]]
        self.libvirtd.virsh("destroy", parent)
        harness.wait(lambda: parent not in [vm["name"] for vm in self.daemon.call("vm.list")["vms"]],
                     what="the end of the parent")
        for name in names:
            self.counts_on(name)

    def test_sfvmmd_restarted(self):
        """Clones and parent are found again; a domain that nobody has any more is swept."""
        parent = self.tiny_domain()
        self.daemon.call("domain.adopt", domain=parent, pool=1)
        harness.wait(self.daemon.pools_full, what="the pool")
        ticket = self.fork(parent)
        names = [self.domain_of(clone) for clone in ticket["clones"]]
        harness.wait(self.daemon.pools_full, what="the pool")
        shell = next(name for name in self.libvirtd.domains() if self.lineage(name).get("role") == "shell")
        vm = self.lineage(shell)["name"]
        self.daemon.end(signal.SIGKILL)
        shutil.rmtree(os.path.join(self.daemon.run, "vm", vm))          # as if it had been killed while making it
        self.daemon.start()
        harness.wait(lambda: shell not in self.libvirtd.domains(), what="the sweep of " + shell)
        self.assertEqual([clone["state"] for clone in self.ticket(ticket)["clones"]], ["running"] * CLONES)
        for name in names:
            self.counts_on(name)
        self.counts_on(parent)
        self.fork(parent)

    def test_many_clones_through_a_restart(self):
        """sfvmmd is killed while it has many clones: each is the same domain afterwards, and ends with its ticket."""
        parent = self.tiny_domain()
        self.daemon.call("domain.adopt", domain=parent)
        ticket = self.fork(parent, MANY)
        self.assertEqual([clone["state"] for clone in ticket["clones"]], ["running"] * MANY)
        names = {clone["id"]: self.domain_of(clone) for clone in ticket["clones"]}
        self.assertTrue(all(clone["running"] for clone in ticket["clones"]), ticket)
        self.daemon.restart(signal.SIGKILL)
        self.assertEqual({clone["id"]: self.domain_of(clone) for clone in self.ticket(ticket)["clones"]}, names)
        self.assertEqual([clone["state"] for clone in self.ticket(ticket)["clones"]], ["running"] * MANY)
        self.assertEqual(self.libvirtd.domains("--state-running"), sorted([parent] + list(names.values())))
        self.counts_on(names[1])
        self.daemon.end_ticket(ticket["ticket"])
        harness.wait(lambda: self.libvirtd.domains() == [parent], what="the end of %d domains" % MANY)

    def test_killed_before_they_run(self):
        """sfvmmd is killed when clones are loaded and libvirt has not resumed them yet: they are placed again."""
        parent = self.tiny_domain()
        self.daemon.call("domain.adopt", domain=parent)
        client = self.daemon.client()
        self.addCleanup(client.close)
        client.send("clone", vm=parent, count=FEW, wait="resumed")

        def clones():
            return [clone for ticket in self.daemon.call("ticket.list")["tickets"] for clone in ticket["clones"]]
        harness.wait(lambda: any(clone["loaded"] for clone in clones()), what="the first clone to be loaded")
        self.daemon.restart(signal.SIGKILL)
        harness.wait(lambda: all(clone["state"] == "running" and clone["running"] for clone in clones()),
                     what="all clones to run")
        for clone in clones():
            self.counts_on(self.domain_of(clone))
        self.counts_on(parent)

    def test_name_that_exists(self):
        """Two domains whose names are one as a VM: the second needs another; a domain is a VM once."""
        first, second = self.tiny_domain("tiny"), self.tiny_domain("Tiny")
        vm = self.daemon.call("domain.adopt", domain=first)["vm"]
        self.assertEqual(self.daemon.call("domain.adopt", domain=first)["vm"]["name"], vm["name"])
        with self.assertRaises(harness.ControlError) as caught:
            self.daemon.call("domain.adopt", domain=second)
        self.assertEqual(caught.exception.code, "exists")
        self.assertEqual(self.daemon.call("domain.adopt", domain=second, name="other")["vm"]["domain"], second)
        self.assertEqual(len(self.fork("other")["clones"]), CLONES)
        self.counts_on(first)

    def test_libvirtd_killed(self):
        """libvirtd killed in the middle of a fork: the parent goes on, the ticket tells the truth, the next fork works."""
        parent = self.tiny_domain()
        self.daemon.call("domain.adopt", domain=parent)
        client = self.daemon.client()
        self.addCleanup(client.close)
        number = client.send("clone", vm=parent, count=4, wait="resumed")
        harness.wait(lambda: len(self.libvirtd.domains("--state-paused")) > 0, what="the first shell")
        self.libvirtd.kill()
        try:
            ticket = client.answer(number)["ticket"]
        except harness.ControlError as error:
            self.assertTrue(error.message)
            ticket = None
        harness.wait(lambda: self.libvirtd.answers(), what="libvirtd again")
        for clone in self.ticket(ticket)["clones"] if ticket else []:
            if clone["state"] == "running":
                self.counts_on(self.domain_of(clone))
            else:
                self.assertTrue(clone["reason"])
        self.counts_on(parent)

        def forks():
            try:
                return self.fork(parent)
            except harness.ControlError as error:
                self.assertRegex(error.message, "connected|libvirt|closed")
                return None
        self.assertEqual([clone["state"] for clone in harness.wait(forks, what="a fork")["clones"]],
                         ["running"] * CLONES)

    def test_sf_virsh(self):
        """sf-virsh: the commands sf-* do what they say, others are virsh's."""
        self.check_virsh(SF_VIRSH)

    def test_patched_virsh(self):
        """The virsh with a command group of its own: the same, and completion."""
        patched = os.environ.get("SF_VIRSH_PATCHED", "")
        if not os.path.exists(patched):
            self.skipTest("virsh with the commands sf-* has not been built: scripts/setup --what virsh")
        run = self.check_virsh(patched)
        self.assertIn("sf-domcheck", run("help", "snowflock"))
        self.assertIn("--no-wait", run("help", "sf-clone"))
        self.assertIn("--count", run("complete", "--", "sf-clone", "").split())
        self.assertIn("tiny", run("complete", "--", "sf-clone", "--domain", "").split())
        self.assertIn("sf-clone", run("complete", "--", "sf-cl").split())
        run("sf-clone", status=1)

    def check_virsh(self, virsh):
        parent = self.tiny_domain()
        path = os.path.dirname(harness.program("sfvmm/cli/sfctl")) + ":" + os.environ["PATH"]

        def run(*words, status=0):
            result = subprocess.run(self.libvirtd.inside([virsh, "-c", "qemu:///system"] + list(words)), text=True,
                                    stdin=subprocess.DEVNULL, capture_output=True, timeout=harness.LONG,
                                    env=dict(os.environ, PATH=path, SF_VIRSH=SF_VIRSH, SF_SOCKET=self.daemon.socket_path))
            self.assertEqual(result.returncode, status, result.stderr)
            return result.stdout
        self.assertIn(parent, run("list"))
        self.assertIn("sf-clone", run("help"))
        run("sf-domcheck", parent)
        self.assertTrue(json.loads(run("sf-domcheck", parent, "--json"))["forkable"])
        self.assertIn("sf-clone", run("help", "snowflock"))
        self.assertEqual(json.loads(run("sf-snapshot-list", "--json"))["snapshots"], [])
        self.assertIn("hosts", json.loads(run("sf-hosts", "--json")))
        ticket = run("sf-clone", parent, "--count", "2", "--quiet").strip()
        clones = json.loads(run("sf-list", "--json"))["vms"]
        self.assertEqual(sorted(vm["role"] for vm in clones), ["clone", "clone", "parent"])
        for vm in clones:
            self.assertIn("running", run("domstate", vm["domain"]))
        run("sf-snapshot", parent, "saved", status=1)           # refused: it is a domain
        run("sf-kill", ticket)
        run("sf-join", ticket, "--timeout", "60s")
        harness.wait(lambda: [vm["name"] for vm in json.loads(run("sf-list", "--json"))["vms"]] == [parent],
                     what="the end of the clones' domains")
        run("sf-clone", "nobody", status=1)
        return run

    def test_other_host(self):
        """A qemu+ssh URI reaches libvirtd and sfvmmd of another host; one that reaches libvirtd alone is refused."""
        sshd = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin")
        if not sshd:
            self.skipTest("sshd is missing (package openssh-server)")
        top, port = os.path.join(self.libvirtd.top, "ssh"), hosts.free_port()
        os.mkdir(top, 0o700)
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", os.path.join(top, name)], check=True)
        with open(os.path.join(top, "sshd_config"), "w") as file:
            file.write(SSHD % {"port": port, "top": top, "socket": self.daemon.socket_path,
                               "tools": os.path.dirname(harness.program("sfvmm/cli/sfctl"))})
        os.makedirs("/run/sshd", exist_ok=True)
        server = subprocess.Popen(self.libvirtd.inside([sshd, "-D", "-e", "-f", os.path.join(top, "sshd_config")]),
                                  stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(server.wait)
        self.addCleanup(server.terminate)
        parent = self.tiny_domain()
        uri = "qemu+ssh://root@127.0.0.1:%d/system?keyfile=%s&no_verify=1" % (port, os.path.join(top, "user"))

        def run(uri, *words):
            return subprocess.run([SF_VIRSH, "-c", uri, *words], text=True, stdin=subprocess.DEVNULL, timeout=harness.LONG,
                                  capture_output=True, env={"PATH": os.environ["PATH"], "HOME": top})
        harness.wait(lambda: run(uri, "list").returncode == 0, what="the libvirtd by ssh")
        self.assertIn(parent, run(uri, "list").stdout)
        done = run(uri, "sf-clone", parent, "--no-wait", "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        clone = json.loads(done.stdout)["ticket"]["clones"][0]
        self.assertIn("running", run(uri, "domstate", self.domain_of(clone)).stdout)
        refused = run("qemu+tcp://host/system", "sf-list")
        self.assertEqual(refused.returncode, 1)
        self.assertIn("qemu+ssh", refused.stderr)

    def test_refused(self):
        """What can't be taken is refused with the reason, and what to do."""
        def refusal(code, *words, **params):
            with self.assertRaises(harness.ControlError) as caught:
                self.daemon.call("domain.adopt", **params)
            self.assertEqual(caught.exception.code, code, str(caught.exception))
            for word in words:
                self.assertIn(word, str(caught.exception))
        refusal("gone", "nobody", domain="nobody")
        refusal("failed", "is not this host's", domain="tiny", uri="qemu+ssh://host/system?command=/bin/true")
        refusal("gone", "qemu+unix:///system", domain="tiny", uri="qemu+unix:///system?socket=/nowhere")
        parent = self.tiny_domain(backing="", channel="")
        refusal("refused", "agent", "domain check", domain=parent)
        self.counts_on(parent)
        self.assertIn("can't be forked", self.daemon.sfctl("clone", parent, check=False).stderr)
        self.assertIn("not known", self.daemon.sfctl("clone", "nobody", check=False).stderr)

    def test_anonymous(self):
        """A domain without <memoryBacking> forks after a copy of what it uses, once, and by a sfvmmd that has died since."""
        parent = self.tiny_domain(backing="")
        self.assertTrue(json.loads(self.daemon.sfctl("--json", "domain", "check", parent).stdout)["forkable"])
        vm = self.daemon.call("domain.adopt", domain=parent)["vm"]
        self.assertNotIn("copied", vm)
        early = self.fails_without_descriptors(vm)
        self.daemon.restart(signal.SIGKILL)
        ticket = self.fork(parent)
        told = self.daemon.call("vm.status", vm=parent)["vm"].get("copied")
        copied = early or told
        self.assertTrue(0 < copied["bytes"] < TINY_MIB * harness.MIB, copied)
        self.assertTrue(0 < copied["longest"] <= copied["pause"] <= copied["total"], copied)
        for clone in ticket["clones"]:
            self.counts_on(self.domain_of(clone))
        self.fork(parent)
        self.assertEqual(self.daemon.call("vm.status", vm=parent)["vm"].get("copied"), told)
        self.counts_on(parent)

    def fails_without_descriptors(self, vm):
        """QEMU can't open one more file, so it has no memfd: its fork fails with the reason, and it goes on. Now and then an
        eventfd below the limit closes as the VM pauses; then it has the memfd, and the snapshot lacks a descriptor. Returns
        what that copy has cost."""
        pid = vm["pid"]
        owner = os.stat("/proc/%d" % pid)           # root without CAP_SYS_RESOURCE may not, its user may
        used = {int(name) for name in os.listdir("/proc/%d/fd" % pid)}
        free = next(number for number in range(len(used) + 1) if number not in used)
        with open("/proc/%d/limits" % pid) as file:
            soft = re.search(r"Max open files +(\d+)", file.read())[1]

        def limit(number):
            subprocess.run(["setpriv", "--reuid", str(owner.st_uid), "--regid", str(owner.st_gid), "--clear-groups",
                            "prlimit", "--pid", str(pid), "--nofile=%s:" % number], check=True)
        limit(free - TRANSIENT)
        with self.assertRaises(harness.ControlError) as caught:
            self.fork(vm["name"])
        limit(soft)
        why = re.search("(can't become a memfd|snapshot).*Too many open files", caught.exception.message)
        self.assertTrue(why, caught.exception.message)
        copied = self.daemon.call("vm.status", vm=vm["name"])["vm"].get("copied")
        self.assertEqual(copied is not None, why[1] == "snapshot")
        self.counts_on(vm["domain"])
        return copied

    def test_check(self):
        """`sfctl domain check` says what is missing; --fix adds it; then it forks."""
        stock = shutil.which("qemu-system-x86_64") or os.path.join(os.path.dirname(harness.qemu()), "..", "bin",
                                                                   "qemu-system-x86_64")
        text = libvirtd.domain_xml("plain", [(self.tiny_image("plain"), "raw", False)], mib=TINY_MIB, backing="",
                                   channel="", emulator=stock)
        self.libvirtd.virsh("define", self.write_xml(text))
        result = self.daemon.sfctl("domain", "check", "plain", check=False)
        self.assertEqual(result.returncode, 1)
        for word in ("<emulator>", "memfd", "org.snowflock.agent.0"):
            self.assertIn(word, result.stdout)
        self.daemon.sfctl("domain", "check", "plain", "--fix")
        self.assertTrue(json.loads(self.daemon.sfctl("--json", "domain", "check", "plain").stdout)["forkable"])
        self.libvirtd.virsh("start", "plain")
        self.counts_on("plain")
        self.assertEqual(self.daemon.sfctl("domain", "adopt", "plain").stdout.strip(), "plain")
        self.assertEqual(len(self.fork("plain")["clones"]), CLONES)


class Session(Case):
    """libvirtd and sfvmmd of an ordinary user."""

    @classmethod
    def make(cls):
        session = libvirtd.Session(harness.qemu_user())
        return session, libvirtd.UserDaemon(session, config={"pool": 0})

    def test_fork(self):
        """A user forks a domain of the session: the clones are domains of it, and the user's processes."""
        parent = self.tiny_domain()
        vm = self.daemon.call("domain.adopt", domain=parent)["vm"]
        self.assertEqual(vm["uri"], "qemu:///session")
        self.assertEqual(self.owners_of_clones(parent), {self.libvirtd.user.pw_uid})


class Member(Case):
    """sfvmmd of a member of the group that may use the libvirtd of root."""

    @classmethod
    def make(cls):
        keeper = libvirtd.Libvirtd(group="users")
        return keeper, libvirtd.MemberDaemon(keeper, config={"pool": 0, "libvirt-uri": keeper.uri})

    def test_tiny(self):
        """Neither the QEMUs nor their folders are the member's."""
        parent = self.tiny_domain()
        self.daemon.call("domain.adopt", domain=parent)
        self.assertNotIn(self.daemon.user.pw_uid, self.owners_of_clones(parent))

    def test_linux(self):
        """Agents' ports are reached: sf_clone()'s answer comes from each clone, after a restart of libvirtd too. And what the
        domain writes is not lost."""
        self.linux_domain("web")
        self.daemon.call("domain.adopt", domain="web")
        self.daemon.call("vm.wait", vm="web", agent=True, timeout_ms=int(harness.LONG * 1000))
        def disks():
            return self.daemon.call("vm.status", vm="web")["vm"]["disks"]

        def cloned():
            done = self.daemon.sfctl("--json", "clone", "web", "--count", str(CLONES), check=False)
            return json.loads(done.stdout)["ticket"] if done.returncode == 0 else None
        before = disks()
        for libvirtd_is_new in (False, True):
            if libvirtd_is_new:
                self.libvirtd.kill()
                harness.wait(self.libvirtd.answers, what="libvirtd again")
            ticket = harness.wait(cloned, what="a fork")
            self.assertEqual([bool(clone["answered"]) for clone in ticket["clones"]], [True] * CLONES)
            self.daemon.end_ticket(ticket["ticket"])
            harness.wait(lambda: disks() == before, what="the domain's disk to be one file again")
        self.end_with_writes()

    def end_with_writes(self):
        """What the domain wrote after a fork gets into its image, which is root's, when domain and clone have ended."""
        image = os.path.join(self.libvirtd.top, "web.qcow2")
        ticket = self.fork("web", 1)
        console = libvirtd.Console(self.libvirtd, "web")
        self.addCleanup(console.close)
        console.write("echo %s > /root/kept; sync; echo it-\"\"is\n" % WRITTEN)
        harness.wait(lambda: b"it-is" in console.whole(), harness.LONG, "the guest's write")
        self.libvirtd.virsh("destroy", "web")
        with open(image, "rb") as file:
            self.assertNotIn(WRITTEN.encode(), file.read())
        self.daemon.end_ticket(ticket["ticket"])
        harness.wait(lambda: not self.overlays(), what="the end of the overlays")
        with open(image, "rb") as file:
            self.assertIn(WRITTEN.encode(), file.read())
        self.assertEqual(os.stat(image).st_uid, 0)


class Poor(Case):
    """An emulator that has too little address space for the RAM of a shell while a file is there."""

    KIB = 100 * 1024            # QEMU starts with so much, but for its guest's RAM

    @classmethod
    def prepare(cls):
        cls.flag = os.path.join(cls.libvirtd.top, "no-memory")
        cls.emulator = os.path.join(cls.libvirtd.top, "emulator")
        with open(cls.emulator, "w") as file:
            file.write("#!/bin/sh\ncase \"$*\" in *guest=sf-*) [ ! -e %s ] || ulimit -v %d;; esac\n"
                       "exec %s \"$@\"\n" % (cls.flag, cls.KIB, harness.qemu()))
        os.chmod(cls.emulator, 0o755)
        cls.daemon.qemu_path = cls.emulator

    def test_no_memory(self):
        """No memory for a shell: the fork fails with the reason, the parent goes on, and forks when there is again."""
        parent = self.tiny_domain(emulator=self.emulator)
        self.daemon.call("domain.adopt", domain=parent)
        with open(self.flag, "w"):
            pass
        with self.assertRaises(harness.ControlError) as caught:
            ticket = self.fork(parent)
            raise harness.ControlError({"message": " ".join(clone["reason"] for clone in ticket["clones"])})
        self.assertRegex(caught.exception.message, "(?i)cannot allocate memory|failed to map")
        self.assertEqual(self.libvirtd.domains(), [parent])
        os.unlink(self.flag)
        self.counts_on(parent)
        self.assertEqual([clone["state"] for clone in self.fork(parent)["clones"]], ["running"] * CLONES)


if __name__ == "__main__":
    unittest.main()
