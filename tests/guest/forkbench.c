/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sf-forkbench: the guest's side of `scripts/bench fork`.
 *
 *   sf-forkbench cpu ROUNDS            each round is the same work in registers and cache
 *   sf-forkbench memory ROUNDS MIB     each round writes a word in every cache line of MIB MiB
 *   sf-forkbench fork N                ticket, clone, join; prints what the parent's clock saw
 *   sf-forkbench fork N cpu ROUNDS     as fork, and each clone does the job and hands back its rounds
 *   sf-forkbench fork N memory ROUNDS MIB
 *   sf-forkbench fork N hold           as fork, and each clone puts a byte on the console at once, by an I/O instruction
 *                                      so that the guest spends nothing on it, then waits to be killed
 *   sf-forkbench resident              takes all memory that is available; writes to each page of it, and prints a line
 *                                      "resident MIB", once for each line of input
 *
 * A round is one line "round I START NS": start since the first round and duration, ns of CLOCK_MONOTONIC, so that the
 * reader can leave out the first second. Lines of a clone begin with "clone ID ".
 */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "libsf/snowflock.h"

#define NS            UINT64_C(1000000000)
#define MIB           (UINT64_C(1) << 20)
#define LINE          64                   /* bytes of a cache line */
#define CPU_STEPS     4000000              /* of a round; some 50 ms under TCG */
#define TABLE         4096                 /* words, fits the first-level cache */
#define RESULT_MAX    (1u << 20)
#define SPARE         (UINT64_C(24) * MIB) /* of the available memory, left to the kernel and to other programs */
#define PAGE          4096
#define KIB           1024
#define SERIAL_PORT   0x3f8

static uint64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * NS + time.tv_nsec;
}

static uint64_t cpu_round(uint64_t seed)
{
    static uint64_t table[TABLE];

    for (uint32_t i = 0; i < CPU_STEPS; i++) {
        seed = seed * UINT64_C(6364136223846793005) + 1;
        table[(seed >> 33) % TABLE] += seed;
    }
    return table[seed % TABLE];
}

static uint64_t memory_round(uint8_t *memory, uint64_t bytes, uint64_t seed)
{
    for (uint64_t at = 0; at < bytes; at += LINE) {
        *(uint64_t *)(memory + at) += seed;
    }
    return *(uint64_t *)(memory + bytes / 2);
}

/* Does the job, writes its lines into text; returns their length, 0: bad arguments. */
static size_t job(int argc, char **argv, char *text)
{
    uint64_t rounds = argc > 1 ? strtoull(argv[1], NULL, 0) : 0;
    uint64_t bytes = (argc > 2 ? strtoull(argv[2], NULL, 0) : 64) * MIB;
    int memory = argc > 0 && strcmp(argv[0], "memory") == 0;
    uint8_t *area = NULL;
    size_t length = 0;
    uint64_t first, sum = 0;

    if (!rounds || (!memory && strcmp(argv[0], "cpu") != 0)) {
        return 0;
    }
    if (memory) {
        area = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (area == MAP_FAILED) {
            return 0;
        }
    }
    first = now();
    for (uint64_t i = 0; i < rounds && length < RESULT_MAX - 128; i++) {
        uint64_t start = now();
        sum += memory ? memory_round(area, bytes, i + sum) : cpu_round(i + sum);
        length += sprintf(text + length, "round %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", i, start - first,
                          now() - start);
    }
    if (area) {
        munmap(area, bytes);
    }
    length += sprintf(text + length, "sum %" PRIu64 "\n", sum);
    return length;
}

static int fail(const char *what)
{
    fprintf(stderr, "sf-forkbench: %s: %s\n", what, sf_error());
    return 1;
}

/* The host sees the byte in the console's log: sf_clone() has returned here. */
_Noreturn static void hold(void)
{
    outb('\n', SERIAL_PORT);
    for (;;) {
        pause();
    }
}

static void show(sf_ticket *ticket, const struct sf_result *result)
{
    size_t length = 0;
    char *text = result->result_length ? sf_result_get(ticket, result->id, &length) : NULL;
    char *rest = NULL;

    printf("clone %u %s %d\n", result->id, sf_state_name(result->state), result->status);
    for (char *line = text ? strtok_r(text, "\n", &rest) : NULL; line; line = strtok_r(NULL, "\n", &rest)) {
        printf("clone %u %s\n", result->id, line);
    }
    free(text);
}

static int do_fork(int argc, char **argv, char *text)
{
    static struct sf_result results[SF_MAX_CLONES];
    unsigned count = argc > 0 ? strtoul(argv[0], NULL, 0) : 0;
    int holds = argc > 1 && strcmp(argv[1], "hold") == 0, bad = 0, id, n;
    uint64_t called, returned;
    sf_ticket *ticket;

    if (holds && ioperm(SERIAL_PORT, 1, 1) < 0) {
        perror("sf-forkbench: ioperm");
        return 1;
    }
    ticket = sf_request_ticket(count, 0);
    called = now();
    id = ticket ? sf_clone(ticket) : -1;
    if (id < 0) {
        return fail("fork");
    }
    if (id > 0) {
        size_t length;
        if (holds) {
            hold();
        }
        length = argc > 1 ? job(argc - 1, argv + 1, text) : 0;
        sf_exit_with(0, text, length);
        return fail("result");
    }
    returned = now();
    n = sf_join(ticket, results, SF_MAX_CLONES);
    if (n < 0) {
        return fail("join");
    }
    printf("fork granted=%u returned_ns=%" PRIu64 " joined_ns=%" PRIu64 "\n", sf_ticket_granted(ticket),
           returned - called, now() - called);
    for (int i = 0; i < n; i++) {
        show(ticket, &results[i]);
        bad |= results[i].state != SF_EXITED;
    }
    sf_release(ticket);
    sf_ticket_free(ticket);
    return bad;
}

static uint64_t available(void)
{
    char line[256];
    uint64_t kib = 0;
    FILE *file = fopen("/proc/meminfo", "r");

    while (file && !kib && fgets(line, sizeof(line), file)) {
        sscanf(line, "MemAvailable: %" SCNu64, &kib);
    }
    if (file) {
        fclose(file);
    }
    return kib * KIB;
}

static int resident(void)
{
    uint64_t bytes = available();
    uint8_t *area;
    int input;

    bytes = bytes > SPARE ? (bytes - SPARE) / PAGE * PAGE : 0;
    area = bytes ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : MAP_FAILED;
    if (area == MAP_FAILED) {
        perror("sf-forkbench: memory");
        return 1;
    }
    while ((input = getchar()) != EOF) {
        if (input == '\n') {
            for (uint64_t at = 0; at < bytes; at += PAGE) {
                area[at]++;
            }
            printf("resident %" PRIu64 "\n", bytes / MIB);
            fflush(stdout);
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    static char text[RESULT_MAX];
    size_t length;

    if (argc > 2 && strcmp(argv[1], "fork") == 0) {
        return do_fork(argc - 2, argv + 2, text);
    }
    if (argc == 2 && strcmp(argv[1], "resident") == 0) {
        return resident();
    }
    length = argc > 2 ? job(argc - 1, argv + 1, text) : 0;
    if (!length) {
        fprintf(stderr, "usage: sf-forkbench cpu ROUNDS | memory ROUNDS MIB | fork N [JOB|hold] | resident\n");
        return 1;
    }
    fwrite(text, 1, length, stdout);
    return 0;
}
