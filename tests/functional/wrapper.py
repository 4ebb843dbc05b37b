# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU that misbehaves on order: a shell script in front of the real one, which reads its rules at each start.

    wrapper = Wrapper(folder)
    wrapper.rule(shell="exit 3")                    shells (-S on the command line) end at once
    wrapper.rule(parent='extra+=(-device nvme,id=bad0,serial=1)')
    wrapper.clear()
"""
import os

import harness

SCRIPT = """#!/bin/bash
# What "$@" holds tells a shell, which starts paused, from a VM that boots.
role=parent
for word in "$@"; do
    case $word in
    -S) role=shell ;;
    --version|-version|help) role=other ;;
    esac
done
extra=()
rules=%(rules)s-$role
if [ -e "$rules" ]; then . "$rules"; fi
exec %(qemu)s "$@" "${extra[@]}"
"""


class Wrapper:
    def __init__(self, folder):
        self.folder = os.path.join(folder, "bin")
        os.makedirs(self.folder, mode=0o755, exist_ok=True)
        self.path = os.path.join(self.folder, "qemu-system-x86_64")
        self.rules = os.path.join(self.folder, "rules")
        with open(self.path, "w") as file:
            file.write(SCRIPT % {"rules": self.rules, "qemu": harness.qemu()})
        os.chmod(self.path, 0o755)
        os.symlink(harness.qemu_img(), os.path.join(self.folder, "qemu-img"))

    def rule(self, **roles):
        for role, text in roles.items():
            name = "%s-%s" % (self.rules, role)
            with open(name + ".new", "w") as file:
                file.write(text + "\n")
            os.chmod(name + ".new", 0o644)
            os.rename(name + ".new", name)

    def clear(self):
        for role in ("parent", "shell", "other"):
            try:
                os.unlink("%s-%s" % (self.rules, role))
            except FileNotFoundError:
                pass
