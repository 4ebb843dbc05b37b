#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/bench multicast: what it costs to give a memory to many hosts.

The group sim is a simulation (lib/simulation.py): thousands of receivers on a virtual clock.
"""
import contextlib
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "functional")]

import harness                                      # noqa: E402
from lib import plot, run, simulation               # noqa: E402

BARS = {}


class Multicast:
    name = "multicast"
    about = "What it costs to give a memory to many hosts."
    bars = BARS
    groups = {"sim": simulation.measure}

    @staticmethod
    def plot(figures, path):
        figure, axes = plot.panels(3)
        simulation.draw(axes, figures)
        plot.save(figure, figures, "One memory for many hosts", path)

    @staticmethod
    def prepare():
        harness.environment("SF_BUILD", "the build")
        return contextlib.nullcontext()


if __name__ == "__main__":
    run.main(Multicast)
