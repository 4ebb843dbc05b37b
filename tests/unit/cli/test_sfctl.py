# SPDX-License-Identifier: GPL-2.0-or-later
"""sfctl as a person and a program use it: exit codes, errors, --json unchanged, the terminal given back.

Run: test_sfctl.py SFCTL. A thread plays the daemon: it answers each method with what the test put there.
"""
import fcntl
import json
import os
import pty
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import unittest

SFCTL = None
BOUND = 30        # seconds for what takes milliseconds
ESCAPE = b"\x1d"


class Daemon:
    """Answers from a dict: method -> result, or callable(params) -> result, or an Error."""

    def __init__(self, path, methods):
        self.methods = methods
        self.calls = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection = self.listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        with connection, connection.makefile("rwb") as stream:
            for line in stream:
                request = json.loads(line)
                method, params = request["method"], request["params"]
                self.calls.append((method, params))
                answer = self.methods.get(method, {})
                if callable(answer):
                    answer = answer(params)
                kind = "error" if "code" in answer else "result"
                stream.write(json.dumps({"id": request["id"], kind: answer}).encode() + b"\n")
                stream.flush()

    def close(self):
        self.listener.close()


def no_such(kind):
    return {"code": "no-such-" + kind, "message": kind + " \"x\": not known", "hint": "look"}


class Case(unittest.TestCase):
    def setUp(self):
        self.top = tempfile.mkdtemp(prefix="sfctl-")
        self.addCleanup(shutil.rmtree, self.top)
        self.socket = os.path.join(self.top, "control.sock")

    def daemon(self, **methods):
        daemon = Daemon(self.socket, {name.replace("_", "."): answer for name, answer in methods.items()})
        self.addCleanup(daemon.close)
        return daemon

    def environment(self):
        return dict(os.environ, SF_SOCKET=self.socket, LC_ALL="C.UTF-8", TERM="xterm")

    def sfctl(self, *arguments, code=0):
        result = subprocess.run([SFCTL, *arguments], capture_output=True, text=True, timeout=BOUND,
                                env=self.environment(), stdin=subprocess.DEVNULL)
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        return result


class Words(Case):
    def test_usage_errors(self):
        """Exit status 2, the reason, where to look; nothing is asked of the daemon."""
        daemon = self.daemon()
        for arguments in [["lst"], ["run"], ["run", "a", "b"], ["run", "a", "--memory", "x"], ["clone"],
                          ["clone", "web", "-n", "0"], ["clone", "web", "-n", "9999"],
                          ["clone", "--ticket", "a", "-n", "2"], ["join"], ["join", "aaaa", "--timeout", "soon"],
                          ["pool", "web", "x"], ["list", "extra"],
                          ["list", "--nonsense"], ["descriptor", "burn", "x"], ["top", "--interval", "1ms"],
                          ["snapshot"], ["snapshot", "burn"], ["snapshot", "save", "web"], ["snapshot", "list", "x"],
                          ["snapshot", "save", "--ticket", "aaaa", "web", "x"], ["snapshot", "rm"], ["snapshot", "clone"],
                          ["snapshot", "clone", "x", "-n", "0"], ["snapshot", "load"],
                          ["--color", "blue", "list"], ["--socket"], ["timeline", "--rows", "0"],
                          ["console", "--json", "x"]]:
            result = self.sfctl(*arguments, code=2)
            self.assertTrue(result.stderr.startswith("sfctl: "), result.stderr)
            self.assertIn("hint: ", result.stderr)
            self.assertEqual(result.stdout, "")
        self.assertEqual(daemon.calls, [])

    def test_help(self):
        listed = self.sfctl("help").stdout
        names = self.sfctl("help", "--names").stdout.split()
        self.assertIn("timeline", names)
        for name in names:
            self.assertIn("  %s " % name if name != "help" else "help", listed)
            if name != "help":
                text = self.sfctl("help", name).stdout
                self.assertIn("Usage: sfctl " + name, text)
                self.assertEqual(text, self.sfctl(name, "--help").stdout)
                self.assertIn("--json", self.sfctl("help", "--names", name).stdout)
        self.sfctl("help", "nonsense", code=2)
        self.assertRegex(self.sfctl("--version").stdout, r"^sfctl \d")

    def test_no_daemon(self):
        result = self.sfctl("list", code=1)
        self.assertIn(self.socket, result.stderr)
        self.assertIn("sfvmmd", result.stderr)
        answer = json.loads(self.sfctl("list", "--json", code=1).stdout)
        self.assertEqual(answer["error"]["code"], "no-daemon")
        self.assertIn("does not answer", self.sfctl("version").stdout)


class Answers(Case):
    def test_json_is_the_result(self):
        """Whatever the daemon answers is what a program gets, members unknown to us too."""
        big = 9007199254740993
        answer = {"vms": [{"name": "web", "new-member": [1, {"a": None}], "memory": big}], "é": "ü\u2028\\\""}
        self.daemon(vm_list=answer)
        output = self.sfctl("list", "--json").stdout
        self.assertEqual(json.loads(output), answer)
        self.assertEqual(output.count("\n"), 1)

    def test_errors(self):
        self.daemon(vm_status=no_such("vm"))
        result = self.sfctl("status", "x", code=1)
        self.assertEqual(result.stderr, "sfctl: vm \"x\": not known\n       hint: look\n")
        self.assertEqual(json.loads(self.sfctl("status", "x", "--json", code=1).stdout)["error"]["code"], "no-such-vm")

    def test_harmless(self):
        """Nothing that came from elsewhere reaches the terminal as a control sequence."""
        evil = "\x1b]0;owned\x07\x9b31m"
        self.daemon(vm_list={"vms": [{"name": evil, "role": evil, "state": evil, "ticket": evil}]},
                    vm_status={"vm": {"name": evil, "state": evil, "disks": [{"id": evil, "path": evil}],
                                      "directory": evil}},
                    vm_check={"forkable": False, "obstacles": [evil]},
                    ticket_list={"tickets": [{"ticket": "3f2a9c0011223344", "vm": evil, "state": evil}]},
                    kill={"code": evil, "message": evil, "hint": evil},
                    daemon_status={"version": evil, "qemu": evil})
        for arguments, code in [(["list"], 0), (["status", "x"], 0), (["check", "x"], 1), (["tickets"], 0),
                                (["kill", "x"], 1), (["daemon"], 0), (["list", "-q"], 0), (["version"], 0)]:
            result = self.sfctl(*arguments, code=code)
            for sign in "\x1b\x07\x9b":
                self.assertNotIn(sign, result.stdout + result.stderr, arguments)

    def test_colour(self):
        self.daemon(vm_list={"vms": [{"name": "web", "role": "parent", "state": "running"}]})
        self.assertNotIn("\x1b", self.sfctl("list").stdout)
        self.assertIn("\x1b[32mrunning", self.sfctl("list", "--color", "always").stdout)

    def test_ticket_prefix(self):
        ids = ["3f2a9c0011223344", "3f2b9c0011223344", "77777c0011223344"]
        daemon = self.daemon(ticket_list={"tickets": [{"ticket": i} for i in ids]}, vm_status=no_such("vm"),
                             ticket_status={"ticket": {"ticket": ids[2]}}, join={"ticket": {"ticket": ids[2]}})
        self.sfctl("status", "7777")
        self.assertEqual(daemon.calls[-1], ("ticket.status", {"ticket": ids[2]}))
        self.sfctl("join", "7777", "--timeout", "2s")
        self.assertEqual(daemon.calls[-1], ("join", {"ticket": ids[2], "timeout_ms": 2000}))
        daemon.methods["ticket.list"] = {"tickets": [{"ticket": i} for i in [ids[0], ids[0][:-1] + "5"]]}
        self.assertIn("several", self.sfctl("join", "3f2a", code=1).stderr)

    def test_quota(self):
        """Fewer clones than asked are said so."""
        self.daemon(clone={"ticket": {"ticket": "3f2a9c0011223344", "vm": "web", "granted": 2, "state": "running"}})
        self.assertIn("2 of 8", self.sfctl("clone", "web", "-n", "8").stderr)
        self.assertEqual(self.sfctl("clone", "web", "-n", "2").stderr, "")

    def test_snapshots(self):
        """What is asked for each verb, and how a list looks with all kinds of states in it."""
        saved = {"name": "warm", "state": "saved", "vm": "web", "bytes": 3 << 20, "memory": 1 << 30, "vcpus": 2, "disks": 1,
                 "created": 1795392000 * 10**9, "directory": "/var/lib/snowflock/snapshots/warm", "in_use": True}
        evil = {"name": "bad\x1b[31m", "state": "damaged", "reason": "snapshot.json: \x1b[31m"}
        daemon = self.daemon(snapshot_save={"snapshot": saved}, snapshot_load={"snapshot": saved}, snapshot_rm={},
                             snapshot_list={"snapshots": [saved, evil, {"name": "new", "state": "saving"}]},
                             snapshot_clone={"ticket": {"ticket": "3f2a9c0011223344", "vm": "saved-warm", "clones": []}},
                             ticket_list={"tickets": [{"ticket": "3f2a9c0011223344"}]})
        self.assertIn("3 MiB", self.sfctl("snapshot", "save", "web", "warm").stdout)
        self.assertEqual(daemon.calls[-1], ("snapshot.save", {"vm": "web", "name": "warm"}))
        self.sfctl("snapshot", "save", "--ticket", "3f2a", "warm")
        self.assertEqual(daemon.calls[-1], ("snapshot.save", {"ticket": "3f2a9c0011223344", "name": "warm"}))
        self.sfctl("snapshot", "load", self.top + "/../" + os.path.basename(self.top))
        self.assertEqual(daemon.calls[-1], ("snapshot.load", {"directory": self.top, "name": os.path.basename(self.top)}))
        self.sfctl("snapshot", "load", "/x", "warm", "--memory-uri", "nbd://h/{block}")
        self.assertEqual(daemon.calls[-1][1], {"directory": "/x", "name": "warm", "memory_uri": "nbd://h/{block}"})
        shown = self.sfctl("snapshot", "list").stdout
        for word in ("warm", "in use", "1 GiB", "3 MiB", "damaged", "saving"):
            self.assertIn(word, shown)
        self.assertNotIn("\x1b", shown)
        self.assertEqual(self.sfctl("snapshot", "list", "-q").stdout.splitlines()[0], "warm")
        self.assertEqual(json.loads(self.sfctl("snapshot", "list", "--json").stdout)["snapshots"][0], saved)
        self.sfctl("snapshot", "rm", "a", "b")
        self.assertEqual(daemon.calls[-2:], [("snapshot.rm", {"name": "a"}), ("snapshot.rm", {"name": "b"})])
        self.assertEqual(self.sfctl("snapshot", "clone", "warm", "-n", "3", "-q").stdout, "3f2a9c0011223344\n")
        self.assertEqual(daemon.calls[-1], ("snapshot.clone", {"name": "warm", "count": 3}))

    def test_join_results(self):
        """Results larger than a piece arrive whole, the ticket is released after that, and only then."""
        import base64
        data = {1: os.urandom(1300000), 2: b"", 3: b"three"}
        clones = [{"id": i, "state": "exited", "status": 0, "result_length": len(d)} for i, d in data.items()]
        clones.append({"id": 4, "state": "lost", "result_length": 0})

        def result(params):
            piece = data[params["id"]][params["offset"]:params["offset"] + params["length"]]
            return {"data": base64.b64encode(piece).decode(), "length": len(piece), "total": len(data[params["id"]])}
        daemon = self.daemon(join={"ticket": {"ticket": "3f2a9c0011223344", "clones": clones}}, result=result)
        out = os.path.join(self.top, "out")
        self.sfctl("join", "3f2a9c0011223344", "--results", out)
        self.assertEqual(sorted(os.listdir(out)), ["1", "2", "3"])
        for i, d in data.items():
            with open(os.path.join(out, str(i)), "rb") as file:
                self.assertEqual(file.read(), d)
        joins = [params.get("release", True) for method, params in daemon.calls if method == "join"]
        self.assertEqual(joins, [False, True])
        self.assertEqual(daemon.calls[-1][0], "join")
        self.sfctl("join", "3f2a9c0011223344", "--check", code=1)
        # Nowhere to put them: the ticket is kept.
        del daemon.calls[:]
        self.assertIn("are kept", self.sfctl("join", "3f2a9c0011223344", "--results", "/dev/null/x", code=1).stderr)
        self.assertEqual([params.get("release", True) for method, params in daemon.calls if method == "join"], [False])

    def test_timeline_of_file(self):
        ticket = {"ticket": "3f2a9c0011223344", "vm": "web", "state": "done",
                  "fork": {"called": 10 ** 9, "at": 10 ** 9 + 10 ** 6, "pause_ns": 3 * 10 ** 6},
                  "clones": [{"id": 1, "vm": "web-3f2a-1", "state": "exited", "status": 0,
                              "running": 10 ** 9 + 10 ** 7, "exited": 2 * 10 ** 9}]}
        path, svg = os.path.join(self.top, "t.json"), os.path.join(self.top, "t.svg")
        with open(path, "w") as file:
            json.dump({"ticket": ticket}, file)
        self.assertIn("exit 0", self.sfctl("timeline", path, "--svg", svg).stdout)
        with open(svg) as file:
            self.assertTrue(file.read().startswith("<svg"))
        self.assertEqual(json.loads(self.sfctl("timeline", path, "--json").stdout)["ticket"], ticket)
        self.sfctl("timeline", "/dev/zero", code=1)
        self.sfctl("timeline", path, "--svg", "/dev/null/x", code=1)


class Terminal(Case):
    """A person at a terminal of 80 x 24."""

    def setUp(self):
        super().setUp()
        self.master, self.slave = pty.openpty()
        self.addCleanup(os.close, self.master)
        self.addCleanup(os.close, self.slave)
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(self.slave)

    def start(self, *arguments):
        process = subprocess.Popen([SFCTL, *arguments], stdin=self.slave, stdout=self.slave, stderr=self.slave,
                                   env=self.environment(), start_new_session=True)

        def end():
            process.kill()
            process.wait()
        self.addCleanup(end)
        self.seen = b""
        return process

    def expect(self, text):
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], BOUND)
            self.assertTrue(ready, "waited for %r, saw %r" % (text, self.seen))
            self.seen += os.read(self.master, 65536)

    def check_restored(self):
        self.assertEqual(termios.tcgetattr(self.slave), self.before)

    def console(self):
        """A VM's console: the listening socket, and a log with 100 lines."""
        path, log = os.path.join(self.top, "console.sock"), os.path.join(self.top, "console.log")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        listener.settimeout(BOUND)
        self.addCleanup(listener.close)
        with open(log, "w") as file:
            file.writelines("line %d\n" % i for i in range(100))
        self.daemon(vm_status={"vm": {"name": "web", "console": path, "console_log": log}})
        return listener

    def test_console(self):
        listener = self.console()
        process = self.start("console", "web")
        guest = listener.accept()[0]
        guest.settimeout(BOUND)
        self.addCleanup(guest.close)
        self.expect(b"^] detaches")
        self.expect(b"line 99")
        self.assertNotIn(b"line 70\r", self.seen)
        guest.sendall(b"login: ")
        self.expect(b"login: ")
        self.assertNotEqual(termios.tcgetattr(self.slave), self.before)
        os.write(self.master, b"root\r\x03\x1a")       # ^C and ^Z are the guest's
        got = b""
        while len(got) < 7:
            got += guest.recv(100)
        self.assertEqual(got, b"root\r\x03\x1a")
        os.write(self.master, b"x" + ESCAPE + b"not sent")
        self.assertEqual(process.wait(BOUND), 0)
        self.expect(b"Detached")
        self.assertEqual(guest.recv(100), b"x")
        self.assertEqual(guest.recv(100), b"")
        self.check_restored()

    def test_console_of_vm_that_ends(self):
        listener = self.console()
        process = self.start("console", "web")
        guest = listener.accept()[0]
        self.expect(b"line 99")
        guest.close()
        self.assertEqual(process.wait(BOUND), 0)
        self.expect(b"has closed")
        self.check_restored()

    def test_signals_give_the_terminal_back(self):
        listener = self.console()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            process = self.start("console", "web")
            guest = listener.accept()[0]
            guest.sendall(b"ready")
            self.expect(b"ready")
            process.send_signal(number)
            self.assertEqual(process.wait(BOUND), -number)
            guest.close()
            self.check_restored()

    def test_console_from_a_pipe(self):
        listener = self.console()
        process = subprocess.Popen([SFCTL, "console", "web"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   env=self.environment())
        self.addCleanup(process.stdout.close)
        guest = listener.accept()[0]
        guest.settimeout(BOUND)
        process.stdin.write(b"uptime\n")
        process.stdin.close()
        self.assertEqual(guest.recv(100), b"uptime\n")
        guest.sendall(b"up 3 days\n")
        guest.close()
        self.assertEqual(process.wait(BOUND), 0)
        self.assertTrue(process.stdout.read().endswith(b"up 3 days\n"))

    def test_top(self):
        self.daemon(vm_usage={"host": {"memory_total": 1 << 34}, "vms": [
            {"name": "web", "role": "parent", "state": "running", "private": 1 << 20, "shared": 0, "cpu_ns": 1}]})
        process = self.start("top")
        self.expect(b"q quit")
        self.expect(b"web")
        self.assertIn(b"\x1b[?1049h", self.seen)
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
        process.send_signal(signal.SIGWINCH)
        self.expect(b"space now")                      # only a wide terminal says so
        os.write(self.master, b"sq")
        self.assertEqual(process.wait(BOUND), 0)
        self.expect(b"\x1b[?1049l")
        self.check_restored()

    def test_top_when_the_daemon_ends(self):
        daemon = self.daemon(vm_usage={"host": {}, "vms": []})
        process = self.start("top", "--interval", "100ms")
        self.expect(b"q quit")
        daemon.methods["vm.usage"] = {"code": "failed", "message": "it ended"}
        self.assertEqual(process.wait(BOUND), 1)
        self.expect(b"sfctl: it ended")
        self.assertGreater(self.seen.index(b"sfctl: it ended"), self.seen.index(b"\x1b[?1049l"))
        self.check_restored()

    def test_table_fits(self):
        self.daemon(vm_list={"vms": [{"name": "n" * 40, "role": "parent", "state": "running", "memory": 1 << 30,
                                      "vcpus": 4, "accel": "tcg", "pid": 1, "ticket": "3f2a9c0011223344"}]})
        process = self.start("list", "--color", "never")
        self.assertEqual(process.wait(BOUND), 0)
        self.expect(b"tcg")
        for line in self.seen.decode().splitlines():
            self.assertLessEqual(len(line), 80)


if __name__ == "__main__":
    SFCTL = sys.argv.pop(1)
    unittest.main(verbosity=2)
