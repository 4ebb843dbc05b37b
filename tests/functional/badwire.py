#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A bad wire for datagrams to one UDP port: those that arrive at the interface FROM go out at the interface TO, but some are
lost, doubled or delayed. Something else (hosts.Bridge.worsen) has to keep them from going their own way.

    badwire.py FROM TO PORT SEED

Run in a network namespace that has both. The sender must not leave checksums to the card (hosts.plain_checksums).
"""
import ctypes
import random
import select
import socket
import struct
import sys

LOST, DOUBLED, DELAYED = 0.03, 0.03, 0.06       # parts of the frames
DELAY_FRAMES = 60               # at most: so many others pass a delayed one
IDLE = 0.005                    # s without any frame: then what waits goes
FRAME = 65536
SO_ATTACH_FILTER, SO_RCVBUFFORCE = 26, 33


def filter_of(port):
    """A program for the kernel: Ethernet, IPv4 without options, UDP, this port."""
    code = [(0x28, 0, 0, 12), (0x15, 0, 5, 0x0800), (0x30, 0, 0, 23), (0x15, 0, 3, 17), (0x28, 0, 0, 36),
            (0x15, 0, 1, port), (0x06, 0, 0, FRAME), (0x06, 0, 0, 0)]
    return b"".join(struct.pack("HBBI", *one) for one in code), len(code)


def open_interface(name, port=None):
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    if port:
        program, length = filter_of(port)
        place = ctypes.create_string_buffer(program)
        opened.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", length, ctypes.addressof(place)))
        opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 32 << 20)
        opened.setblocking(False)
    opened.bind((name, 3 if port else 0))       # ETH_P_ALL
    return opened


class Way:
    def __init__(self, out, dice):
        self.out, self.dice = out, dice
        self.waiting = []       # [frames to let pass, frame]

    def send(self, frame):
        try:
            self.out.send(frame)
        except OSError:
            pass                # as on a wire: it is lost

    def take(self, frame):
        for one in self.waiting:
            one[0] -= 1
        if self.dice.random() < LOST:
            return
        if self.dice.random() < DELAYED:
            self.waiting.append([self.dice.randint(1, DELAY_FRAMES), frame])
        else:
            self.send(frame)
        if self.dice.random() < DOUBLED:
            self.waiting.append([self.dice.randint(0, DELAY_FRAMES), frame])
        for one in [one for one in self.waiting if one[0] <= 0]:
            self.waiting.remove(one)
            self.send(one[1])

    def idle(self):
        for _, frame in self.waiting:
            self.send(frame)
        self.waiting = []


def main():
    source, way = open_interface(sys.argv[1], int(sys.argv[3])), Way(open_interface(sys.argv[2]),
                                                                     random.Random(int(sys.argv[4])))
    print("ready", flush=True)
    while True:
        if not select.select([source], [], [], IDLE)[0]:
            way.idle()
            continue
        frame, address = source.recvfrom(FRAME)
        if address[2] != socket.PACKET_OUTGOING:
            way.take(frame)


if __name__ == "__main__":
    main()
