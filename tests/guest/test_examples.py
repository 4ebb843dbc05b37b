# SPDX-License-Identifier: GPL-2.0-or-later
"""examples/ without a VM: one run for each clone, with an agent that becomes that clone, then one for the parent."""
import errno
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from agent_host import (BOUND, CLONE, ERROR, EXIT, EXITED, FETCH, IDENTITY, JOIN, LOST, RELEASE, SYNC, Guest, error,
                        frame, member)

SLICES = 3


class Forked:
    """Plays the host to a program that forks once; the clones' results come from runs of their own."""

    def __init__(self, *command):
        self.command = command
        self.results = {}

    def clone(self, ident):
        guest = Guest(skip='rng,clock,hostname,hooks')
        try:
            program = guest.run(*self.command)
            guest.host.grant(granted=SLICES)
            request, _ = guest.host.expect(CLONE)
            guest.become_clone(ident, SLICES, clone_request=request)
            guest.host.expect_hello()
            guest.host.expect(IDENTITY | 0x80)
            data = b''
            while True:
                kind, request, payload = guest.host.receive()
                guest.host.reply(kind, request)
                if kind == EXIT:
                    break
                assert kind == SYNC, kind
                data += payload[16:]
            self.results[ident] = data
            program.kill()
        finally:
            guest.close()

    def parent(self, lost):
        guest = Guest(skip='rng,clock,hostname,hooks')
        try:
            program = guest.run(*self.command)
            host = guest.host
            host.grant(granted=SLICES)
            request, _ = host.expect(CLONE)
            host.reply(CLONE, request, struct.pack('<II', 0, SLICES))
            while True:
                kind, request, payload = host.receive()
                if kind == JOIN:
                    host.reply(JOIN, request, b''.join(
                        member(i, SLICES, LOST, 0, 0, 'its QEMU was killed') if i == lost
                        else member(i, SLICES, EXITED, 0, len(self.results[i])) for i in range(1, SLICES + 1)))
                elif kind == FETCH:
                    _, ident, length, offset = struct.unpack('<QIIQ', payload)
                    if ident == lost:
                        host.send(frame(ERROR, request, error(errno.ENODATA, 'clone %d gave no result' % ident)))
                    else:
                        host.reply(FETCH, request, self.results[ident][offset:offset + length])
                else:
                    assert kind == RELEASE, kind
                    host.reply(RELEASE, request)
                    break
            return guest.finish(program)
        finally:
            guest.close()


@unittest.skipUnless('SF_BUILD' in os.environ, 'SF_BUILD is not set: run by tests/run.py')
class Examples(unittest.TestCase):
    def example(self, *path):
        path = os.path.join(os.environ['SF_BUILD'], 'examples', *path)
        if not os.path.exists(path):
            self.skipTest('%s is not built' % path)
        return path

    def test_hello(self):
        hello = Forked(self.example('hello', 'sf-hello'))
        for ident in range(1, SLICES + 1):
            hello.clone(ident)
        status, out, err = hello.parent(None)
        self.assertEqual((status, err), (0, ''))
        self.assertEqual(out.split('\n\n')[:SLICES],
                         ['Hello from clone %d of %d' % (i, SLICES) for i in range(1, SLICES + 1)])

    def test_primes(self):
        """An array that clones fill together."""
        primes = Forked(self.example('primes', 'sf-primes'), str(SLICES + 1))
        for ident in range(1, SLICES + 1):
            primes.clone(ident)
        self.assertEqual(primes.parent(None), (0, '78498 below 1000000\n148933 below 2000000\n216816 below 3000000\n'
                                                  '283146 below 4000000\n', ''))
        status, out, err = primes.parent(2)
        self.assertEqual((status, out.splitlines()[1], err), (0, '78498 below 2000000', ''))
        primes.results[3] = primes.results[3][:-1]
        status, out, err = primes.parent(None)
        self.assertEqual((status, out, err),
                         (1, '', 'sf-primes: what clone 3 handed over is no part of this array\n'))

    def test_bowtie2(self):
        program = self.example('bowtie2', 'sf-bowtie2')
        if not shutil.which('bowtie2') or not os.path.isdir('/usr/share/doc/bowtie2/examples/reads'):
            self.skipTest('needs the packages bowtie2 and bowtie2-examples')
        work = tempfile.mkdtemp(prefix='sf-bowtie2-')
        self.addCleanup(shutil.rmtree, work)
        plain, forked = os.path.join(work, 'plain.sam'), os.path.join(work, 'forked.sam')
        subprocess.run([program, '--plain', '--work', work, '-o', plain], check=True, timeout=BOUND,
                       stderr=subprocess.DEVNULL)
        job = Forked(program, '-n', '5', '--work', work, '-o', forked)
        for ident in range(1, SLICES + 1):
            job.clone(ident)
        status, out, err = job.parent(2)
        self.assertEqual(status, 0, err)
        self.assertIn('clone 2 lost: its QEMU was killed', out)
        self.assertIn('its slice is done here', out)
        compare = os.path.join(os.path.dirname(__file__), '..', '..', 'examples', 'bowtie2', 'sf-bowtie2-compare')
        result = subprocess.run([compare, plain, forked], capture_output=True, text=True, timeout=BOUND, check=False)
        self.assertEqual((result.returncode, result.stdout), (0, 'same: 20000 alignments\n'), result.stderr)


if __name__ == '__main__':
    unittest.main()
