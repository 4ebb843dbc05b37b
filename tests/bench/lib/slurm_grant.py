# SPDX-License-Identifier: GPL-2.0-or-later
"""The group `slurm` of `scripts/bench apps`: a ticket through a real Slurm, on two hosts out of network namespaces."""
import contextlib
import subprocess
import time

import harness
import hosts
import slurm
import tiny

CPUS = {"a": 4, "b": 4}
CLONES = {"": 4, ".hosts": 6}   # what one host has, and more than that
TICKETS, QUICK_TICKETS = 20, 5
GRANT_BAR = 100                 # ms
BARS = {"apps.slurm.grant": GRANT_BAR}
MS = 1000


class Stack(contextlib.ExitStack):
    """What hosts.cluster() takes for a test case."""

    def addClassCleanup(self, function, *arguments):    # noqa: N802
        self.callback(function, *arguments)


def timed(function):
    begin = time.monotonic()
    value = function()
    return (time.monotonic() - begin) * MS, value


def granted(daemon, vm, clones, turns, before):
    """ms of each ticket. before: is called before each."""
    found = []
    for _ in range(turns):
        before()
        took, answer = timed(lambda: daemon.call("ticket.request", vm=vm.name, count=clones, all=True))
        found.append(took)
        daemon.call("kill", ticket=answer["ticket"]["ticket"])
    return found


def salloc(cluster):
    command = ["salloc", "--no-shell", "--job-name=bench", "--ntasks=%d" % CLONES[""], "--mem-per-cpu=52", "--time=5",
               "--immediate=1"]
    process = subprocess.Popen(["nsenter", "--net=/run/netns/" + cluster.link.ends["a"][0]] + command,
                               stderr=subprocess.PIPE, text=True, env=cluster.env(), cwd="/")
    text = process.communicate()[1]
    if process.returncode:
        raise RuntimeError(text)
    return text.split()[-1]


def measure(figures, quick):
    turns = QUICK_TICKETS if quick else TICKETS
    with Stack() as stack:
        link = hosts.Link(*CPUS)
        stack.callback(link.close)
        cluster = slurm.Slurm(link, CPUS)
        stack.callback(cluster.close)
        made = hosts.cluster(stack, CPUS, link=link, **{"resource-manager": "slurm"},
                             groups={"slurm": {"conf": cluster.conf, "minutes": 5}})
        vm = tiny.start(made["a"])
        alone = []

        def idle():
            harness.wait(lambda: cluster.run("sinfo", "-h", "-o", "%T %D") == "idle 2\n", what="idle nodes")

        def before():
            idle()
            took, job = timed(lambda: salloc(cluster))
            alone.append(took)
            cluster.run("scancel", job)
            idle()
        for where, clones in CLONES.items():
            figures.add("apps.slurm.grant" + where, "ms", granted(made["a"], vm, clones, turns, before))
        figures.add("apps.slurm.salloc", "ms", alone)
        made["a"].cluster["resource-manager"] = "static"
        made["a"].cluster["policy"] = "pack"
        made["a"].config["clones"] = CPUS["a"]
        made["a"].restart()
        made["a"].wait_up("b")
        for where, clones in CLONES.items():
            figures.add("apps.slurm.static" + where, "ms", granted(made["a"], vm, clones, turns, lambda: None))
