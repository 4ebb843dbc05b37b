# SPDX-License-Identifier: GPL-2.0-or-later
"""sf-agent as a member of a cluster's network: addresses told to programs, and, as root, set in the kernel.

The kernel's part runs in a network namespace of its own, where one end of a cable plays the NIC.
"""
import errno
import os
import re
import socket
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from agent_host import BOUND, CLONE, ERROR, IDENTITY, LINK, NETWORK, REPLY, WHO, Guest, frame, identity, network

TICKET_ID = 0x99

# In the agent's namespace: a server and a connection to it, both with the address of the parent, and one over loopback.
# Says what becomes of reads, and whether the listening socket still takes connections.
CONNECTIONS = r"""
import socket, sys
server = socket.create_server(("0.0.0.0", 700))
inherited, local = socket.create_connection(("10.77.0.1", 700)), socket.create_connection(("127.0.0.1", 700))
print("ready", flush=True)
sys.stdin.readline()
inherited.settimeout(30)
try:
    print("read", inherited.recv(1), flush=True)
except OSError as error:
    print("read", error.errno, flush=True)
local.sendall(b"x")
socket.create_connection(("10.77.0.3", 700))
print("local and new ones work", flush=True)
"""


class Base(unittest.TestCase):
    skip, prefix = 'rng,clock,hostname,network', ()

    def setUp(self):
        if 'SF_BUILD' not in os.environ:
            self.skipTest('SF_BUILD is not set: run by tests/run.py')
        self.guest = Guest(skip=self.skip, prefix=self.prefix)
        self.addCleanup(self.guest.close)
        self.host = self.guest.host

    def finish(self, program, status=0):
        got, out, err = self.guest.finish(program)
        self.assertEqual(got, status, out + err)
        return out + err

    def tell(self, *arguments, **more):
        self.host.send(network(*arguments, **more))
        self.host.expect(NETWORK | REPLY)


class Addresses(Base):
    """What libsf and sf say; no network is touched."""

    def test_none(self):
        self.assertIn('no cluster network', self.finish(self.guest.sf('address'), 3))
        self.assertIn('no cluster network', self.finish(self.guest.sf('address', 'parent'), 3))

    def test_parent(self):
        self.tell('10.77.0.1')
        self.assertEqual(self.finish(self.guest.sf('address')), '10.77.0.1\n')
        self.assertIn('no clone', self.finish(self.guest.sf('address', '1'), 3))
        self.tell('10.77.0.1', count=300, ticket=TICKET_ID, first='10.77.0.250')
        self.assertEqual(self.finish(self.guest.sf('address', '1')), '10.77.0.250\n')
        self.assertEqual(self.finish(self.guest.sf('address', '300')), '10.77.2.37\n')
        self.assertIn('no clone', self.finish(self.guest.sf('address', '301'), 3))
        self.assertEqual(self.finish(self.guest.sf('address', 'parent')), '10.77.0.1\n')
        self.finish(self.guest.sf('address', 'sf-1'), 2)

    def test_boots_anew(self):
        """An agent that was told of no identity asks; a clone's programs then have it."""
        self.assertEqual(self.host.receive(who=True)[0], WHO)
        self.tell('10.77.0.4', ident=3, count=8, ticket=TICKET_ID)
        self.host.send(identity(TICKET_ID, 3, 8))
        self.host.expect(IDENTITY | REPLY)
        self.assertEqual(self.finish(self.guest.sf('address')), '10.77.0.4\n')
        self.assertEqual(self.finish(self.guest.sf('id')), '3\n')

    def test_malformed(self):
        """It is not answered: the host then takes the agent for one that knows no networks."""
        self.host.send(network('10.77.0.9', ident=3, count=8, ticket=TICKET_ID))
        self.host.round_trip()
        self.assertTrue(self.host.silent())
        self.finish(self.guest.sf('address'), 3)


@unittest.skipUnless(os.geteuid() == 0, 'needs root: sets addresses in a network namespace')
class Kernel(Base):
    skip, prefix = 'rng,clock,hostname,ssh', ('unshare', '--net')

    def setUp(self):
        super().setUp()
        with open(self.guest.names, 'w', encoding='utf-8') as file:
            file.write('127.0.0.1 localhost\n127.0.1.1 %s\n192.0.2.5 elsewhere' % socket.gethostname())
        self.sh('ip link set lo up; ip link add nic address 02:5f:0a:4d:00:01 type veth peer name other;'
                'ip link set other up')

    def sh(self, command):
        return subprocess.run(['nsenter', '--net=/proc/%d/ns/net' % self.guest.agent.pid, 'sh', '-ec', command],
                              check=True, capture_output=True, text=True, timeout=BOUND).stdout

    def set_up_parent(self):
        self.sh('ip address add 10.77.0.1/24 dev nic; ip link set nic up; ip route add default via 10.77.0.254;'
                'ip route add 198.51.100.0/24 via 10.77.0.253 src 10.77.0.1 metric 7')
        self.tell('10.77.0.1', prefix=24)

    def become(self, **more):
        self.guest.become_clone(2, 8, TICKET_ID, before=network('10.77.0.3', 2, 8, TICKET_ID, prefix=24, request=2), **more)
        self.host.expect_hello()
        self.host.expect(NETWORK | REPLY)

    def test_becomes_a_member(self):
        self.set_up_parent()
        clone = self.guest.sf('clone', '16', SF_TICKET='')
        request, _ = self.host.expect(CLONE)
        self.become(clone_request=request)
        self.host.expect(IDENTITY | REPLY)
        self.assertIn('link/ether 02:5f:0a:4d:00:03', self.sh('ip link show nic'))
        self.assertEqual(re.findall(r'inet (\S+) brd (\S+)', self.sh('ip -4 address show nic')), [('10.77.0.3/24', '10.77.0.255')])
        self.assertEqual(re.findall(r'inet6 (\S+)', self.sh('ip -6 address show nic')), ['fe80::5f:aff:fe4d:3/64'])
        routes = self.sh('ip route')
        self.assertIn('default via 10.77.0.254', routes)
        self.assertIn('198.51.100.0/24 via 10.77.0.253 dev nic src 10.77.0.3 metric 7', routes)
        self.assertIsNone(clone.poll(), 'sf_clone() returned before there was a link')
        self.host.send(frame(LINK, 2))
        self.host.expect(LINK | REPLY)
        self.assertIn('SF_ID=2;', self.finish(clone))
        with open(self.guest.names, encoding='utf-8') as file:
            names = file.read()
        self.assertTrue(names.endswith('\n127.0.0.1 localhost\n192.0.2.5 elsewhere'), names)
        self.assertIn('\n10.77.0.1 sf-parent vm1 %s\n10' % socket.gethostname() + '.77.0.2 sf-1 vm1-1\n10.77.0.3 sf-2 vm1-2\n', names)
        self.assertEqual(self.finish(self.guest.sf('address')), '10.77.0.3\n')
        self.assertEqual(self.finish(self.guest.sf('address', 'parent')), '10.77.0.1\n')

    def test_prepared_by_its_parent(self):
        """What the parent has done for all is not done again; what has changed since is seen."""
        self.set_up_parent()
        self.tell('10.77.0.1', count=8, ticket=TICKET_ID, prefix=24)
        inode = os.stat(self.guest.names).st_ino
        self.sh('ip route add 203.0.113.0/24 via 10.77.0.253 src 10.77.0.1; ip route del 198.51.100.0/24')
        self.become()
        self.host.expect(IDENTITY | REPLY)
        routes = self.sh('ip route')
        self.assertIn('203.0.113.0/24 via 10.77.0.253 dev nic src 10.77.0.3', routes)
        self.assertNotIn('198.51.100.0/24', routes)
        self.assertEqual(os.stat(self.guest.names).st_ino, inode)
        with open(self.guest.names, encoding='utf-8') as file:
            self.assertIn('\n10.77.0.3 sf-2 vm1-2\n', file.read())

    def test_connections_end(self):
        """Those with the parent's address do, at once; loopback and listening sockets stay."""
        self.set_up_parent()
        program = subprocess.Popen(['nsenter', '--net=/proc/%d/ns/net' % self.guest.agent.pid, sys.executable, '-c', CONNECTIONS],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addCleanup(program.stdout.close)
        self.addCleanup(program.wait)
        self.addCleanup(program.kill)
        self.assertEqual(program.stdout.readline(), 'ready\n')
        self.become()
        self.host.expect(IDENTITY | REPLY)
        program.stdin.write('\n')
        program.stdin.close()
        line = program.stdout.readline()
        if 'b' in line:
            self.skipTest('this kernel can end no connections of others (CONFIG_INET_DIAG_DESTROY)')
        # Its other end is here too: ended first, it sends a reset.
        self.assertIn(line, ['read %d\n' % number for number in (errno.ECONNABORTED, errno.ECONNRESET)])
        self.assertEqual(program.stdout.readline(), 'local and new ones work\n')

    def test_bridge_over_the_nic(self):
        """The address is where the guest had put it."""
        self.sh('ip link add br0 type bridge; ip link set nic up master br0; ip link set br0 up;'
                'ip address add 10.77.0.1/24 dev br0')
        self.tell('10.77.0.1', prefix=24)
        self.become()
        self.host.expect(IDENTITY | REPLY)
        self.assertIn('inet 10.77.0.3/24', self.sh('ip -4 address show br0'))
        self.assertIn('link/ether 02:5f:0a:4d:00:03', self.sh('ip link show nic'))

    def test_no_such_nic(self):
        """A clone that can't change its MAC must not get a link."""
        self.sh('ip link delete nic')
        self.become()
        _, payload = self.host.expect(ERROR)
        self.assertIn(b"no network device has the parent's MAC", payload)

    def test_clone_of_a_clone(self):
        self.set_up_parent()
        self.become()
        self.host.expect(IDENTITY | REPLY)
        self.host.send(frame(LINK, 2))
        self.host.expect(LINK | REPLY)
        self.guest.become_clone(1, 1, 0x77, hostname='vm1-2-1', before=network(
            '10.77.0.20', 1, 1, 0x77, parent='10.77.0.3', first='10.77.0.20', prefix=24, name='vm1-2'))
        self.host.expect_hello()
        self.host.expect(NETWORK | REPLY)
        self.host.expect(IDENTITY | REPLY)
        self.assertEqual(re.findall(r'inet (\S+)', self.sh('ip -4 address show nic')), ['10.77.0.20/24'])
        self.assertEqual(self.finish(self.guest.sf('address', 'parent')), '10.77.0.3\n')

    def test_identity_without_network(self):
        """An old host, or another ticket's NETWORK: nothing is touched, nobody waits for LINK."""
        self.set_up_parent()
        clone = self.guest.sf('clone', '16', SF_TICKET='')
        request, _ = self.host.expect(CLONE)
        self.tell('10.77.0.3', 2, 8, 0x55, prefix=24)
        self.host.send(identity(TICKET_ID, 2, 8, request))
        self.host.expect(IDENTITY | REPLY)
        self.assertIn('SF_ID=2;', self.finish(clone))
        self.assertIn('inet 10.77.0.1/24', self.sh('ip -4 address show nic'))

    def test_names_are_replaced(self):
        self.set_up_parent()
        for count in (3, 1):
            self.tell('10.77.0.1', count=count, ticket=TICKET_ID, prefix=24)
            self.host.round_trip()
            with open(self.guest.names, encoding='utf-8') as file:
                names = file.read()
            self.assertEqual(names.count('sf-parent'), 1, names)
            self.assertEqual('sf-2' in names, count == 3, names)


if __name__ == '__main__':
    unittest.main(argv=sys.argv)
