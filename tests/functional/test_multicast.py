#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages by multicast: the fork tests of several hosts, and what a bad network does to them."""
import contextlib
import mmap
import os
import re
import shutil
import signal
import subprocess
import tempfile
import unittest

import harness
import hosts
import test_remote
from harness import on_all

NAMES = ("a", "b", "c")
PORT = 7411                     # of all groups, unless configured
CHUNK = 1318                    # bytes of a descriptor in one datagram, at least


def groups(host):
    """Its parts in multicast groups, as sfctl top has them."""
    return host.call("vm.usage")["multicast"]


def wake(pid):
    """It may have ended meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


class Multicast(test_remote.Remote):
    names = NAMES
    keys = {"pages": "tls", "multicast": "on"}

    def group(self, name, ticket):
        found = [group for group in groups(self.hosts[name]) if group["ticket"] == ticket]
        self.assertEqual(len(found), 1, groups(self.hosts[name]))
        return found[0]

    def spread(self, count=2):
        """A fork onto b and c, of a parent with 40 MiB that tell it from others."""
        self.at("b", "c")
        self.probe("open m mem 40")
        self.addCleanup(self.probe, "close m")
        self.probe("fill m 1")
        state, probes = self.fork(count)
        return state["ticket"], probes

    def finish(self, probes):
        for number, probe in probes.items():
            probe.send("exit %d" % number)
        self.assertEqual(self.join(), {n: ("exited", n, 0) for n in probes})
        self.probe("release 0")


class MulticastBasic(test_remote.Basic, Multicast):
    def test_one_page_for_all(self):
        """Hosts take what others have asked for; the origin sends about as much as one host needs."""
        ticket, probes = self.spread()
        self.probe("fill m 2")                              # the snapshot keeps what was
        on_all(list(probes.values()), "verify m 1")
        origin, b, c = (self.group(name, ticket) for name in NAMES)
        self.assertEqual((b["state"], c["state"]), ("multicast", "multicast"), (b, c))
        self.assertGreater(b["asked"], 0)
        self.assertGreater(b["unasked"] + c["unasked"], 0, (b, c))
        self.assertEqual(origin["receivers"], 2)
        took = [sum(usage["pages"]["resident"] for usage in self.hosts[name].call("vm.usage")["vms"]
                    if usage.get("ticket") == ticket) for name in ("b", "c")]
        self.assertLess(origin["bytes"], 0.8 * sum(took), (origin, b, c))
        self.assertGreater(b["blob_bytes"], 0)
        self.assertEqual(b["blob_bytes"], c["blob_bytes"])
        self.assertLess((origin["chunks"] - 1) * CHUNK, 1.5 * b["blob_bytes"], "the descriptor went out once")
        self.finish(probes)


class MulticastRestart(test_remote.Restart, Multicast):
    """With pages that come by multicast. What is not concerned is not run again."""

    keys = {"pages": "tls", "multicast": "on"}
    test_other_host_ends = test_origin_ends = test_forks_after_a_restart = None
    test_origin_is_killed = test_origin_and_its_pager_are_killed = None


class BadNetwork(Multicast):
    """Three hosts on a bridge."""

    @classmethod
    def setUpClass(cls):
        cls.link = hosts.Bridge(*NAMES)
        cls.addClassCleanup(cls.link.close)
        super().setUpClass()

    def test_content_of_all_memory(self):
        """Byte by byte, on both hosts, though datagrams get lost, come twice, and overtake each other."""
        self.link.worsen(self, "a", PORT, 1)
        ticket, probes = self.spread()
        state = self.a.call("ticket.status", ticket=ticket)["ticket"]
        expected = self.served_memory(state)
        self.a.call("complete", ticket=ticket, timeout_ms=int(harness.LONG * 1000))
        for name in ("b", "c"):
            pager, = [pid for pid in self.hosts[name].pagers()
                      if state["fork"]["snapshot"] in harness.command_line(pid)]
            self.assertTrue(test_remote.same_content(self.memfd(pager), expected), "memory at host " + name)
            self.assertGreater(self.group(name, ticket)["asked"], 0)
        self.assertGreater(self.group("b", ticket)["missing"] + self.group("c", ticket)["missing"], 0)
        self.assertGreater(self.group("b", ticket)["forged"], 0, "what came twice was dropped")
        self.finish(probes)

    def test_filtered(self):
        """A host that the group does not reach has its pages by unicast, and says so; the other does not notice."""
        self.link.drop("c", "udp dport %d" % PORT)
        self.addCleanup(self.link.drop, "c", "")
        ticket, probes = self.spread()
        on_all(list(probes.values()), "verify m 1")
        harness.wait(lambda: self.group("c", ticket)["state"] == "unicast", what="host c uses unicast")
        self.assertTrue(self.group("c", ticket)["reason"])
        self.assertEqual(self.group("b", ticket)["state"], "multicast")
        self.assertEqual(self.group("c", ticket)["bytes"], 0)
        self.assertGreater(self.group("b", ticket)["blob_bytes"], 0)
        self.assertEqual(self.group("c", ticket)["blob_bytes"], 0, "its descriptor came by unicast as well")
        self.finish(probes)

    def test_pagers_that_end_before_the_descriptor(self):
        """One is killed, another stopped, between ticket and fork: the clones are there all the same."""
        self.at("b", "c")
        ticket = self.probe("ticket 0 2")["ticket"]
        for pid in self.hosts["b"].pagers():
            os.kill(pid, signal.SIGKILL)
        stopped = self.hosts["c"].pagers()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
            self.addCleanup(wake, pid)
        self.probe.send("clone 0")
        harness.wait(lambda: "descriptor is fetched" in self.hosts["c"].log_tail(), what="host c asks for the descriptor")
        for pid in stopped:
            wake(pid)
        self.probe.reply()
        self.finish(self.probes(self.a.call("ticket.status", ticket=ticket)["ticket"]))

    def test_lossy(self):
        """So much is lost that multicast does not pay."""
        self.link.plain()
        self.link.drop("c", "udp dport %d numgen random mod 100 < 60" % PORT)
        self.addCleanup(self.link.drop, "c", "")
        ticket, probes = self.spread()
        on_all(list(probes.values()), "verify m 1")
        self.assertEqual(self.group("b", ticket)["state"], "multicast")
        self.finish(probes)

    def test_stalled_receiver(self):
        """It harms nobody but itself."""
        ticket, probes = self.spread()
        at = {clone["id"]: clone["host"] for clone in self.a.call("ticket.status", ticket=ticket)["ticket"]["clones"]}
        quick, slow = [[probes[n] for n in probes if at[n] == name] for name in ("b", "c")]
        pagers = self.hosts["c"].pagers()
        for pid in pagers:
            os.kill(pid, signal.SIGSTOP)
            self.addCleanup(wake, pid)
        for probe in slow:
            probe.send("verify m 1")
        on_all(quick, "verify m 1")
        for pid in pagers:
            wake(pid)
        for probe in slow:
            probe.reply()
        self.finish(probes)

    def test_leaving_and_coming_late(self):
        """A killed sf-pager comes back with the same socket, and gets what it missed."""
        ticket, probes = self.spread()
        for pid in self.hosts["c"].pagers():
            os.kill(pid, signal.SIGKILL)
        on_all(list(probes.values()), "verify m 1")
        harness.wait(lambda: self.group("c", ticket)["state"] == "multicast", what="host c is in the group again")
        self.finish(probes)

    def test_strangers(self):
        """Who sends to the group or to the origin without the keys is not heard: garbage, and what was sent before."""
        ticket, probes = self.spread()
        address, port = self.group("a", ticket)["group"].split(" port ")
        with capture(self.link, "a", self.directory()) as caught:
            on_all(list(probes.values()), "verify m 1")
        datagrams = caught()
        requests = [data for source, _, data in datagrams if source != self.a.ip]
        pages = [data for source, _, data in datagrams if source == self.a.ip]
        origin_port = [to for source, to, _ in datagrams if source != self.a.ip][0]
        self.assertTrue(requests and pages)
        before = self.group("a", ticket)["forged"]
        self.say("b", self.a.ip, origin_port, requests + [b"", bytes(60), requests[0][:-1] + b"x", bytes(9000)])
        self.say("b", address, int(port), pages + [bytes(1400)])
        harness.wait(lambda: self.group("a", ticket)["forged"] >= before + len(requests), what="requests are refused")
        on_all(list(probes.values()), "verify m 1")
        self.finish(probes)

    def test_nothing_is_readable(self):
        """No page of the parent is to be seen on the wire."""
        self.at("b", "c")
        folder = self.directory()
        with capture(self.link, "a", folder) as caught:
            ticket, probes = self.spread()
            self.a.call("complete", ticket=ticket, timeout_ms=int(harness.LONG * 1000))
        self.assertGreater(len(caught()), 1000)
        with open(os.path.join(folder, "wire.pcap"), "rb") as file:
            wire = file.read()
        with open(self.memfd(self.parent.pid), "rb") as file:
            memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            words = readable_words(memory)
            memory.close()
        self.assertGreater(len(words), 20)
        self.assertEqual([word for word in words if word in wire], [])
        self.finish(probes)

    def directory(self):
        folder = tempfile.mkdtemp(prefix="sfmc")
        self.addCleanup(shutil.rmtree, folder, True)
        os.chmod(folder, 0o777)         # tshark gives its rights up
        return folder

    def say(self, name, address, port, datagrams):
        """Datagrams from a host."""
        program = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(sys.argv[1]))
for line in sys.stdin:
    try:
        sock.sendto(bytes.fromhex(line), (sys.argv[2], int(sys.argv[3])))
    except OSError:
        pass
"""
        self.link.run(name, "python3", "-c", program, self.link.ends[name][1], address, str(port),
                      input="".join(data.hex() + "\n" for data in datagrams))


class Ipv6(Multicast):
    """Hosts that know each other by IPv6 addresses: pages by unicast and multicast, and disks."""

    @classmethod
    def setUpClass(cls):
        cls.link = hosts.Bridge(*NAMES, prefix="fd5f::")
        cls.addClassCleanup(cls.link.close)
        super().setUpClass()

    def test_content(self):
        """By multicast; then again while one host has to do without the group."""
        ticket, probes = self.spread()
        on_all(list(probes.values()), "verify m 1")
        origin, b, c = (self.group(name, ticket) for name in NAMES)
        self.assertRegex(origin["group"], "^ff15:")
        self.assertEqual((b["state"], c["state"]), ("multicast", "multicast"), (b, c))
        self.assertGreater(b["unasked"] + c["unasked"], 0, (b, c))
        self.finish(probes)
        self.link.drop("c", "udp dport %d" % PORT)
        self.addCleanup(self.link.drop, "c", "")
        self.probe("fill m 2")
        state, probes = self.fork(2)
        ticket = state["ticket"]
        on_all(list(probes.values()), "verify m 2")
        harness.wait(lambda: self.group("c", ticket)["state"] == "unicast", what="host c uses unicast")
        self.finish(probes)


@contextlib.contextmanager
def capture(link, name, folder):
    """What passes a host's interface meanwhile; afterwards the result gives its UDP datagrams: (from, to port, data)."""
    path = os.path.join(folder, "wire.pcap")
    tshark = shutil.which("tshark")
    if not tshark:
        raise unittest.SkipTest("tshark is missing (package tshark)")
    process = subprocess.Popen(["ip", "netns", "exec", link.ends[name][0], tshark, "-i", "wire", "-w", path, "-q"],
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def datagrams():
        done = subprocess.run([tshark, "-r", path, "-Y", "udp && !icmp", "-T", "fields", "-e", "ip.src", "-e",
                               "udp.dstport", "-e", "udp.payload"], capture_output=True, text=True, check=True)
        fields = [line.split("\t") for line in done.stdout.splitlines()]
        return [(source, int(port), bytes.fromhex(data)) for source, port, data in fields if data]
    try:
        for line in process.stderr:
            if "Capturing on" in line:
                break
        harness.wait(lambda: os.path.exists(path) and os.path.getsize(path) > 0, what="tshark has begun")
        yield datagrams
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=harness.LONG)


def readable_words(memory):
    """Runs of 24 letters and the like that LZ4 would leave as they are, at most one of each MiB of a memory."""
    words = set()
    for start in range(0, len(memory), harness.MIB):
        for match in re.finditer(rb"[ -~]{24}", memory[start:start + harness.MIB]):
            if len(set(match.group())) > 12:
                words.add(match.group())
                break
    return words


if __name__ == "__main__":
    unittest.main()
