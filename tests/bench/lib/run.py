# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line that all benches share.

    scripts/bench NAME [--json] [--plot FILE.svg] [--quick] [--only GROUP]... [--markdown]
    scripts/bench NAME --from FILE.json... [--plot FILE.svg]   earlier runs again, nothing is measured

A bench is an object with
    about       a line
    bars        {name: largest median that is good enough}
    groups      {group: function(figures, quick)}; they run in this order
    prepare     function(): a context in which the groups run; needs_build if it has only to be built
    plot        function(figures, path)

The figures go to stdout, what is being done to stderr. Status 0: measured (bars met or not), 1: something could not be
measured, 77: something that the bench needs is missing.
"""
import argparse
import contextlib
import os
import pathlib
import signal
import sys
import tempfile
import time
import traceback
import unittest

import harness

from . import figures as figures_module

FAILED, MISSING = 1, 77


def needs_build():
    """For a bench's prepare."""
    harness.environment("SF_BUILD", "the build")
    return contextlib.nullcontext()


def say(text):
    print(text, file=sys.stderr, flush=True)


def repeat(what, count, function):
    """The results of `count` calls of function(), with progress for people; the first call is a warm-up and left out."""
    results = []
    for turn in range(count + 1):
        if sys.stderr.isatty():
            print("\r\033[K  %s  %d/%d" % (what, turn, count), end="", file=sys.stderr, flush=True)
        results.append(function())
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return results[1:]


def arguments(bench):
    parser = argparse.ArgumentParser(prog="scripts/bench " + bench.name, description=bench.about)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    form.add_argument("--markdown", action="store_true", help="a table for docs/")
    parser.add_argument("--plot", metavar="FILE", help="draw the figures; the name's ending says how: .svg or .png")
    parser.add_argument("--quick", action="store_true", help="few repetitions: to see that it works, not for figures")
    parser.add_argument("--only", metavar="GROUP", action="append", choices=list(bench.groups),
                        help="measure only this (may be given again): " + ", ".join(bench.groups))
    parser.add_argument("--from", dest="sources", metavar="FILE.json", nargs="+", help="take the figures of earlier runs")
    return parser.parse_args()


def scratch_directory():
    """Sockets and state of sfvmmd belong on a tmpfs, as /run is one on a machine with systemd."""
    if "TMPDIR" not in os.environ and os.path.isdir("/dev/shm") and os.access("/dev/shm", os.W_OK):
        tempfile.tempdir = "/dev/shm"


def measure(bench, options):
    """Returns the figures and whether all groups could be measured."""
    result, whole = figures_module.Figures(bench.bars), True
    for group, function in bench.groups.items():
        if options.only and group not in options.only:
            continue
        start = time.monotonic()
        try:
            function(result, options.quick)
            say("%-10s %4.0f s" % (group, time.monotonic() - start))
        except unittest.SkipTest as reason:
            say("%-10s left out: %s" % (group, reason))
            whole = False
        except Exception:           # the other groups are still worth their figures
            say("%-10s failed:\n%s" % (group, traceback.format_exc()))
            whole = False
    return result, whole


def main(bench):
    options = arguments(bench)
    if options.sources:
        result, whole = figures_module.Figures.load(*[pathlib.Path(name).read_text() for name in options.sources]), True
    else:
        scratch_directory()
        for number in (signal.SIGTERM, signal.SIGHUP):      # end what was started, as after an interrupt
            signal.signal(number, lambda *_: sys.exit(FAILED))
        try:
            with bench.prepare():
                result, whole = measure(bench, options)
        except unittest.SkipTest as reason:
            say("nothing measured: %s" % reason)
            sys.exit(MISSING)
    if not result.figures:
        sys.exit(MISSING)
    print(result.json() if options.json else result.markdown() if options.markdown else result.table())
    if options.plot:
        try:
            bench.plot(result, options.plot)
        except unittest.SkipTest as reason:
            say("no plot: %s" % reason)
            whole = False
    sys.exit(0 if whole else FAILED)
