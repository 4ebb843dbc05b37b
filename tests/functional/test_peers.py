#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts among others: sfvmmds on the loopback interface that are added, drained, removed, killed, restarted, attacked."""
import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import unittest

import harness
import hosts

ATTACKERS = 32                  # connections at the same time
GARBAGE = 64 * 1024             # bytes that each of them sends


class TwoHosts(harness.Case):
    """Hosts a and b, which know each other."""

    @classmethod
    def setUpClass(cls):
        cls.hosts = hosts.cluster(cls, ("a", "b"))
        cls.daemon = cls.a = cls.hosts["a"]
        cls.b = cls.hosts["b"]

    def setUp(self):
        super().setUp()
        self.addCleanup(self.restore)

    def restore(self):
        for one, other in ((self.a, self.b), (self.b, self.a)):
            if not one.control:
                one.start()
            if not one.entry(other.name):
                one.call("host.add", name=other.name, address=other.address())
            for name in ("a", "b"):
                one.call("host.drain", name=name, drain=False)
        self.a.wait_state("b", "up")
        self.b.wait_state("a", "up")

    def test_facts(self):
        """What a host says of itself arrives at the other."""
        seen, own = self.a.wait_state("b", "up"), self.b.entry("b")
        self.assertTrue(own["self"])
        self.assertFalse(seen["self"])
        self.assertEqual(seen["address"], self.b.address())
        harness.wait(lambda: self.a.entry("b")["qemu_version"], what="b's QEMU version, seen from a")
        seen = self.a.entry("b")
        for member in ("qemu_version", "accel", "machine_types", "cpu_models", "cpu_vendor", "cpu_flags", "slots",
                       "memory", "version", "draining"):
            self.assertEqual(seen[member], self.b.entry("b")[member], member)
        self.assertRegex(seen["qemu_version"], r"^10\.\d+\.\d+$")
        self.assertIn(seen["accel"], ("kvm", "tcg"))
        self.assertIn("q35", " ".join(seen["machine_types"]))
        self.assertIn("qemu64", " ".join(seen["cpu_models"]))
        listed = self.a.call("host.list")
        self.assertEqual(listed["resource_manager"], "static")
        self.assertEqual(listed["policy"], "spread")

    def test_sfctl(self):
        """The table, names for completion, and JSON."""
        def sfctl(*words, code=0):
            done = subprocess.run([harness.program("sfvmm/cli/sfctl"), "--socket", self.a.socket_path, *words],
                                  capture_output=True, text=True)
            self.assertEqual(done.returncode, code, done.stderr)
            return done.stdout + done.stderr
        table = sfctl("host", "list")
        self.assertRegex(table, r"(?m)^a +\(this host\) +up ")
        self.assertRegex(table, r"(?m)^b +%s +up " % self.b.address())
        self.assertEqual(sfctl("host", "list", "-q").split(), ["a", "b"])
        self.assertIn('"hosts":[', sfctl("--json", "host", "list"))
        self.assertIn("gets no more clones", sfctl("host", "drain", "b"))
        self.assertRegex(sfctl("host", "list"), r"(?m)^b +\S+ +draining ")
        sfctl("host", "drain", "b", "--undo")
        self.assertIn("not known", sfctl("host", "drain", "x", code=1))
        self.assertIn("sfctl host list", sfctl("host", "remove", "x", code=1))
        sfctl("host", "remove", "b")
        self.assertEqual(sfctl("host", "list", "-q").split(), ["a"])
        sfctl("host", "add", "b", self.b.address(), "--slots", "3", "--memory", "1G")
        self.assertEqual((self.a.entry("b")["slots"], self.a.entry("b")["memory"]), (3, 1 << 30))
        sfctl("host", "remove", "b")
        for words in (("host",), ("host", "what"), ("host", "add", "b"), ("host", "add", "b", "c", "--slots", "0"),
                      ("pki", "host")):
            sfctl(*words, code=2)

    def test_bad_params(self):
        address = self.b.address()
        for code, method, params in (
                ("exists", "host.add", {"name": "b", "address": address}),
                ("exists", "host.add", {"name": "a", "address": address}),
                ("bad-params", "host.add", {"name": "B", "address": address}),
                ("bad-params", "host.add", {"name": "../x", "address": address}),
                ("bad-params", "host.add", {"name": "x" * 41, "address": address}),
                ("bad-params", "host.add", {"name": "x"}),
                ("bad-params", "host.add", {"name": "x", "address": address, "slots": -1}),
                ("bad-params", "host.add", {"name": "x", "address": address, "memory": -1}),
                ("failed", "host.add", {"name": "x", "address": ""}),
                ("failed", "host.add", {"name": "x", "address": "127.0.0.1:99999"}),
                ("failed", "host.add", {"name": "x", "address": "a b"}),
                ("no-such-host", "host.drain", {"name": "x"}),
                ("no-such-host", "host.remove", {"name": "x"}),
                ("bad-params", "host.remove", {"name": "a"})):
            with self.subTest(method=method, **params), self.assertRaises(harness.ControlError) as caught:
                self.a.call(method, **params)
            self.assertEqual(caught.exception.code, code, caught.exception)
        self.assertEqual([host["name"] for host in self.a.call("host.list")["hosts"]], ["a", "b"])

    def test_drain_is_told(self):
        """A host that drains itself is not offered by others; it says so again when it is back."""
        self.b.call("host.drain", name="b")
        harness.wait(lambda: self.a.entry("b")["draining"], what="b draining, seen from a")
        self.b.restart_before(self.a)
        harness.wait(lambda: self.a.entry("b")["draining"], what="b draining, seen from a")
        self.b.call("host.drain", name="b", drain=False)
        harness.wait(lambda: not self.a.entry("b")["draining"], what="b not draining, seen from a")

    def test_killed_and_back(self):
        events = self.a.client()
        self.addCleanup(events.close)
        events.call("subscribe")
        self.b.end(signal.SIGKILL)
        self.assertNotEqual(self.a.wait_state("b", "down")["reason"], "")
        self.assertEqual(events.event("host.down", address=self.b.address())["state"], "down")
        self.b.start()
        self.assertEqual(self.a.wait_state("b", "up")["reason"], "")
        self.assertEqual(events.event("host.up", address=self.b.address())["state"], "up")
        self.b.wait_state("a", "up")      # remembered

    def test_both_restarted(self):
        """Whoever dials first, or both at once: in the end one connection stands."""
        for _ in range(3):
            for host in (self.a, self.b):
                host.end(signal.SIGKILL)
            for host in (self.a, self.b):
                host.start()
            self.a.wait_state("b", "up")
            self.b.wait_state("a", "up")

    def test_stopped(self):
        """A host that stands still is given up after 10 s, and found again."""
        os.kill(self.b.process.pid, signal.SIGSTOP)
        try:
            self.assertIn("10 s", self.a.wait_state("b", "down")["reason"])
        finally:
            os.kill(self.b.process.pid, signal.SIGCONT)
        self.a.wait_state("b", "up")
        self.b.wait_state("a", "up")

    def test_removed_at_one_end(self):
        """a forgets b; b, which still knows a, may connect: a peer that our CA has signed."""
        self.a.call("host.remove", name="b")
        self.assertIsNone(self.a.entry("b"))
        self.a.restart_before(self.b)
        self.assertIsNone(self.a.entry("b"))

    def test_attackers(self):
        """Plain garbage, TLS without a certificate, connections that say nothing: the two go on."""
        def attack(number):
            with contextlib.ExitStack() as stack:
                stack.enter_context(contextlib.suppress(OSError))
                stream = stack.enter_context(socket.create_connection(("127.0.0.1", self.a.port), 20))
                if number % 3 == 0:
                    stream.sendall(os.urandom(GARBAGE))
                elif number % 3 == 1:
                    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                    context.check_hostname = False
                    context.verify_mode = ssl.CERT_NONE
                    stream = stack.enter_context(context.wrap_socket(stream))
                    stream.sendall(b'{"hello":{}}\n')
                while stream.recv(4096):
                    pass
        threads = [threading.Thread(target=attack, args=(number,)) for number in range(ATTACKERS)]
        for thread in threads:
            thread.start()
        for _ in range(50):
            self.assertEqual(self.a.entry("b")["state"], "up")
        for thread in threads:
            thread.join(harness.LONG)
            self.assertFalse(thread.is_alive(), "the connection of an attacker is still open")
        self.assertEqual(self.a.entry("b")["state"], "up")


class Alone(harness.Case):
    """Configurations and keys of one sfvmmd."""

    def setUp(self):
        super().setUp()
        self.keys = hosts.Keys()
        self.addCleanup(self.keys.close)

    def host(self, name="a", **cluster):
        shutil.rmtree(os.path.join(self.keys.directory, name), ignore_errors=True)
        host = hosts.Host(name, self.keys, cluster=cluster)
        self.addCleanup(self.end_daemon, host)
        return host

    def refused(self, host, *words):
        status, text = host.start(expect_failure=True)
        self.assertEqual(status, 1, text)
        for word in words:
            self.assertIn(word, text)

    def test_bad_configuration(self):
        for key, value in (("resource-manager", "pbs"), ("policy", "fair"), ("page-ports", "9-8"),
                           ("page-ports", "1"), ("page-ports", "0-70000"), ("name", "A"), ("listen", "x.example:1"),
                           ("listen", "127.0.0.1:x"), ("what", "1"), ("away-seconds", "0")):
            with self.subTest(key=key, value=value):
                host = self.host()
                host.cluster[key] = value
                self.refused(host, key if key != "listen" else value)

    def test_cluster_needs_keys(self):
        host = self.host()
        del host.cluster["pki-directory"]
        self.refused(host, "pki-directory", "sfctl pki host")

    def test_wrong_keys(self):
        other = self.keys.host("other")
        self.refused(self.host(**{"pki-directory": other}), '"other"', "sfctl pki host a")
        self.refused(self.host(**{"pki-directory": self.keys.directory}), "server-cert.pem")

    def test_port_in_use(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            self.refused(self.host(listen="127.0.0.1:%d" % port), "in use")

    def test_damaged_list_of_hosts(self):
        host = self.host()
        os.makedirs(host.config["state-directory"])
        path = os.path.join(host.config["state-directory"], "hosts.json")
        with open(path, "w") as file:
            file.write("{]")
        self.refused(host, path)
        with open(path, "w") as file:
            file.write('{"hosts":[{"name":"b"},7,{"name":"c","address":"127.0.0.1:1","slots":4,"memory":0,'
                       '"draining":true},{"name":"","draining":false}]}')
        host.start()
        self.assertEqual([found["name"] for found in host.call("host.list")["hosts"]], ["a", "c"])
        self.assertTrue(host.entry("c")["draining"])

    def test_alone(self):
        """Without [cluster] there is this host, and no other can be added."""
        daemon = self.start_daemon(config={"state-directory": os.path.join(self.keys.directory, "state")})
        listed = daemon.call("host.list")
        self.assertEqual([host["self"] for host in listed["hosts"]], [True])
        self.assertEqual(listed["resource_manager"], "local")
        with self.assertRaisesRegex(harness.ControlError, "pki-directory"):
            daemon.call("host.add", name="b", address="127.0.0.1")

    def test_new_certificates(self):
        """A host whose certificates were made by another CA is not let in; with new ones of ours it is."""
        a, foreign = self.host("a"), hosts.Keys()
        self.addCleanup(foreign.close)
        b = hosts.Host("b", foreign)
        self.addCleanup(self.end_daemon, b)
        a.start()
        b.start()
        a.call("host.add", name="b", address=b.address())
        harness.wait(lambda: "trusted" in a.entry("b")["reason"], what="the reason why b is not taken")
        self.assertEqual(a.entry("b")["state"], "down")
        b.end()
        b.cluster["pki-directory"] = self.keys.host("b")
        b.start()
        a.wait_state("b", "up")

    def test_another_name(self):
        """What answers at an address has another name than asked for: not taken."""
        a, b = self.host("a").start(), self.host("b").start()
        a.call("host.add", name="c", address=b.address())
        harness.wait(lambda: 'host "b"' in a.entry("c")["reason"], what="the reason why c is not taken")
        self.assertEqual(a.entry("c")["state"], "down")


class Keys(unittest.TestCase):
    """Certificates by sfctl, as openssl and certtool see them."""

    def test_modes(self):
        keys = hosts.Keys()
        self.addCleanup(keys.close)
        folder = keys.host("a", "192.0.2.1", "a.example")
        for top, _, names in os.walk(keys.directory):
            self.assertEqual(os.stat(top).st_mode & 0o077, 0, top)
            for name in names:
                self.assertEqual(os.stat(os.path.join(top, name)).st_mode & 0o777, 0o600, name)
        with self.assertRaisesRegex(AssertionError, "--force"):
            keys.sfctl("init")
        if not shutil.which("certtool"):
            self.skipTest("certtool (package gnutls-bin) is missing")
        text = subprocess.run(["certtool", "--certificate-info", "--infile",
                               os.path.join(folder, "pages", "server-cert.pem")], capture_output=True, text=True).stdout
        for word in ("CN=a", "OU=pages", "IPAddress: 192.0.2.1", "DNSname: a.example", "TLS WWW Server"):
            self.assertIn(word, text)


if __name__ == "__main__":
    harness.main()
