# SPDX-License-Identifier: GPL-2.0-or-later
"""The plot of `scripts/bench fork`: pause over RAM size, time until the last clone over their number, memory."""
from . import plot

SIZES = ((256, "256m"), (512, "512m"), (1024, "1g"), (2048, "2g"), (4096, "4g"))
COUNTS = (1, 2, 4, 8, 16, 32)
GIB_MIB = 1024
HEADROOM = 1.35                 # of the largest value, so that words above it find room


def size_text(mib):
    return "%d GiB" % (mib // GIB_MIB) if mib >= GIB_MIB else "%d MiB" % mib


def time_text(ms):
    return "%g s" % (ms / 1000) if ms >= 1000 else "%g ms" % ms


def pause(axes, figures):
    axes.set_title("How long the parent stands still")
    plot.line(axes, figures, [(mib, "fork.pause." + name) for mib, name in SIZES], "fork", plot.BLUE)
    plot.line(axes, figures, [(GIB_MIB, "fork.stock.pause")], "stock QEMU: template", plot.GREY, offset=(6, -16))
    plot.plain_log(axes.xaxis, [mib for mib, _ in SIZES], size_text)
    bar = (figures.get("fork.pause.4g") or {}).get("bar") or 10
    plot.bar_line(axes, bar, "bar of the median: %g ms" % bar)
    highest = [figures.get(name)["p99"] for name in figures.figures if name.startswith("fork.pause.") and
               figures.get(name)["unit"] == "ms"]
    axes.set_ylim(0, max([bar * HEADROOM] + [value * 1.1 for value in highest]))
    axes.set_xlim(200, 4096 * 1.9)
    axes.set_xlabel("RAM of the guest, all of it just written to")
    axes.set_ylabel("pause, ms")


def returned(axes, figures):
    axes.set_title("Until the last clone is at work")

    def points(form, counts=COUNTS):
        return [(count, form % count) for count in counts]
    plot.line(axes, figures, points("fork.return.%d.cold"), "sf_clone(), no pool", plot.ORANGE, offset=(8, 6))
    plot.line(axes, figures, points("fork.return.%d.warm"), "sf_clone(), pool", plot.BLUE, offset=(8, 3))
    plot.line(axes, figures, points("fork.first.%d"), "first instruction", plot.GREEN)
    plot.line(axes, figures, points("fork.stock.restore.%d"), "stock QEMU: start,\nrestore, not unique", plot.GREY,
              offset=(8, -12), linestyle="--")
    boot = figures.get("fork.stock.boot")
    if boot:
        axes.axhline(boot["median"], color=plot.GREY, linewidth=1, linestyle=":")
        axes.annotate("one cold boot", (1, boot["median"]), xytext=(0, 4), textcoords="offset points", color=plot.GREY,
                      fontsize=9, fontweight="bold")
    plot.plain_log(axes.xaxis, COUNTS, str)
    plot.plain_log(axes.yaxis, [10, 30, 100, 300, 1000, 3000, 10000], time_text)
    axes.set_xlim(0.85, 32 * 5)
    axes.set_ylim(8, 20000)
    axes.set_xlabel("clones of a Linux guest of 1 GiB")


def memory(axes, figures):
    axes.set_title("Memory of idle clones")
    counts = [count for count in COUNTS if figures.get("fork.memory.private.%d" % count)]
    if not counts:
        return
    shared = [figures.get("fork.memory.shared.%d" % count)["median"] for count in counts]
    private = [figures.get("fork.memory.private.%d" % count)["median"] for count in counts]
    places = range(len(counts))
    axes.bar(places, shared, 0.55, color=plot.LIGHT, edgecolor="white", label="the parent's RAM, shared by all")
    axes.bar(places, private, 0.55, bottom=shared, color=plot.BLUE, edgecolor="white", label="private, of all clones")
    for place, count, base, own in zip(places, counts, shared, private):
        axes.annotate("%.0f MiB each" % (own / count), (place, base + own), xytext=(0, 4), ha="center",
                      textcoords="offset points", fontsize=9, fontweight="bold", color=plot.BLUE)
    axes.set_xticks(list(places), labels=[str(count) for count in counts])
    axes.grid(axis="x", visible=False)
    axes.set_ylim(0, HEADROOM * max(base + own for base, own in zip(shared, private)))
    axes.legend(loc="upper left", fontsize=9)
    axes.set_xlabel("clones of a Linux guest of 1 GiB")
    axes.set_ylabel("MiB")


def draw(figures, path):
    """Draw all to a file, .svg or .png."""
    figure, axes = plot.panels(3)
    for function, place in zip((pause, returned, memory), axes):
        function(place, figures)
    plot.save(figure, figures, "Forking a running VM", path)
