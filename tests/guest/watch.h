/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Threads that watch what a fork must not disturb: clocks and timers, and the registers of a vCPU in user mode.
 * Each pair start/stop is called from one thread; the watching thread owns everything between.
 */
#ifndef SF_TESTS_WATCH_H
#define SF_TESTS_WATCH_H

#include <stdbool.h>
#include <stdint.h>

struct watch_clock {
    uint64_t ticks;              /* expirations of a periodic timer */
    uint64_t backward;           /* times that CLOCK_MONOTONIC or CLOCK_BOOTTIME went back: must be 0 */
    uint64_t longest_ns;         /* longest time between two ticks, as the guest sees it */
};

bool watch_clock_start(void);
void watch_clock_read(struct watch_clock *clock);
void watch_clock_stop(struct watch_clock *clock);

/* A loop in registers alone, general and SSE. *bad: times that one was not what it must be. */
bool watch_registers_start(void);
void watch_registers_stop(uint64_t *loops, uint64_t *bad);

#endif
