# SPDX-License-Identifier: GPL-2.0-or-later
"""The Python module as a Debian package: built by Debian's tools, and what is in it is the module."""
import os
import shutil
import subprocess
import tempfile
import unittest

SOURCE = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "libsf/python")
BOUND = 120


class PythonPackage(unittest.TestCase):
    def run_in(self, folder, *command):
        environment = dict(os.environ, PATH="/usr/sbin:/usr/bin:/sbin:/bin", LC_ALL="C.UTF-8")
        done = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=BOUND)
        self.assertEqual(done.returncode, 0, done.stdout[-2000:] + done.stderr[-2000:])
        return done.stdout

    def test_build(self):
        for program in ("dpkg-buildpackage", "dh", "pybuild"):
            if not shutil.which(program, path="/usr/bin"):
                self.skipTest("%s is missing (packages build-essential, debhelper, dh-python)" % program)
        with tempfile.TemporaryDirectory() as top:
            source, root = os.path.join(top, "python-snowflock"), os.path.join(top, "root")
            shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__"))
            self.run_in(source, "dpkg-buildpackage", "-b", "-us", "-uc")
            package, = (name for name in os.listdir(top) if name.endswith(".deb"))
            self.assertRegex(package, r"^python3-snowflock_[\d.-]+_all\.deb$")
            self.run_in(top, "dpkg-deb", "-x", package, root)
            module = os.path.join(root, "usr/lib/python3/dist-packages/snowflock")
            for name in os.listdir(os.path.join(SOURCE, "snowflock")):
                if name.endswith(".py"):
                    with open(os.path.join(SOURCE, "snowflock", name)) as ours, open(os.path.join(module, name)) as theirs:
                        self.assertEqual(ours.read(), theirs.read(), name)
            depends = self.run_in(top, "dpkg-deb", "-f", package, "Depends")
            self.assertIn("libsf1", depends)
            self.assertIn("python3", depends.replace("python3-", ""))


if __name__ == "__main__":
    unittest.main()
