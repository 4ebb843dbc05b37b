# SPDX-License-Identifier: GPL-2.0-or-later
"""Several hosts on one machine: sfvmmds with run directories and certificates of their own, on the loopback interface
or in network namespaces of their own.

    Keys        a CA and the certificates of hosts, by `sfctl pki`
    Host        a Daemon that is one host of several
    cluster()   n hosts that know each other: {name: Host}
    Link        two network namespaces with a cable between them that can be cut
"""
import atexit
import ctypes
import os
import shutil
import socket
import subprocess
import tempfile
import unittest

import harness

ADDRESS = "127.0.0.1"


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

    def host(self, name, *addresses):
        arguments = []
        for address in addresses or (ADDRESS,):
            arguments += ["--address", address]
        self.sfctl("host", name, *arguments)
        return os.path.join(self.directory, name)

    def close(self):
        shutil.rmtree(self.directory, ignore_errors=True)


def free_port():
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return probe.getsockname()[1]


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
        return "%s:%d" % (self.ip, self.port)

    def add(self, other, **params):
        """Know another host, and wait until it is there."""
        self.call("host.add", name=other.name, address=other.address(), **params)
        self.wait_up(other.name)

    def wait_up(self, name):
        def up():
            found = [host for host in self.call("host.list")["hosts"] if host["name"] == name]
            return found and found[0]["state"] == "up"
        harness.wait(up, harness.LONG, "host %s seen from %s" % (name, self.name))

    def pagers(self):
        return [pid for pid in self.processes() if "sf-pager" in harness.command_line(pid)]


def cluster(case, names, config=None, link=None, **kwargs):
    """Started hosts that all know each other. case: whose clean-up ends them. kwargs: keys of [cluster]."""
    keys = Keys()
    case.addClassCleanup(keys.close)
    hosts = {}
    for name in names:
        hosts[name] = Host(name, keys, config=config, cluster=dict(kwargs), link=link)
        case.addClassCleanup(hosts[name].close)
        hosts[name].start()
    for one in hosts.values():
        for other in hosts.values():
            if one is not other:
                one.add(other)
    return hosts
