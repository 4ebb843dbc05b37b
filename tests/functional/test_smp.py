#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests with several vCPUs under TCG, a thread each: what one vCPU does to the memory map, another must not trip over.
It is a matter of QEMU alone (qemu-patches/0017), but whoever forks such a guest depends on it.
"""
import harness

CHANGES = 3000                  # of the map; before the patch some hundreds to a thousand were enough

# One vCPU switches a device's BARs off and on, the other programs its timer: both in the guest's kernel, for root.
PROGRAM = r"""
import os, sys, threading, time

device = "/sys/bus/pci/devices/" + sys.argv[1]
changes = int(sys.argv[2])
if os.path.exists(device + "/driver"):
    with open(device + "/driver/unbind", "w") as file:
        file.write(sys.argv[1])
done = threading.Event()
naps = 0

def nap():
    global naps
    os.sched_setaffinity(0, {1})
    while not done.is_set():
        time.sleep(0.00001)
        naps += 1

os.sched_setaffinity(0, {0})
napping = threading.Thread(target=nap)
napping.start()
config = os.open(device + "/config", os.O_RDWR)
for _ in range(changes):
    os.pwrite(config, b"\0\0", 4)
    os.pwrite(config, b"\6\0", 4)
done.set()
napping.join()
print("naps", "enough" if naps > 100 else naps)
"""


class DevicesComeAndGo(harness.Case):
    def test_timers_of_others_go_on(self):
        daemon = self.start_daemon()
        vm = harness.linux(daemon, vcpus=2, tools=False)
        vm.shell("cat > /run/change.py << 'EOF'%sEOF" % PROGRAM)
        random = vm.shell("cd /sys/bus/virtio/drivers/virtio_rng && basename $(dirname $(readlink -f virtio*))").strip()
        self.assertIn("naps enough", vm.shell("python3 /run/change.py %s %d" % (random, CHANGES)))
        self.assertFalse(vm.kernel_stalls())


if __name__ == "__main__":
    harness.main()
