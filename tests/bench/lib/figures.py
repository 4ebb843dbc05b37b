# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures: what a bench measured, in the one form that all benches of this project have.

    {"machine": {...}, "commit": "...", "date": "...", "figures": [{"name", "unit", "n", "median", "p99", "bar", "met"}, ...]}

A bar is the largest median that is good enough; bar and met are null where there is none. p99 is by nearest rank: with
fewer than 100 samples it is the largest of them.
"""
import datetime
import json
import math
import statistics

from . import machine

SIGNIFICANT = 6                 # digits that a figure keeps


def percentile(samples, percent):
    """By nearest rank."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def rounded(value):
    return float("%.*g" % (SIGNIFICANT, value))


class Figures:
    def __init__(self, bars=None, machine_info=None, commit=None, date=None):
        self.bars = bars or {}
        self.figures = {}
        self.machine = machine_info or machine.describe()
        self.commit = commit or machine.commit()
        self.date = date or datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

    def add(self, name, unit, samples):
        """The samples of one figure; its bar is the one given for its name."""
        samples = list(samples)
        median, bar = statistics.median(samples), self.bars.get(name)
        self.figures[name] = {"name": name, "unit": unit, "n": len(samples), "median": rounded(median),
                              "p99": rounded(percentile(samples, 99)), "bar": bar,
                              "met": None if bar is None else median <= bar}

    def get(self, name):
        """A figure by its name, or None."""
        return self.figures.get(name)

    def missed(self):
        """Figures whose bar is not met, and bars for which nothing was measured."""
        return [name for name in self.bars if not self.figures.get(name, {}).get("met")]

    # -- forms

    def object(self):
        return {"machine": self.machine, "commit": self.commit, "date": self.date,
                "figures": list(self.figures.values())}

    def json(self):
        return json.dumps(self.object(), indent=1)

    @classmethod
    def load(cls, *texts):
        """Figures of earlier runs together, from their JSON; machine and date are those of the last one."""
        runs = [json.loads(text) for text in texts]
        figures = cls(machine_info=runs[-1]["machine"], commit=", ".join(dict.fromkeys(one["commit"] for one in runs)),
                      date=runs[-1]["date"])
        figures.figures = {figure["name"]: figure for one in runs for figure in one["figures"]}
        return figures

    def rows(self):
        """Texts for a table: name, unit, n, median, p99, bar, met."""
        for figure in self.figures.values():
            bar, met = figure["bar"], figure["met"]
            yield (figure["name"], figure["unit"], str(figure["n"]), number(figure["median"]), number(figure["p99"]),
                   "" if bar is None else "<= " + number(bar), {None: "", True: "yes", False: "NO"}[met])

    def table(self):
        """For people at a terminal."""
        header = ("figure", "unit", "n", "median", "p99", "bar", "met")
        rows = [header] + list(self.rows())
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = [self.about(), ""]
        for row in rows:
            cells = [cell.ljust(width) if i in (0, 1, 6) else cell.rjust(width)
                     for i, (cell, width) in enumerate(zip(row, widths))]
            lines.append("  ".join(cells).rstrip())
        lines.insert(3, "  ".join("-" * width for width in widths))
        return "\n".join(lines)

    def markdown(self):
        """The same for docs/."""
        lines = ["| figure | unit | n | median | p99 | bar | met |", "|---|---|---:|---:|---:|---:|---|"]
        lines += ["| %s |" % " | ".join(row) for row in self.rows()]
        return "\n".join(lines)

    def about(self):
        return "%s\ncommit %s, %s" % (machine.text(self.machine), self.commit, self.date)


def number(value):
    """Short and readable: three digits, more for large whole numbers."""
    if abs(value) >= 1000:
        return "%.0f" % value
    return "%.3g" % value
