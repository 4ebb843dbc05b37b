# SPDX-License-Identifier: GPL-2.0-or-later
"""Clones of a domain on another host, through the libvirtd of that one: domains there, and nothing stays."""
import json
import os
import signal
import socket
import ssl
import subprocess
import unittest

import harness
import hosts
import libvirtd
import test_libvirt

HERE, THERE = "a", "b"
CLONES = 4
OPERATOR, STRANGER = "alice", "mallory"         # the second has a certificate, and no host lets him in
HALF_OPEN = 8                   # connections that never say anything
LIBVIRTD_TLS = """listen_tls = 1
listen_addr = "%(ip)s"
tls_port = "%(port)d"
ca_file = "%(keys)s/ca-cert.pem"
cert_file = "%(keys)s/server-cert.pem"
key_file = "%(keys)s/server-key.pem"
tls_allowed_dn_list = ["CN=%(operator)s,OU=operator", "OU=operator,CN=%(operator)s"]
"""


def setUpModule():
    libvirtd.need()


class Host(libvirtd.Beside, hosts.Host):
    pass


class Case(test_libvirt.Case):
    """The host of self.daemon and self.libvirtd, and another one: forks are placed there unless a test says else."""

    @classmethod
    def setUpClass(cls):
        cls.keys = hosts.Keys()
        cls.addClassCleanup(cls.keys.close)
        cls.libvirtd, cls.daemon = cls.host(HERE)
        cls.libvirtd_there, cls.there = cls.host(THERE)
        cls.daemon.add(cls.there)
        cls.there.add(cls.daemon)
        cls.send_forks(THERE)

    @classmethod
    def host(cls, name, tls="", **kwargs):
        keeper = libvirtd.Libvirtd(tls=tls)
        cls.addClassCleanup(keeper.close)
        keeper.start()
        host = Host(keeper, name, cls.keys, config={"pool": 0}, **kwargs)
        cls.addClassCleanup(host.close)
        return keeper, host.start()

    @classmethod
    def send_forks(cls, *names):
        for name in (HERE, THERE):
            cls.daemon.call("host.drain", name=name, drain=name not in names)

    def nothing_left(self):
        super().nothing_left()

        def trace():
            return {"vms": self.there.call("vm.list")["vms"], "tickets": self.there.call("ticket.list")["tickets"],
                    "domains": self.libvirtd_there.domains(), "processes": self.there.processes(),
                    "folders": os.listdir(os.path.join(self.there.run, "vm"))}
        harness.wait_empty(trace, "nothing left of it there")

    def domains_there(self, ticket):
        names = {vm["name"]: vm["domain"] for vm in self.there.call("vm.list")["vms"] if vm["role"] == "clone"}
        return [names[clone["vm"]] for clone in ticket["clones"] if clone["host"] == THERE]


class Tiny(Case):
    """The first host lets an operator in: to its libvirtd, and to its sfvmmd."""

    @classmethod
    def host(cls, name):
        if name != HERE:
            return super().host(name)
        cls.tls_port, cls.control_port = hosts.free_port(), hosts.free_port()
        keys = cls.keys.host("libvirtd", hosts.ADDRESS, rsa=True)
        for operator in (OPERATOR, STRANGER):
            folder = os.path.join(cls.keys.operator(operator), "operator")
            for ours, of_libvirt in (("ca-cert", "cacert"), ("client-cert", "clientcert"), ("client-key", "clientkey")):
                os.symlink(ours + ".pem", os.path.join(folder, of_libvirt + ".pem"))
        tls = LIBVIRTD_TLS % {"ip": hosts.ADDRESS, "port": cls.tls_port, "keys": os.path.join(keys, "host"),
                              "operator": OPERATOR}
        return super().host(name, tls, cluster={"control-listen": "%s:%d" % (hosts.ADDRESS, cls.control_port)},
                            groups={"operators": {OPERATOR: "daemon"}})

    def from_elsewhere(self, program, *words, keys=None, status=0):
        """What a command says that knows of this host no more than its addresses and some keys."""
        path = os.path.dirname(harness.program("sfvmm/cli/sfctl")) + ":" + os.environ["PATH"]
        env = {"PATH": path, "HOME": self.libvirtd.top, "SF_VIRSH": test_libvirt.SF_VIRSH, "SF_TLS_PORT": str(self.control_port),
               **({"SF_KEYS": keys} if keys else {})}
        done = subprocess.run([program, *words], text=True, stdin=subprocess.DEVNULL, capture_output=True, env=env,
                              timeout=harness.LONG)
        self.assertEqual(done.returncode, status, done.stderr)
        return done.stderr if status else done.stdout

    def keys_of(self, *path):
        return os.path.join(self.keys.directory, *path)

    def test_operator(self):
        """qemu+tls reaches libvirtd and sfvmmd of another host: its domain is forked, its clones are joined."""
        uri = "qemu+tls://%s:%d/system?pkipath=%s" % (hosts.ADDRESS, self.tls_port, self.keys_of(OPERATOR, "operator"))
        patched = os.environ.get("SF_VIRSH_PATCHED", "")
        parent = self.tiny_domain()
        for program in [test_libvirt.SF_VIRSH] + [patched] * os.path.exists(patched):
            def run(*words, at=program):
                return self.from_elsewhere(at, "-c", uri, *words)
            self.assertIn(parent, run("list"))
            self.assertTrue(json.loads(run("sf-domcheck", parent, "--json"))["forkable"])
            ticket = json.loads(run("sf-clone", parent, "--count", "2", "--no-wait", "--json"))["ticket"]
            self.assertEqual([(clone["host"], clone["state"]) for clone in ticket["clones"]], [(THERE, "running")] * 2)
            self.assertEqual(len(json.loads(run("sf-list", "--json"))["vms"]), 1)       # the clones are elsewhere
            self.assertIn(parent, run("sf-list"))
            run("sf-kill", ticket["ticket"])
            run("sf-join", ticket["ticket"], "--timeout", "60s")
        self.from_elsewhere(test_libvirt.SF_VIRSH, "-c", "qemu+tcp://%s/system" % hosts.ADDRESS, "sf-list", status=1)

    def test_operator_refused(self):
        """Who is no operator of this host's configuration does not get in; who says nothing stops nobody."""
        address = "tls://%s:%d" % (hosts.ADDRESS, self.control_port)

        def sfctl(*words, **kwargs):
            return self.from_elsewhere(harness.program("sfvmm/cli/sfctl"), "--socket", address, *words, **kwargs)
        silent = [socket.create_connection((hosts.ADDRESS, self.control_port)) for _ in range(HALF_OPEN)]
        for connection in silent:
            self.addCleanup(connection.close)
        mine = self.keys_of(OPERATOR)
        self.assertIn("VMs", sfctl("status", keys=mine))
        self.assertIn("no operator's certificate", sfctl("status", status=1))
        self.assertIn("[operators]", sfctl("status", keys=self.keys_of(STRANGER), status=1))
        self.assertIn("OU=host", sfctl("status", keys=self.keys_of(THERE, "host"), status=1))
        self.assertIn("files of the host", sfctl("run", "image", keys=mine, status=1))
        others = hosts.Keys()
        self.addCleanup(others.close)
        self.assertIn("certificate is refused", sfctl("status", keys=others.operator(OPERATOR), status=1))
        for folder in (self.keys_of(THERE, "host"), self.keys_of(THERE, "pages"), os.path.join(others.directory, OPERATOR, "operator"),
                       None):
            self.assertEqual(self.answer(folder), b"", folder)
        self.assertTrue(self.answer(os.path.join(mine, "operator")))

    def answer(self, folder):
        """What comes back from the port for operators, with the certificate of this folder. b"": it lets nobody in."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if folder:
            context.load_cert_chain(os.path.join(folder, "client-cert.pem"), os.path.join(folder, "client-key.pem"))
        with socket.create_connection((hosts.ADDRESS, self.control_port), harness.LONG) as plain:
            try:
                with context.wrap_socket(plain) as session:
                    session.sendall(b'{"id": 1, "method": "daemon.status"}\n')
                    return session.recv(1 << 16)
            except (ssl.SSLError, ConnectionError):
                return b""

    def test_fork(self):
        """Clones are domains of the other host; they run on from its memory and disk; the end is told both ways."""
        parent = self.tiny_domain()
        self.daemon.call("domain.adopt", domain=parent)
        ticket = self.fork(parent, 3)
        self.assertEqual({clone["host"] for clone in ticket["clones"]}, {THERE})
        self.assertEqual(self.libvirtd.domains(), [parent])
        names = self.domains_there(ticket)
        self.assertEqual(sorted(names), self.libvirtd_there.domains("--state-running"))
        for name in names:
            self.counts_on(name, self.libvirtd_there)
        self.counts_on(parent)
        self.libvirtd_there.virsh("destroy", names[0])
        state = harness.wait(lambda: self.state_of(ticket, ticket["clones"][0]["id"])["state"] == "lost" and
                             self.state_of(ticket, ticket["clones"][0]["id"]), what="the end of a destroyed clone")
        self.assertIn("destroyed", state["reason"])
        self.there.restart(signal.SIGKILL)
        self.there.wait_up(HERE)
        self.counts_on(names[1], self.libvirtd_there)
        self.assertEqual(self.state_of(ticket, ticket["clones"][1]["id"])["state"], "running")
        self.daemon.end_ticket(ticket["ticket"])
        harness.wait(lambda: not self.libvirtd_there.domains("--state-running"), what="the end of the clones' domains")

    def test_anonymous(self):
        """A domain of anonymous memory: its clones on another host have all of it."""
        parent = self.tiny_domain(backing="")
        self.daemon.call("domain.adopt", domain=parent)
        ticket = self.fork(parent)
        self.assertEqual([(clone["host"], clone["state"]) for clone in ticket["clones"]],
                         [(THERE, "running")] * len(ticket["clones"]), ticket)
        for name in self.domains_there(ticket):
            self.counts_on(name, self.libvirtd_there)
        self.assertTrue(self.daemon.call("vm.status", vm=parent)["vm"]["copied"]["bytes"])
        self.counts_on(parent)

    def test_here_only(self):
        """A domain with a device that another host can't have forks where it is."""
        self.send_forks(HERE, THERE)
        self.addCleanup(self.send_forks, THERE)
        parent = self.tiny_domain(more="<serial type='udp'><source mode='connect' host='127.0.0.1' service='9'/></serial>")
        self.daemon.call("domain.adopt", domain=parent)
        ticket = self.fork(parent)
        self.assertEqual({clone["host"] for clone in ticket["clones"]}, {""})


class Linux(Case):
    def test_agents(self):
        """`sfctl clone` of a domain to both hosts: each clone's agent answers, and it is joined."""
        self.send_forks(HERE, THERE)
        self.addCleanup(self.send_forks, THERE)
        base = self.linux_domain("Web_1", more="<interface type='user'><model type='virtio'/></interface>")
        self.assertEqual(self.daemon.sfctl("domain", "adopt", "Web_1").stdout.strip(), "web-1")
        self.daemon.call("vm.wait", vm="web-1", agent=True, timeout_ms=int(harness.LONG * 1000))
        result = json.loads(self.daemon.sfctl("--json", "clone", "Web_1", "--count", str(CLONES)).stdout)
        clones = result["ticket"]["clones"]
        self.assertEqual([bool(clone["answered"]) for clone in clones], [True] * CLONES, clones)
        self.assertEqual({clone["host"] for clone in clones}, {"", THERE})
        here = [self.domain_of(clone) for clone in clones if not clone["host"]]
        there = self.domains_there(result["ticket"])
        self.assertEqual(self.libvirtd.domains("--state-running"), sorted(["Web_1"] + here))
        self.assertEqual(self.libvirtd_there.domains("--state-running"), sorted(there))
        for keeper, names in ((self.libvirtd, here), (self.libvirtd_there, there)):
            for name in names:
                keeper.virsh("destroy", name)
        joined = json.loads(self.daemon.sfctl("--json", "join", result["ticket"]["ticket"]).stdout)
        self.assertEqual(len(joined["ticket"]["clones"]), CLONES)
        self.assertEqual(self.libvirtd.domains(), ["Web_1"])
        self.assertIn(base, self.libvirtd.virsh("dumpxml", "Web_1"))


if __name__ == "__main__":
    unittest.main()
