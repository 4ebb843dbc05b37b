# SPDX-License-Identifier: GPL-2.0-or-later
"""sf-agent, libsf and sf against a host that the test plays (agent_host.py). No VM, no root needed."""
import errno
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from agent_host import (BOUND, CHECKPOINT, CLONE, CREATE, ERROR, EXIT, EXITED, FETCH, FORGET, HELLO, IDENTITY, JOIN, KILL,
                        LOST, MAX_CHUNK, NAME, RELEASE, REPLY, RUNNING, SELF, SYNC, TICKET, Guest, answer_of, error,
                        error_of, frame, hello, identity, member, packet)

TICKET_ID = 0x1122334455667788
BOOT_ID = '/proc/sys/kernel/random/boot_id'


class Base(unittest.TestCase):
    options, skip, prefix, pty, boot_id = (), 'rng,clock,hostname', (), False, False

    def setUp(self):
        if 'SF_BUILD' not in os.environ:
            self.skipTest('SF_BUILD is not set: run by tests/run.py')
        self.guest = Guest(*self.options, skip=self.skip, prefix=self.prefix, pty=self.pty, boot_id=self.boot_id)
        self.addCleanup(self.guest.close)
        self.host = self.guest.host

    def hook(self, name, text, mode=0o755):
        os.makedirs(self.guest.hooks, exist_ok=True)
        path = os.path.join(self.guest.hooks, name)
        with open(path, 'w', encoding='utf-8') as file:
            file.write('#!/bin/sh\n' + text)
        os.chmod(path, mode)

    def clone_file(self):
        with open(os.path.join(self.guest.directory, 'clone'), encoding='utf-8') as file:
            return dict(line.rstrip('\n').split('=', 1) for line in file if not line.startswith('#'))

    def assert_finished(self, program, status=0, data=None):
        got, out, err = self.guest.finish(program, data)
        self.assertEqual(got, status, out + err)
        return out, err


class Programs(Base):
    """Requests and answers in a VM that is no clone."""

    def test_ticket_granted_in_part(self):
        program = self.guest.sf('ticket', '8')
        self.assertEqual(self.host.grant(TICKET_ID, 5), 8)
        out, _ = self.assert_finished(program)
        self.assertEqual(out, 'SF_TICKET=1122334455667788; SF_GRANTED=5; export SF_TICKET SF_GRANTED\n')

    def test_error_of_the_host_reaches_the_user(self):
        program = self.guest.sf('ticket', '8')
        request, _ = self.host.expect(TICKET)
        self.host.refuse(request, errno.EDQUOT, 'VM "web": 8 clones asked, its quota is 4: ask for fewer')
        out, err = self.assert_finished(program, 3)
        self.assertEqual(out, 'false\n')
        self.assertEqual(err, 'sf ticket: VM "web": 8 clones asked, its quota is 4: ask for fewer\n')

    def test_parent_side_of_a_fork(self):
        script = self.guest.run('bash', '-c', 'eval "$("$0" clone -n 2)" || exit 9; echo $SF_ID $SF_COUNT $SF_TICKET',
                                os.path.join(os.environ['SF_BUILD'], 'libsf', 'sf', 'sf'))
        self.host.grant(TICKET_ID)
        request, payload = self.host.expect(CLONE)
        self.assertEqual(struct.unpack('<Q', payload)[0], TICKET_ID)
        self.host.reply(CLONE, request, struct.pack('<II', 0, 2))
        out, _ = self.assert_finished(script)
        self.assertEqual(out, '0 2 1122334455667788\n')

    def test_ticket_first_then_clone(self):
        script = self.guest.run('bash', '-c', 'eval "$("$0" ticket 4)" && eval "$("$0" clone)" || exit 9\n'
                                'echo $SF_ID $SF_COUNT $SF_GRANTED',
                                os.path.join(os.environ['SF_BUILD'], 'libsf', 'sf', 'sf'))
        self.host.grant(TICKET_ID, 3)
        request, _ = self.host.expect(CLONE)
        self.host.reply(CLONE, request, struct.pack('<II', 0, 2))  # one could not be placed
        out, _ = self.assert_finished(script)
        self.assertEqual(out, '0 3 3\n')

    def test_status(self):
        program = self.guest.sf('status', '--json', SF_TICKET='%016x' % TICKET_ID)
        request, _ = self.host.expect(JOIN)
        self.host.reply(JOIN, request, member(1, 2, RUNNING) + member(2, 2, LOST, 0, 0, 'said "no"\\'))
        shown = json.loads(self.assert_finished(program)[0])
        self.assertEqual((shown['id'], shown['count']), (0, 0))
        self.assertEqual([clone['state'] for clone in shown['clones']], ['running', 'lost'])
        self.assertEqual(shown['clones'][1]['text'], 'said "no"\\')
        self.assertEqual(json.loads(self.assert_finished(self.guest.sf('status', '--json', SF_TICKET=''))[0])['clones'],
                         [])

    def test_a_fork_that_fails_fails_the_eval(self):
        script = self.guest.run('bash', '-c', 'eval "$("$0" clone -n 2)" || exit 9',
                                os.path.join(os.environ['SF_BUILD'], 'libsf', 'sf', 'sf'))
        self.host.grant(TICKET_ID)
        request, _ = self.host.expect(CLONE)
        self.host.refuse(request, errno.ECANCELED, 'no space left for the snapshot')
        _, err = self.assert_finished(script, 9)
        self.assertIn('no space left', err)

    def test_join_of_many_with_results(self):
        count = 100
        results = os.path.join(self.guest.directory, 'results')
        program = self.guest.sf('join', '--json', '--results', results, '%016x' % TICKET_ID)
        data = bytes(range(256)) * 500  # more than three chunks
        table = [member(i, count, EXITED, 0, len(data) if i == 70 else 0) for i in range(1, count + 1)]
        table[41] = member(42, count, LOST, 0, 0, 'its QEMU was killed')
        for first, flags in ((1, 0), (65, 1)):
            request, payload = self.host.expect(JOIN)
            self.assertEqual(struct.unpack('<QII', payload), (TICKET_ID, flags, first))
            self.host.reply(JOIN, request, b''.join(table[first - 1:first + 63]))
        for offset in range(0, len(data) + 1, MAX_CHUNK):
            request, payload = self.host.expect(FETCH)
            ticket, ident, length, at = struct.unpack('<QIIQ', payload)
            self.assertEqual((ticket, ident), (TICKET_ID, 70))
            self.host.reply(FETCH, request, data[at:at + length])
            if at + length > len(data):
                break
        out, _ = self.assert_finished(program, 1)
        shown = json.loads(out)
        self.assertEqual(len(shown), count)
        self.assertEqual(shown[41], {'id': 42, 'state': 'lost', 'status': None, 'result_length': 0,
                                     'text': 'its QEMU was killed'})
        self.assertEqual(os.listdir(results), ['70'])
        with open(os.path.join(results, '70'), 'rb') as file:
            self.assertEqual(file.read(), data)

    def test_kill_and_release(self):
        for verb, kind in (('kill', KILL), ('release', RELEASE)):
            program = self.guest.sf(verb, SF_TICKET='%016x' % TICKET_ID)
            request, payload = self.host.expect(kind)
            self.assertEqual(payload, struct.pack('<Q', TICKET_ID))
            self.host.reply(kind, request)
            self.assert_finished(program)

    def test_checkpoint(self):
        saved = self.guest.sf('checkpoint', 'warm-1')
        request, payload = self.host.expect(CHECKPOINT)
        self.assertEqual(payload, b'warm-1'.ljust(NAME, b'\0'))
        self.host.reply(CHECKPOINT, request, struct.pack('<II', 0, 0))
        self.assertEqual(self.assert_finished(saved)[0], 'SF_ID=0; SF_COUNT=0; export SF_ID SF_COUNT\n')
        created = self.guest.sf('create', 'warm-1', '8')
        request, payload = self.host.expect(CREATE)
        self.assertEqual(payload, struct.pack('<II', 8, 0) + b'warm-1'.ljust(NAME, b'\0'))
        self.host.reply(CREATE, request, struct.pack('<QII', TICKET_ID, 5, 0))
        self.assertEqual(self.assert_finished(created)[0],
                         'SF_TICKET=1122334455667788; SF_GRANTED=5; export SF_TICKET SF_GRANTED\n')
        forgotten = self.guest.sf('forget', 'warm-1')
        request, payload = self.host.expect(FORGET)
        self.assertEqual(payload, b'warm-1'.ljust(NAME, b'\0'))
        self.host.refuse(request, errno.EBUSY, 'clones of it live')
        self.assertEqual(self.assert_finished(forgotten, 3)[1], 'sf forget: clones of it live\n')

    def test_names_of_checkpoints(self):
        """Wrong ones do not reach the host."""
        for name in ('', 'A', 'a.b', '-a', 'a/b', 'x' * 33, '\u00e4'):
            out, err = self.assert_finished(self.guest.sf('checkpoint', name), 3)
            self.assertEqual(out, 'false\n')
            self.assertIn('checkpoint name', err)
            self.assert_finished(self.guest.sf('create', name, '1'), 3)
            self.assert_finished(self.guest.sf('forget', name), 3)
        self.assert_finished(self.guest.sf('create', 'a', '0'), 3)
        self.host.round_trip()
        self.assertTrue(self.host.silent())

    def test_clones_for_a_program_that_has_gone(self):
        """They are given back, as a ticket is."""
        program = self.guest.sf('create', 'warm', '2')
        request, _ = self.host.expect(CREATE)
        program.kill()
        program.wait()
        self.host.round_trip()
        self.host.reply(CREATE, request, struct.pack('<QII', TICKET_ID, 2, 0))
        self.assertEqual(self.host.expect(RELEASE)[1], struct.pack('<Q', TICKET_ID))

    def test_no_clone(self):
        self.assertEqual(self.assert_finished(self.guest.sf('id'))[0], '0\n')
        self.assertEqual(self.assert_finished(self.guest.sf('count'))[0], '0\n')
        self.assertEqual(self.assert_finished(self.guest.sf('status'))[0], 'This VM is no clone.\n')
        self.assert_finished(self.guest.sf('exit', '7'), 7)

    def test_usage(self):
        for arguments in (('ticket',), ('ticket', '-1'), ('ticket', '99999999999'), ('clone', '-n', '0'), ('nonsense',),
                          ('join', 'xyz'), ('exit', '256'), ('result', '0x'), ('join',), ()):
            with self.subTest(arguments=arguments):
                _, err = self.assert_finished(self.guest.sf(*arguments, SF_TICKET=''), 2)
                self.assertNotEqual(err, '')
        self.assert_finished(self.guest.sf('ticket', '1025'), 3)
        self.assertTrue(self.host.silent())

    def test_without_agent(self):
        program = self.guest.run(os.path.join(os.environ['SF_BUILD'], 'libsf', 'sf', 'sf'), 'id')
        self.assert_finished(program)
        program = subprocess.run([program.args[0], 'id'], env=dict(os.environ, SF_AGENT_SOCKET='/nonexistent/socket'),
                                 capture_output=True, text=True, timeout=BOUND, check=False)
        self.assertEqual(program.returncode, 3)
        self.assertIn('does sf-agent run', program.stderr)

    def test_host_answers_nonsense(self):
        program = self.guest.sf('ticket', '2')
        request, _ = self.host.expect(TICKET)
        self.host.reply(KILL, request)
        _, err = self.assert_finished(program, 3)
        self.assertIn('answered TICKET with KILL', err)
        program = self.guest.sf('ticket', '2')
        request, _ = self.host.expect(TICKET)
        self.host.reply(TICKET, request, struct.pack('<QII', 5, 3, 0))  # more than asked
        _, err = self.assert_finished(program, 3)
        self.assertIn('malformed', err)

    def test_timed_joins_leave_one_request(self):
        waiting = set()
        for _ in range(5):
            program = self.guest.sf('join', '--timeout', '0.02', '%016x' % TICKET_ID)
            while program.poll() is None:
                if self.host.silent(0.01):
                    continue
                request, payload = self.host.expect(JOIN)
                if struct.unpack('<QII', payload)[1] == 0:
                    waiting.add(request)
                else:
                    self.host.reply(JOIN, request, member(1, 1, RUNNING))
            out, _ = self.assert_finished(program, 4)
            self.assertIn('running', out)
        self.assertEqual(len(waiting), 1)
        self.host.reply(JOIN, waiting.pop(), member(1, 1))
        self.host.round_trip()
        program = self.guest.sf('join', '--quiet', '%016x' % TICKET_ID)
        request, _ = self.host.expect(JOIN)
        self.host.reply(JOIN, request, member(1, 1))
        self.assert_finished(program)

    def test_ticket_of_a_program_that_has_gone_is_given_back(self):
        program = self.guest.sf('ticket', '4')
        request, _ = self.host.expect(TICKET)
        program.kill()
        program.communicate()
        self.assertEqual(self.assert_finished(self.guest.sf('id'))[0], '0\n')
        self.host.reply(TICKET, request, struct.pack('<QII', TICKET_ID, 4, 0))
        request, payload = self.host.expect(RELEASE)
        self.assertEqual(payload, struct.pack('<Q', TICKET_ID))
        self.host.reply(RELEASE, request)

    def test_socket_mode(self):
        self.assertEqual(stat.S_IMODE(os.stat(self.guest.socket).st_mode), 0o600)

    def test_second_agent_refuses(self):
        second = subprocess.run(self.guest.command, capture_output=True, text=True, timeout=BOUND, check=False)
        self.assertEqual(second.returncode, 1)
        self.assertIn('another sf-agent runs', second.stderr)
        self.assertEqual(self.assert_finished(self.guest.sf('id'))[0], '0\n')


class Restarts(Base):
    """sfvmmd goes away and comes back; the agent is started anew."""

    def test_requests_are_sent_again(self):
        join = self.guest.sf('join', '--quiet', '5')
        first, _ = self.host.expect(JOIN)
        self.host.accept()
        ticket = self.guest.sf('ticket', '3')
        self.host.greet()
        seen = {}
        while len(seen) < 2:
            kind, request, _ = self.host.receive()
            seen[kind] = request
        self.assertEqual(seen[JOIN], first)
        self.host.reply(TICKET, seen[TICKET], struct.pack('<QII', TICKET_ID, 3, 0))
        self.host.reply(JOIN, seen[JOIN], member(1, 1))
        self.assert_finished(join)
        self.assert_finished(ticket)

    def test_nothing_is_sent_before_hello(self):
        self.host.accept()
        ticket = self.guest.sf('ticket', '3')
        self.assertEqual(self.assert_finished(self.guest.sf('id'))[0], '0\n')
        self.assertTrue(self.host.silent())
        self.host.greet()
        self.host.grant()
        self.assert_finished(ticket)

    def test_repeated_hello_changes_nothing(self):
        join = self.guest.sf('join', '--quiet', '5')
        request, _ = self.host.expect(JOIN)
        for _ in range(3):
            self.host.round_trip()
        self.assertTrue(self.host.silent())
        self.host.reply(JOIN, request, member(1, 1))
        self.assert_finished(join)

    def test_host_away_in_the_middle_of_a_frame(self):
        data = os.urandom(3 * MAX_CHUNK)
        self.guest.become_clone()
        self.host.expect_hello()
        self.host.expect(IDENTITY | REPLY)
        sync = self.guest.sf('sync', '-', stdin=subprocess.PIPE)
        sync.stdin.buffer.write(data)
        sync.stdin.close()
        sync.stdin = None
        request, payload = self.host.expect(SYNC)
        self.host.reply(SYNC, request)
        got = payload[16:]
        self.host.connection.recv(100)  # and no more of the second piece
        self.host.accept()
        self.host.greet()
        while len(got) < len(data):
            request, payload = self.host.expect(SYNC)
            self.assertEqual(struct.unpack('<QQ', payload[:16]), (len(got), len(data)))
            got += payload[16:]
            self.host.reply(SYNC, request)
        self.assertEqual(got, data)
        self.assert_finished(sync)

    def test_agent_started_anew_in_a_clone(self):
        self.guest.become_clone(3, 8)
        self.host.expect_hello()
        self.host.expect(IDENTITY | REPLY)
        ticket = self.guest.connect()
        ticket.send(packet(TICKET, 1, struct.pack('<II', 1, 0)))
        old, _ = self.host.expect(TICKET)
        self.assertEqual(self.guest.stop_agent(), 0)
        self.guest.start()
        self.assertEqual(self.assert_finished(self.guest.sf('id'))[0], '3\n')
        again = self.guest.connect()
        again.send(packet(TICKET, 1, struct.pack('<II', 1, 0)))
        new, _ = self.host.expect(TICKET)
        self.assertNotEqual(old, new)


class Clones(Base):
    """This VM turns out to be a clone."""

    def test_every_program_learns_of_it(self):
        clone = self.guest.sf('clone', '16', SF_TICKET='')
        request, _ = self.host.expect(CLONE)
        join = self.guest.sf('join', '7')
        self.host.expect(JOIN)
        ticket = self.guest.sf('ticket', '2')
        self.host.expect(TICKET)
        other = self.guest.sf('clone', '17', SF_TICKET='')
        self.host.expect(CLONE)
        self.guest.become_clone(3, 8, 0x16, clone_request=request)
        self.host.expect_hello()
        self.assertEqual(self.host.expect(IDENTITY | REPLY)[1], b'')
        out, _ = self.assert_finished(clone)
        self.assertEqual(out, 'SF_ID=3; SF_COUNT=8; export SF_ID SF_COUNT\n'
                              'SF_TICKET=0000000000000016; SF_GRANTED=8; export SF_TICKET SF_GRANTED\n')
        for program in (join, ticket, other):
            _, err = self.assert_finished(program, 3)
            self.assertIn('this VM is now clone 3', err)
        self.assertEqual(self.assert_finished(self.guest.sf('id'))[0], '3\n')
        self.assertEqual(self.assert_finished(self.guest.sf('count'))[0], '8\n')
        self.assertEqual(self.clone_file(), {'SF_ID': '3', 'SF_COUNT': '8', 'SF_TICKET': '0000000000000016',
                                             'SF_PARENT': 'vm1', 'SF_HOSTNAME': 'vm1-3'})
        self.host.round_trip()
        self.assertTrue(self.host.silent(), 'no request of the parent may come from its clone')

    def test_clone_of_a_checkpoint(self):
        """Long after: the program that waited for the checkpoint learns the clone's id."""
        saved = self.guest.sf('checkpoint', 'warm')
        request, _ = self.host.expect(CHECKPOINT)
        other = self.guest.sf('checkpoint', 'other')
        self.host.expect(CHECKPOINT)
        self.guest.become_clone(3, 8, 0x16, clone_request=request)
        self.host.expect_hello()
        self.host.expect(IDENTITY | REPLY)
        self.assertEqual(self.assert_finished(saved)[0], 'SF_ID=3; SF_COUNT=8; export SF_ID SF_COUNT\n')
        self.assertIn('this VM is now clone 3', self.assert_finished(other, 3)[1])

    def test_identity_apart_from_hello(self):
        """The parent's requests may come then; the answer to IDENTITY still ends them."""
        clone = self.guest.sf('clone', '16', SF_TICKET='')
        request, _ = self.host.expect(CLONE)
        self.host.greet()
        self.assertEqual(self.host.expect(CLONE)[0], request)
        self.host.send(identity(0x16, 1, 1, request))
        self.host.expect(IDENTITY | REPLY)
        self.assertIn('SF_ID=1;', self.assert_finished(clone)[0])

    def test_identity_said_again(self):
        self.hook('10-count', 'echo x >> "$(dirname "$0")/../count"\n')
        for request in (2, 9):
            self.host.nonce += 1
            self.host.send(b'\0' + hello(self.host.nonce) + identity(0x16, 1, 1, request=request))
            self.host.expect_hello()
            self.assertEqual(self.host.expect(IDENTITY | REPLY)[0], request)
        with open(os.path.join(self.guest.directory, 'count'), encoding='utf-8') as file:
            self.assertEqual(file.read(), 'x\n')

    def test_host_restarts_before_it_has_noted_the_answer(self):
        """It asks again, and takes what comes before the answer for the parent's: the clone's own requests come again."""
        self.guest.become_clone(1, 1, 0x16)
        self.host.expect_hello()
        self.host.expect(IDENTITY | REPLY)
        self.guest.sf('exit', '3')
        request, _ = self.host.expect(EXIT)
        self.host.accept()
        self.host.greet()
        self.assertEqual(self.host.expect(EXIT)[0], request)
        self.host.send(identity(0x16, 1, 1))
        self.host.expect(IDENTITY | REPLY)
        self.assertEqual(self.host.expect(EXIT)[0], request)

    def test_host_restarts_while_a_hook_runs(self):
        fifo = os.path.join(self.guest.directory, 'fifo')
        os.mkfifo(fifo)
        self.hook('10-wait', 'read line < "$(dirname "$0")/../fifo"\n')
        clone = self.guest.sf('clone', '16', SF_TICKET='')
        request, _ = self.host.expect(CLONE)
        self.guest.become_clone(1, 1, 0x16, request)
        self.host.expect_hello()
        self.host.accept()
        self.guest.become_clone(1, 1, 0x16, request)
        self.host.expect_hello()
        with open(fifo, 'w', encoding='utf-8') as file:
            file.write('go\n')
        self.host.expect(IDENTITY | REPLY)
        self.assertIn('SF_ID=1;', self.assert_finished(clone)[0])

    def test_clone_of_a_clone(self):
        self.guest.become_clone(3, 8, 0x16)
        self.host.expect_hello()
        self.host.expect(IDENTITY | REPLY)
        clone = self.guest.sf('clone', '-n', '2')
        self.host.grant(0x17)
        request, _ = self.host.expect(CLONE)
        self.guest.become_clone(2, 2, 0x17, request, parent='vm1-3', hostname='vm1-3-2')
        self.host.expect_hello()
        self.host.expect(IDENTITY | REPLY)
        self.assertIn('SF_ID=2; SF_COUNT=2;', self.assert_finished(clone)[0])
        self.assertEqual(self.clone_file()['SF_PARENT'], 'vm1-3')

    def test_hooks(self):
        out = os.path.join(self.guest.directory, 'out')
        self.hook('20-second', 'echo second $SF_ID $SF_COUNT $SF_TICKET $SF_PARENT $SF_HOSTNAME >> %s\n' % out)
        self.hook('10-first', 'echo first $(%s id) >> %s; cat\n'  # cat: standard input is empty
                  % (os.path.join(os.environ['SF_BUILD'], 'libsf/sf/sf'), out))
        self.hook('30-not-executable', 'echo wrong >> %s\n' % out, 0o644)
        self.hook('40-backup.dpkg-old', 'echo wrong >> %s\n' % out)
        self.guest.become_clone(3, 8, 0x16)
        self.host.expect_hello()
        self.host.expect(IDENTITY | REPLY)
        with open(out, encoding='utf-8') as file:
            lines = file.read().splitlines()
        self.assertEqual(lines, ['first 3', 'second 3 8 0000000000000016 vm1 vm1-3'])

    def test_hooks_that_change(self):
        """The agent keeps the folder's names; every change of it must be seen."""
        out = os.path.join(self.guest.directory, 'out')
        expected = []

        def fork():
            self.guest.become_clone(ticket=len(expected) + 1)
            self.host.expect_hello()
            self.host.expect(IDENTITY | REPLY)
            with open(out, encoding='utf-8') as file:
                self.assertEqual(file.read().split(), expected)

        def age():
            """Time stamps are old enough then that the agent trusts what it reads."""
            deadline = time.monotonic() + BOUND
            while time.time() < os.stat(self.guest.hooks).st_ctime + 3 and time.monotonic() < deadline:
                time.sleep(0.05)

        self.hook('10-a', 'echo a >> %s\n' % out)
        expected += ['a']
        fork()
        age()
        for _ in range(2):
            expected += ['a']
            fork()
        self.hook('20-b', 'echo b >> %s\n' % out)
        expected += ['a', 'b']
        fork()
        os.chmod(os.path.join(self.guest.hooks, '10-a'), 0o644)
        expected += ['b']
        fork()
        age()
        expected += ['b']
        fork()
        os.remove(os.path.join(self.guest.hooks, '20-b'))
        fork()
        os.rename(self.guest.hooks, self.guest.hooks + '.old')
        self.hook('30-c', 'echo c >> %s\n' % out)
        expected += ['c']
        fork()
        shutil.rmtree(self.guest.hooks)
        fork()

    def test_hook_that_fails(self):
        clone = self.guest.sf('clone', '16', SF_TICKET='')
        request, _ = self.host.expect(CLONE)
        self.hook('10-fails', 'exit 5\n')
        self.hook('20-never', 'echo wrong > %s/wrong\n' % self.guest.directory)
        self.guest.become_clone(clone_request=request)
        self.host.expect_hello()
        _, payload = self.host.expect(ERROR)
        self.assertEqual(error_of(payload), errno.ECANCELED)
        self.assertIn(b'hooks/10-fails: exit status 5', payload)
        self.host.round_trip()
        self.assertTrue(self.host.silent())
        self.assertIsNone(clone.poll(), 'no program may run on in a clone that is not unique')
        self.assertEqual(self.clone_file(), {'SF_ID': '0', 'SF_COUNT': '0'})
        self.assertFalse(os.path.exists(os.path.join(self.guest.directory, 'wrong')))

    def test_malformed_identity(self):
        for bad in (identity(0x16, 0, 8), identity(0x16, 9, 8), identity(0, 1, 8), identity(0x16, 1, 8, realtime=0),
                    identity(0x16, 1, 8, hostname='a b'), identity(0x16, 1, 2000), frame(IDENTITY, 2, b'x' * 100)):
            self.host.send(bad)
            self.assertEqual(error_of(self.host.expect(ERROR)[1]), errno.EPROTO)
        self.assertEqual(self.assert_finished(self.guest.sf('id'))[0], '0\n')

    def test_result_and_exit(self):
        data = os.urandom(2 * MAX_CHUNK + 5)
        self.guest.become_clone()
        self.host.expect_hello()
        self.host.expect(IDENTITY | REPLY)
        program = self.guest.sf('exit', '3', '--result', '-', stdin=subprocess.PIPE)
        program.stdin.buffer.write(data)
        program.stdin.close()
        program.stdin = None
        got = b''
        while len(got) < len(data):
            request, payload = self.host.expect(SYNC)
            self.assertEqual(struct.unpack('<QQ', payload[:16]), (len(got), len(data)))
            got += payload[16:]
            self.host.reply(SYNC, request)
        self.assertEqual(got, data)
        request, payload = self.host.expect(EXIT)
        self.assertEqual(struct.unpack('<iI', payload), (3, 0))
        self.host.reply(EXIT, request)
        self.host.round_trip()
        self.assertIsNone(program.poll(), 'sf_exit() waits for the end of the VM')

    def test_empty_result(self):
        self.guest.become_clone()
        self.host.expect_hello()
        self.host.expect(IDENTITY | REPLY)
        program = self.guest.sf('sync', '/dev/null')
        request, payload = self.host.expect(SYNC)
        self.assertEqual(payload, struct.pack('<QQ', 0, 0))
        self.host.reply(SYNC, request)
        self.assert_finished(program)

    def test_two_results_at_once(self):
        self.guest.become_clone()
        self.host.expect_hello()
        self.host.expect(IDENTITY | REPLY)
        one, two = self.guest.connect(), self.guest.connect()
        one.send(packet(SYNC, 1, struct.pack('<QQ', 0, 2) + b'a'))
        request, _ = self.host.expect(SYNC)
        self.host.reply(SYNC, request)
        self.assertEqual(answer_of(one)[0], SYNC | REPLY)
        two.send(packet(SYNC, 1, struct.pack('<QQ', 0, 1) + b'b'))
        self.assertEqual(error_of(answer_of(two)[2]), errno.EBUSY)
        one.close()  # in the middle: the next one may
        self.assertEqual(self.assert_finished(self.guest.sf('id'))[0], '3\n')
        two.send(packet(SYNC, 2, struct.pack('<QQ', 0, 1) + b'b'))
        request, _ = self.host.expect(SYNC)
        self.host.reply(SYNC, request)
        self.assertEqual(answer_of(two)[0], SYNC | REPLY)


class SerialLine(Base):
    """A pty stands for the port: a character device that hangs up in its own way."""
    pty = True

    def test_all_bytes_pass(self):
        self.guest.become_clone()
        self.host.expect_hello()
        self.host.expect(IDENTITY | REPLY)
        data = bytes(range(256)) * 200
        sync = self.guest.sf('sync', '-', stdin=subprocess.PIPE)
        sync.stdin.buffer.write(data)
        sync.stdin.close()
        sync.stdin = None
        got = b''
        while len(got) < len(data):
            request, payload = self.host.expect(SYNC)
            got += payload[16:]
            self.host.reply(SYNC, request)
        self.assertEqual(got, data)
        self.assert_finished(sync)


class HookTimeout(Base):
    options = ('--hook-timeout', '100')

    def test_hook_that_hangs(self):
        self.hook('10-hangs', 'sleep 1000 & wait\n')
        self.guest.become_clone()
        self.host.expect_hello()
        _, payload = self.host.expect(ERROR)
        self.assertEqual(error_of(payload), errno.ETIMEDOUT)
        self.assertIn(b'not done after 100 ms', payload)


@unittest.skipUnless(os.geteuid() == 0, 'needs root: sets a hostname in a namespace and seeds the kernel')
class System(Base):
    """The steps that need privilege, but the clock, which no namespace keeps apart."""
    skip, boot_id = 'clock', True
    # /proc is made private by itself: in a chroot that is no mount point unshare can't do it for all.
    prefix = ('unshare', '--uts', '--mount', '--propagation', 'unchanged',
              'sh', '-c', 'mount --make-rprivate /proc && exec "$@"', 'sh')

    def become_clone(self):
        """Its host name and its boot ID."""
        self.hook('10-names', 'cat /proc/sys/kernel/hostname %s > %s/names\n' % (BOOT_ID, self.guest.directory))
        self.guest.become_clone(hostname='some-clone')
        self.host.expect_hello()
        self.host.expect(IDENTITY | REPLY)
        with open(os.path.join(self.guest.directory, 'names'), encoding='utf-8') as file:
            return file.read().splitlines()

    def boot_id_there(self):
        """The boot ID as the agent's mount namespace has it."""
        return subprocess.run(['nsenter', '--mount', '--target', str(self.guest.agent.pid), 'cat', BOOT_ID], check=True,
                              capture_output=True, text=True).stdout.strip()

    def test_hostname_and_seed(self):
        self.assertEqual(self.become_clone()[0], 'some-clone')

    def test_boot_id(self):
        """The kernel's until there is a clone; then its own."""
        with open(BOOT_ID, encoding='utf-8') as file:
            kernels = file.read().strip()
        self.assertEqual(self.boot_id_there(), kernels)
        own = self.become_clone()[1]
        self.assertRegex(own, r'^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$')
        self.assertNotEqual(own, kernels)
        with open(BOOT_ID, encoding='utf-8') as file:
            self.assertEqual(file.read().strip(), kernels, 'outside of the namespace')


class Hostile(Base):
    """Programs and hosts that break the rules."""

    def assert_alive(self):
        ticket = self.guest.sf('ticket', '1')
        self.host.grant()
        self.assert_finished(ticket)

    def test_malformed_packets(self):
        good = packet(CLONE, 1, bytes(8))
        for bad in (b'x', good[:-1], good + b'y', b'\x02' + good[1:], packet(CLONE, 0, bytes(8)), packet(99, 1),
                    packet(HELLO, 1, bytes(16)), packet(CLONE | REPLY, 1, bytes(8)), packet(IDENTITY, 1, bytes(224)),
                    packet(SYNC, 1, struct.pack('<QQ', 5, 4)), packet(SYNC, 1, struct.pack('<QQ', 0, 1 << 40) + b'x'),
                    packet(SYNC, 1, struct.pack('<QQ', 0, 4)), packet(JOIN, 1, struct.pack('<QII', 1, 8, 1)),
                    packet(SYNC, 1, struct.pack('<QQ', 0, 40000) + bytes(40000)), bytes(60000)):
            with self.subTest(bad=bad[:40]):
                program = self.guest.connect()
                program.send(bad)
                answer = answer_of(program)
                self.assertEqual((answer[0], error_of(answer[2])), (ERROR, errno.EPROTO))
                self.assertIsNone(answer_of(program))
        self.assert_alive()

    def test_garbage_of_the_host(self):
        whole = hello(77)
        for garbage in (os.urandom(100000), b'\xff' * 100000, whole[:-3] + b'\0', whole[:5] + b'?' + whole[6:],
                        frame(99, 1), frame(TICKET | REPLY, 5, b'nobody asked'), frame(ERROR, 5), b'\0' * 1000,
                        frame(HELLO, 1, b'short'), b'\x01' * 70000):
            self.host.send(garbage + b'\0')
        self.host.round_trip()
        self.assert_alive()

    def test_program_that_does_not_read(self):
        flood = self.guest.connect()
        flood.setblocking(False)
        sent = 0
        with self.assertRaises((BrokenPipeError, ConnectionResetError)):
            while sent < 1000000:
                try:
                    flood.send(packet(SELF, 1))
                    sent += 1
                except BlockingIOError:
                    self.assert_alive()
        self.assert_alive()

    def test_flood_of_one_does_not_starve_another(self):
        stop = threading.Event()

        def flood():
            program = self.guest.connect()
            while not stop.is_set():
                program.send(packet(SELF, 1))
                program.recv(100)

        threads = [threading.Thread(target=flood) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(5):
                self.assert_alive()
        finally:
            stop.set()
            for thread in threads:
                thread.join(BOUND)

    def test_too_many_connections(self):
        programs = []
        for _ in range(250):
            program = self.guest.connect()
            program.send(packet(JOIN, 1, struct.pack('<QII', 1, 0, 1)))
            programs.append(program)
        for _ in range(250 if os.geteuid() == 0 else 64):
            self.host.expect(JOIN)
        for program in programs:
            program.close()
        self.assert_alive()

    def test_connections_beyond_the_table_wait(self):
        if os.geteuid() != 0:
            self.skipTest('needs root: other users have a limit below the table')
        programs = []
        for _ in range(256):
            programs.append(self.guest.connect())
        late = self.guest.sf('id')
        programs.pop().close()
        self.assertEqual(self.assert_finished(late)[0], '0\n')


if __name__ == '__main__':
    unittest.main()
