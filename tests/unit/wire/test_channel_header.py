#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The sf channel's header must be the same in the daemon and in the QEMU series: applies the series' changes of that one
file in an empty folder and compares. Argument: the project's root."""
import pathlib
import subprocess
import sys
import tempfile

HEADER = "include/migration/sf-channel.h"
SKIP = 77


def main():
    root = pathlib.Path(sys.argv[1])
    patches = sorted(root.glob("qemu-patches/*.patch"))
    if not any(HEADER in patch.read_text() for patch in patches):
        print(f"skipped: no patch in qemu-patches/ has {HEADER}")
        return SKIP
    with tempfile.TemporaryDirectory() as folder:
        for patch in patches:
            subprocess.run(["git", "apply", "--include=" + HEADER, str(patch)], cwd=folder, check=True)
        theirs = (pathlib.Path(folder) / HEADER).read_text()
    ours = (root / "sfvmm/wire/qemu_channel.h").read_text()
    if theirs != ours:
        print(f"sfvmm/wire/qemu_channel.h and {HEADER} of the QEMU series differ: make them equal")
        return 1
    print("equal")
    return 0


sys.exit(main())
