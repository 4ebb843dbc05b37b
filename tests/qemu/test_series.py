# SPDX-License-Identifier: GPL-2.0-or-later
"""The patch series and the project agree."""
import os
import re
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PATCHES = os.path.join(ROOT, "qemu-patches")


class Series(unittest.TestCase):
    def setUp(self):
        self.names = sorted(name for name in os.listdir(PATCHES) if re.match(r"\d{4}-.*\.patch$", name))

    def test_header(self):
        """include/migration/sf-channel.h of the series is sfvmm/wire/qemu_channel.h word for word."""
        found = None
        for name in self.names:
            with open(os.path.join(PATCHES, name)) as f:
                text = f.read()
            match = re.search(r"^\+\+\+ b/include/migration/sf-channel\.h\n@@ -0,0 \+1,(\d+) @@\n((?:\+.*\n)+)", text, re.M)
            if match:
                found = "".join(line[1:] + "\n" for line in match.group(2).splitlines())
                self.assertEqual(len(found.splitlines()), int(match.group(1)))
        with open(os.path.join(ROOT, "sfvmm/wire/qemu_channel.h")) as f:
            self.assertEqual(found, f.read())

    def test_readme(self):
        """A line for each patch, and none too many."""
        with open(os.path.join(PATCHES, "README.md")) as f:
            told = re.findall(r"^\| (\d{4}) \|", f.read(), re.M)
        self.assertEqual(told, [name[:4] for name in self.names])
        self.assertEqual(told, ["%04d" % (i + 1) for i in range(len(told))])

    def test_messages(self):
        """Each patch says why, and who signs for it."""
        for name in self.names:
            with self.subTest(name):
                with open(os.path.join(PATCHES, name)) as f:
                    head = f.read().split("\n---\n")[0]
                self.assertRegex(head, r"(?m)^Subject: \[PATCH\] [^:]+: .")
                self.assertRegex(head, r"(?m)^Signed-off-by: ")
                self.assertGreater(len(head.split("\n\n", 1)[1].splitlines()), 4)


if __name__ == "__main__":
    unittest.main()
