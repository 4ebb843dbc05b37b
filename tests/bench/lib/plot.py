# SPDX-License-Identifier: GPL-2.0-or-later
"""How all plots of this project look. Colours that colour-blind people can tell apart, a light grid, words beside the
lines they are about. matplotlib is asked for only when something is drawn."""
import unittest

BLUE, ORANGE, GREEN, RED, GREY, LIGHT = "#0b5fa5", "#d9822b", "#2a8c6a", "#b3334c", "#6b7280", "#d5dae1"
INK = "#1f2937"
PANEL = (5.2, 4.3)              # inches


def matplotlib():
    try:
        import matplotlib as module
    except ImportError:
        raise unittest.SkipTest("matplotlib is missing (package python3-matplotlib)") from None
    module.use("Agg")
    module.rcParams.update({
        "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9.5, "text.color": INK,
        "axes.edgecolor": GREY, "axes.labelcolor": INK, "axes.titlesize": 11.5, "axes.titleweight": "bold",
        "axes.titlelocation": "left", "axes.titlepad": 12, "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "axes.axisbelow": True, "grid.color": LIGHT, "grid.linewidth": 0.7, "xtick.color": GREY,
        "ytick.color": GREY, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "legend.frameon": False,
        "lines.linewidth": 1.8, "lines.markersize": 5.5, "svg.fonttype": "none", "svg.hashsalt": "snowflock",
        "figure.facecolor": "white", "savefig.facecolor": "white"})
    return module


def panels(count):
    """A figure with panels side by side."""
    matplotlib()
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(1, count, figsize=(PANEL[0] * count, PANEL[1]), squeeze=False)
    return figure, list(axes[0])


def plain_log(axis, ticks, text):
    """A logarithmic axis with these ticks only; text: value -> label."""
    axis.axes.set_xscale("log") if axis.axis_name == "x" else axis.axes.set_yscale("log")
    axis.set_ticks(ticks, labels=[text(tick) for tick in ticks])
    axis.set_ticks([], minor=True)


def line(axes, figures, points, label, colour, where="end", offset=(8, 0), **style):
    """Medians joined, up to the p99 as a thin bar; the label at the last point. points: [(x, name of a figure)]."""
    found = [(x, figures.get(name)) for x, name in points if figures.get(name)]
    if not found:
        return
    x = [position for position, _ in found]
    median = [figure["median"] for _, figure in found]
    above = [max(0, figure["p99"] - figure["median"]) for _, figure in found]
    axes.errorbar(x, median, yerr=[[0] * len(x), above], color=colour, marker="o", elinewidth=1, capsize=2.5,
                  markeredgecolor="white", markeredgewidth=0.8, **style)
    at = -1 if where == "end" else 0
    axes.annotate(label, (x[at], median[at]), xytext=offset, textcoords="offset points", color=colour,
                  va="center", ha="left" if offset[0] >= 0 else "right", fontsize=9, fontweight="bold")


def bar_line(axes, value, text, x=0.02, above=True, ha="left", **style):
    """A bar of the issue: what must not be exceeded."""
    axes.axhline(value, color=RED, linewidth=1, linestyle=(0, (4, 3)), zorder=1, **style)
    axes.annotate(text, (x, value), xycoords=("axes fraction", "data"), xytext=(0, 4 if above else -4), ha=ha,
                  textcoords="offset points", color=RED, fontsize=8.5, va="bottom" if above else "top")


def bar_line_at(axes, value, text):
    """The same where values go to the right."""
    axes.axvline(value, color=RED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(text, (value, 0.02), xycoords=("data", "axes fraction"), xytext=(5, 0), textcoords="offset points",
                  color=RED, fontsize=8.5, va="bottom")


def save(figure, figures, title, path):
    """title on top, the machine at the foot."""
    figure.text(0.012, 0.975, title, fontsize=14, fontweight="bold", va="top")
    figure.text(0.012, 0.012, figures.about().replace("\n", "; "), fontsize=7.5, color=GREY, va="bottom")
    figure.tight_layout(rect=(0, 0.04, 1, 0.91), w_pad=2.5)
    metadata = {"Date": None} if path.endswith(".svg") else None
    figure.savefig(path, dpi=110, metadata=metadata)
