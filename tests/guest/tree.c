/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sf-tree COUNT: a hierarchical ticket for COUNT workers, in a real guest.
 *
 * Each worker hands over its id and the host name of its VM. Those with ids 3 and 4 then end in other ways: by a signal,
 * and by exit(). The parent prints "granted N", and for each worker a line
 *
 *     worker ID STATE STATUS SIGNAL "RESULT" TEXT
 *
 * sf-tree COUNT hold: the workers with even ids hand over and wait to be killed; the parent kills all once they have.
 */
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "libsf/snowflock.h"

#define NAME_MAX_LENGTH 64
#define LOOK_MS         50
#define SIGNALLED       3
#define SILENT          4

static void fail(const char *what)
{
    fprintf(stderr, "sf-tree: %s: %s\n", what, sf_error());
    exit(1);
}

static void work(int id, bool hold)
{
    char name[NAME_MAX_LENGTH], text[2 * NAME_MAX_LENGTH];

    gethostname(name, sizeof(name));
    snprintf(text, sizeof(text), "%d of %d on %s, process %d", sf_id(), sf_count(), name, (int)getpid());
    if (sf_id() != id || sf_sync(text, strlen(text)) < 0) {
        fail("sf_sync");
    }
    if (hold && id % 2 == 0) {
        pause();
    }
    if (!hold && id == SIGNALLED) {
        raise(SIGSEGV);
    }
    if (!hold && id == SILENT) {
        exit(id);
    }
    sf_exit(id);
}

/* Until everybody has handed over, and those who do not wait to be killed have ended. */
static void await_results(sf_ticket *ticket, struct sf_result *results, unsigned count)
{
    unsigned done;

    do {
        if (sf_join_timed(ticket, results, count, LOOK_MS) < 0) {
            fail("sf_join_timed");
        }
        done = 0;
        for (unsigned i = 0; i < count; i++) {
            done += results[i].result_length > 0 && (results[i].id % 2 == 0 || results[i].state == SF_EXITED);
        }
    } while (done < count);
}

int main(int argc, char **argv)
{
    static struct sf_result results[SF_MAX_CLONES];
    sf_ticket *ticket = argc > 1 ? sf_request_ticket((unsigned)atoi(argv[1]), SF_HIERARCHICAL) : NULL;
    bool hold = argc > 2 && strcmp(argv[2], "hold") == 0;
    unsigned count = sf_ticket_granted(ticket);
    int id = ticket ? sf_clone(ticket) : -1;

    if (id < 0) {
        fail("sf_clone");
    }
    if (id > 0) {
        work(id, hold);
    }
    printf("granted %u\n", count);
    if (hold) {
        await_results(ticket, results, count);
        if (sf_kill(ticket) < 0) {
            fail("sf_kill");
        }
    }
    if (sf_join(ticket, results, SF_MAX_CLONES) != (int)count) {
        fail("sf_join");
    }
    for (unsigned i = 0; i < count; i++) {
        char *text = sf_result_get(ticket, results[i].id, NULL);

        printf("worker %u %s %d %d \"%s\" %s\n", results[i].id, sf_state_name(results[i].state), results[i].status,
               results[i].signal, text ? text : sf_error(), results[i].text);
        free(text);
    }
    if (sf_release(ticket) < 0) {
        fail("sf_release");
    }
    sf_ticket_free(ticket);
    return 0;
}
