/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sf-probe: a program that a test drives through a guest's console. It reads one command a line and answers each with
 * one line that begins with "= ok" or "= bad". Forked, it goes on in every clone: the test speaks to each over the
 * clone's own console.
 *
 *   open NAME mem MIB | open NAME dev PATH MIB | open NAME dir PATH FILES      (MIB 0: all there is)
 *   fill NAME NUMBER [STEP FIRST]      verify NAME NUMBER [STEP FIRST]         close NAME
 *   churn NAME                         settle NAME                             (store.h)
 *   clock start | read | stop          regs start | stop                       (watch.h)
 *   time   setclock SECONDS            rng                                     urandom             host
 *   ticket SLOT COUNT [SECONDS TO WAIT]
 *   clone SLOT           self                    sync BYTES NUMBER             exit STATUS [BYTES NUMBER]
 *   join SLOT            look SLOT               fetch SLOT ID NUMBER          kill SLOT         release SLOT
 *   cycles TURNS COUNT   threads THREADS TURNS COUNT                           programs PROGRAMS TURNS COUNT
 *   quit
 *
 * One thread reads and does; stores and watches have threads of their own.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "tests/guest/api.h"
#include "tests/guest/store.h"
#include "tests/guest/watch.h"

#define STORES_MAX    8
#define WORDS_MAX     8
#define COMMAND_MAX   1024
#define BLANKS        " \r\n"
#define RANDOM_BYTES  16
#define NS            UINT64_C(1000000000)

static struct store *stores[STORES_MAX];
static int urandom = -1;         /* opened before any fork */

static void answer(bool ok, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void answer(bool ok, const char *format, ...)
{
    va_list args;

    printf("= %s ", ok ? "ok" : "bad");
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
    fflush(stdout);
}

static struct store **find_store(const char *name)
{
    for (int i = 0; i < STORES_MAX; i++) {
        if (name ? stores[i] && strcmp(stores[i]->name, name) == 0 : !stores[i]) {
            return &stores[i];
        }
    }
    return NULL;
}

static uint64_t number(char **words, int index, uint64_t otherwise)
{
    return words[index] ? strtoull(words[index], NULL, 0) : otherwise;
}

static void do_open(char **words)
{
    struct store **place = find_store(NULL);
    char error[STORE_TEXT] = "unknown kind";
    const char *name = words[1], *kind = words[2];

    if (!name || !kind || !words[3] || !place || find_store(name)) {
        answer(false, "open: bad arguments");
        return;
    }
    if (strcmp(kind, "mem") == 0) {
        *place = store_open_memory(name, number(words, 3, 0), error);
    } else if (strcmp(kind, "dev") == 0) {
        *place = store_open_device(name, words[3], number(words, 4, 0), error);
    } else if (strcmp(kind, "dir") == 0) {
        *place = store_open_folder(name, words[3], number(words, 4, 0), error);
    }
    if (*place) {
        answer(true, "slots=%" PRIu64 " slot_size=%zu", (*place)->slots, (*place)->slot_size);
    } else {
        answer(false, "open %s: %s", name, error);
    }
}

static void do_store(char **words)
{
    struct store **place = words[1] ? find_store(words[1]) : NULL;
    struct store *store = place ? *place : NULL;
    uint64_t value = number(words, 2, 0), step = number(words, 3, 1), first = number(words, 4, 0), written = 0;
    bool ok = true;

    if (!store || !step) {
        answer(false, "%s: no such store", words[0]);
        return;
    }
    if (strcmp(words[0], "close") == 0) {
        store_close(store);
        *place = NULL;
        answer(true, "closed");
        return;
    }
    if (strcmp(words[0], "churn") == 0) {
        ok = store_churn(store);
    } else if (strcmp(words[0], "settle") == 0) {
        ok = store_settle(store, &written);
    } else if (store->churning) {
        answer(false, "%s: %s is being churned", words[0], store->name);
        return;
    } else if (strcmp(words[0], "fill") == 0) {
        ok = store_fill(store, value, step, first);
    } else {
        ok = store_verify(store, value, step, first);
    }
    if (ok) {
        answer(true, "slots=%" PRIu64 " written=%" PRIu64, store->slots, written);
    } else {
        answer(false, "%s %s: %s", words[0], store->name, store->error);
    }
}

static void do_clock(char **words)
{
    struct watch_clock clock = { 0 };
    bool ok = true;

    if (words[1] && strcmp(words[1], "start") == 0) {
        ok = watch_clock_start();
    } else if (words[1] && strcmp(words[1], "read") == 0) {
        watch_clock_read(&clock);
    } else {
        watch_clock_stop(&clock);
    }
    answer(ok && !clock.backward, "ticks=%" PRIu64 " backward=%" PRIu64 " longest_ns=%" PRIu64, clock.ticks,
           clock.backward, clock.longest_ns);
}

static void do_regs(char **words)
{
    uint64_t loops = 0, bad = 0;
    bool ok = true;

    if (words[1] && strcmp(words[1], "start") == 0) {
        ok = watch_registers_start();
    } else {
        watch_registers_stop(&loops, &bad);
    }
    answer(ok && !bad, "loops=%" PRIu64 " bad=%" PRIu64, loops, bad);
}

static void do_time(void)
{
    struct timespec real, monotonic;

    clock_gettime(CLOCK_REALTIME, &real);
    clock_gettime(CLOCK_MONOTONIC, &monotonic);
    answer(true, "real=%" PRIu64 " mono=%" PRIu64, (uint64_t)real.tv_sec * NS + real.tv_nsec,
           (uint64_t)monotonic.tv_sec * NS + monotonic.tv_nsec);
}

/* Random bytes from the system call, or from a descriptor that was open before the fork. */
static void do_random(bool device)
{
    uint8_t bytes[RANDOM_BYTES];
    char text[2 * RANDOM_BYTES + 1];
    ssize_t got = device ? read(urandom, bytes, sizeof(bytes)) : getrandom(bytes, sizeof(bytes), 0);

    if (got != sizeof(bytes)) {
        answer(false, "random: %s", strerror(errno));
        return;
    }
    for (int i = 0; i < RANDOM_BYTES; i++) {
        snprintf(text + 2 * i, 3, "%02x", bytes[i]);
    }
    answer(true, "random=%s", text);
}

static bool do_line(char *line)
{
    char *words[WORDS_MAX + 1] = { NULL }, *rest = NULL;
    static const char *const store_verbs[] = { "fill", "verify", "churn", "settle", "close" };
    int count = 0;

    for (char *word = strtok_r(line, BLANKS, &rest); word && count < WORDS_MAX; word = strtok_r(NULL, BLANKS, &rest)) {
        words[count++] = word;
    }
    if (!count) {
        return true;
    }
    for (size_t i = 0; i < sizeof(store_verbs) / sizeof(*store_verbs); i++) {
        if (strcmp(words[0], store_verbs[i]) == 0) {
            do_store(words);
            return true;
        }
    }
    if (strcmp(words[0], "quit") == 0) {
        answer(true, "quit");
        return false;
    } else if (strcmp(words[0], "open") == 0) {
        do_open(words);
    } else if (strcmp(words[0], "clock") == 0) {
        do_clock(words);
    } else if (strcmp(words[0], "regs") == 0) {
        do_regs(words);
    } else if (strcmp(words[0], "time") == 0) {
        do_time();
    } else if (strcmp(words[0], "rng") == 0) {
        do_random(false);
    } else if (strcmp(words[0], "urandom") == 0) {
        do_random(true);
    } else if (strcmp(words[0], "setclock") == 0) {
        struct timespec when = { .tv_sec = number(words, 1, 0) };
        answer(clock_settime(CLOCK_REALTIME, &when) == 0, "set");
    } else if (strcmp(words[0], "host") == 0) {
        char name[HOST_NAME_MAX + 1] = "";
        gethostname(name, sizeof(name) - 1);
        answer(true, "name=%s", name);
    } else {
        char text[API_TEXT] = "unknown command";
        bool ok = api_command(words, count, text);

        answer(ok, "%s", text);
    }
    return true;
}

int main(void)
{
    char line[COMMAND_MAX];

    urandom = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    answer(true, "probe pid=%d", (int)getpid());
    while (fgets(line, sizeof(line), stdin) && do_line(line)) {
    }
    return 0;
}
