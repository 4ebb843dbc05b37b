# SPDX-License-Identifier: GPL-2.0-or-later
"""What every file of the tree must obey: licences, floors, no leftovers, man pages and scripts that parse."""
import glob
import os
import re
import shutil
import subprocess
import sys
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# 120 is the aim (.clang-format, .editorconfig); a word more is no reason to break a line that reads well.
LINE_LENGTH = 140
SOURCE = (".c", ".h", ".py", ".sh", ".build", ".options", ".S")
# Split so that this file does not find itself.
LEFTOVERS = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b")


def tracked():
    # The checkout may belong to another user than the one that tests it.
    listed = subprocess.run(["git", "-c", "safe.directory=" + ROOT, "-C", ROOT, "ls-files"], capture_output=True,
                            text=True)
    if listed.returncode != 0:
        raise unittest.SkipTest("no git checkout: " + listed.stderr.strip())
    return [name for name in listed.stdout.splitlines() if os.path.isfile(os.path.join(ROOT, name))]


def read(name):
    with open(os.path.join(ROOT, name), errors="replace") as file:
        return file.read()


def floors():
    """Folder -> floor, from the table of sfvmm/README.md."""
    rows = re.findall(r"^\| (\d) \| (\w+)/ \|", read("sfvmm/README.md"), re.MULTILINE)
    return {name: int(floor) for floor, name in rows}


def is_script(name):
    if not name.startswith(("scripts/", ".ci/")):
        return False
    return read(name).startswith(("#!/bin/bash", "#!/bin/sh")) or name.endswith(".sh")


class Tree(unittest.TestCase):
    def none(self, bad):
        if bad:
            self.fail("%d:\n%s" % (len(bad), "\n".join(bad)))

    def sources(self):
        return [name for name in tracked()
                if not name.startswith("qemu-patches/") and (name.endswith(SOURCE) or is_script(name))]

    def test_licence_headers(self):
        bad = []
        for name in self.sources():
            want = "LGPL-2.1-or-later" if name.startswith("libsf/") else "GPL-2.0-or-later"
            head = "\n".join(read(name).splitlines()[:3])
            if "SPDX-License-Identifier: " + want not in head:
                bad.append("%s: SPDX-License-Identifier: %s is not on top" % (name, want))
        self.none(bad)

    def test_lines(self):
        bad = []
        for name in self.sources():
            for number, line in enumerate(read(name).splitlines(), 1):
                if len(line) > LINE_LENGTH:
                    bad.append("%s:%d: %d columns" % (name, number, len(line)))
                if line != line.rstrip():
                    bad.append("%s:%d: blank at the end" % (name, number))
                if LEFTOVERS.search(line):
                    bad.append("%s:%d: %s" % (name, number, line.strip()))
        self.none(bad)

    def test_floors(self):
        """A folder of sfvmm includes its own headers and those of floors below."""
        bad = []
        floor_of = floors()
        for name in tracked():
            found = re.match(r"sfvmm/(\w+)/.*\.[ch]$", name)
            if not found:
                continue
            floor = floor_of.get(found.group(1))
            if floor is None:
                bad.append("%s: sfvmm/README.md gives its folder no floor" % name)
                continue
            for include in re.findall(r'^\s*#\s*include\s+"sfvmm/(\w+)/', read(name), re.MULTILINE):
                if include != found.group(1) and floor_of.get(include, 9) >= floor:
                    bad.append("%s (floor %d) includes sfvmm/%s" % (name, floor, include))
        self.none(bad)

    def test_guest_side_stands_alone(self):
        """libsf, agent and examples include nothing of the host side and no GLib."""
        bad = []
        for name in tracked():
            if name.startswith(("libsf/", "guest-agent/", "examples/")) and name.endswith((".c", ".h")):
                host_side = r'^\s*#\s*include\s+[<"](sfvmm/|glib|gio/|json-glib)'
                for include in re.findall(host_side, read(name), re.MULTILINE):
                    bad.append("%s includes %s" % (name, include))
        self.none(bad)

    def test_folders_have_readmes(self):
        folders = {os.path.dirname(name) for name in tracked()}
        tops = {folder.split("/")[0] for folder in folders if folder and not folder.startswith(".")}
        wanted = sorted(tops | {"sfvmm/" + name for name in floors()})
        self.none([folder + " has no README.md" for folder in wanted
                   if not os.path.exists(os.path.join(ROOT, folder, "README.md"))])
        readme = read("README.md")
        self.none([top + "/ is not in README.md" for top in sorted(tops) if top + "/" not in readme])

    def test_links(self):
        """Relative links of Markdown files lead somewhere."""
        bad = []
        for name in tracked():
            if name.endswith(".md"):
                for target in re.findall(r"\]\(([^)#\s]+)", read(name)):
                    path = os.path.join(ROOT, os.path.dirname(name), target)
                    if "://" not in target and not os.path.exists(path):
                        bad.append("%s: %s" % (name, target))
        self.none(bad)

    def test_one_channel_header(self):
        """The QEMU series carries sfvmm/wire/qemu_channel.h word for word."""
        series = sorted(glob.glob(os.path.join(ROOT, "qemu-patches", "[0-9]*.patch")))
        carried = None
        for path in series:
            with open(path) as file:
                found = re.search(r"^\+\+\+ b/include/migration/sf-channel\.h\n"
                                  r"@@ [^\n]*@@[^\n]*\n((?:[+ ][^\n]*\n|\n)*)", file.read(), re.MULTILINE)
            if found:
                self.assertIsNone(carried, "two patches of the series touch include/migration/sf-channel.h")
                carried = "".join(line[1:] + "\n" for line in found.group(1).splitlines())
        self.assertIsNotNone(carried, "no patch of the series adds include/migration/sf-channel.h")
        self.assertEqual(carried, read("sfvmm/wire/qemu_channel.h"))

    def test_scripts_parse(self):
        bad = []
        for name in tracked():
            if is_script(name):
                shell = "bash" if "bash" in read(name).splitlines()[0] or name.endswith(".sh") else "sh"
                result = subprocess.run([shell, "-n", os.path.join(ROOT, name)], capture_output=True, text=True)
                if result.returncode != 0:
                    bad.append(result.stderr)
            elif name.endswith(".py"):
                try:
                    compile(read(name), name, "exec", dont_inherit=True)
                except SyntaxError as error:
                    bad.append("%s: %s" % (name, error))
        self.none(bad)


class ManPages(unittest.TestCase):
    def test_lint(self):
        if not shutil.which("mandoc"):
            self.skipTest("mandoc is not installed")
        pages = [name for name in tracked() if re.search(r"\.[1-8]$", name)]
        self.assertNotEqual(pages, [], "no man page in the tree")
        result = subprocess.run(["mandoc", "-T", "lint", "-W", "warning"] + pages, cwd=ROOT, capture_output=True,
                                text=True)
        self.assertEqual(result.stdout + result.stderr, "")


if __name__ == "__main__":
    unittest.main(argv=sys.argv)
