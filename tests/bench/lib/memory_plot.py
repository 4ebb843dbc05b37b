# SPDX-License-Identifier: GPL-2.0-or-later
"""The plot of `scripts/bench memory`: a page from another host, what a clone's host fetches, how far clones elsewhere are
from clones here."""
from . import plot

PAGES = (("memory.fault.local", "userfaultfd alone", plot.GREY), ("memory.fault.tcp", "TCP alone", plot.GREY),
         ("memory.fault.remote", "a fault, TLS", plot.BLUE), ("memory.read.tls", "NBD read, TLS", plot.GREEN),
         ("memory.read.nbdkit.tls", "nbdkit, TLS", plot.ORANGE), ("memory.read.nbdkit", "nbdkit, plain", plot.ORANGE),
         ("memory.read.qemu-nbd", "qemu-nbd, plain", plot.ORANGE))
RATIOS = (("memory.return.ratio", "sf_clone(), 1 clone"), ("memory.return.32.ratio", "sf_clone(), 32 over 4 hosts"),
          ("memory.job.ratio", "bowtie2 in a clone"), ("memory.fault.ratio", "page fault over floor"),
          ("memory.completion.ratio", "1 GiB, over nbdcopy"))
HEADROOM = 1.3                  # of the largest value, so that words beside it find room


def found(figures, names):
    return [(figures.get(entry[0]), *entry[1:]) for entry in names if figures.get(entry[0])]


def rows(axes, labels):
    """Bars lie: names at the left, the first on top."""
    axes.set_yticks(range(len(labels)), labels=labels)
    axes.tick_params(axis="y", length=0, labelcolor=plot.INK)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def value_at(axes, place, value, text, colour):
    axes.annotate(text, (value, place), xytext=(5, 0), textcoords="offset points", color=colour, va="center",
                  fontsize=9, fontweight="bold")


def pages(axes, figures):
    axes.set_title("One page of 4 KiB from another host")
    bars = found(figures, PAGES)
    if not bars:
        return
    medians = [figure["median"] for figure, *_ in bars]
    axes.barh(range(len(bars)), medians, 0.6, color=[colour for *_, colour in bars], edgecolor="white")
    for place, (figure, _, colour) in enumerate(bars):
        value_at(axes, place, figure["median"], "%.0f us, p99 %.0f" % (figure["median"], figure["p99"]), colour)
    rows(axes, [label for _, label, _ in bars])
    floor, ratio = figures.get("memory.fault.floor"), figures.get("memory.fault.ratio")
    limit = floor["median"] * ratio["bar"] if floor and ratio and ratio["bar"] else 0
    if limit:
        plot.bar_line_at(axes, limit, "bar of a fault: %g x floor" % ratio["bar"])
    axes.set_xlim(0, max(medians + [limit]) * 1.7)
    axes.set_ylim(len(bars) + 0.4, -0.6)        # a free row for the words of the bar
    axes.set_xlabel("us, median")


def fetched(axes, figures):
    axes.set_title("What an idle clone's host fetches in 5 s")
    columns = []
    for name, label in (("plain", "first fork\nof a VM"), ("recorded", "next ones: its\nworking set is known")):
        parts = [figures.get("memory.%s.5s.%s" % (part, name)) for part in ("demand", "fetched", "unused")]
        if all(parts):
            demand, whole, unused = (part["median"] for part in parts)
            columns.append((label, demand, max(0, whole - demand - unused), unused))
    second = figures.get("memory.second")
    if second:
        columns.append(("a second clone\non that host", 0, second["median"], 0))
    if not columns:
        return
    below = [0] * len(columns)
    for index, (label, colour) in enumerate((("for a fault, waited for", plot.ORANGE), ("came before its fault", plot.BLUE),
                                             ("came and was not used", plot.LIGHT)), 1):
        heights = [column[index] for column in columns]
        axes.bar(range(len(columns)), heights, 0.55, bottom=below, color=colour, edgecolor="white", label=label)
        below = [base + height for base, height in zip(below, heights)]
    for place, top in enumerate(below):
        axes.annotate("%.3g MiB" % top, (place, top), xytext=(0, 4), textcoords="offset points", ha="center",
                      color=plot.BLUE, fontsize=9, fontweight="bold")
    axes.set_xticks(range(len(columns)), labels=[column[0] for column in columns])
    axes.grid(axis="x", visible=False)
    bar = (figures.get("memory.fetched.5s") or {}).get("bar") or 0
    if bar:
        plot.bar_line(axes, bar, "bar of the first: %g MiB" % bar, x=0.99, ha="right")
    axes.set_ylim(0, max(below + [bar]) * 1.45)
    axes.legend(loc="upper left", fontsize=9)
    axes.set_ylabel("MiB of a guest of 1 GiB, TLS")


def ratios(axes, figures):
    axes.set_title("Elsewhere over here")
    bars = found(figures, RATIOS)
    if not bars:
        return
    for place, (figure, _) in enumerate(bars):
        colour = plot.RED if figure["met"] is False else plot.BLUE
        axes.barh(place, figure["median"], 0.45, color=colour, edgecolor="white")
        value_at(axes, place, figure["median"], "%.2f" % figure["median"], colour)
        if figure["bar"]:
            axes.plot([figure["bar"]] * 2, [place - 0.38, place + 0.38], color=plot.RED, linewidth=1.6)
            axes.annotate("bar %.3g" % figure["bar"], (figure["bar"], place - 0.38), xytext=(0, 2), ha="center",
                          textcoords="offset points", color=plot.RED, fontsize=8)
    rows(axes, [label for _, label in bars])
    axes.axvline(1, color=plot.GREY, linewidth=1, linestyle=":")
    axes.set_xlim(0, HEADROOM * max(max(figure["median"], figure["bar"] or 0) for figure, _ in bars))
    axes.set_ylim(len(bars) - 0.4, -0.7)
    axes.set_xlabel("time on other hosts over time on this one, medians")


def draw(figures, path):
    """Draw all to a file, .svg or .png."""
    figure, axes = plot.panels(3)
    for function, place in zip((pages, fetched, ratios), axes):
        function(place, figures)
    plot.save(figure, figures, "Clones on other hosts", path)
