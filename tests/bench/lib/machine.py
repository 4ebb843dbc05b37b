# SPDX-License-Identifier: GPL-2.0-or-later
"""What a bench ran on: processor, memory, kernel, release, QEMU, commit. No host name: figures are published."""
import os
import re
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
COMMIT_DIGITS = 12


def read(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def first(pattern, text, otherwise="unknown"):
    match = re.search(pattern, text, re.M)
    return match.group(1).strip() if match else otherwise


def output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def qemu_version():
    prefix = os.environ.get("SF_QEMU_PREFIX", "")
    return first(r"version (\S+)", output(os.path.join(prefix, "bin/qemu-system-x86_64"), "--version"))


def describe():
    return {
        "cpu": first(r"^model name\s*: (.*)$", read("/proc/cpuinfo")),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "kernel": os.uname().release,
        "release": first(r'^PRETTY_NAME="(.*)"$', read("/etc/os-release")),
        "qemu": qemu_version(),
        "accel": "tcg",
    }


def text(machine):
    """One line for people."""
    return "%(cpu)s, %(cores)d cores, %(memory_mib)d MiB; Linux %(kernel)s, %(release)s; QEMU %(qemu)s, %(accel)s" % machine


def commit():
    """The commit of the checkout; with "+" when files of the sources differ from it."""
    name = output("git", "-C", ROOT, "rev-parse", "--short=%d" % COMMIT_DIGITS, "HEAD")
    changed = output("git", "-C", ROOT, "status", "--porcelain", "--untracked-files=no")
    return (name or "unknown") + ("+" if changed else "")
