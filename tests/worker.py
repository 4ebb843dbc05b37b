# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs one unittest module for run.py:  worker.py MODULE.py FD [TEST-ID...]

What happens goes as JSON lines to descriptor FD, so that whatever a test prints cannot be mistaken for it:
    {"tests": [id...]}                                     first: what will be run
    {"start": id}
    {"end": id, "result": "pass"|"fail"|"skip", "text": traceback or reason, "seconds": s}
With the FD "list" the ids are printed instead, and nothing is run.
"""
import contextlib
import ctypes
import json
import os
import signal
import sys
import time
import unittest

PR_SET_PDEATHSIG = 1        # linux/prctl.h: the signal that this process gets when run.py is killed


def flatten(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from flatten(item)
        else:
            yield item


class Bound(Exception):
    """The running test took longer than run.py allows, or run.py was interrupted or killed."""


class Result(unittest.TestResult):
    def __init__(self, out):
        super().__init__()
        self.out = out
        self.begin = 0
        self.bad = []       # failures of the running test, sub-tests included

    def say(self, **message):
        with contextlib.suppress(BrokenPipeError):      # run.py was killed: the running test still cleans up
            self.out.write(json.dumps(message) + "\n")
            self.out.flush()

    def end(self, test, result, text=""):
        self.say(end=test.id(), result=result, text=text, seconds=time.monotonic() - self.begin)

    def startTest(self, test):
        super().startTest(test)
        self.begin = time.monotonic()
        self.bad = []
        self.say(start=test.id())

    def stopTest(self, test):
        super().stopTest(test)
        if self.bad:
            self.end(test, "fail", "\n".join(self.bad))

    def fixture(self, test, result, text):
        """setUpClass and the like have no startTest: test.id() is e.g. 'setUpClass (test_api.Api)'."""
        self.begin = self.begin or time.monotonic()
        self.end(test, result, text)

    def addSuccess(self, test):
        super().addSuccess(test)
        if not self.bad:
            self.end(test, "pass")

    def addError(self, test, err):
        super().addError(test, err)
        text = self._exc_info_to_string(err, test)
        if isinstance(test, unittest.TestCase):
            self.bad.append(text)
        else:
            self.fixture(test, "fail", text)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.bad.append(self._exc_info_to_string(err, test))

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.bad.append("%s\n%s" % (subtest, self._exc_info_to_string(err, test)))

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        if isinstance(test, unittest.TestCase):
            self.end(test, "skip", reason)
        else:
            self.fixture(test, "skip", reason)

    def addExpectedFailure(self, test, err):
        self.bad.append("an expected failure is no result here: fix it or skip it with the reason")

    def addUnexpectedSuccess(self, test):
        self.bad.append("unexpected success")


def main():
    path, fd, wanted = os.path.abspath(sys.argv[1]), sys.argv[2], set(sys.argv[3:])
    sys.argv = [path]
    sys.path.insert(0, os.path.dirname(path))
    name = os.path.splitext(os.path.basename(path))[0]
    tests = list(flatten(unittest.defaultTestLoader.loadTestsFromName(name)))
    for test in tests:
        # Ids without the module's name: it is in the group's already.
        test_id = test.id
        prefix = name + "."
        test.id = lambda test_id=test_id: test_id()[len(prefix):] if test_id().startswith(prefix) else test_id()
    if fd == "list":
        for test in tests:
            print(test.id())
        return
    if wanted:
        tests = [test for test in tests if test.id() in wanted]
    with os.fdopen(int(fd), "w") as out:
        result = Result(out)
        result.say(tests=[test.id() for test in tests])

        def interrupt(number, frame):
            # An ordinary exception, unlike KeyboardInterrupt, lets the test clean up. Once: each of run.py's threads that dies sends
            # its signal, and a second one would end the clean-up.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            result.stop()
            raise Bound("reached its bound, or the run was interrupted")
        signal.signal(signal.SIGINT, interrupt)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)
        unittest.TestSuite(tests).run(result)


if __name__ == "__main__":
    main()
