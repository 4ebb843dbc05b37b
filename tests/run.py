#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the tests. scripts/test calls it after set-up, with the environment that tests/README.md lists.

    run.py [--fast] [PATTERN...]        run the tests whose GROUP/MODULE/TEST has one of the patterns in it; all without
    run.py --list [PATTERN...]          name them
    run.py --needs [--fast] [PATTERN..] what set-up they need, words for scripts/test

    group --- makes ---> Job (one process: a module of Python tests, a C test, a fuzz target)
                            |  events: start, end(pass | fail | skip)
                            v
                         Report: a line for each test, a log for each job, the summary, the exit status

A job has a bound for each of its tests and is killed with all it started when one takes longer; tests that it then
never ran count as failed. Jobs of a group run side by side as the group allows, and groups that mostly wait beside the
one before them. The whole run has a bound too, so that a CI run always ends with a report. SIGINT, SIGTERM and SIGHUP end it:
running Python tests clean up, the rest is killed, and a second signal does not wait for them. Exit status: 0 only if something
passed and nothing failed.
"""
import argparse
import atexit
import concurrent.futures
import contextlib
import fcntl
import glob
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

TESTS = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(TESTS)
ASAN_BUILD = os.path.join(ROOT, "build-asan")
TSAN_BUILD = os.path.join(ROOT, "build-tsan")
RUN_BOUND = float(os.environ.get("SF_TEST_RUN_BOUND", 70 * 60))     # seconds; CI's own bound is 90 minutes, with set-up
SCALE = float(os.environ.get("SF_TEST_TIMEOUT_SCALE", "1"))
FUZZ_SECONDS = int(os.environ.get("SF_FUZZ_SECONDS", "60"))
FUZZ_SEED = int(os.environ.get("SF_TEST_SEED") or 1)     # the same inputs in each run: what passed once passes again
FUZZ_INPUT_BOUND = 20 * SCALE   # seconds for one input
FUZZ_NICE = 10              # they take what the tests beside them leave
# Before a command that leads a session. Where the kernel groups processes by session (sched_autogroup_enabled), nice counts
# among those of one session only, and the session has a nice value of its own.
NICELY = ["sh", "-c", '{ echo "$0" > /proc/self/autogroup; } 2> /dev/null; exec nice -n "$0" "$@"', str(FUZZ_NICE)]
FUZZ_SLACK = 60             # seconds that a fuzz target may take beyond its time: loading the corpus, the last input
CLEAN_UP_BOUND = 60         # seconds that a test which reached its bound has to end what it started
POLL = 0.1                  # seconds between two looks at what is to end
SKIP_STATUS = 77
TAIL_LINES = 25             # of a failed job's log
SUMMARY_LINES = 16          # of a failure, in the summary: the first error, before those that follow from it
TAP = re.compile(r"^(not )?ok \d+\s*(?:- )?([^#]*?)\s*(?:#\s*(skip|todo)\b[: ]*(.*))?$", re.IGNORECASE)


class Report:
    """Collects results; used by many threads."""

    def __init__(self, logs):
        self.logs = logs
        self.lock = threading.Lock()
        self.results = {"pass": [], "fail": [], "skip": []}

    def add(self, name, result, text="", seconds=None, log=None):
        with self.lock:
            self.results[result].append((name, text.strip()))
            took = "" if seconds is None else "  %.1f s" % seconds
            said = "  (%s)" % last_line(text) if result == "skip" else ""
            print("%s %s%s%s" % (result.upper(), name, took, said), flush=True)
            if result == "fail":
                for line in text.strip().splitlines()[-TAIL_LINES:]:
                    print("    | " + line)
                if log:
                    print("    log: " + os.path.relpath(log, ROOT), flush=True)

    def summary(self):
        """Failures are told once more at the end: of a long log that may be all that is kept."""
        count = {kind: len(found) for kind, found in self.results.items()}
        if self.results["skip"]:
            print("\nskipped:")
            for name, text in sorted(self.results["skip"]):
                print("  %s: %s" % (name, last_line(text)))
        if self.results["fail"]:
            print("\nfailed:")
            for name, text in sorted(self.results["fail"]):
                print("  %s" % name)
                for line in text.splitlines()[:SUMMARY_LINES]:
                    print("    | " + line)
        print("\n%d passed, %d failed, %d skipped" % (count["pass"], count["fail"], count["skip"]), flush=True)
        return 0 if count["pass"] and not count["fail"] else 1


def last_line(text):
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


# ---------------------------------------------------------------- processes

class Interrupted(Exception):
    """A signal has ended the run: nothing more is started."""


class Watch:
    """Over a whole run: its deadline, and the signals that end it. Used by many threads."""

    def __init__(self, seconds):
        self.deadline = time.monotonic() + seconds
        self.lock = threading.Lock()
        self.processes = set()      # of running jobs
        self.signal = None          # its name, once one has come
        self.ending = None          # the thread that acts on it

    def left(self):
        """Seconds, none below zero."""
        return max(0.0, self.deadline - time.monotonic())

    def why(self):
        """What has ended the run before its end; None: nothing has."""
        return self.signal and "the run was interrupted by " + self.signal

    def heed_signals(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self.interrupt)

    def interrupt(self, number, frame):
        """As a signal's handler it may hold up the main thread anywhere, so it takes no lock."""
        again, self.signal = self.signal, signal.Signals(number).name
        if not again:
            print("\n%s: ending what runs; once more ends it without cleaning up" % self.signal, flush=True)
        self.ending = threading.Thread(target=self.end_jobs, args=(0 if again else CLEAN_UP_BOUND,))
        self.ending.start()

    def end_jobs(self, patience):
        with self.lock:
            for process in self.processes:
                process.interrupt()
        end = time.monotonic() + patience
        while self.processes and time.monotonic() < end:
            time.sleep(POLL)
        with self.lock:
            for process in self.processes:
                process.kill()

    def sweep(self):
        """After the last job: of an interrupted run, whatever a test that did not come to its clean-up has started is killed. Its
        environment tells which."""
        if not self.ending:
            return
        self.ending.join()
        mark = b"SF_TEST_LOGS=" + os.environ["SF_TEST_LOGS"].encode()
        end = time.monotonic() + CLEAN_UP_BOUND
        while time.monotonic() < end:
            found = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
                     if pid != os.getpid() and mark in environment_of(pid)]
            if not found:
                return
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(POLL)


def environment_of(pid):
    """The variables of a process, NAME=VALUE; none when it has ended or is another user's."""
    try:
        with open("/proc/%d/environ" % pid, "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


class Process:
    """A job's process in a session of its own, its output in a log, ended with all it started. It cleans up on SIGINT, or
    is killed."""

    def __init__(self, watch, command, log, env=None, pass_fds=(), cwd=ROOT, cleans_up=False):
        self.watch = watch
        self.cleans_up = cleans_up
        os.makedirs(os.path.dirname(log), exist_ok=True)
        with open(log, "ab") as out, watch.lock:
            if watch.signal:
                raise Interrupted(watch.why())
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=cwd,
                                            env=dict(os.environ, **(env or {})), pass_fds=pass_fds,
                                            start_new_session=True)
            watch.processes.add(self)

    def wait(self, timeout):
        """The exit status, negative for a signal; None when the bound was reached."""
        try:
            return self.process.wait(max(0.0, timeout))
        except subprocess.TimeoutExpired:
            return None

    def interrupt(self):
        if self.cleans_up:
            self.process.send_signal(signal.SIGINT)
        else:
            self.kill()

    def kill(self):
        """Whatever is left of it and of its session's process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def end(self):
        self.kill()
        self.process.wait()
        with self.watch.lock:
            self.watch.processes.discard(self)


def tail(path):
    try:
        with open(path, errors="replace") as file:
            return "".join(file.readlines()[-TAIL_LINES:])
    except OSError:
        return ""


def ending(status):
    if status is None:
        return "took longer than its bound"
    if status < 0:
        return "ended by signal %d (%s)" % (-status, signal.Signals(-status).name)
    return "ended with status %d" % status


# ---------------------------------------------------------------- kinds of jobs

class PythonModule:
    """A file test_*.py of unittest cases, run by worker.py in its own process."""

    def __init__(self, group, path):
        self.group = group
        self.path = path
        self.name = "%s/%s" % (group.name, os.path.splitext(os.path.basename(path))[0])

    def list(self):
        """Names of its tests, found without importing it: set-up may not have been done yet."""
        names, current = [], None
        with open(self.path) as file:
            for line in file:
                found = re.match(r"class (\w+)", line)
                current = found.group(1) if found else current
                found = re.match(r"    def (test\w*)", line)
                if found and current:
                    names.append("%s/%s.%s" % (self.name, current, found.group(1)))
        return names

    def wanted(self, patterns):
        """Ids to run; [] is all, None is none. A module whose name matches runs whole."""
        if not patterns or any(pattern in self.name for pattern in patterns):
            return []
        listed = subprocess.run([sys.executable, os.path.join(TESTS, "worker.py"), self.path, "list"],
                                capture_output=True, text=True, stdin=subprocess.DEVNULL)
        ids = [test for test in listed.stdout.split("\n") if test
               and any(pattern in "%s/%s" % (self.name, test) for pattern in patterns)]
        return ids or None

    def run(self, report, patterns, watch):
        ids = self.wanted(patterns)
        if ids is None:
            return
        log = os.path.join(report.logs, self.name + ".log")
        read_end, write_end = os.pipe()
        command = [sys.executable, "-u", os.path.join(TESTS, "worker.py"), self.path, str(write_end)] + ids
        try:
            process = Process(watch, command, log, env=self.group.env, pass_fds=(write_end,), cleans_up=True)
        finally:
            os.close(write_end)
        with os.fdopen(read_end, "rb", buffering=0) as events:
            state = self.follow(report, events, log, process, watch)
        status = process.wait(self.group.bound)
        process.end()       # whatever a crashed test left in its group
        problem = "%s: %s" % (state["running"] or "the module", watch.why() or state["hung"] or ending(status))
        for test in state["left"]:
            report.add("%s/%s" % (self.name, test), "fail", "%s\nnot finished: %s" % (tail(log), problem), log=log)
        if not state["left"] and (status != 0 or state["all"] is None):
            report.add(self.name, "fail", "%s\n%s" % (tail(log), problem), log=log)

    def follow(self, report, events, log, process, watch):
        """Read the worker's events up to their end. At a bound the running test gets an exception, so that it cleans
        up; if that does not end it either, it is killed. Returns what was left."""
        state = {"left": [], "all": None, "running": None, "hung": None}
        selector = selectors.DefaultSelector()
        selector.register(events, selectors.EVENT_READ)
        data = b""
        while True:
            left = watch.left()
            patience = CLEAN_UP_BOUND if state["hung"] else min(self.group.bound, left)
            if not selector.select(patience):
                if state["hung"]:
                    process.end()
                    return state
                state["hung"] = "the whole run reached its bound" if left <= self.group.bound else \
                    "nothing for %.0f s, its bound" % self.group.bound
                process.process.send_signal(signal.SIGINT)
                continue
            more = events.read(1 << 16)
            if not more:
                return state
            data += more
            while b"\n" in data:
                line, _, data = data.partition(b"\n")
                self.event(report, state, json.loads(line), log)

    def event(self, report, state, message, log):
        if "tests" in message:
            state["left"] = message["tests"]
            state["all"] = list(message["tests"])
        elif "start" in message:
            state["running"] = message["start"]
        else:
            test, result, text = message["end"], message["result"], message["text"]
            # A fixture of a class or module speaks for all its tests that have not run.
            found = re.match(r"(setUpClass|tearDownClass|setUpModule|tearDownModule) \((?:.*\.)?(\w+)\)$", test)
            if found and found.group(1).startswith("setUp"):
                prefix = found.group(2) + "." if found.group(1) == "setUpClass" else ""
                for name in [name for name in state["left"] if name.startswith(prefix)]:
                    state["left"].remove(name)
                    report.add("%s/%s" % (self.name, name), result, text, log=log)
                return
            if test in state["left"]:
                state["left"].remove(test)
            report.add("%s/%s" % (self.name, test), result, text, message["seconds"], log)


class Executable:
    """A C test as meson knows it: exit status, 77 for a skip, or TAP."""

    def __init__(self, group, test):
        self.group = group
        self.test = test
        suite = test["suite"][-1].split(":")[-1] if test["suite"] else "test"
        self.name = "%s/%s/%s" % (group.name, suite, test["name"])

    def list(self):
        return [self.name]

    def run(self, report, patterns, watch):
        if patterns and not any(pattern in self.name for pattern in patterns):
            return
        log = os.path.join(report.logs, self.name + ".log")
        begin = time.monotonic()
        process = Process(watch, self.test["cmd"], log, env=dict(self.group.env, **self.test["env"]),
                          cwd=self.test["workdir"] or ROOT)
        # Meson's own bound is for `meson test` on an idle machine: here a busy one must not fail.
        bound = max((self.test["timeout"] or 0) * SCALE, self.group.bound)
        status = process.wait(min(bound, watch.left()))
        process.end()
        seconds = time.monotonic() - begin
        lines = [TAP.match(line) for line in self.output(log)]
        lines = [line for line in lines if line]
        for line in lines:
            failed, what, directive, reason = line.groups()
            what = "%s/%s" % (self.name, what.strip().lstrip("/") or "?")
            if failed:
                report.add(what, "fail", tail(log), log=log)
            elif directive and directive.lower() == "skip":
                report.add(what, "skip", reason)
            else:
                report.add(what, "pass")
        if status == SKIP_STATUS:
            report.add(self.name, "skip", tail(log), seconds)
        elif status != 0:
            if not any(line.group(1) for line in lines):
                report.add(self.name, "fail", "%s\n%s" % (tail(log), watch.why() or ending(status)), seconds, log)
        elif not lines:
            report.add(self.name, "pass", "", seconds)

    @staticmethod
    def output(log):
        with open(log, errors="replace") as file:
            return [line.rstrip("\n") for line in file]


class FuzzTarget:
    """A libFuzzer target, for FUZZ_SECONDS from its corpus; what it finds goes to the logs, not into the tree."""

    def __init__(self, group, path):
        self.group = group
        self.path = path
        self.short = os.path.basename(path)[len("fuzz_"):]
        self.name = "%s/%s" % (group.name, self.short)

    def list(self):
        return [self.name]

    def run(self, report, patterns, watch):
        if patterns and not any(pattern in self.name for pattern in patterns):
            return
        log = os.path.join(report.logs, self.name + ".log")
        corpus = os.path.join(TESTS, "fuzz", "corpus", self.short)
        if not os.path.isdir(corpus) or not os.listdir(corpus):
            report.add(self.name, "fail", "no corpus: %s" % os.path.relpath(corpus, ROOT))
            return
        found = os.path.join(report.logs, self.name + ".found", "")
        grown = os.path.join(report.logs, self.name + ".corpus")
        os.makedirs(found, exist_ok=True)
        os.makedirs(grown, exist_ok=True)
        begin = time.monotonic()
        command = [self.path, "-seed=%d" % FUZZ_SEED, "-max_total_time=%d" % FUZZ_SECONDS, "-timeout=%d" % FUZZ_INPUT_BOUND,
                   "-rss_limit_mb=2048", "-print_final_stats=1", "-artifact_prefix=" + found, grown, corpus]
        process = Process(watch, NICELY + command, log, env=self.group.env)
        status = process.wait(min(FUZZ_SECONDS + FUZZ_SLACK * SCALE, watch.left()))
        process.end()
        shutil.rmtree(grown, ignore_errors=True)
        seconds = time.monotonic() - begin
        if status == 0:
            report.add(self.name, "pass", "", seconds)
        else:
            report.add(self.name, "fail", "%s\n%s; input: %s" % (tail(log), watch.why() or ending(status),
                       ", ".join(os.listdir(found)) or "none kept"), seconds, log)


# ---------------------------------------------------------------- groups

SANITIZERS = {
    "ASAN_OPTIONS": "detect_leaks=1:strict_string_checks=1:check_initialization_order=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
}


class Group:
    """A folder's tests: what set-up they need, how many jobs run side by side, how long one test may take. One that
    mostly waits, or takes what others leave, runs beside the group above it."""

    def __init__(self, name, make, needs=(), fast=False, jobs=1, beside=False, bound=300, env=None):
        self.name = name
        self.make = make
        self.needs = needs
        self.fast = fast
        self.jobs = jobs
        self.beside = beside
        self.bound = bound * SCALE
        self.env = env or {}

    def all_jobs(self):
        return self.make(self)


def python_modules(group):
    return [PythonModule(group, path) for path in sorted(glob.glob(os.path.join(TESTS, group.name, "test_*.py")))]


def tests_of_build(group, build):
    if not os.path.exists(os.path.join(build, "build.ninja")):
        return []
    listed = subprocess.run(["meson", "introspect", "--tests", build], capture_output=True, text=True, check=True)
    return [Executable(group, test) for test in json.loads(listed.stdout)]


def meson_tests(group):
    return tests_of_build(group, ASAN_BUILD)


def readable_copy(path):
    """For processes of other users, to whom the checkout may be closed."""
    folder = tempfile.mkdtemp(prefix="sft")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.chmod(folder, 0o755)
    return shutil.copy(path, folder)


def threads_tests(group):
    """What the alias tsan-targets builds."""
    suppressions = readable_copy(os.path.join(TESTS, "tsan.supp"))
    group.env = {
        "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1:suppressions=" + suppressions,
        "SF_PAGE_SERVER": os.path.join(TSAN_BUILD, "tests", "pager", "page_server"),
    }
    names = ("page_store", "memtap", "pager", "udp")
    return [job for job in tests_of_build(group, TSAN_BUILD) if job.test["name"] in names] + \
        [PythonModule(group, os.path.join(TESTS, "pager", "test_nbd.py"))]


def fuzz_targets(group):
    found = glob.glob(os.path.join(ROOT, "build-fuzz", "tests", "fuzz", "fuzz_*"))
    return [FuzzTarget(group, path) for path in sorted(found) if os.path.isfile(path) and os.access(path, os.X_OK)]


GROUPS = [
    Group("house", python_modules, fast=True),
    Group("unit", meson_tests, needs=("asan",), fast=True, jobs=2, env=SANITIZERS),
    Group("guest", python_modules, needs=("build",), fast=True, beside=True),
    Group("pager", python_modules, needs=("asan",), fast=True, beside=True, env=SANITIZERS),
    Group("qemu", python_modules, needs=("build", "qemu"), jobs=2),
    Group("tsan", threads_tests, needs=("tsan",), beside=True),
    Group("functional", python_modules, needs=("build", "qemu", "image", "virsh"), jobs=2, bound=600),
    Group("fuzz", fuzz_targets, needs=("fuzz",), beside=True, env=SANITIZERS),
]


# Of single modules, besides what their groups need.
MODULE_NEEDS = {"functional/test_network_managers": "image-systemd"}


def needs_of(groups, patterns):
    """What these tests need of set-up, as words for scripts/test."""
    jobs = {job.name: job for group in groups for job in group.all_jobs() if job.name in MODULE_NEEDS}
    modules = {name for name, job in jobs.items()
               if not patterns or any(may_match(pattern, test) for pattern in patterns for test in [name + "/"] + job.list())}
    return {need for group in groups for need in group.needs} | {MODULE_NEEDS[name] for name in modules}


def names_before_build(group):
    """What a pattern is compared with: names that are known before anything is built."""
    if group.make is python_modules:
        return [name for job in group.all_jobs() for name in [job.name + "/"] + job.list()]
    if group.make is meson_tests:
        return ["unit/" + folder + "/" for folder in os.listdir(os.path.join(TESTS, "unit"))]
    if group.make is threads_tests:
        return ["tsan/pager/", "tsan/test_nbd/"]
    sources = glob.glob(os.path.join(TESTS, "fuzz", "fuzz_*.c"))
    return ["fuzz/" + os.path.basename(path)[len("fuzz_"):-len(".c")] for path in sources]


def may_match(pattern, name):
    return pattern in name or (name.endswith("/") and pattern.startswith(name) and name.count("/") > 1)


def chosen_groups(fast, patterns):
    """Groups that may hold a test that matches. Names of C tests are known only after the build: a pattern that
    matches nothing else is taken for one of theirs. Tests that a class inherits are known only when their module is
    imported: a pattern that begins with the module's name is taken for one of its tests."""
    groups = [group for group in GROUPS if group.fast or not fast]
    if not patterns:
        return groups
    names = {group.name: [group.name + "/"] + names_before_build(group) for group in groups}
    chosen = set()
    for pattern in patterns:
        chosen |= {group for group in names if any(may_match(pattern, name) for name in names[group])} or {"unit"}
    return [group for group in groups if group.name in chosen]


def run_group(group, report, patterns, watch):
    def run_job(job):
        try:
            job.run(report, patterns, watch)
        except Interrupted:
            pass            # the report has a line for all that were not begun
        except Exception:
            report.add(job.name, "fail", traceback.format_exc())

    # Those with most tests first, so that none of them runs alone at the end.
    jobs = sorted(group.all_jobs(), key=lambda job: -len(job.list()))
    with concurrent.futures.ThreadPoolExecutor(group.jobs) as pool:
        list(pool.map(run_job, jobs))


def run_groups(groups, report, patterns, watch):
    while groups:
        n = next((i for i, group in enumerate(groups) if i > 0 and not group.beside), len(groups))
        together, groups = groups[:n], groups[n:]
        with concurrent.futures.ThreadPoolExecutor(n) as pool:
            list(pool.map(lambda group: run_group(group, report, patterns, watch), together))


def log_folder():
    """An empty folder for the logs: SF_TEST_LOGS, or one beside it while another run writes there. Returns it and what
    keeps it ours."""
    logs = os.environ.get("SF_TEST_LOGS") or os.path.join(ROOT, "build", "test-logs")
    os.makedirs(os.path.dirname(logs), exist_ok=True)
    lock = open(logs + ".lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logs = tempfile.mkdtemp(prefix="test-logs-", dir=os.path.dirname(logs))
        print("another run writes the usual logs; these go to " + logs, flush=True)
    shutil.rmtree(logs, ignore_errors=True)
    os.environ["SF_TEST_LOGS"] = logs
    return logs, lock


def main():
    parser = argparse.ArgumentParser(description="run the tests (scripts/test does the set-up first)")
    parser.add_argument("--fast", action="store_true", help="only what needs no VM")
    parser.add_argument("--list", action="store_true", help="name the tests, run none")
    parser.add_argument("--needs", action="store_true", help="name the set-up that the tests need")
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="only tests with this in their name")
    options = parser.parse_args()

    groups = chosen_groups(options.fast, options.patterns)
    if options.needs:
        print(*sorted(needs_of(groups, options.patterns)))
        return 0
    if options.list:
        for group in groups:
            for name in [name for job in group.all_jobs() for name in job.list()]:
                if not options.patterns or any(pattern in name for pattern in options.patterns):
                    print(name)
        return 0

    logs, lock = log_folder()
    report = Report(logs)
    watch = Watch(RUN_BOUND)
    watch.heed_signals()
    run_groups(groups, report, options.patterns, watch)
    watch.sweep()
    if watch.signal:
        report.add("the run", "fail", "%s: what is not named here was not begun" % watch.why())
    lock.close()
    return report.summary()


if __name__ == "__main__":
    sys.exit(main())
