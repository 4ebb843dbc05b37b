# SPDX-License-Identifier: GPL-2.0-or-later
"""Domains of libvirt as members of a cluster: what other members can, through restarts of sfvmmd and libvirtd; and what libvirt
says of their interfaces.

libvirtd and sfvmmd run in the network namespace that plays the host.
"""
import os
import re
import shutil

import harness
import hosts
import libvirtd
import test_libvirt_hosts
import tiny
from clusters import CLONES, Members, in_namespace, namespaces, setns

HERE, THERE = "a", "b"
TINY_MIB = 32
ANNOUNCE = '{"execute": "announce-self", "arguments": {"initial": 50, "max": 50, "rounds": 1, "step": 0}}'
TAP = re.compile(r"\bvnet\d+")


def setUpModule():
    libvirtd.need()


class Console(harness.Console):
    """The terminal of a domain."""

    def __init__(self, keeper, domain):
        self.terminal = libvirtd.Console(keeper, domain)
        self.socket, self.position = None, 0

    def connect(self):
        """It is."""

    def whole(self):
        return self.terminal.whole()

    def send(self, text):
        self.terminal.write(text)

    def close(self):
        if self.terminal:
            self.terminal.close()
            self.terminal = None


class Domain(harness.Vm):
    def __init__(self, daemon, info):
        super().__init__(daemon, dict(info, console=None, console_log=None))
        self.domain = info["domain"]
        self.console = Console(daemon.libvirtd, self.domain)


class Host(test_libvirt_hosts.Host):
    def vm(self, name):
        return Domain(self, self.call("vm.status", vm=name)["vm"])


class Cable:
    """From the host of a Lab to another one. As hosts.Link."""

    ends = {HERE: (None, "10.111.9.1"), THERE: (None, "10.111.9.2")}

    def __init__(self):
        self.places = {}

    def lay(self, lab):
        self.places = {HERE: lab.host, THERE: lab.namespace()}
        lab.run(lab.host, "ip link add cable type veth peer name cable netns %d" % self.places[THERE])
        for name, place in self.places.items():
            lab.run(place, "ip link set lo up; ip address add %s/24 dev cable; ip link set cable up" % self.ends[name][1])

    def path(self, name):
        return "/proc/%d/ns/net" % self.places[name]

    def enter(self, name):
        setns(self.path(name))


class Network(Members, harness.Case):
    @classmethod
    def setUpClass(cls):
        cls.keys, cls.cable = hosts.Keys(), Cable()
        cls.addClassCleanup(cls.keys.close)
        cls.libvirtd = libvirtd.Libvirtd()
        cls.addClassCleanup(cls.libvirtd.close)
        cls.open_lab(cls.host(cls.libvirtd, HERE))

    @classmethod
    def host(cls, keeper, name):
        return Host(keeper, name, cls.keys, config={"pool": 0}, link=cls.cable)

    @classmethod
    def start_in_lab(cls):
        if not cls.libvirtd.keeper:
            cls.cable.lay(cls.lab)
            in_namespace(cls.cable.path(HERE), cls.libvirtd.start)
        super().start_in_lab()

    @classmethod
    def boot_parent(cls, outside):
        """Its definition gets what it lacks, then it is started and taken."""
        cls.base, path = cls.libvirtd.write_linux("red")
        cls.base_time = os.stat(cls.base).st_mtime_ns
        cls.libvirtd.virsh("define", path)
        cls.addClassCleanup(cls.libvirtd.virsh, "undefine", "red")
        rules = [word for rule in outside for word in ("--outside", rule)]
        cls.daemon.sfctl("domain", "check", "red", "--network", "cluster", *rules, "--fix")
        cls.libvirtd.virsh("start", "red")
        cls.addClassCleanup(cls.libvirtd.virsh, "destroy", "red", check=False)
        console = Console(cls.libvirtd, "red")
        cls.daemon.sfctl("domain", "adopt", "red", "--pool", str(CLONES))
        cls.daemon.call("vm.wait", vm="red", agent=True, timeout_ms=int(harness.LONG * 1000))
        parent = cls.daemon.vm("red")
        parent.console.close()
        parent.console = console
        parent.start_shell()
        return parent

    def fork(self, *args, **kwargs):
        """Each of them has an interface that domiflist shows; its tap is not on the host."""
        ticket, everyone = harness.wait(lambda: self.forks(*args, **kwargs), harness.LONG, "a fork")
        taps = set()
        for vm in everyone:
            text = self.libvirtd.virsh("domiflist", vm.domain)
            self.assertRegex(text, r"vnet\d+ +ethernet +- +virtio +02:5f:0a:4d:00:01")
            taps.update(TAP.findall(text))
        self.assertEqual(len(taps), len(everyone))
        self.assertEqual(taps & set(TAP.findall(self.links())), set())
        return ticket, everyone

    def forks(self, *args, **kwargs):
        """None while sfvmmd has not found libvirtd again."""
        try:
            return super().fork(*args, **kwargs)
        except harness.ControlError as error:
            self.assertRegex(error.message, "connected|libvirt|closed")
            return None

    def links(self):
        return self.lab.run(self.lab.host, "ip -brief link")

    def test_restart(self):
        """libvirtd is killed as well, before sfvmmd is."""
        self.libvirtd.kill()
        harness.wait(self.libvirtd.answers, what="libvirtd's answer")
        super().test_restart()

    def test_another_host(self):
        """A clone on another host is a domain of that one's libvirtd, and in the same network."""
        self.before = None      # without a peer
        keeper = libvirtd.Libvirtd()
        self.addCleanup(keeper.close)
        in_namespace(self.cable.path(THERE), keeper.start)
        there = self.host(keeper, THERE)
        self.addCleanup(there.close)
        there.start()
        self.daemon.add(there)
        self.addCleanup(self.daemon.call, "host.remove", name=THERE)
        there.add(self.daemon)
        self.daemon.call("host.drain", name=HERE, drain=True)
        self.addCleanup(self.daemon.call, "host.drain", name=HERE, drain=False)
        ticket = self.parent.clone(1)
        self.addCleanup(self.end, ticket["ticket"])
        self.assertEqual([(clone["host"], clone["state"]) for clone in ticket["clones"]], [(THERE, "running")], ticket)
        clone = there.vm(ticket["clones"][0]["vm"]).follow(self.parent)
        self.assertRegex(keeper.virsh("domiflist", clone.domain), r"vnet\d+ +ethernet +- +virtio +02:5f:0a:4d:00:01")
        self.all_reach_all([self.parent, clone])
        self.end(ticket["ticket"])
        harness.wait(lambda: not keeper.domains("--state-running"), what="the end of the clone's domain")

    def test_y_link_of_others(self):
        """An interface of a clone that is in no cluster has no link before libvirt is told to give it one. (Its disk is
        committed behind the test.)"""
        self.before = None
        image = shutil.copy(tiny.image(), os.path.join(self.libvirtd.top, "other.img"))
        os.chmod(image, 0o644)
        path = os.path.join(self.libvirtd.top, "other.xml")
        with open(path, "w") as file:
            file.write(libvirtd.domain_xml("other", [(image, "raw", False)], mib=TINY_MIB,
                                           more="<interface type='ethernet'><model type='virtio'/></interface>"))
        self.libvirtd.virsh("create", path)
        self.addCleanup(self.libvirtd.virsh, "destroy", "other")
        self.daemon.sfctl("domain", "adopt", "other")
        ticket = self.daemon.call("clone", vm="other", count=1, wait="resumed")["ticket"]
        self.addCleanup(self.end, ticket["ticket"])
        domain = self.daemon.call("vm.status", vm=ticket["clones"][0]["vm"])["vm"]["domain"]
        device, mac = re.search(r"(vnet\d+) .*(52:54:\S+)", self.libvirtd.virsh("domiflist", domain)).groups()

        def sent():
            """Frames, when QEMU has announced the device."""
            self.libvirtd.virsh("qemu-monitor-command", domain, ANNOUNCE)
            return int(re.search(r"tx_packets (\d+)", self.libvirtd.virsh("domifstat", domain, device)).group(1))
        self.assertEqual(sent(), 0)
        self.libvirtd.virsh("domif-setlink", domain, mac, "up")
        self.assertGreater(sent(), 0)

    test_outside = None         # its network is that of other members; test_identity sees that the gateway is there

    def test_zz_nothing_left(self):
        """The domain ends: its taps and the network go; the image that its own stands on is as it was."""
        self.before = None
        self.parent.stop()
        harness.wait(lambda: not self.libvirtd.domains("--state-running", "--state-paused"), what="the end of all domains")
        harness.wait(lambda: not TAP.findall(self.links()) and not self.lab.leftovers(), what="an empty host")
        harness.wait(lambda: not namespaces(self.daemon), what="no namespace held by the daemon")
        harness.wait(lambda: not [name for name in os.listdir(os.path.join(self.daemon.run, "disk"))
                                  if name.endswith(".qcow2")], what="the last overlay's end")
        self.assertEqual(os.stat(self.base).st_mtime_ns, self.base_time, "the base of the domain's image was written")


if __name__ == "__main__":
    harness.main()
