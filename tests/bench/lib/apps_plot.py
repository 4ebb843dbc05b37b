# SPDX-License-Identifier: GPL-2.0-or-later
"""The plot of `scripts/bench apps`: each application in clones and in VMs that were never forked, side by side."""
import re
import unittest

from . import plot

WIDTH, BAR = 0.36, 0.26      # of bars, two and three side by side
HEADROOM = 1.35             # for the legend
ALONE = 9.4                 # inches: a plot of one panel, so that the words at its foot have room


def names(figures, pattern):
    return [match.group(1) for match in (re.fullmatch(pattern, name) for name in figures.figures) if match]


def times(axes, figures, applications):
    axes.set_title("4 clones on 2 hosts, and 4 VMs that were never forked")
    largest = 0
    for offset, what, label, colour in ((-WIDTH / 2, "ideal", "never forked", plot.GREY),
                                        (WIDTH / 2, "forked", "forked", plot.BLUE)):
        values = [figures.get("apps.%s.%s" % (name, what))["median"] for name in applications]
        axes.bar([place + offset for place in range(len(values))], values, WIDTH, color=colour, label=label,
                 edgecolor="white")
        for place, value in enumerate(values):
            axes.annotate("%.1f" % value, (place + offset, value), xytext=(0, 2), textcoords="offset points",
                          ha="center", color=colour, fontsize=8.5, fontweight="bold")
        largest = max([largest] + values)
    axes.set_xticks(range(len(applications)), labels=applications)
    axes.set_xlim(-1, len(applications))
    axes.grid(axis="x", visible=False)
    axes.set_ylim(0, largest * HEADROOM)
    axes.set_ylabel("s")
    axes.legend(loc="upper right")


def fetched(axes, figures, applications):
    axes.set_title("What the other host fetched, for each of its clones")
    largest = 0
    for offset, transport, label, colour in ((-BAR, "none", "nothing avoided", plot.GREY), (0, "all", "default", plot.GREEN),
                                             (BAR, "multicast", "by multicast", plot.ORANGE)):
        values = [figures.get("apps.bytes.%s.%s" % (name, transport))["median"] for name in applications]
        axes.bar([place + offset for place in range(len(values))], values, BAR, color=colour, label=label,
                 edgecolor="white")
        largest = max([largest] + values)
    axes.set_xticks(range(len(applications)), labels=applications)
    axes.grid(axis="x", visible=False)
    axes.set_ylim(0, largest * HEADROOM)
    axes.set_ylabel("MiB")
    axes.legend(loc="upper right")


def draw(figures, path):
    """What the run has measured: an application by itself, or several, and what was fetched where that was a group of it."""
    applications, measured = names(figures, r"apps\.(\w+)\.forked"), names(figures, r"apps\.bytes\.(\w+)\.all")
    drawn = [(panel, what) for panel, what in ((times, applications), (fetched, measured)) if what]
    if not drawn:
        raise unittest.SkipTest("of apps, applications and bytes are drawn; nothing of them was measured")
    figure, axes = plot.panels(len(drawn))
    if len(drawn) == 1:
        figure.set_figwidth(ALONE)
    for place, (panel, what) in zip(axes, drawn):
        panel(place, figures, what)
    plot.save(figure, figures, applications[0] if len(applications) == 1 and not measured else "Applications", path)
