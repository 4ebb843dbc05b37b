# SPDX-License-Identifier: GPL-2.0-or-later
"""multicast.sim.N: the sender's and receivers' logic, the real one, on a virtual clock and network (tests/multicast), for
numbers of hosts that no machine has. What is assumed is in ASSUMED, and stands on the plot.

    multicast.sim.N             until the last of N clones has finished its job
    multicast.sim.N.bytes       what the server sends meanwhile
    multicast.sim.N.requests    requests a second that reach it, in the worst 10 ms
    multicast.sim.N.starved     clones that have not finished
    multicast.sim.N.unicast     pages that had to be fetched by unicast, of all receivers together

bytes.ratio and time.ratio: over one receiver.
"""
import json
import os
import subprocess

from . import plot, run

COUNTS = (1, 10, 100, 1000, 10000)
QUICK_COUNTS = (1, 10, 100)
TIMEOUT = 600                   # seconds; 10,000 receivers take a minute of computing
MIB = 1 << 20
PEAK_PER_SECOND = 100           # peaks are counted in 10 ms
ASSUMED = {"pages": 2048, "job": 512, "think_us": 200, "link_mbit": 1000, "max_mbit": 900, "latency_us": 200,
           "jitter_us": 100, "loss_ppm": 1000, "unicast_us": 1000}


def simulate(count, **values):
    command = [os.path.join(os.environ["SF_BUILD"], "tests", "multicast", "mc_simulate"), str(count)]
    command += ["%s=%d" % pair for pair in {**ASSUMED, **values}.items()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    return json.loads(done.stdout)


def measure(figures, quick):
    first = None
    for count in QUICK_COUNTS if quick else COUNTS:
        run.say("  sim %d" % count)
        found = simulate(count)
        first = first or found
        name = "multicast.sim.%d" % count
        figures.add(name, "s", [found["job_max_s"]])
        figures.add(name + ".bytes", "MiB", [found["bytes"] / MIB])
        figures.add(name + ".requests", "1/s", [found["requests_peak_10ms"] * PEAK_PER_SECOND])
        figures.add(name + ".starved", "", [found["starved"]])
        figures.add(name + ".unicast", "pages", [found["unicast_pages"]])
        if found is not first:
            figures.add(name + ".bytes.ratio", "ratio", [found["bytes"] / first["bytes"]])
            figures.add(name + ".time.ratio", "ratio", [found["job_max_s"] / first["job_max_s"]])


def panel(axes, figures, suffix, title, label, colour):
    points = [(count, "multicast.sim.%d%s" % (count, suffix)) for count in COUNTS]
    axes.set_title(title)
    plot.line(axes, figures, points, "", colour)
    plot.plain_log(axes.xaxis, COUNTS, lambda count: "{:,}".format(count))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("receivers")
    axes.set_ylabel(label)


def draw(axes, figures):
    """Three panels."""
    panel(axes[0], figures, ".bytes", "What the server sends", "MiB", plot.BLUE)
    panel(axes[1], figures, "", "Until the last clone has finished", "s", plot.ORANGE)
    panel(axes[2], figures, ".requests", "Requests at the server, worst 10 ms", "per second", plot.GREEN)
    axes[0].annotate("simulated: job of {job} of {pages} pages in the same order,\n{think_us} us between two; link {link_mbit} Mbit/s, "
                     "{latency_us}-{most} us one way,\n{loss} % loss at each receiver".format(
                         most=ASSUMED["latency_us"] + ASSUMED["jitter_us"], loss=ASSUMED["loss_ppm"] / 10000, **ASSUMED),
                     (0.03, 0.05), xycoords="axes fraction", color=plot.GREY, fontsize=8)
