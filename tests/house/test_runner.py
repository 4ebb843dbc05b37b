# SPDX-License-Identifier: GPL-2.0-or-later
"""run.py itself: a failure is never swallowed, whatever way it comes."""
import json
import os
import subprocess
import sys
import tempfile
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
DRIVER = '''
import json, sys, time
sys.path.insert(0, {tests!r})
import run
group = run.Group("g", None, bound=float(sys.argv[2]))
report = run.Report(sys.argv[3])
run.PythonModule(group, sys.argv[1]).run(report, [], time.monotonic() + 60)
print("RESULTS " + json.dumps({{k: sorted(n for n, _ in v) for k, v in report.results.items()}}))
sys.exit(report.summary())
'''


class Runner(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def run_module(self, text, bound=60):
        path = os.path.join(self.folder.name, "test_m.py")
        with open(path, "w") as file:
            file.write(text)
        result = subprocess.run([sys.executable, "-c", DRIVER.format(tests=TESTS), path, str(bound), self.folder.name],
                                capture_output=True, text=True, timeout=120)
        line = next((line for line in result.stdout.splitlines() if line.startswith("RESULTS ")), None)
        self.assertIsNotNone(line, result.stdout + result.stderr)
        return result, json.loads(line[len("RESULTS "):])

    def log(self):
        with open(os.path.join(self.folder.name, "g", "test_m.log")) as file:
            return file.read()

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

    def test_module_that_does_not_load(self):
        _, found = self.run_module("import no_such_module_at_all")
        self.assertEqual(len(found["fail"]), 1)

    def test_module_without_tests(self):
        result, _ = self.run_module("")
        self.assertEqual(result.returncode, 1)


if __name__ == "__main__":
    unittest.main()
