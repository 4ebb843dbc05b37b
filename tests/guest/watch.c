/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "tests/guest/watch.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define TICK_NS          5000000            /* of the periodic timer */
#define SPIN_LOOPS       2000000            /* iterations without a store to memory */
#define NS               UINT64_C(1000000000)

static pthread_t clock_thread, register_thread;
static atomic_bool clock_stop, register_stop;
static _Atomic uint64_t ticks, backward, longest, loops, bad;

static uint64_t now(clockid_t id)
{
    struct timespec time;

    clock_gettime(id, &time);
    return time.tv_sec * NS + time.tv_nsec;
}

static void *watch_clocks(void *data)
{
    struct itimerspec period = { .it_interval.tv_nsec = TICK_NS, .it_value.tv_nsec = TICK_NS };
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    uint64_t monotonic = now(CLOCK_MONOTONIC), boot = now(CLOCK_BOOTTIME), expired;

    if (fd < 0 || timerfd_settime(fd, 0, &period, NULL) < 0) {
        return NULL;
    }
    while (!atomic_load(&clock_stop) && read(fd, &expired, sizeof(expired)) == sizeof(expired)) {
        uint64_t m = now(CLOCK_MONOTONIC), b = now(CLOCK_BOOTTIME);

        if (m < monotonic || b < boot) {
            atomic_fetch_add(&backward, 1);
        } else if (m - monotonic > atomic_load(&longest)) {
            atomic_store(&longest, m - monotonic);
        }
        monotonic = m;
        boot = b;
        atomic_fetch_add(&ticks, expired);
    }
    close(fd);
    return NULL;
}

bool watch_clock_start(void)
{
    ticks = backward = longest = 0;
    clock_stop = false;
    return pthread_create(&clock_thread, NULL, watch_clocks, NULL) == 0;
}

void watch_clock_read(struct watch_clock *clock)
{
    clock->ticks = ticks;
    clock->backward = backward;
    clock->longest_ns = longest;
}

void watch_clock_stop(struct watch_clock *clock)
{
    clock_stop = true;
    pthread_join(clock_thread, NULL);
    watch_clock_read(clock);
}

/*
 * `count` turns with nothing but registers: rax runs a multiplicative generator, rbx its plain sum, xmm1..xmm3 hold
 * constants that a fourth is compared with in every turn. *bad_out: turns that found a constant changed.
 */
static void spin(uint64_t count, uint64_t *value, uint64_t *sum, uint64_t *bad_out)
{
    uint64_t a = *value, s = *sum, wrong = 0, multiplier = 6364136223846793005ull;

    __asm__ volatile(
        "movq %[m], %%xmm1\n\t"
        "movq %[m], %%xmm2\n\t"
        "punpcklqdq %%xmm1, %%xmm1\n\t"
        "punpcklqdq %%xmm2, %%xmm2\n\t"
        "1:\n\t"
        "imulq %[m], %[a]\n\t"
        "incq %[a]\n\t"
        "addq %[a], %[s]\n\t"
        "movdqa %%xmm1, %%xmm3\n\t"
        "pcmpeqb %%xmm2, %%xmm3\n\t"
        "pmovmskb %%xmm3, %%edx\n\t"
        "cmpl $0xffff, %%edx\n\t"
        "je 2f\n\t"
        "incq %[w]\n\t"
        "2:\n\t"
        "decq %[n]\n\t"
        "jnz 1b\n\t"
        : [a] "+r"(a), [s] "+r"(s), [w] "+r"(wrong), [n] "+r"(count)
        : [m] "r"(multiplier)
        : "rdx", "cc", "xmm1", "xmm2", "xmm3");
    *value = a;
    *sum = s;
    *bad_out += wrong;
}

static void *watch_registers(void *data)
{
    uint64_t first = 1, first_sum = 0, wrong = 0;

    /* What one run of the loop must give is found once, by the same loop; the fork falls into one of the later runs. */
    spin(SPIN_LOOPS, &first, &first_sum, &wrong);
    while (!atomic_load(&register_stop)) {
        uint64_t value = 1, sum = 0;

        spin(SPIN_LOOPS, &value, &sum, &wrong);
        wrong += value != first || sum != first_sum;
        atomic_store(&bad, wrong);
        atomic_fetch_add(&loops, 1);
    }
    return NULL;
}

bool watch_registers_start(void)
{
    loops = bad = 0;
    register_stop = false;
    return pthread_create(&register_thread, NULL, watch_registers, NULL) == 0;
}

void watch_registers_stop(uint64_t *loops_out, uint64_t *bad_out)
{
    register_stop = true;
    pthread_join(register_thread, NULL);
    *loops_out = loops;
    *bad_out = bad;
}
