/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Workers of a hierarchical ticket, as real processes. A thread plays sf-agent and the host: it keeps what a clone hands
 * over and answers the parent from that. Each clone is a process of its own that is told another id.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent_socket.h"
#include "libsf/snowflock.h"
#include "libsf/ticket.h"
#include "libsf/wire/message.h"
#include "libsf/worker_table.h"

#define TICKET       0x55
#define OTHER_TICKET 0x66
#define PER_VM       3
#define WORKERS      8      /* of three clones, the last with two */
#define CLONES       3
#define TEXT_MAX     64

/* What the host knows of a clone. One clone talks at a time; what waits for it looks at the atomics. */
static struct {
    struct sf_gp_member member;
    uint8_t *data, *coming;
    atomic_uint syncs;
    atomic_bool exited;
} clones[CLONES + 1];

static atomic_uint current;     /* the clone that talks; 0: the parent */
static _Atomic uint64_t current_ticket = TICKET;

/* ---- the host ---- */

static void take_sync(unsigned id, const uint8_t *payload, size_t payload_length)
{
    struct sf_gp_sync sync;
    const uint8_t *data;
    size_t length;

    CHECK(sf_gp_sync_parse(&sync, &data, &length, payload, payload_length));
    if (sync.offset == 0) {
        free(clones[id].coming);
        clones[id].coming = malloc(sync.total + 1);
    }
    memcpy(clones[id].coming + sync.offset, data, length);
    if (sync.offset + length == sync.total) {
        free(clones[id].data);
        clones[id].data = clones[id].coming;
        clones[id].coming = NULL;
        clones[id].member.result_length = sync.total;
        atomic_fetch_add(&clones[id].syncs, 1);
    }
}

static size_t give(const uint8_t *argument, uint8_t *payload)
{
    struct sf_gp_fetch fetch;
    size_t all, length;

    CHECK(sf_gp_fetch_parse(&fetch, argument, SF_GP_FETCH_LENGTH) && fetch.id >= 1 && fetch.id <= CLONES);
    all = clones[fetch.id].member.result_length;
    length = fetch.offset >= all ? 0 : all - fetch.offset < fetch.length ? all - fetch.offset : fetch.length;
    if (length > 0) {
        memcpy(payload, clones[fetch.id].data + fetch.offset, length);
    }
    return length;
}

static size_t answer(const struct sf_gp_header *request, const uint8_t *argument, uint8_t *payload)
{
    unsigned id = atomic_load(&current);
    size_t length = 0;

    switch (request->type) {
    case SF_GP_CLONE:
        return sf_gp_cloned_pack(payload, &(struct sf_gp_cloned){ .id = id, .count = CLONES });
    case SF_GP_SELF:
        return sf_gp_self_pack(payload, &(struct sf_gp_self){ .ticket = id ? atomic_load(&current_ticket) : 0, .id = id,
                                                              .count = id ? CLONES : 0 });
    case SF_GP_SYNC:
        take_sync(id, argument, request->length);
        return 0;
    case SF_GP_EXIT:
        clones[id].member.state = SF_GP_STATE_EXITED;
        atomic_store(&clones[id].exited, true);
        return 0;
    case SF_GP_JOIN:
        for (unsigned i = 1; i <= CLONES; i++) {
            clones[i].member.id = i;
            clones[i].member.count = CLONES;
            length += sf_gp_member_pack(payload + length, &clones[i].member);
        }
        return length;
    case SF_GP_FETCH:
        return give(argument, payload);
    default:
        return 0;
    }
}

static void *serve(void *opaque)
{
    static _Thread_local uint8_t packet[SF_GP_MAX_MESSAGE], reply[2 * SF_GP_MAX_MESSAGE];
    int fd = (int)(intptr_t)opaque;
    struct sf_gp_header header;
    const uint8_t *payload;
    ssize_t got;

    while ((got = recv(fd, packet, sizeof(packet), 0)) > 0) {
        CHECK(sf_gp_packet_parse(&header, &payload, packet, (size_t)got));
        header.length = (uint32_t)answer(&header, payload, reply + SF_GP_HEADER_LENGTH);
        header.type |= SF_GP_REPLY;
        sf_gp_header_pack(reply, &header);
        send(fd, reply, SF_GP_HEADER_LENGTH + header.length, MSG_NOSIGNAL);
    }
    close(fd);
    return NULL;
}

/* ---- a clone ---- */

/* A process that goes on in the clone: its keeper and workers run work(). Returns its pid. */
static pid_t start_clone(unsigned clone, void (*work)(int id))
{
    pid_t pid;

    atomic_store(&current, clone);
    clones[clone].member.state = SF_GP_STATE_RUNNING;
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        sf_ticket *ticket = sf_ticket_new(TICKET, WORKERS, PER_VM);
        int id;

        atomic_store(&ticket->state, TICKET_FRESH);
        id = sf_clone(ticket);
        CHECK(id > 0 && sf_id() == id && sf_count() == WORKERS);
        CHECK(sf_join(ticket, NULL, 0) == -1 && errno == ECHILD);
        sf_ticket_free(ticket);
        work(id);
        abort(); /* work() does not return */
    }
    return pid;
}

static void end_clone(pid_t pid)
{
    int status;

    CHECK(kill(pid, SIGKILL) == 0 && waitpid(pid, &status, 0) == pid);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL); /* the keeper had not ended of itself */
    atomic_store(&current, 0);
}

static void await(atomic_bool *flag)
{
    while (!atomic_load(flag)) {
        usleep(1000);
    }
}

/* What workers tell the test. pids[0]: the one that does not end. */
static struct {
    atomic_int pids[PER_VM + 1];
    atomic_bool go, done;
} *shared;

static void work(int id)
{
    static char large[SF_MAX_RESULT];
    pid_t child;
    int status;

    switch (id) {
    case 1:
        sf_exit_with(0, "one", 3);
        break;
    case 2:
        CHECK(sf_sync("none", 4) == 0 && sf_sync("two", 3) == 0);
        kill(getpid(), SIGTERM);
        break;
    case 3:
        sf_exit(7);
        break;
    case 4:
        _exit(5);
    case 5: /* a process of the worker speaks for it; one that it leaves behind does not hold it up */
        child = fork();
        if (child == 0) {
            _exit(sf_id() == 5 && sf_sync("five", 4) == 0 ? 0 : 1);
        }
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        if (fork() == 0) {
            for (;;) {
                pause();
            }
        }
        sf_exit(0);
        break;
    case 6: /* what does not fit leaves what was there, and the worker goes on */
        CHECK(sf_sync("six", 3) == 0);
        CHECK(sf_sync(large, sizeof(large)) == -1 && errno == EFBIG && strstr(sf_error(), "together"));
        CHECK(sf_exit_with(3, large, sizeof(large)) == -1 && errno == EFBIG);
        sf_exit(6);
        break;
    case 7:
        sf_exit_with(0, "seven", 5);
        break;
    default:
        atomic_store(&shared->pids[0], getpid());
        for (;;) {
            pause();
        }
    }
}

/* ---- tests ---- */

static void expect(const struct sf_result *result, unsigned id, int state, int status, int signal, const char *data,
                   const char *text, sf_ticket *ticket)
{
    size_t length;
    char *got = sf_result_get(ticket, id, &length), part[2];

    if (result->id != id || result->state != state || result->status != status || result->signal != signal) {
        fprintf(stderr, "worker %u: %s, status %d, signal %d, \"%s\"\n", result->id, sf_state_name(result->state),
                result->status, result->signal, result->text);
        exit(1);
    }
    CHECK(got && length == strlen(data) && strcmp(got, data) == 0 && result->result_length == length);
    CHECK(length < 3 || (sf_result_read(ticket, id, part, 2, 1) == 2 && memcmp(part, data + 1, 2) == 0));
    CHECK(sf_result_read(ticket, id, part, 2, length) == 0);
    CHECK(strstr(result->text, text));
    free(got);
}

static void test_tree(void)
{
    struct sf_result results[WORKERS + 1] = { { 0 } };
    sf_ticket *ticket = sf_ticket_new(TICKET, WORKERS, PER_VM);
    struct sf_gp_member *last = &clones[CLONES].member;
    pid_t pid;

    CHECK(sf_clone(ticket) == 0 && sf_id() == 0 && sf_count() == 0);
    for (unsigned clone = 1; clone < CLONES; clone++) {
        pid = start_clone(clone, work);
        await(&clones[clone].exited);
        end_clone(pid);
    }
    /* The last clone is killed by its host while one of its workers runs. */
    last->state = SF_GP_STATE_RUNNING;
    CHECK(sf_join_timed(ticket, results, WORKERS, 0) == 0 && results[6].state == SF_RUNNING);
    pid = start_clone(CLONES, work);
    while (atomic_load(&clones[CLONES].syncs) == 0) {
        usleep(1000);
    }
    atomic_store(&current, 0);
    CHECK(sf_join_timed(ticket, results, WORKERS, 0) == 0);
    CHECK(results[6].state == SF_EXITED && results[7].state == SF_RUNNING && results[0].state == SF_EXITED);
    while (atomic_load(&shared->pids[0]) == 0) {
        usleep(1000);
    }
    end_clone(pid);
    kill(atomic_load(&shared->pids[0]), SIGKILL); /* it would go with its VM */
    last->state = SF_GP_STATE_KILLED;
    sf_gp_text_set(last->text, sizeof(last->text), "killed by its parent");

    CHECK(sf_join(ticket, results, WORKERS + 1) == WORKERS && results[WORKERS].id == 0);
    expect(&results[0], 1, SF_EXITED, 0, 0, "one", "", ticket);
    expect(&results[1], 2, SF_LOST, 0, SIGTERM, "two", "signal 15", ticket);
    expect(&results[2], 3, SF_EXITED, 7, 0, "", "", ticket);
    expect(&results[3], 4, SF_LOST, 0, 0, "", "status 5, without sf_exit()", ticket);
    expect(&results[4], 5, SF_EXITED, 0, 0, "five", "", ticket);
    expect(&results[5], 6, SF_EXITED, 6, 0, "six", "", ticket);
    expect(&results[6], 7, SF_EXITED, 0, 0, "seven", "", ticket);
    expect(&results[7], 8, SF_KILLED, 0, 0, "", "killed by its parent", ticket);
    CHECK(sf_result_read(ticket, 9, results, 1, 0) == -1 && errno == EINVAL);

    /* Another program of clone 1 hands over something else, and ends it. */
    memset(clones[1].data, 'x', clones[1].member.result_length);
    CHECK(sf_join(ticket, results, 2) == WORKERS && results[0].state == SF_LOST && results[0].result_length == 0);
    sf_ticket_free(ticket);
}

static void await_workers(void)
{
    for (unsigned id = 1; id <= PER_VM; id++) {
        while (atomic_load(&shared->pids[id]) == 0) {
            usleep(1000);
        }
    }
}

static void await_end(pid_t pid)
{
    char name[TEXT_MAX], state = '?';
    FILE *file;

    snprintf(name, sizeof(name), "/proc/%d/stat", (int)pid);
    while (state != 'Z' && (file = fopen(name, "r"))) {
        if (fscanf(file, "%*d %*s %c", &state) != 1) {
            state = 'Z'; /* it ended meanwhile */
        }
        fclose(file);
        usleep(1000);
    }
}

static void fork_again(int id)
{
    atomic_store(&shared->pids[id], getpid());
    if (id == 1) {
        sf_ticket *other = sf_ticket_new(OTHER_TICKET, CLONES, 0);

        await(&shared->go);
        CHECK(sf_clone(other) == 1);
        CHECK(sf_id() == 1 && sf_count() == CLONES); /* of the VM */
        CHECK(sf_sync("mine", 4) == 0);
        atomic_store(&shared->done, true);
    }
    for (;;) {
        pause();
    }
}

/* A worker that forks its VM is the new one's program; the other workers are not there any more. */
static void test_fork_again(void)
{
    unsigned before = atomic_load(&clones[1].syncs);
    pid_t pid = start_clone(1, fork_again);

    await_workers();
    atomic_store(&shared->go, true);
    await(&shared->done);
    CHECK(atomic_load(&clones[1].syncs) == before + 1 && clones[1].member.result_length == 4);
    await_end(atomic_load(&shared->pids[2]));
    await_end(atomic_load(&shared->pids[3]));
    CHECK(kill(atomic_load(&shared->pids[1]), SIGKILL) == 0);
    end_clone(pid);
}

static void sync_late(int id)
{
    atomic_store(&shared->pids[id], getpid());
    await(&shared->go);
    if (id == 1) {
        sf_sync("late", 4);
    }
    for (;;) {
        pause();
    }
}

/* A VM that another program has forked: its keeper notices before it says anything. */
static void test_foreign_fork(void)
{
    unsigned before = atomic_load(&clones[1].syncs);
    pid_t pid;

    memset(shared, 0, sizeof(*shared));
    pid = start_clone(1, sync_late);
    await_workers();
    atomic_store(&current_ticket, OTHER_TICKET);
    atomic_store(&shared->go, true);
    for (unsigned id = 1; id <= PER_VM; id++) {
        await_end(atomic_load(&shared->pids[id]));
    }
    CHECK(atomic_load(&clones[1].syncs) == before);
    atomic_store(&current_ticket, TICKET);
    end_clone(pid);
}

static void test_table(void)
{
    static const struct {
        size_t offset;
        uint8_t value;
    } broken[] = { { 0, 0 },       /* magic */
                   { 4, 1 },       /* count */
                   { 16, SF_GP_STATE_KILLED }, { 17, 1 }, { 24, 9 }, /* state; a signal that ended none */
                   { 28, 1 },      /* not zero */
                   { 32, 79 },     /* in the table */
                   { 35, 4 }, { 43, 4 }, { 47, 0x80 }, /* behind the end */
                   { 56, 128 } };  /* no such signal */
    const struct sf_worker_entry entries[2] = {
        { .state = SF_GP_STATE_EXITED, .status = -1, .offset = 80, .length = 5 },
        { .state = SF_GP_STATE_LOST, .signal = 9, .offset = 85 },
    };
    struct sf_worker_entry back[2];
    uint8_t table[80];
    uint64_t generation;

    CHECK(sf_worker_table_length(2) == sizeof(table));
    for (size_t i = 0; i < sizeof(broken) / sizeof(broken[0]); i++) {
        sf_worker_table_pack(table, 7, entries, 2);
        CHECK(sf_worker_table_parse(table, &generation, back, 2) && generation == 7 && back[0].status == -1);
        CHECK(back[1].signal == 9 && back[1].offset == 85 && back[0].length == 5);
        table[broken[i].offset] = broken[i].value;
        CHECK(!sf_worker_table_parse(table, &generation, back, 2));
    }
}

int main(void)
{
    test_table();
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    agent_socket_open(serve);
    test_tree();
    test_fork_again();
    test_foreign_fork();
    agent_socket_remove();
    return 0;
}
