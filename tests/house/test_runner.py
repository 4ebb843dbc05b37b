# SPDX-License-Identifier: GPL-2.0-or-later
"""run.py itself: a failure is never swallowed, whatever way it comes."""
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODULE = '''
import os, time, unittest

class Good(unittest.TestCase):
    def test_pass(self): print("noise {}")
    def test_skip(self): self.skipTest("no moon")
    def test_sub(self):
        for i in range(3):
            with self.subTest(i=i): self.assertNotEqual(i, 1)

class Fixture(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise ValueError("broken fixture")
    def test_never(self): pass

class Skipped(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise unittest.SkipTest("no sun")
    def test_never(self): pass
'''
CRASH = '''
import os, unittest
class Crash(unittest.TestCase):
    def test_a(self): os._exit(0)
    def test_b(self): pass
'''
HANG = '''
import signal, unittest
class Hang(unittest.TestCase):
    def tearDown(self): print("cleaned up")
    def test_a(self): signal.pause()
    def test_b(self): pass
'''
LONG = '''
import signal, subprocess, unittest
class Long(unittest.TestCase):
    def tearDown(self): print("cleaned up")
    def test_a(self):
        print("started", subprocess.Popen(["sleep", "1000"], start_new_session=True).pid, flush=True)
        signal.pause()
    def test_b(self): pass
'''
DRIVER = '''
import json, os, sys
sys.path.insert(0, {tests!r})
import run
group = run.Group("g", None, bound=float(sys.argv[2]))
os.environ["SF_TEST_LOGS"] = sys.argv[3]
report = run.Report(sys.argv[3])
watch = run.Watch(60)
watch.heed_signals()
run.PythonModule(group, sys.argv[1]).run(report, [], watch)
watch.sweep()
print("RESULTS " + json.dumps({{k: sorted(n for n, _ in v) for k, v in report.results.items()}}))
sys.exit(report.summary())
'''


def ended(pid):
    """True for a zombie, too."""
    try:
        with open("/proc/%d/stat" % pid) as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


class Runner(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def begin(self, text, bound=60):
        path = os.path.join(self.folder.name, "test_m.py")
        with open(path, "w") as file:
            file.write(text)
        return subprocess.Popen([sys.executable, "-c", DRIVER.format(tests=TESTS), path, str(bound), self.folder.name],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(self, process):
        output, errors = process.communicate(timeout=120)
        line = next((line for line in output.splitlines() if line.startswith("RESULTS ")), None)
        self.assertIsNotNone(line, output + errors)
        return subprocess.CompletedProcess([], process.returncode, output), json.loads(line[len("RESULTS "):])

    def run_module(self, text, bound=60):
        return self.finish(self.begin(text, bound))

    def log(self):
        try:
            with open(os.path.join(self.folder.name, "g", "test_m.log")) as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def test_results(self):
        result, found = self.run_module(MODULE)
        self.assertEqual(found, {
            "pass": ["g/test_m/Good.test_pass"],
            "fail": ["g/test_m/Fixture.test_never", "g/test_m/Good.test_sub"],
            "skip": ["g/test_m/Good.test_skip", "g/test_m/Skipped.test_never"]})
        self.assertEqual(result.stdout.splitlines()[-1], "1 passed, 2 failed, 2 skipped")
        self.assertIn("Good.test_skip: no moon", result.stdout)
        self.assertIn("broken fixture", result.stdout)
        self.assertEqual(result.returncode, 1)

    def test_crash(self):
        _, found = self.run_module(CRASH)
        self.assertEqual(found["fail"], ["g/test_m/Crash.test_a", "g/test_m/Crash.test_b"])

    def test_hang(self):
        _, found = self.run_module(HANG, bound=2)
        self.assertEqual(found["fail"], ["g/test_m/Hang.test_a", "g/test_m/Hang.test_b"])
        self.assertIn("cleaned up", self.log())

    def wait_for(self, pattern):
        """In the module's log."""
        end = time.monotonic() + 60
        while True:
            found = re.search(pattern, self.log())
            if found:
                return found
            self.assertLess(time.monotonic(), end, pattern)
            time.sleep(0.02)

    def test_interrupted(self):
        """The running test cleans up; what it forgets is ended; what was not begun is no success."""
        process = self.begin(LONG)
        child = int(self.wait_for(r"started (\d+)\n").group(1))
        process.send_signal(signal.SIGTERM)
        result, found = self.finish(process)
        self.assertEqual(found, {"pass": [], "fail": ["g/test_m/Long.test_a", "g/test_m/Long.test_b"], "skip": []})
        self.assertIn("interrupted by SIGTERM", result.stdout)
        self.assertIn("cleaned up", self.log())
        self.assertTrue(ended(child))

    def test_killed(self):
        """When run.py itself is killed the running test cleans up all the same."""
        process = self.begin(LONG)
        child = int(self.wait_for(r"started (\d+)\n").group(1))
        process.kill()
        process.communicate()
        self.wait_for("cleaned up")
        os.kill(child, signal.SIGKILL)

    def test_module_that_does_not_load(self):
        _, found = self.run_module("import no_such_module_at_all")
        self.assertEqual(len(found["fail"]), 1)

    def test_module_without_tests(self):
        result, _ = self.run_module("")
        self.assertEqual(result.returncode, 1)


if __name__ == "__main__":
    unittest.main()
