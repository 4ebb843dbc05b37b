#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/testbed: hosts out of network namespaces that see each other, and nothing left over afterwards."""
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

import harness

TESTBED = os.path.join(harness.ROOT, "scripts", "testbed")
COUNT = 3
LINK_BOUND = 40 * harness.SCALE     # s, until a host whose link is cut or mended is known to be


def run(*words, code=0):
    done = subprocess.run(words, capture_output=True, text=True, timeout=harness.LONG)
    if code is not None and done.returncode != code:
        raise AssertionError("%s: status %d\n%s%s" % (" ".join(words), done.returncode, done.stdout, done.stderr))
    return done.stdout + done.stderr


def tag(folder):
    """What the test bed in this folder calls its things, as scripts/testbed makes it."""
    return "sft" + hashlib.sha256(folder.encode()).hexdigest()[:5]


def left_of(folder):
    """What it may leave on the machine; other test beds may come and go meanwhile."""
    name = tag(folder)
    found = [link["ifname"] for link in json.loads(run("ip", "-j", "link")) if link["ifname"].startswith(name)]
    found += [word for word in run("ip", "netns", "list").split() if word.startswith(name)]
    found += [lock for lock in os.listdir("/run/lock") if lock.startswith(name)]
    found += processes_of(folder)
    return found + ([folder] if os.path.exists(folder) else [])


def processes_of(folder):
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open("/proc/%s/cmdline" % name, "rb") as file:
                    if folder.encode() in file.read() and harness.alive(int(name)):
                        found.append(harness.command_line(int(name)))
            except OSError:
                continue
    return found


class Testbed(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        harness.program("sfvmm/control/sfvmmd")
        harness.qemu()
        harness.environment("SF_FIRMWARE", "firmware")
        if os.geteuid() != 0:
            raise unittest.SkipTest("network namespaces need root")
        if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
            raise unittest.SkipTest("no network namespaces here")

    def setUp(self):
        self.top = tempfile.mkdtemp(prefix="sftb")
        os.chmod(self.top, 0o755)
        self.addCleanup(shutil.rmtree, self.top, True)
        self.folders = []

    def folder(self, name="bed"):
        folder = os.path.join(self.top, name)
        self.folders.append(folder)
        self.addCleanup(run, TESTBED, "--dir", folder, "down", code=None)
        return folder

    def up(self, folder, count=COUNT, *words):
        settings = ["--set", "user=" + harness.qemu_user()]
        return run(TESTBED, "--dir", folder, "up", str(count), *settings, *words)

    def call(self, folder, host, method, **params):
        control = harness.Control(os.path.join(folder, host, "run", "control.sock"))
        try:
            return control.call(method, **params)
        finally:
            control.close()

    def states(self, folder, host):
        return {found["name"]: found["state"] for found in self.call(folder, host, "host.list")["hosts"]}

    def all_up(self, folder, count=COUNT):
        want = {"h%d" % number: "up" for number in range(1, count + 1)}
        return all(self.states(folder, host) == want for host in want)

    def assert_nothing_left(self):
        for folder in self.folders:
            self.assertEqual(left_of(folder), [])

    def namespace(self, folder, host):
        return "%s-%s" % (tag(folder), host)

    def test_up_and_down(self):
        bed = self.folder()
        text = self.up(bed)
        self.assertRegex(text, r"(?m)^h1 +\(this host\) +up ")
        self.assertRegex(text, r"(?m)^h3 +10\.77\.0\.3 +up ")
        self.assertTrue(self.all_up(bed))
        self.assertNotIn("10.77.0.", run("ip", "address") + run("ip", "route"))     # the machine's own network is as it was
        self.assertEqual(len([name for name in left_of(bed) if name.startswith(tag(bed) + "-")]), COUNT + 1)
        self.assertIn("10.77.0.2", run(TESTBED, "--dir", bed, "exec", "h2", "ip", "-br", "address"))
        self.assertEqual(run(TESTBED, "--dir", bed, "exec", "2", "sfctl", "host", "list", "-q").split(),
                         ["h2", "h1", "h3"])
        self.assertIn("no such host", run(TESTBED, "--dir", bed, "exec", "h9", "true", code=1))
        run(TESTBED, "--dir", bed, "exec", "h1", "sh", "-c", "exit 7", code=7)
        self.assertEqual(len(re.findall(r"seen from h\d", run(TESTBED, "--dir", bed, "status"))), COUNT)
        self.assertIn("is there already", run(TESTBED, "--dir", bed, "up", "2", code=1))
        self.assertTrue(self.all_up(bed))
        for name in ("ca-key.pem", "h1/host/server-key.pem", "h1/pages/client-key.pem"):
            self.assertEqual(os.stat(os.path.join(bed, "pki", name)).st_mode & 0o777, 0o600)
        run(TESTBED, "--dir", bed, "down")
        self.assert_nothing_left()
        self.assertIn("no test bed", run(TESTBED, "--dir", bed, "down"))
        self.assertIn("no test bed", run(TESTBED, "--dir", bed, "status", code=1))
        self.assert_nothing_left()

    def test_two_at_once(self):
        """They have the same addresses and don't meet; one goes without the other."""
        first, second = self.folder("first"), self.folder("second")
        self.up(first, 2)
        self.up(second, 2, "--rsa", "--policy", "pack", "--slots", "5", "--rate", "1gbit")
        self.assertTrue(self.all_up(first, 2) and self.all_up(second, 2))
        listed = self.call(second, "h1", "host.list")
        self.assertEqual((listed["policy"], [host["slots"] for host in listed["hosts"]]), ("pack", [5, 5]))
        run(TESTBED, "--dir", first, "down")
        self.assertTrue(self.all_up(second, 2))
        run(TESTBED, "--dir", second, "down")
        self.assert_nothing_left()

    def test_running_vms(self):
        """What runs on the hosts ends with them."""
        bed = self.folder()
        self.up(bed, 2)
        kernel = harness.image("vmlinuz")
        vm = self.call(bed, "h2", "vm.run", name="web", memory=64 << 20, kernel=kernel, pool=1)["vm"]
        self.assertTrue(harness.alive(vm["pid"]))
        sleeper = subprocess.Popen([TESTBED, "--dir", bed, "exec", "h1", "sleep", "1000"])
        run(TESTBED, "--dir", bed, "down")
        self.assertNotEqual(sleeper.wait(harness.SHORT), 0)
        self.assertFalse(harness.alive(vm["pid"]))
        self.assert_nothing_left()

    def test_interrupted(self):
        """Ended in the middle of `up`: nothing is left, whatever moment it was."""
        for delay in (0.05, 0.2, 0.5):
            bed = self.folder("bed%s" % delay)
            process = subprocess.Popen([TESTBED, "--dir", bed, "up", str(COUNT), "--set", "user=" + harness.qemu_user()],
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(delay)       # the moment is what is tested
            process.send_signal(signal.SIGTERM)
            self.assertNotEqual(process.wait(harness.LONG), 0)
            run(TESTBED, "--dir", bed, "down")
        self.assert_nothing_left()

    def test_bad_words(self):
        for words in (("up", "0"), ("up", "x"), ("up", "65"), ("exec", "h1", "true")):
            run(TESTBED, "--dir", self.folder(), *words, code=1)
        for words in ((), ("what",), ("up", "2", "--what")):
            run(TESTBED, "--dir", self.folder(), *words, code=2)
        bed = self.folder("full")
        os.makedirs(bed)
        with open(os.path.join(bed, "precious"), "w"):
            pass
        self.assertIn("something else", run(TESTBED, "--dir", bed, "up", "1", code=1))
        run(TESTBED, "--dir", bed, "down")
        self.assertTrue(os.path.exists(os.path.join(bed, "precious")))

    def test_failing_daemon(self):
        """A sfvmmd that does not start is shown with its reason, and nothing is left."""
        self.assertIn("what", run(TESTBED, "--dir", self.folder(), "up", "2", "--set", "what=1", code=1))
        self.assert_nothing_left()

    def test_cut_link(self):
        """A host whose link is cut is given up after 10 s, and up again when it is mended."""
        bed = self.folder()
        self.up(bed)
        link = ["ip", "-n", self.namespace(bed, "h3"), "link", "set", "eth0"]
        run(*link, "down")
        harness.wait(lambda: self.states(bed, "h1")["h3"] == "down" and self.states(bed, "h3")["h1"] == "down",
                     LINK_BOUND, "h3 down, seen from both ends")
        self.assertEqual(self.states(bed, "h1")["h2"], "up")
        run(*link, "up")
        harness.wait(lambda: self.all_up(bed), LINK_BOUND, "all hosts up")
        run(TESTBED, "--dir", bed, "down")
        self.assert_nothing_left()


if __name__ == "__main__":
    harness.main()
