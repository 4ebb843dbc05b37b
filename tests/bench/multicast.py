#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/bench multicast: what it costs to give a memory to many hosts.

    multicast.bytes.N, unicast.bytes.N    what the origin's host sends, N hosts with a clone each that reads and verifies all
    multicast.time.*, unicast.time.*      8 such clones, links limited: from the fork until all have finished
    multicast.loss.1, .5                  the same with so many per cent of the group's datagrams lost, over none
    multicast.bytes.sim32                 32 receivers without VMs, real sockets and sf-pagers: bytes sent over those for one
    multicast.sim.*                       a simulation (lib/simulation.py): thousands of receivers on a virtual clock
"""
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "functional")]

from lib import groups, plot, run, simulation       # noqa: E402


class Multicast:
    name = "multicast"
    about = "What it costs to give a memory to many hosts."
    bars = groups.BARS
    groups = dict(groups.GROUPS, sim=simulation.measure)
    prepare = staticmethod(run.needs_build)

    @staticmethod
    def plot(figures, path):
        figure, axes = plot.panels(5)
        groups.plot_bytes(axes[0], figures)
        groups.plot_time(axes[1], figures)
        simulation.draw(axes[2:], figures)
        plot.save(figure, figures, "One memory for many hosts", path)


if __name__ == "__main__":
    run.main(Multicast)
