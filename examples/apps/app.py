# SPDX-License-Identifier: GPL-2.0-or-later
"""What the applications share: their command line, and a job done in three ways.

    APP --plain             the unchanged program on the whole input
    APP -n 4                this VM forks; each clone does a part; the parts are joined here
    APP --part 2/4          one part alone, without a fork: what VMs that were never forked do side by side

With --wait it prepares, says so, and begins when it reads a line: so that several begin at once.

All print how long it took and a digest of the output, which is the same however the job was done; -n also prints those
of the parts. --size says how much work it is: 1 is what a test has time for.
"""
import argparse
import hashlib
import subprocess
import sys
import time

import snowflock


class App:
    """An application defines prepare(), plain(), part() and join(); see the modules beside this one."""

    def __init__(self, size):
        self.size = size

    def prepare(self):
        """What both ways need and neither is measured with: inputs unpacked, caches warm."""

    def plain(self):
        """The output of the unchanged program, bytes."""
        raise NotImplementedError

    def part(self, number, count):
        """Part `number` (0..) of `count` of the output, bytes."""
        raise NotImplementedError

    def join(self, parts):
        """The output from its parts."""
        return b"".join(parts)

    def forked(self, clones):
        """The parts, by way of clones. Each is told how many there really are."""
        with snowflock.Ticket(clones) as ticket:
            number = ticket.clone()
            if number:
                snowflock.exit(0, self.part(number - 1, ticket.granted))
            for clone in ticket.join():
                if (clone.state, clone.status) != (snowflock.EXITED, 0):
                    raise SystemExit("clone %d: %s %d %s" % (clone.id, clone.state, clone.status, clone.text))
            return [ticket.result(number) for number in range(1, ticket.granted + 1)]


def run(*command, **kwargs):
    """A program's standard output, bytes."""
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, **kwargs).stdout


def share(items, number, count):
    """The items of a part: all parts have the same number, but for one."""
    return items[len(items) * number // count:len(items) * (number + 1) // count]


def digest(data):
    return hashlib.sha256(data).hexdigest()


def command_line(kind):
    parser = argparse.ArgumentParser(description=kind.__doc__)
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--plain", action="store_true", help="the unchanged program, no fork")
    way.add_argument("--part", metavar="I/N", help="part I of N alone, no fork")
    way.add_argument("-n", "--clones", type=int, default=4, help="how many clones (4)")
    parser.add_argument("--size", type=int, default=1, help="how much work (1)")
    parser.add_argument("--wait", action="store_true", help="begin when a line comes")
    parser.add_argument("-o", "--output", help="where the output goes")
    return parser.parse_args()


def main(kind):
    arguments = command_line(kind)
    app, parts = kind(arguments.size), []
    app.prepare()
    if arguments.wait:
        print("prepared", flush=True)
        sys.stdin.readline()
    started = joining = time.monotonic()
    if arguments.plain:
        output = app.plain()
    elif arguments.part:
        number, count = map(int, arguments.part.split("/"))
        output = app.part(number - 1, count)
    else:
        parts = app.forked(arguments.clones)
        joining = time.monotonic()
        output = app.join(parts)
    ended = time.monotonic()
    if arguments.output:
        with open(arguments.output, "wb") as file:
            file.write(output)
    print("%s: %.2f s, %d bytes, sha256 %s" % (kind.__name__.lower(), ended - started, len(output), digest(output)))
    if parts:
        print("joined in %.2f s, parts %s" % (ended - joining, " ".join(digest(part) for part in parts)))
    sys.stdout.flush()
