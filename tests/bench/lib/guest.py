# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest image with the bench's own programs in it. The tests bring theirs in on a second disk; here that would add
to each load what a second disk costs, so the file system of the image is written to, without mounting it."""
import contextlib
import os
import shutil
import subprocess
import tempfile

import harness

FOLDER = "/opt/bench"           # of the programs, in the guest
FILES = ("vmlinuz", "initrd.img", "cmdline")


@contextlib.contextmanager
def image(*programs, more=None):
    """SF_IMAGE is, while this lasts, an image that has these programs of the build directory in FOLDER. more: files
    that it has besides, or instead of its own: {path in the guest: path here}."""
    before = harness.environment("SF_IMAGE", "the guest image")
    folder = tempfile.mkdtemp(prefix="sfi", dir="/var/tmp")
    try:
        os.chmod(folder, 0o755)
        for name in FILES:
            os.symlink(os.path.realpath(harness.image(name)), os.path.join(folder, name))
        raw, disk = os.path.join(folder, "rootfs.raw"), os.path.join(folder, "rootfs.qcow2")
        convert(harness.image("rootfs.qcow2"), "raw", raw)
        write(raw, dict({"%s/%s" % (FOLDER, os.path.basename(name)): harness.program(name) for name in programs},
                        **(more or {})))
        convert(raw, "qcow2", disk)
        os.unlink(raw)
        os.environ["SF_IMAGE"] = folder
        yield
    finally:
        os.environ["SF_IMAGE"] = before
        shutil.rmtree(folder)


def convert(source, form, target):
    subprocess.run([harness.qemu_img(), "convert", "-O", form, source, target], check=True)
    os.chmod(target, 0o644)


def write(raw, files):
    commands = ["mkdir " + FOLDER]
    for target, source in files.items():
        commands += ["rm " + target] if not target.startswith(FOLDER) else []
        commands += ["write %s %s" % (source, target), "set_inode_field %s mode 0100755" % target]
    debugfs = shutil.which("debugfs", path="/usr/sbin:/sbin:" + os.environ["PATH"])
    if not debugfs:
        raise harness.unittest.SkipTest("debugfs is missing (package e2fsprogs)")
    done = subprocess.run([debugfs, "-w", "-f", "-", raw], input="\n".join(commands), text=True, capture_output=True)
    problems = [line for line in done.stderr.splitlines() if not line.startswith("debugfs ")]
    if done.returncode or problems:
        raise RuntimeError("writing %s into the guest image: %s" % (list(files), problems or done.returncode))
