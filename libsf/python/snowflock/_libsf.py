# SPDX-License-Identifier: LGPL-2.1-or-later
"""The calls of libsf, as Python has them.

Two ways through ctypes: `_free` lets other threads run during a call, `_held` does not. sf_clone() of a hierarchical
ticket forks processes; as with os.fork() no other thread may hold the interpreter's lock then, and the interpreter must
be told, before and after.
"""
import collections
import ctypes
import errno
import os
import random
import traceback

SONAME = "libsf.so.1"
MAX_CLONES = 1024
MAX_RESULT = 64 * 1024 * 1024
HIERARCHICAL = 1
QUEUE_SHIFT, MAX_QUEUE = 8, 65535
TEXT_LENGTH = 256
ADDRESS_LENGTH = 64
SELF = -1
STARTING, RUNNING, EXITED, FAILED, LOST, KILLED = "starting", "running", "exited", "failed", "lost", "killed"


class _Result(ctypes.Structure):
    _fields_ = [("id", ctypes.c_uint), ("state", ctypes.c_int), ("status", ctypes.c_int), ("signal", ctypes.c_int),
                ("result_length", ctypes.c_uint64), ("text", ctypes.c_char * TEXT_LENGTH)]


_PROTOTYPES = {
    "sf_request_ticket": (ctypes.c_void_p, [ctypes.c_uint, ctypes.c_uint]),
    "sf_ticket_granted": (ctypes.c_uint, [ctypes.c_void_p]),
    "sf_ticket_id": (ctypes.c_uint64, [ctypes.c_void_p]),
    "sf_ticket_free": (None, [ctypes.c_void_p]),
    "sf_clone": (ctypes.c_int, [ctypes.c_void_p]),
    "sf_sync": (ctypes.c_int, [ctypes.c_char_p, ctypes.c_size_t]),
    "sf_exit": (None, [ctypes.c_int]),
    "sf_exit_with": (ctypes.c_int, [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t]),
    "sf_join_timed": (ctypes.c_int, [ctypes.c_void_p, ctypes.POINTER(_Result), ctypes.c_size_t, ctypes.c_int]),
    "sf_result_read": (ctypes.c_ssize_t, [ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_size_t,
                                          ctypes.c_uint64]),
    "sf_kill": (ctypes.c_int, [ctypes.c_void_p]),
    "sf_release": (ctypes.c_int, [ctypes.c_void_p]),
    "sf_address": (ctypes.c_int, [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t]),
    "sf_id": (ctypes.c_int, []),
    "sf_count": (ctypes.c_int, []),
    "sf_error": (ctypes.c_char_p, []),
    "sf_state_name": (ctypes.c_char_p, [ctypes.c_int]),
}


def _load(kind):
    library = kind(SONAME, use_errno=True)
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


_free = _load(ctypes.CDLL)
_held = _load(ctypes.PyDLL)


class Error(OSError):
    """A call of libsf failed: errno, and the reason in words."""


def _failed():
    number = ctypes.get_errno()
    return Error(number, _free.sf_error().decode(errors="replace") or os.strerror(number))


def _checked(value):
    if value is None or value < 0:
        raise _failed()
    return value


def _patient(call, *arguments):
    """A call that a signal may interrupt; Python's handlers run in between, and may raise."""
    while True:
        value = call(*arguments)
        if value >= 0 or ctypes.get_errno() != errno.EINTR:
            return _checked(value)


Clone = collections.namedtuple("Clone", "id state status signal result_length text")
Clone.__doc__ = """What became of a clone. status is valid when state is EXITED, signal not 0 when a worker was ended by one."""


def id():
    """This VM's id among its siblings, 1 to count(); a worker's id in a worker; 0 in a VM that is no clone."""
    return _checked(_free.sf_id())


def count():
    """How many clones (or workers) were made with this one; 0 in a VM that is no clone."""
    return _checked(_free.sf_count())


def address(number=SELF):
    """An address in the cluster's network: of this VM, of the parent (0), of a clone. The fork is the newest of this VM."""
    text = ctypes.create_string_buffer(ADDRESS_LENGTH)
    _checked(_free.sf_address(number, text, len(text)))
    return text.value.decode()


def sync(result):
    """In a clone: hand bytes to the host as its result so far. They are safe there when this returns."""
    _checked(_free.sf_sync(bytes(result), len(result)))


def exit(status=0, result=None):
    """In a clone: end it, the whole VM (or the worker), with bytes as its result. Elsewhere: end this process."""
    if result is None:
        _free.sf_exit(status)
    _checked(_free.sf_exit_with(status, bytes(result), len(result)))


class Ticket:
    """The right to fork this VM once into up to `clones` clones; `granted` says how many it will be.

    hierarchical: a VM with k CPUs counts as k clones, which are then processes; ids and results are theirs.
    queue: seconds that it may wait, when there is no room now; else the answer is given at once.

    A context manager: in the parent its end releases the ticket, which ends clones that still run. A clone does not leave
    the block: it ends there, with status 1 if an exception brought it there.
    """

    def __init__(self, clones, hierarchical=False, queue=0):
        if not 0 <= queue <= MAX_QUEUE:
            raise ValueError("queue: 0 to %d seconds" % MAX_QUEUE)
        self._handle = None
        self._arrays = []
        self._foreign = False
        self._hierarchical = hierarchical
        flags = (HIERARCHICAL if hierarchical else 0) | queue << QUEUE_SHIFT
        self._handle = _checked(_free.sf_request_ticket(clones, flags))
        self.granted = _free.sf_ticket_granted(self._handle)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if self._foreign:
            if error:
                traceback.print_exception(kind, error, trace)
            exit(1 if error else 0)
        self.release()

    def __del__(self):
        if self._handle is not None:
            _free.sf_ticket_free(self._handle)
            self._handle = None

    def __repr__(self):
        return "<snowflock.Ticket %016x, %d granted>" % (_free.sf_ticket_id(self._handle), self.granted)

    def clone(self):
        """Fork. 0 in the parent, the id (1 to granted) in each clone.

        In a clone the ticket is the parent's and of no more use; the random module has been seeded anew.
        """
        number = self._fork() if self._hierarchical else _checked(_free.sf_clone(self._handle))
        if number > 0:
            self._foreign = True
            random.seed()
        return number

    def _fork(self):
        python = ctypes.pythonapi
        before = os.getpid()
        python.PyOS_BeforeFork()
        number = _held.sf_clone(self._handle)
        error = None if number >= 0 else _failed()
        if number > 0 and os.getpid() != before:
            python.PyOS_AfterFork_Child()
        else:
            python.PyOS_AfterFork_Parent()
        if error:
            raise error
        return number

    def join(self, timeout=None):
        """Wait until all clones have ended: a list of Clone, by id. With a timeout (seconds): [] if some have not."""
        results = (_Result * self.granted)()
        limit = -1 if timeout is None else max(0, int(timeout * 1000))
        if _patient(_free.sf_join_timed, self._handle, results, self.granted, limit) == 0:
            return []
        clones = [self._clone(result) for result in results]
        for array in self._arrays:
            array._collect(self, clones)
        return clones

    def look(self):
        """What the clones are doing now: a list of Clone, by id."""
        results = (_Result * self.granted)()
        _patient(_free.sf_join_timed, self._handle, results, self.granted, 0)
        return [self._clone(result) for result in results if result.id]

    @staticmethod
    def _clone(result):
        return Clone(result.id, _free.sf_state_name(result.state).decode(), result.status, result.signal,
                     result.result_length, result.text.decode(errors="replace"))

    def result(self, number):
        """The bytes that a clone handed over last."""
        data, piece = bytearray(), ctypes.create_string_buffer(1 << 16)
        while True:
            got = _patient(_free.sf_result_read, self._handle, number, piece, len(piece), len(data))
            data += piece.raw[:got]
            if got < len(piece):
                return bytes(data)

    def kill(self):
        """End all clones. Results that they handed over stay."""
        _checked(_free.sf_kill(self._handle))

    def release(self):
        """The host forgets ticket and results; clones that still run are killed. Again: no effect."""
        try:
            _checked(_free.sf_release(self._handle))
        except Error as error:
            if error.errno != errno.ECHILD:
                raise
