#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Bad input from everywhere: a clear error that names object and reason, nothing lost, the next request works."""
import base64
import json
import os
import random
import signal
import socket
import subprocess
import time
import unittest

import harness
import tiny

CONNECTIONS = 300
NOISE_LINES = 200
LINE_LIMIT = 1 << 20               # bytes of a request, CONTRACT of the control socket
FLOOD = 20000                      # messages of a guest's flood
PORT = "/dev/vport*p1"            # the guest image has no udev to give it its name
NOISE = 2 * harness.MIB


class ControlSocket(harness.Case):
    """One daemon, one tiny VM: whatever is sent, both live on, and a good request on the next line is answered."""

    @classmethod
    def setUpClass(cls):
        cls.daemon = harness.Daemon()
        cls.addClassCleanup(cls.daemon.close)
        cls.daemon.start()
        cls.vm = tiny.start(cls.daemon)

    def setUp(self):
        super().setUp()
        self.seed = int(os.environ.get("SF_TEST_SEED") or time.time_ns() % 1000000)

    def tearDown(self):
        self.assertEqual(self.daemon.call("daemon.status")["pid"], self.daemon.process.pid)
        self.vm.counts_on()

    def refused(self, data, code="bad-request"):
        """Sent raw: either an error answer with this code, or the connection is closed. Never silence."""
        control = self.daemon.client()
        try:
            try:
                control.raw(data)
            except (BrokenPipeError, ConnectionResetError):
                return
            answer = control.line(harness.SHORT)
            if answer is not None:
                self.assertIn("error", answer, data[:80])
                self.assertEqual(answer["error"]["code"], code, answer)
                self.assertTrue(answer["error"]["message"])
        finally:
            control.close()

    def test_not_json(self):
        for data in (b"hello\n", b"{\n", b"[]\n", b"null\n", b"42\n", b"\"text\"\n", b"\xff\xfe\x00\n", b"{}{}\n",
                     b"{\"id\":1}\n", b"{\"id\":1,\"method\":7}\n", b"{\"id\":{},\"method\":\"vm.list\"}\n",
                     b"{\"id\":true,\"method\":\"vm.list\"}\n", b"{\"id\":1,\"method\":\"vm.list\",\"params\":[]}\n",
                     b"{\"id\":1,\"method\":\"vm.list\",\"extra\":1}\n",
                     b"{\"id\":1,\"method\":\"vm.list\",\"params\":{\"\xc3\x28\":1}}\n"):
            with self.subTest(data):
                control = self.daemon.client()
                control.raw(data)
                answer = control.line(harness.SHORT)
                control.close()
                if answer is not None:
                    self.assertIn(answer["error"]["code"], ("bad-request", "bad-params"), answer)
        self.refused(b"[" * 100000 + b"\n")
        self.refused(b"{\"a\":" * 50000 + b"\n")

    def test_line_that_is_too_long(self):
        self.refused(b"x" * (LINE_LIMIT + 10) + b"\n")
        self.refused(b"{\"id\":1,\"method\":\"vm.list\",\"params\":{\"x\":\"" + b"y" * LINE_LIMIT + b"\"}}\n")
        control = self.daemon.client()
        control.raw(b"{\"id\":1,\"meth")                       # and hang up
        control.close()

    def test_noise(self):
        """Requests with one thing changed at random. SF_TEST_SEED repeats a run."""
        chance = random.Random(self.seed)
        good = json.dumps({"id": 5, "method": "clone", "params": {"vm": "no-such", "count": 4}}).encode()
        control = self.daemon.client()
        for _ in range(NOISE_LINES):
            data = bytearray(good)
            for _ in range(chance.randint(1, 4)):
                data[chance.randrange(len(data))] = chance.choice(b"{}[]\",:0-9eE.\\\x00\x7fz ")
            data = bytes(data).replace(b"\n", b" ")
            try:
                control.raw(data + b"\n")
                answer = control.line(harness.SHORT)
            except (BrokenPipeError, ConnectionResetError):
                answer = None
            if answer is None:
                control.close()
                control = self.daemon.client()
            else:
                self.assertIn("error", answer, "seed %d: %r" % (self.seed, data))
        control.close()

    def test_params(self):
        name = self.vm.name
        self.error("no-such-method", "vm.fly", "vm.fly")
        self.error("bad-params", "vm.status")
        self.error("bad-params", "vm.status", vm=7)
        self.error("bad-params", "vm.status", "wings", vm=name, wings=2)
        self.error("no-such-vm", "vm.status", "nobody", vm="nobody")
        self.error("no-such-vm", "clone", "nobody", vm="nobody", count=1)
        self.error("no-such-ticket", "join", ticket="0123456789abcdef")
        self.error("no-such-ticket", "join", "not a ticket", ticket="not a ticket")
        self.error("bad-params", "clone", vm=name, count=1, wait="forever")
        self.error("bad-params", "vm.pool", vm=name, target=-1)

    def test_absurd_counts(self):
        for count in (0, -1, 1025, 1 << 31, (1 << 32) + 1, 1 << 63, 1.5, "4", None, True, [4]):
            with self.subTest(count):
                for method in ("clone", "ticket.request"):
                    with self.assertRaises(harness.ControlError) as caught:
                        self.daemon.call(method, vm=self.vm.name, count=count)
                    self.assertIn(caught.exception.code, ("bad-params", "quota", "bad-request"))

    def test_vm_configurations(self):
        top = self.daemon.top
        text = os.path.join(top, "text.qcow2")
        with open(text, "w") as file:
            file.write("this is no image\n")
        backed = os.path.join(top, "backed.qcow2")
        create = [harness.qemu_img(), "create", "-q", "-f", "qcow2"]
        subprocess.run(create + ["-b", "/etc/passwd", "-F", "raw", backed, "1M"], check=True)
        data_file = os.path.join(top, "outer.qcow2")
        subprocess.run(create + ["-o", "data_file=" + os.path.join(top, "inner.raw"), data_file, "1M"], check=True)
        cases = [
            ({"disks": [{"path": "/no/such/image"}]}, "/no/such/image"),
            ({"disks": [{"path": top}]}, top),
            ({"disks": [{"path": text, "format": "qcow2"}]}, text),
            ({"disks": [{"path": backed, "format": "qcow2"}]}, backed),
            ({"disks": [{"path": data_file, "format": "qcow2"}]}, data_file),
            ({"disks": [{"path": tiny.image(), "format": "vmdk"}]}, "vmdk"),
            ({"disks": [{"path": "relative.raw", "format": "raw"}]}, "relative.raw"),
            ({"disks": [{"path": tiny.image(), "format": "raw", "readonly": "yes"}]}, "readonly"),
            ({"disks": [{"path": tiny.image(), "format": "raw"}] * 9}, "disks"),
            ({"memory": 0}, "memory"),
            ({"memory": -5}, "memory"),
            ({"memory": 1 << 50}, "memory"),
            ({"vcpus": 0}, "vcpus"),
            ({"vcpus": 1000}, "vcpus"),
            ({"accel": "magic"}, "accel"),
            ({"cpu": "no-such-cpu,kvm=on"}, "cpu"),
            ({"network": "everything"}, "network"),
            ({"kernel": "/no/such/kernel"}, "/no/such/kernel"),
            ({"name": "../../etc"}, "name"),
            ({"name": "UPPER"}, "name"),
            ({"name": "a" * 41}, "name"),
            ({"name": ""}, "name"),
            ({"pool": 1 << 20}, "pool"),
        ]
        for change, word in cases:
            with self.subTest(change):
                params = {"memory": tiny.MEMORY, "disks": [{"path": tiny.image(), "format": "raw", "ephemeral": True}]}
                params.update(change)
                with self.assertRaises(harness.ControlError) as caught:
                    self.daemon.call("vm.run", **params)
                self.assertIn(word, caught.exception.message + caught.exception.hint)
        self.error("exists", "vm.run", self.vm.name, name=self.vm.name, memory=tiny.MEMORY,
                   disks=[{"path": tiny.image(), "format": "raw", "ephemeral": True}])

    def test_many_connections(self):
        """Refused or served, but never in the way of the one that is there."""
        crowd = []
        try:
            for _ in range(CONNECTIONS):
                peer = socket.socket(socket.AF_UNIX)
                peer.settimeout(harness.SHORT)
                crowd.append(peer)
                try:
                    peer.connect(self.daemon.socket_path)
                    peer.sendall(b"{\"id\":1,\"method\":\"vm.list\"}\n{\"id\":2,")
                except OSError:
                    pass
            self.assertTrue(self.daemon.call("vm.list")["vms"])
        finally:
            for peer in crowd:
                peer.close()

    def test_subscriber_that_does_not_read(self):
        """Requests without end and no answer read: the daemon takes no more, or hangs up, but does not grow."""
        deaf = socket.socket(socket.AF_UNIX)
        deaf.connect(self.daemon.socket_path)
        deaf.settimeout(1)
        before = harness.anonymous(self.daemon.process.pid)
        sent = 0
        line = b"{\"id\":1,\"method\":\"daemon.status\"}\n" * 100
        try:
            while sent < 64 * harness.MIB:
                sent += deaf.send(line)
        except (socket.timeout, BrokenPipeError, ConnectionResetError):
            pass
        self.assertTrue(self.daemon.call("vm.list")["vms"])
        grown = harness.anonymous(self.daemon.process.pid) - before
        deaf.close()
        self.assertLess(grown, 64 * harness.MIB, "memory kept for answers that nobody reads, %d bytes sent" % sent)


class Start(harness.Case):
    """sfvmmd that cannot start says what, why and what to do."""

    def refuses(self, daemon, *words):
        status, text = daemon.start(expect_failure=True)
        self.assertNotEqual(status, 0, text)
        self.assertGreaterEqual(status, 0, "ended by a signal: " + text)
        for word in words:
            self.assertIn(word, text)

    def new(self, **kwargs):
        daemon = harness.Daemon(**kwargs)
        self.addCleanup(daemon.close)
        return daemon

    def test_socket_in_use(self):
        first = self.start_daemon()
        second = self.new(run_directory=first.run)
        self.refuses(second, first.run)
        self.assertEqual(first.call("daemon.status")["pid"], first.process.pid)
        first.end(signal.SIGKILL)                           # its socket stays, with nobody behind it
        first.start()

    def test_bad_configuration(self):
        self.refuses(self.new(config={"colour": "red"}), "colour")
        self.refuses(self.new(config={"clones-per-vm": "many"}), "clones-per-vm")
        self.refuses(self.new(config={"vms": "-3"}), "vms")
        if os.geteuid() == 0:
            self.refuses(self.new(config={"user": "no-such-user"}), "no-such-user")
        daemon = self.new()
        daemon.extra = ["--no-such-option"]
        self.refuses(daemon, "no-such-option")

    def test_bad_qemu(self):
        cases = (("/no/such/qemu", "/no/such/qemu"), ("/bin/true", "QEMU ended"), ("/etc/passwd", "/etc/passwd"))
        for path, word in cases:
            with self.subTest(path):
                daemon = self.new()
                daemon.qemu_path = path
                try:
                    daemon.start()
                except AssertionError:
                    self.assertIn(path, daemon.log_tail())
                    continue
                with self.assertRaises(harness.ControlError) as caught:
                    tiny.start(daemon)
                self.assertIn(word, str(caught.exception))

    def test_bad_run_directory(self):
        daemon = self.new()
        os.rmdir(daemon.run)
        with open(daemon.run, "w") as file:
            file.write("in the way")
        self.refuses(daemon, daemon.run)


class Quotas(harness.Case):
    """Each bound of the local resource manager, and that what was granted comes back."""

    def test_quotas(self):
        self.daemon = self.start_daemon(config={"clones-per-ticket": 3, "clones-per-vm": 5, "clones": 6})
        first, second = tiny.start(self.daemon), tiny.start(self.daemon)

        def granted(vm, count, **more):
            return self.daemon.call("ticket.request", vm=vm.name, count=count, **more)["ticket"]
        self.error("quota", "ticket.request", "clones-per-ticket", vm=first.name, count=4, all=True)
        tickets = [granted(first, 10), granted(first, 10)]
        self.assertEqual([t["granted"] for t in tickets], [3, 2])
        self.error("quota", "ticket.request", "clones-per-vm", vm=first.name, count=1)
        tickets.append(granted(second, 2))
        self.assertEqual(tickets[-1]["granted"], 1)
        self.error("no-capacity", "ticket.request", vm=second.name, count=1)
        self.daemon.end_ticket(tickets[0]["ticket"])
        made = self.daemon.call("clone", ticket=granted(second, 3, all=True)["ticket"])["ticket"]
        self.error("no-capacity", "clone", vm=second.name, count=1)
        self.error("busy", "clone", ticket=made["ticket"])
        for clone in tiny.clones(self.daemon, made):
            clone.counts_on()
        self.daemon.end_tickets()
        self.assertEqual(granted(first, 3, all=True)["granted"], 3)

    def test_users_and_waiting(self):
        """A user's VMs share a quota, a VM has its own, both after a restart too; who waits is served when one ends."""
        self.daemon = self.start_daemon(config={"clones-per-user": 3, "waiting": 1}, groups={"vm small": {"clones": 1}})
        vm, small = tiny.start(self.daemon), tiny.start(self.daemon, name="small")

        def granted(vm, count):
            return self.daemon.call("ticket.request", vm=vm.name, count=count)["ticket"]
        first, second = granted(small, 5), granted(vm, 5)
        self.assertEqual((first["granted"], second["granted"]), (1, 2))
        self.daemon.restart()
        self.error("quota", "ticket.request", "clones in [vm small]", vm="small", count=1)
        self.error("quota", "clone", "clones-per-user", vm=vm.name, count=1)
        waiting = self.daemon.client()
        self.addCleanup(waiting.close)
        number = waiting.send("ticket.request", vm=vm.name, count=2, queue_ms=600000)
        harness.wait(lambda: self.daemon.call("daemon.status")["waiting"], what="a request that waits")
        self.error("no-capacity", "clone", "waiting in sfvmmd.conf", vm=vm.name, count=1, queue_ms=600000)
        self.daemon.end_ticket(first["ticket"])
        self.assertEqual(waiting.answer(number)["ticket"]["granted"], 1)
        done = subprocess.run([harness.program("sfvmm/cli/sfctl"), "--socket", self.daemon.socket_path, "ticket",
                               vm.name, "1", "--queue", "100ms"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("within 100 ms", done.stderr)
        number = waiting.send("ticket.request", vm=small.name, count=1, queue_ms=600000)
        harness.wait(lambda: self.daemon.call("daemon.status")["waiting"], what="a request that waits")
        small.stop()
        with self.assertRaises(harness.ControlError) as caught:
            waiting.answer(number)
        self.assertIn("it has ended", caught.exception.message)

    def test_memory_quota(self):
        """Less memory for clones than one of them needs: the refusal says so."""
        self.daemon = self.start_daemon(config={"memory": 1})
        vm = tiny.start(self.daemon)
        self.error("no-capacity", "clone", "memory", vm=vm.name, count=1)
        vm.counts_on()

    def test_unused_ticket_expires(self):
        self.daemon = self.start_daemon(config={"ticket-seconds": 1})
        vm = tiny.start(self.daemon)
        self.daemon.call("ticket.request", vm=vm.name, count=1)
        harness.wait(lambda: not self.daemon.call("ticket.list")["tickets"], what="the ticket's end")


class Descriptor(harness.Case):
    """`sfctl descriptor show` of what is no descriptor."""

    def test_damaged_descriptors(self):
        daemon = self.start_daemon()
        vm = tiny.start(daemon)
        ticket = vm.clone(1)
        found = daemon.call("descriptor", ticket=ticket["ticket"])
        good = base64.b64decode(found["data"])
        self.assertEqual(len(good), found["size"])
        daemon.end_ticket(ticket["ticket"])
        sfctl = harness.program("sfvmm/cli/sfctl")
        path = os.path.join(daemon.top, "descriptor")

        def show(data):
            with open(path, "wb") as file:
                file.write(data)
            return subprocess.run([sfctl, "descriptor", "show", path], capture_output=True, text=True,
                                  timeout=harness.SHORT)
        self.assertEqual(show(good).returncode, 0)
        chance = random.Random(1)
        for data in [b"", b"\0" * 100, b"x" * 4096, good[:40], good[:len(good) // 2], good[:-1]]:
            result = show(data)
            self.assertGreater(result.returncode, 0)
            self.assertIn(path, result.stderr)
        for _ in range(40):
            data = bytearray(good)
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            self.assertGreaterEqual(show(bytes(data)).returncode, 0, "sfctl ended by a signal")


class HostileGuest(harness.Case):
    """A root of a guest who writes whatever to the agent's port: others do not notice, and a good agent works again."""

    @classmethod
    def setUpClass(cls):
        cls.daemon = harness.Daemon()
        cls.addClassCleanup(cls.daemon.close)
        cls.daemon.start()
        cls.parent = harness.linux(cls.daemon, pool=1)
        cls.other = tiny.start(cls.daemon)

    def garbage(self, *arguments):
        """Run sf-garbage in place of the agent; what it printed."""
        self.parent.shell("sed -i 's/^sf:2:respawn/sf:2:off/' /etc/inittab; telinit q; "
                          "while pidof sf-agent; do sleep 0.1; done")
        try:
            return self.parent.shell("%s/sf-garbage %s %s" % (harness.TOOLS, PORT, " ".join(arguments)))
        finally:
            self.parent.shell("sed -i 's/^sf:2:off/sf:2:respawn/' /etc/inittab; telinit q; "
                              "until pidof sf-agent; do sleep 0.1; done")

    def check(self):
        """The daemon serves others at once; the guest's next fork works when its agent is back."""
        self.assertEqual(self.daemon.call("daemon.status")["pid"], self.daemon.process.pid)
        ticket = self.other.clone(1)
        tiny.clones(self.daemon, ticket)[0].counts_on()
        self.daemon.end_ticket(ticket["ticket"])
        self.daemon.end_tickets()
        text = self.parent.shell('eval "$(sf clone -n 1)"; test "$SF_ID" = 0 || sf exit 0; sf join; echo "joined $?"; '
                                 'sf release')
        self.assertIn("joined 0", text)

    def test_noise(self):
        self.garbage("noise", str(NOISE), "1")
        self.check()

    def test_frames(self):
        self.garbage("frames", "2000", "7")
        self.check()

    def test_absurd_requests(self):
        text = self.garbage("absurd")
        self.assertIn("errors=", text)
        answers = dict(part.split("=") for part in text.split() if "=" in part)
        self.assertEqual(answers["errors"], answers["answers"], "each of them is refused: " + text)
        self.check()

    def test_flood(self):
        before = harness.anonymous(self.daemon.process.pid)
        self.garbage("flood", str(FLOOD))
        grown = harness.anonymous(self.daemon.process.pid) - before
        self.assertLess(grown, 64 * harness.MIB)
        self.check()

    def test_endless_frame(self):
        self.garbage("huge", str(16 * harness.MIB))
        self.check()


if __name__ == "__main__":
    harness.main()
