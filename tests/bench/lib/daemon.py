# SPDX-License-Identifier: GPL-2.0-or-later
"""The sfvmmd that a bench measures."""
import contextlib
import os
import shutil
import tempfile

import harness


@contextlib.contextmanager
def daemon(make=harness.Daemon):
    """A private sfvmmd, by make(config=...): state on a tmpfs, overlays on a disk, as on an installed host."""
    overlays = tempfile.mkdtemp(prefix="sfo", dir="/var/tmp")
    os.chmod(overlays, 0o755)
    server = make(config={"overlay-directory": overlays})
    try:
        yield server.start()
    finally:
        server.close()
        shutil.rmtree(overlays, ignore_errors=True)
