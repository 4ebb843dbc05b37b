/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "tests/guest/api.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "libsf/snowflock.h"
#include "tests/guest/store.h"

#define SLOTS_MAX      4
#define THREADS_MAX    8
#define READ_PIECE     100000           /* an odd size, so that pieces do not fall on the protocol's */
#define SHOWN          16               /* members that the answer to join lists */

static sf_ticket *tickets[SLOTS_MAX];

static uint64_t number(char **words, int count, int index, uint64_t otherwise)
{
    return index < count ? strtoull(words[index], NULL, 0) : otherwise;
}

static bool failed(char *text, const char *what)
{
    int error = errno;

    snprintf(text, API_TEXT, "%s: errno=%d %s", what, error, sf_error());
    return false;
}

static uint8_t *pattern(size_t length, uint64_t value)
{
    uint8_t *data = malloc(length / 8 * 8 + 8);

    if (data) {
        store_pattern(data, length / 8 * 8 + 8, value, 0);
    }
    return data;
}

static bool do_ticket(sf_ticket **slot, uint64_t count, uint64_t seconds, char *text)
{
    if (*slot) {
        sf_ticket_free(*slot);
    }
    *slot = sf_request_ticket(count, SF_QUEUE(seconds));
    if (!*slot) {
        return failed(text, "ticket");
    }
    snprintf(text, API_TEXT, "granted=%u ticket=%016" PRIx64, sf_ticket_granted(*slot), sf_ticket_id(*slot));
    return true;
}

static bool do_clone(sf_ticket *slot, char *text)
{
    int id = sf_clone(slot);

    if (id < 0) {
        return failed(text, "clone");
    }
    snprintf(text, API_TEXT, "id=%d self=%d count=%d", id, sf_id(), sf_count());
    return true;
}

static bool do_checkpoint(const char *name, char *text)
{
    int id = sf_checkpoint_parent(name);

    if (id < 0) {
        return failed(text, "checkpoint");
    }
    snprintf(text, API_TEXT, "id=%d self=%d count=%d", id, sf_id(), sf_count());
    return true;
}

static bool do_create(sf_ticket **slot, const char *name, unsigned count, char *text)
{
    if (*slot) {
        sf_ticket_free(*slot);
    }
    *slot = sf_create_clones(name, count);
    if (!*slot) {
        return failed(text, "create");
    }
    snprintf(text, API_TEXT, "granted=%u ticket=%016" PRIx64, sf_ticket_granted(*slot), sf_ticket_id(*slot));
    return true;
}

static bool do_sync(uint64_t length, uint64_t value, char *text)
{
    uint8_t *data = pattern(length, value);
    int status = data ? sf_sync(data, length) : -1;

    free(data);
    return status == 0 ? true : failed(text, "sync");
}

static bool do_exit(char **words, int count, char *text)
{
    uint64_t length = number(words, count, 2, 0);
    uint8_t *data;

    if (count < 3) {
        sf_exit(number(words, count, 1, 0));
    }
    data = pattern(length, number(words, count, 3, 0));
    if (data) {
        sf_exit_with(number(words, count, 1, 0), data, length);
    }
    return failed(text, "exit");
}

static bool do_join(sf_ticket *slot, int timeout_ms, char *text)
{
    static struct sf_result results[SF_MAX_CLONES];
    int n, length;

    memset(results, 0, sizeof(results));
    n = sf_join_timed(slot, results, SF_MAX_CLONES, timeout_ms);
    if (n < 0) {
        return failed(text, "join");
    }
    for (bool all = n > 0; !all && n < (int)SF_MAX_CLONES && results[n].id; n++) {
        /* Some have not ended: tell of all that there are. */
    }
    length = snprintf(text, API_TEXT, "n=%d", n);
    for (int i = 0; i < n && i < SHOWN; i++) {
        length += snprintf(text + length, API_TEXT - length, " m%u=%s:%d:%" PRIu64, results[i].id,
                           sf_state_name(results[i].state), results[i].status, results[i].result_length);
    }
    return true;
}

static bool same(const uint8_t *have, const uint8_t *want, uint64_t length, uint64_t offset, char *text)
{
    if (memcmp(have, want, length) == 0) {
        return true;
    }
    snprintf(text, API_TEXT, "result differs in the %" PRIu64 " bytes from %" PRIu64, length, offset);
    return false;
}

/* The whole result in odd pieces, and again at once. */
static bool do_fetch(sf_ticket *slot, unsigned id, uint64_t value, char *text)
{
    uint8_t *want = pattern(SF_MAX_RESULT, value), *piece = malloc(READ_PIECE);
    size_t whole = 0;
    char *all = NULL;
    uint64_t offset = 0;
    ssize_t got = 0;
    bool ok = want && piece;

    while (ok && (got = sf_result_read(slot, id, piece, READ_PIECE, offset)) > 0) {
        ok = same(piece, want + offset, got, offset, text);
        offset += got;
    }
    if (ok && got == 0) {
        all = sf_result_get(slot, id, &whole);
    }
    if (ok && (got < 0 || !all)) {
        ok = failed(text, "fetch");
    }
    if (ok) {
        ok = whole == offset && same((uint8_t *)all, want, whole, 0, text);
    }
    if (ok) {
        snprintf(text, API_TEXT, "length=%zu", whole);
    }
    free(all);
    free(piece);
    free(want);
    return ok;
}

/* Fork, hand back, join, release: once. */
static bool cycle(unsigned count, unsigned turn, char *text)
{
    struct sf_result results[SF_MAX_CLONES];
    sf_ticket *ticket = sf_request_ticket(count, 0);
    uint32_t value;
    int id, n;
    bool ok = true;

    if (!ticket) {
        return failed(text, "ticket");
    }
    id = sf_clone(ticket);
    if (id > 0) {
        value = turn * SF_MAX_CLONES + id;
        sf_exit_with(id, &value, sizeof(value));
        _exit(1);
    }
    n = id == 0 ? sf_join(ticket, results, count) : -1;
    if (n != (int)count) {
        ok = failed(text, id ? "clone" : "join");
    }
    for (int i = 0; ok && i < n; i++) {
        if (results[i].state != SF_EXITED || results[i].status != i + 1
            || sf_result_read(ticket, i + 1, &value, sizeof(value), 0) != sizeof(value)
            || value != turn * SF_MAX_CLONES + i + 1) {
            snprintf(text, API_TEXT, "turn %u, clone %d: state %s, status %d: %s", turn, i + 1,
                     sf_state_name(results[i].state), results[i].status, results[i].text);
            ok = false;
        }
    }
    if (sf_release(ticket) < 0 && ok) {
        ok = failed(text, "release");
    }
    sf_ticket_free(ticket);
    return ok;
}

static bool do_cycles(unsigned turns, unsigned count, char *text)
{
    for (unsigned turn = 0; turn < turns; turn++) {
        if (!cycle(count, turn, text)) {
            return false;
        }
    }
    snprintf(text, API_TEXT, "turns=%u", turns);
    return true;
}

struct worker {
    pthread_t thread;
    unsigned turns, count;
    bool ok;
    char text[API_TEXT];
};

static void *work(void *data)
{
    struct worker *worker = data;

    worker->ok = do_cycles(worker->turns, worker->count, worker->text);
    return NULL;
}

/* Several threads of one process at once. In a clone the threads that did not fork it see their calls fail. */
static bool do_threads(unsigned threads, unsigned turns, unsigned count, char *text)
{
    static struct worker workers[THREADS_MAX];
    bool ok = true;

    for (unsigned i = 0; i < threads && i < THREADS_MAX; i++) {
        workers[i] = (struct worker){ .turns = turns, .count = count };
        pthread_create(&workers[i].thread, NULL, work, &workers[i]);
    }
    for (unsigned i = 0; i < threads && i < THREADS_MAX; i++) {
        pthread_join(workers[i].thread, NULL);
        if (!workers[i].ok) {
            snprintf(text, API_TEXT, "thread %u: %.*s", i, API_TEXT - 32, workers[i].text);
            ok = false;
        }
    }
    return ok;
}

/* Several processes at once. */
static bool do_programs(unsigned programs, unsigned turns, unsigned count, char *text)
{
    bool ok = true;
    pid_t pids[THREADS_MAX];

    for (unsigned i = 0; i < programs && i < THREADS_MAX; i++) {
        pids[i] = fork();
        if (pids[i] == 0) {
            bool fine = do_cycles(turns, count, text);
            if (!fine) {
                fprintf(stderr, "program %u: %s\n", i, text);
            }
            _exit(!fine);
        }
    }
    for (unsigned i = 0; i < programs && i < THREADS_MAX; i++) {
        int status = 1;
        if (waitpid(pids[i], &status, 0) < 0 || status) {
            snprintf(text, API_TEXT, "program %u: wait status %d", i, status);
            ok = false;
        }
    }
    return ok;
}

bool api_command(char **words, int count, char *text)
{
    const char *verb = words[0];
    uint64_t first = number(words, count, 1, 0);
    sf_ticket **slot = &tickets[first % SLOTS_MAX];

    text[0] = 0;
    if (strcmp(verb, "ticket") == 0) {
        return do_ticket(slot, number(words, count, 2, 1), number(words, count, 3, 0), text);
    } else if (strcmp(verb, "checkpoint") == 0) {
        return do_checkpoint(count > 1 ? words[1] : "", text);
    } else if (strcmp(verb, "create") == 0) {
        return do_create(slot, count > 2 ? words[2] : "", number(words, count, 3, 1), text);
    } else if (strcmp(verb, "forget") == 0) {
        return sf_checkpoint_forget(count > 1 ? words[1] : "") == 0 ? true : failed(text, verb);
    } else if (strcmp(verb, "self") == 0) {
        snprintf(text, API_TEXT, "id=%d count=%d", sf_id(), sf_count());
        return sf_id() >= 0;
    } else if (strcmp(verb, "sync") == 0) {
        return do_sync(first, number(words, count, 2, 0), text);
    } else if (strcmp(verb, "exit") == 0) {
        return do_exit(words, count, text);
    } else if (strcmp(verb, "cycles") == 0) {
        return do_cycles(first, number(words, count, 2, 1), text);
    } else if (strcmp(verb, "threads") == 0) {
        return do_threads(first, number(words, count, 2, 1), number(words, count, 3, 1), text);
    } else if (strcmp(verb, "programs") == 0) {
        return do_programs(first, number(words, count, 2, 1), number(words, count, 3, 1), text);
    } else if (strcmp(verb, "openticket") == 0) {
        *slot = sf_ticket_open(number(words, count, 2, 0));
        return *slot ? true : failed(text, verb);
    } else if (!*slot) {
        snprintf(text, API_TEXT, "%s: unknown command, or no ticket in slot %s", verb, count > 1 ? words[1] : "?");
        return false;
    } else if (strcmp(verb, "clone") == 0) {
        return do_clone(*slot, text);
    } else if (strcmp(verb, "join") == 0) {
        return do_join(*slot, -1, text);
    } else if (strcmp(verb, "look") == 0) {
        return do_join(*slot, 0, text);
    } else if (strcmp(verb, "fetch") == 0) {
        return do_fetch(*slot, number(words, count, 2, 0), number(words, count, 3, 0), text);
    } else if (strcmp(verb, "kill") == 0) {
        return sf_kill(*slot) == 0 ? true : failed(text, verb);
    } else if (strcmp(verb, "release") == 0) {
        return sf_release(*slot) == 0 ? true : failed(text, verb);
    }
    snprintf(text, API_TEXT, "%s: unknown command", verb);
    return false;
}
