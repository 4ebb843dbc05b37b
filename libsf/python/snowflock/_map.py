# SPDX-License-Identifier: LGPL-2.1-or-later
"""map() over clones, and arrays that they fill together.

What a clone hands over for map() is one pickle: [(index, True, value) or (index, False, (exception, traceback))...]. Its
parent made it and trusts it; do not map over clones that run other people's code.
"""
import array as _array
import pickle
import struct
import traceback

from ._libsf import EXITED, Error, Ticket, exit

_RUN = struct.Struct("<QQ")             # of an Array's result: first slot, slots


class CloneError(Exception):
    """A clone did not hand over what it should have. clone: its Clone."""

    def __init__(self, clone, what):
        super().__init__("clone %d: %s" % (clone.id, what))
        self.clone = clone

    def __reduce__(self):
        return Exception, self.args


class RemoteTraceback(Exception):
    """The traceback of an exception that a clone raised: its __cause__ in the parent."""

    def __str__(self):
        return "\n" + self.args[0]


def _portable(value):
    """Can it be pickled, and read again?"""
    try:
        pickle.loads(pickle.dumps(value))
        return True
    except Exception:
        return False


def _outcome(function, index, item):
    try:
        value = function(item)
        pickle.dumps(value)             # here, so that the failure is this item's
        return index, True, value
    except BaseException as error:      # SystemExit too: a clone does not end by it
        text = traceback.format_exc()
        return index, False, (error if _portable(error) else RuntimeError(repr(error)), text)


def _work(function, items, number, workers):
    """In a clone: every workers-th item. Does not return."""
    outcomes = [_outcome(function, index, items[index]) for index in range(number - 1, len(items), workers)]
    try:
        exit(0, pickle.dumps(outcomes))
    except Error as error:              # too large, most likely
        text = traceback.format_exc()
        exit(0, pickle.dumps([(index, False, (RuntimeError(str(error)), text)) for index, _, _ in outcomes]))


def map(function, items, clones=None, hierarchical=False):
    """[function(item) for item in items], computed in clones of this VM.

    clones: how many at most (default: one for each item); fewer may be granted. The first exception, in the order of the
    items, is raised here as it was there; CloneError, if a clone was lost. Whatever happens, no clone is left.
    """
    items = list(items)
    if not items:
        return []
    with Ticket(min(len(items), clones or len(items)), hierarchical) as ticket:
        number = ticket.clone()
        if number:
            _work(function, items, number, ticket.granted)
        return _gather(ticket, len(items))


def _gather(ticket, count):
    outcomes = [None] * count
    lost = None
    for clone in ticket.join():
        if clone.state != EXITED:
            lost = lost or CloneError(clone, "%s: %s" % (clone.state, clone.text))
            continue
        for outcome in pickle.loads(ticket.result(clone.id)):
            outcomes[outcome[0]] = outcome
    for outcome in outcomes:
        if outcome and not outcome[1]:
            error, text = outcome[2]
            raise error from RemoteTraceback(text)
    if lost:
        raise lost
    return [outcome[2] for outcome in outcomes]


class Array:
    """An array of numbers (a typecode of the module array) that the clones of a ticket fill together.

        with snowflock.Ticket(4) as ticket:
            prices = snowflock.Array(ticket, "d", 1000)
            id = ticket.clone()
            if id:
                for slot in range(id - 1, len(prices), ticket.granted):
                    prices[slot] = price(slot)
                prices.exit()
            ticket.join()
            print(sum(prices))

    It is made before the fork, one for a ticket. A clone's exit() hands over the slots that it has filled; join() puts them in the
    parent's array. A slot that several clones fill has the value of the highest id.
    """

    def __init__(self, ticket, typecode, length):
        if ticket._arrays:
            raise ValueError("this ticket has an array: what a clone hands over is one result")
        self._values = _array.array(typecode, bytes(length * _array.array(typecode).itemsize))
        self._filled = bytearray(length)
        ticket._arrays.append(self)

    def __len__(self):
        return len(self._values)

    def __getitem__(self, slot):
        return self._values[slot]

    def __iter__(self):
        return iter(self._values)

    def __setitem__(self, slot, value):
        self._values[slot] = value
        self._filled[slot] = 1

    def _runs(self):
        """(first slot, slots) of what was filled."""
        end = 0
        while (first := self._filled.find(1, end)) >= 0:
            end = self._filled.find(0, first)
            end = len(self._filled) if end < 0 else end
            yield first, end - first

    def exit(self, status=0):
        """In a clone: hand over the filled slots, end the clone."""
        exit(status, b"".join(_RUN.pack(first, slots) + self._values[first:first + slots].tobytes()
                              for first, slots in self._runs()))

    def _collect(self, ticket, clones):
        """In the parent: take in what the clones have filled."""
        for clone in clones:
            data, at = ticket.result(clone.id) if clone.state == EXITED else b"", 0
            while at < len(data):
                if len(data) - at < _RUN.size:
                    raise CloneError(clone, "its part of the array is cut off")
                first, slots = _RUN.unpack_from(data, at)
                at += _RUN.size
                end = at + slots * self._values.itemsize
                if first + slots > len(self._values) or end > len(data):
                    raise CloneError(clone, "its part of the array does not fit")
                self._values[first:first + slots] = _array.array(self._values.typecode, data[at:end])
                at = end
