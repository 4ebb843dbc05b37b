# SPDX-License-Identifier: GPL-2.0-or-later
"""Several clusters at once: a program of guests that goes through cycles of ticket, clone, task, join, and what its output
must be. `tests/functional/test_concurrent.py` and `scripts/bench apps` have it."""
import hashlib
import re
import threading

import harness

# Arguments: tag, turns, clones (0: the tasks are done here, by a VM that is not forked), rounds of a task.
GUEST = r"""
import hashlib, sys, time, snowflock
tag, turns, clones, rounds = sys.argv[1], *map(int, sys.argv[2:])
def task(turn, id):
    begin, data = time.monotonic(), b"%s %d %d" % (tag.encode(), turn, id)
    for _ in range(rounds):
        data = hashlib.sha256(data).digest()
    return b"task %d of clone %d: %s in %.3f s" % (turn, id, data.hex().encode(), time.monotonic() - begin)
for turn in range(turns):
    if not clones:
        print(task(turn, 0).decode(), flush=True)
        continue
    with snowflock.Ticket(clones) as ticket:
        id = ticket.clone()
        if id:
            snowflock.exit(0, task(turn, id))
        for clone in ticket.join():
            print(ticket.result(clone.id).decode() or clone, flush=True)
"""
PROGRAM = "/tmp/cycles.py"


def digest(tag, turn, number, rounds):
    data = b"%s %d %d" % (tag.encode(), turn, number)
    for _ in range(rounds):
        data = hashlib.sha256(data).digest()
    return data.hex()


def booted(hosts, **params):
    """A VM for each of these, which may name a host several times; all hosts at the same time."""
    vms, errors = [None] * len(hosts), []

    def boot(host):
        try:
            for place, one in enumerate(hosts):
                if one is host:
                    vms[place] = harness.linux(host, tools=False, **params)
                    vms[place].shell("cat > %s << 'END'%sEND" % (PROGRAM, GUEST))
        except Exception as error:
            errors.append(error)
    threads = [threading.Thread(target=boot, args=(host,)) for host in set(hosts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return vms


def tag(number):
    return "tag-%d" % number


def begin(vms, turns, clones, rounds):
    """All begin, each with a tag of its own."""
    for number, vm in enumerate(vms):
        vm.begin("python3 %s %s %d %d %d" % (PROGRAM, tag(number), turns, clones, rounds))


def finish(vms, turns, clones, rounds, timeout):
    """Waits for all. Seconds of all tasks; AssertionError: an output is not what it must be."""
    seconds = []
    for number, vm in enumerate(vms):
        text = vm.finish(timeout)
        done = re.findall(r"^task (\d+) of clone (\d+): (\w+) in ([0-9.]+) s$", text, re.M)
        ids = range(1, clones + 1) if clones else [0]
        wanted = [(str(turn), str(one), digest(tag(number), turn, one, rounds)) for turn in range(turns) for one in ids]
        if [one[:3] for one in done] != wanted:
            raise AssertionError("%s: not what it must be: %s" % (vm.name, text))
        seconds += [float(one[3]) for one in done]
    return seconds
