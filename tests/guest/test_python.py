# SPDX-License-Identifier: GPL-2.0-or-later
"""The Python module without a VM: one run of a program for each clone, with an agent that becomes that clone, then one
for the parent. Results are what the clones really handed over.
"""
import os
import shutil
import struct
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from agent_host import BOUND, CLONE, EXIT, Guest
from test_examples import SLICES, Forked

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MODULE = os.path.join(ROOT, 'libsf', 'python')
PYTHON = shutil.which('python3', path='/usr/bin:/bin') or sys.executable
LOST_CLONE = 2


class Program(Forked):
    """A Python program."""

    def __init__(self, text):
        super().__init__('env', 'PYTHONPATH=' + MODULE, 'PYTHONDONTWRITEBYTECODE=1',
                         'LD_LIBRARY_PATH=' + os.path.join(os.environ['SF_BUILD'], 'libsf'), PYTHON, '-c', text)

    def run(self, lost=None):
        """Status, output and errors of the parent."""
        for ident in range(1, SLICES + 1):
            if ident != lost:
                self.clone(ident)
        return self.parent(lost)


@unittest.skipUnless('SF_BUILD' in os.environ, 'SF_BUILD is not set: run by tests/run.py')
class Python(unittest.TestCase):
    def works(self, text, lost=None):
        status, out, err = Program(text).run(lost)
        self.assertEqual((status, err), (0, ''), out)
        return out

    def test_map(self):
        self.assertEqual(self.works('''
import snowflock
seen = {"base": 100}
print(snowflock.map(lambda x: seen["base"] + x * x, range(8), clones=3))
'''), str([100 + x * x for x in range(8)]) + '\n')

    def test_map_raises_what_a_clone_raised(self):
        out = self.works('''
import snowflock
def half(x):
    if x == 5:
        raise SystemExit(9)
    return {4: 1}[x] if x > 3 else x
try:
    snowflock.map(half, range(7), clones=3)
except SystemExit as error:
    print(error.code, isinstance(error.__cause__, snowflock.RemoteTraceback), "in half" in str(error.__cause__))
try:
    list(map(half, [6]))
except KeyError as error:
    print("as here")
''')
        self.assertEqual(out, '9 True True\nas here\n')

    def test_map_with_what_cannot_be_pickled(self):
        for function, word in (('def run(x): raise Odd(1, 2)', 'Odd'), ('def run(x): return lambda: x', 'pickle')):
            with self.subTest(word):
                self.assertEqual(self.works('''
import snowflock
class Odd(Exception):
    def __init__(self, a, b):
        super().__init__("odd")
%s
try:
    snowflock.map(run, range(3), clones=3)
except Exception as error:
    print(%r in repr(error) + str(error.__cause__))
''' % (function, word)), 'True\n')

    def test_map_with_a_lost_clone(self):
        out = self.works('''
import snowflock
try:
    snowflock.map(str, range(6), clones=3)
except snowflock.CloneError as error:
    print(error.clone.id, error.clone.state, error)
''', LOST_CLONE)
        self.assertEqual(out, '2 lost clone 2: lost: its QEMU was killed\n')

    def test_array(self):
        self.assertEqual(self.works('''
import snowflock
with snowflock.Ticket(3) as ticket:
    squares = snowflock.Array(ticket, "q", 10)
    id = ticket.clone()
    if id:
        for slot in range((id - 1) * 3, min(id * 3, 10)):
            squares[slot] = slot * slot
        squares.exit()
    ticket.join()
    print(list(squares), len(squares), squares[-2])
'''), str([x * x for x in range(9)] + [0]).replace(']', '') + '] 10 64\n')

    def test_a_clone_does_not_leave_its_block(self):
        program = Program('import snowflock\nwith snowflock.Ticket(3) as ticket:\n    if ticket.clone(): 1 / 0\nprint(1)')
        guest = Guest(skip='rng,clock,hostname,hooks')
        self.addCleanup(guest.close)
        running = guest.run(*program.command)
        guest.host.grant(granted=SLICES)
        request, _ = guest.host.expect(CLONE)
        guest.become_clone(1, SLICES, clone_request=request)
        guest.host.expect_hello()
        while True:
            kind, request, payload = guest.host.receive()
            if kind == EXIT:
                self.assertEqual(struct.unpack('<iI', payload)[0], 1)
                break
        running.kill()

    def test_without_agent(self):
        done = subprocess.run(['env', 'PYTHONPATH=' + MODULE, 'SF_AGENT_SOCKET=/nonexistent', 'LD_LIBRARY_PATH='
                               + os.path.join(os.environ['SF_BUILD'], 'libsf'), PYTHON, '-B', '-c', '''
import snowflock
try:
    snowflock.map(str, [1])
except snowflock.Error as error:
    print(error.errno, error.strerror)
print(snowflock.map(str, []))
'''], capture_output=True, text=True, timeout=BOUND, check=False)
        self.assertEqual(done.stderr, '')
        self.assertIn('does sf-agent run in this VM?', done.stdout)
        self.assertTrue(done.stdout.startswith('2 ') and done.stdout.endswith('[]\n'), done.stdout)


if __name__ == '__main__':
    unittest.main()
