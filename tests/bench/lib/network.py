# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts out of network namespaces: each has one interface on a bridge, which stands in a namespace of its own, and so
reaches the others and nothing else.

    with Network(2) as network:
        network.address(1)                      "10.78.0.1"
        network.command(1, ["ping", ...])       the command, to be run on host 1
"""
import json
import os
import shutil
import subprocess
import tempfile

import harness
import hosts

PREFIX = "10.78.0"
BITS = 24


class Network:
    def __init__(self, count):
        self.count = count
        self.tag = "sfb%d" % os.getpid()
        self.made = []

    def __enter__(self):
        if os.geteuid() != 0:
            raise harness.unittest.SkipTest("network namespaces need root")
        self.ip = shutil.which("ip", path="/usr/sbin:/sbin:" + os.environ["PATH"])
        if not self.ip or not shutil.which("nsenter"):
            raise harness.unittest.SkipTest("ip or nsenter is missing (packages iproute2, util-linux)")
        try:
            self.make("%s-b" % self.tag)
            self.run("-n", self.tag + "-b", "link", "add", "bridge", "type", "bridge")
            self.run("-n", self.tag + "-b", "link", "set", "bridge", "up")
            for i in range(1, self.count + 1):
                self.join(i)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for name in reversed(self.made):
            subprocess.run([self.ip, "netns", "del", name], capture_output=True)
        self.made = []

    def run(self, *arguments):
        done = subprocess.run([self.ip, *arguments], capture_output=True, text=True)
        if done.returncode:
            raise harness.unittest.SkipTest("no network namespaces here: ip %s: %s" % (" ".join(arguments),
                                                                                       done.stderr.strip()))

    def make(self, name):
        self.run("netns", "add", name)
        self.made.append(name)
        self.run("-n", name, "link", "set", "lo", "up")

    def join(self, i):
        host, switch = self.name(i), self.tag + "-b"
        self.make(host)
        self.run("-n", host, "link", "add", "eth0", "type", "veth", "peer", "name", "h%d" % i, "netns", switch)
        self.run("-n", switch, "link", "set", "h%d" % i, "master", "bridge", "up")
        self.run("-n", host, "address", "add", "%s/%d" % (self.address(i), BITS), "dev", "eth0")
        self.run("-n", host, "link", "set", "eth0", "up")

    def name(self, i):
        return "%s-%d" % (self.tag, i)

    @staticmethod
    def address(i):
        return "%s.%d" % (PREFIX, i)

    def command(self, i, command):
        return ["nsenter", "--net=/run/netns/" + self.name(i), "--"] + list(command)

    def sent(self, i):
        """Bytes that host i has sent. Not from /sys, which nsenter leaves that of the machine."""
        done = subprocess.run(self.command(i, ["ip", "-statistics", "-json", "link", "show", "dev", "eth0"]),
                              capture_output=True, text=True, check=True)
        return json.loads(done.stdout)[0]["stats64"]["tx"]["bytes"]


class NetworkHost(hosts.Host):
    """A host in a namespace. keys: those of the cluster."""

    def __init__(self, net, number, keys, **kwargs):
        self.network, self.number, self.keys = net, number, keys
        self.overlays = tempfile.mkdtemp(prefix="sfo", dir="/var/tmp")
        os.chmod(self.overlays, 0o755)
        super().__init__("h%d" % number, self, config={"overlay-directory": self.overlays}, **kwargs)
        self.cluster["listen"] = self.address()

    def host(self, name, *_):
        """As hosts.Keys.host(), with the address that this host has."""
        return self.keys.host(name, self.network.address(self.number))

    def address(self):
        return "%s:%d" % (self.network.address(self.number), self.port)

    def command(self):
        return self.network.command(self.number, super().command())

    def close(self):
        try:
            return super().close()
        finally:
            shutil.rmtree(self.overlays, ignore_errors=True)
