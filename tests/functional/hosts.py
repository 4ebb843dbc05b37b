# SPDX-License-Identifier: GPL-2.0-or-later
"""Several hosts on one machine: sfvmmds with run directories and certificates of their own, on the loopback interface.

    Keys        a CA and the certificates of hosts, by `sfctl pki`
    Host        a Daemon that is one host of several
    cluster()   n hosts that know each other: {name: Host}
"""
import os
import shutil
import socket
import subprocess
import tempfile

import harness

ADDRESS = "127.0.0.1"


class Keys:
    """A directory with a CA, and one for each host."""

    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix="sfpki")
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


class Host(harness.Daemon):
    """A host called `name`. cluster: more keys of that group of sfvmmd.conf."""

    def __init__(self, name, keys, config=None, cluster=None, **kwargs):
        super().__init__(config=dict({"pager": harness.program("sfvmm/pager/sf-pager")}, **(config or {})), **kwargs)
        self.name = name
        self.port = free_port()
        self.config["state-directory"] = os.path.join(self.top, "state")
        self.cluster = {"name": name, "listen": "%s:%d" % (ADDRESS, self.port), "pki-directory": keys.host(name),
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
        return "%s:%d" % (ADDRESS, self.port)

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


def cluster(case, names, config=None, **kwargs):
    """Started hosts that all know each other. case: whose clean-up ends them. kwargs: keys of [cluster]."""
    keys = Keys()
    case.addClassCleanup(keys.close)
    hosts = {}
    for name in names:
        hosts[name] = Host(name, keys, config=config, cluster=dict(kwargs))
        case.addClassCleanup(hosts[name].close)
        hosts[name].start()
    for one in hosts.values():
        for other in hosts.values():
            if one is not other:
                one.add(other)
    return hosts
