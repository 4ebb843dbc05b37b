# SPDX-License-Identifier: GPL-2.0-or-later
"""Several hosts on one machine: sfvmmds with run directories and certificates of their own, on the loopback interface
or in network namespaces of their own.

    Keys        a CA and the certificates of hosts, by `sfctl pki`
    Host        a Daemon that is one host of several
    cluster()   n hosts that know each other: {name: Host}
    Link        two network namespaces with a cable between them that can be cut
    Bridge      any number of network namespaces on a bridge, which can be made a bad one
"""
import atexit
import contextlib
import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import unittest

import harness

ADDRESS = "127.0.0.1"
LOWEST_PORT = 10000
ports_taken = []                # the names that keep them


class Keys:
    """A directory with a CA, and one for each host."""

    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix="sfpki")
        atexit.register(self.close)             # of a test that was skipped on its way
        self.sfctl("init")

    def sfctl(self, *arguments):
        done = subprocess.run([harness.program("sfvmm/cli/sfctl"), "pki"] + list(arguments) + ["--dir", self.directory],
                              capture_output=True, text=True)
        if done.returncode:
            raise AssertionError("sfctl pki %s: %s" % (" ".join(arguments), done.stderr))

    def host(self, name, *addresses, rsa=False):
        arguments = ["--rsa"] * rsa
        for address in addresses or (ADDRESS,):
            arguments += ["--address", address]
        self.sfctl("host", name, *arguments)
        return os.path.join(self.directory, name)

    def operator(self, name):
        self.sfctl("operator", name, "--rsa")           # which libvirt takes too, in all its versions
        return os.path.join(self.directory, name)

    def close(self):
        shutil.rmtree(self.directory, ignore_errors=True)


def free_port():
    """A TCP port that stays ours while its daemon is down: below those that Linux gives to connections, and kept from other
    jobs of the tests by a name that lives as long as this process."""
    with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
        ports = range(LOWEST_PORT, int(file.read().split()[0]))
    for port in random.sample(ports, len(ports)):
        name = socket.socket(socket.AF_UNIX)
        with socket.socket() as probe, contextlib.suppress(OSError):
            name.bind("\0snowflock-test-port-%d" % port)
            probe.bind((ADDRESS, port))
            ports_taken.append(name)
            return port
        name.close()
    raise AssertionError("no TCP port is free")


def plain_checksums(run, interface):
    """An interface leaves neither checksums nor, so, the cutting of large packets to others. run: a command where it is."""
    run(sys.executable, "-c", """
import ctypes, fcntl, socket, struct, sys
order = (ctypes.c_char * 8).from_buffer_copy(struct.pack("II", 0x17, 0))                # ETHTOOL_STXCSUM, off
request = struct.pack("16sP16x", sys.argv[1].encode(), ctypes.addressof(order))
fcntl.ioctl(socket.socket(), 0x8946, request)                                           # SIOCETHTOOL
""", interface)


class Link:
    """ends: for each host its namespace and its address."""

    def __init__(self, *names):
        if os.geteuid() != 0:
            raise unittest.SkipTest("network namespaces need root")
        self.ends = {name: ("sft%d-%s" % (os.getpid(), name), "10.111.7.%d" % (number + 1))
                     for number, name in enumerate(names)}
        spaces = [space for space, _ in self.ends.values()]
        for space in spaces:
            self.ip("netns", "add", space)
            self.ip("-n", space, "link", "set", "lo", "up")
        self.ip("-n", spaces[0], "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", spaces[1])
        for space, address in self.ends.values():
            self.ip("-n", space, "address", "add", address + "/24", "dev", "wire")
            self.ip("-n", space, "link", "set", "wire", "up")

    @staticmethod
    def ip(*arguments):
        try:
            done = subprocess.run(("ip",) + arguments, capture_output=True, text=True)
        except FileNotFoundError:
            raise unittest.SkipTest("ip is missing (package iproute2)") from None
        if done.returncode:
            raise unittest.SkipTest("ip %s: %s" % (" ".join(arguments), done.stderr.strip()))

    def set(self, state):
        """"down" cuts the cable, "up" mends it."""
        self.ip("-n", next(iter(self.ends.values()))[0], "link", "set", "wire", state)

    def enter(self, name):
        """In a child: into the namespace of a host."""
        handle = os.open("/run/netns/" + self.ends[name][0], os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(handle, 0):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(handle)

    def close(self):
        for space, _ in self.ends.values():
            subprocess.run(["ip", "netns", "del", space], check=False)


class Bridge(Link):
    """ends as of Link. prefix: of the addresses, "10.111.8." or "fd5f::"."""

    BRIDGE = "bridge"

    def __init__(self, *names, prefix="10.111.8."):
        if os.geteuid() != 0:
            raise unittest.SkipTest("network namespaces need root")
        self.ends = {name: ("sfn%d-%s" % (os.getpid(), name), prefix + str(number + 1))
                     for number, name in enumerate((self.BRIDGE,) + names)}
        self.switch = self.ends[self.BRIDGE][0]
        try:
            for space, _ in self.ends.values():
                self.ip("netns", "add", space)
                self.ip("-n", space, "link", "set", "lo", "up")
            self.ip("-n", self.switch, "link", "add", self.BRIDGE, "type", "bridge")
            self.ip("-n", self.switch, "link", "set", self.BRIDGE, "up")
            for name in names:
                self.join(name, *self.ends[name])
        except BaseException:
            self.close()
            raise

    def join(self, name, space, address):
        bits = "/64" if ":" in address else "/24"
        self.ip("-n", space, "link", "add", "wire", "type", "veth", "peer", "name", name, "netns", self.switch)
        self.ip("-n", self.switch, "link", "set", "dev", name, "master", self.BRIDGE, "up")
        self.ip("-n", space, "address", "add", address + bits, "dev", "wire", *(["nodad"] if ":" in address else []))
        self.ip("-n", space, "link", "set", "wire", "up")

    def run(self, name, *command, **kwargs):
        """A command at a host."""
        return subprocess.run(["ip", "netns", "exec", self.ends[name][0], *command], capture_output=True, text=True,
                              check=True, **kwargs)

    def plain(self):
        """No interface leaves checksums or cutting to another: each packet is one, and whole."""
        for name in self.ends:
            if name != self.BRIDGE:
                plain_checksums(lambda *command, at=name: self.run(at, *command), "wire")

    def worsen(self, case, name, port, seed):
        """From now on what this host sends to this UDP port goes over a bad wire (badwire.py), until the test ends."""
        self.plain()
        self.ip("-n", self.switch, "link", "add", "bad", "type", "veth", "peer", "name", "worse")
        case.addCleanup(self.ip, "-n", self.switch, "link", "del", "bad")
        self.ip("-n", self.switch, "link", "set", "bad", "up")
        self.ip("-n", self.switch, "link", "set", "worse", "master", self.BRIDGE, "up")
        self.ip("-n", self.switch, "link", "set", "worse", "type", "bridge_slave", "learning", "off")   # it is not there
        wire = subprocess.Popen(["ip", "netns", "exec", self.switch, sys.executable,
                                 os.path.join(os.path.dirname(os.path.abspath(__file__)), "badwire.py"),
                                 name, "bad", str(port), str(seed)], stdout=subprocess.PIPE)
        case.addCleanup(wire.stdout.close)
        case.addCleanup(wire.wait)
        case.addCleanup(wire.kill)
        case.assertEqual(wire.stdout.readline(), b"ready\n")
        case.addCleanup(self.drop, self.BRIDGE, "", name)
        self.drop(self.BRIDGE, "udp dport %d" % port, name)         # after the wire has seen them

    def drop(self, name, rule, interface="wire"):
        """Packets that arrive at a host and that the nft expression holds for are lost. "": none any more."""
        self.run(name, "nft", "-f", "-", input="""
            table netdev bad
            delete table netdev bad
            %s""" % ("""table netdev bad {
                chain in { type filter hook ingress device "%s" priority 0; %s drop; }
            }""" % (interface, rule) if rule else ""))


class Host(harness.Daemon):
    """A host called `name`. cluster: more keys of that group of sfvmmd.conf. link: it is at an end of that."""

    def __init__(self, name, keys, config=None, cluster=None, link=None, **kwargs):
        super().__init__(config=dict({"pager": harness.program("sfvmm/pager/sf-pager")}, **(config or {})), **kwargs)
        self.name = name
        self.ip = link.ends[name][1] if link else ADDRESS
        self.port = free_port()
        if link:
            self.preexec = lambda: link.enter(name)
        self.config["state-directory"] = os.path.join(self.top, "state")
        self.cluster = {"name": name, "listen": self.address(), "pki-directory": keys.host(name, self.ip),
                        "resource-manager": "static"}
        self.cluster.update(cluster or {})

    def write_config(self):
        path = super().write_config()
        with open(path, "a") as file:
            file.write("[cluster]\n")
            for key, value in self.cluster.items():
                file.write("%s=%s\n" % (key, value))
        return path

    def address(self):
        return ("[%s]:%d" if ":" in self.ip else "%s:%d") % (self.ip, self.port)

    def add(self, other, **params):
        """Know another host, and wait until it is there."""
        self.call("host.add", name=other.name, address=other.address(), **params)
        self.wait_up(other.name)

    def entry(self, name):
        """What it says about a host; None: it does not know it."""
        return next((host for host in self.call("host.list")["hosts"] if host["name"] == name), None)

    def wait_state(self, name, state, timeout=harness.LONG):
        return harness.wait(lambda: (self.entry(name) or {}).get("state") == state and self.entry(name), timeout,
                            "host %s %s, seen from %s" % (name, state, self.name))

    def wait_up(self, name):
        return self.wait_state(name, "up")

    def restart_before(self, witness, number=signal.SIGTERM):
        """Restart, while another host looks on: it has seen the end before the start, so that its "up" is of the new one."""
        self.end(number)
        witness.wait_state(self.name, "down")
        self.start()
        witness.wait_up(self.name)

    def pagers(self):
        return [pid for pid in self.processes() if "sf-pager" in harness.command_line(pid)]


def introduce(hosts):
    """Each gets to know all others."""
    for one in hosts:
        for other in hosts:
            if one is not other:
                one.add(other)


def cluster(case, names, config=None, link=None, groups=None, **kwargs):
    """Started hosts that all know each other. case: whose clean-up ends them. kwargs: keys of [cluster]; groups: other
    groups of sfvmmd.conf."""
    keys = Keys()
    case.addClassCleanup(keys.close)
    hosts = {}
    for name in names:
        hosts[name] = Host(name, keys, config=config, cluster=dict(kwargs), link=link, groups=groups)
        case.addClassCleanup(hosts[name].close)
        hosts[name].start()
    introduce(hosts.values())
    return hosts
