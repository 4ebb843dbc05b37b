# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fork the virtual machine that this program runs in.

    import snowflock

    squares = snowflock.map(lambda x: x * x, range(100), clones=8)

map() is the whole story for most programs. What it is made of:

    with snowflock.Ticket(8) as ticket:             # released in the end, whatever happens
        id = ticket.clone()
        if id:                                      # in a clone
            snowflock.exit(0, result=b"from %d" % id)
        for clone in ticket.join():                 # in the parent
            print(clone.id, clone.state, ticket.result(clone.id))

A clone has all memory of its parent, so functions and their arguments need not be pickled; what a function returns, or
raises, is. It stands on libsf (snowflock(7)) by ctypes.
"""
from ._libsf import (EXITED, FAILED, KILLED, LOST, MAX_CLONES, MAX_RESULT, RUNNING, STARTING, Clone, Error, Ticket,
                     address, count, exit, id, sync)
from ._map import Array, CloneError, RemoteTraceback, map

__all__ = ["Array", "Clone", "CloneError", "Error", "RemoteTraceback", "Ticket", "address", "count", "exit", "id",
           "map", "sync", "EXITED", "FAILED", "KILLED", "LOST", "MAX_CLONES", "MAX_RESULT", "RUNNING", "STARTING"]
