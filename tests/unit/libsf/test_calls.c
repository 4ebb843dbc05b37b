/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * libsf against a thread that answers as an agent would, or would not: malformed packets, wrong types, packets that are
 * too long, a connection that ends; signals; many threads.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent_socket.h"
#include "libsf/wire/message.h"
#include "snowflock.h"

#define THREADS 8
#define CALLS   200
#define TICKET  0x55

/* How the agent answers the next request. */
enum mode { RIGHT, WRONG_TYPE, WRONG_REQUEST, TRUNCATED, TOO_LONG, HANG_UP, SHORT_MEMBER, SILENT, REFUSE };

static atomic_int mode;
static atomic_uint asked;

static size_t right_answer(uint8_t type, const uint8_t *argument, uint8_t *payload)
{
    size_t length = 0;

    switch (type) {
    case SF_GP_TICKET:
        return sf_gp_granted_pack(payload, &(struct sf_gp_granted){ .ticket = TICKET, .granted = 2 });
    case SF_GP_CLONE:
        return sf_gp_cloned_pack(payload, &(struct sf_gp_cloned){ .id = 2, .count = 2 });
    case SF_GP_SELF:
        return sf_gp_self_pack(payload, &(struct sf_gp_self){ .ticket = TICKET, .id = 2, .count = 9 });
    case SF_GP_JOIN:
        for (unsigned id = 1; id <= 2; id++) {
            struct sf_gp_member member = { .id = id, .state = SF_GP_STATE_EXITED, .status = (int)id * 10, .count = 2,
                                           .text = "well" };

            length += sf_gp_member_pack(payload + length, &member);
        }
        return length;
    case SF_GP_FETCH: {
        struct sf_gp_fetch fetch;
        const uint64_t all = 100000;

        if (sf_gp_fetch_parse(&fetch, argument, SF_GP_FETCH_LENGTH) && fetch.offset < all) {
            length = fetch.length < all - fetch.offset ? fetch.length : all - fetch.offset;
            memset(payload, (int)fetch.id, length);
        }
        return length;
    }
    default:
        return 0;
    }
}

static bool answer(int fd, const struct sf_gp_header *request, const uint8_t *argument)
{
    static _Thread_local uint8_t packet[2 * SF_GP_MAX_MESSAGE];
    struct sf_gp_header header = { .version = SF_GP_VERSION, .type = request->type | SF_GP_REPLY,
                                   .request = request->request };
    size_t length = right_answer(request->type, argument, packet + SF_GP_HEADER_LENGTH);

    switch ((enum mode)atomic_load(&mode)) {
    case WRONG_TYPE:
        header.type = SF_GP_RELEASE | SF_GP_REPLY;
        break;
    case WRONG_REQUEST:
        header.request++;
        break;
    case TRUNCATED:
        length -= length > 0;
        break;
    case TOO_LONG:
        length = SF_GP_MAX_PAYLOAD;
        break;
    case SHORT_MEMBER:
        length = SF_GP_MEMBER_LENGTH;
        break;
    case HANG_UP:
        return false;
    case SILENT:
        return true;
    case REFUSE: {
        struct sf_gp_error error = { .error = EDQUOT, .text = "the quota of this VM is 0" };

        header.type = SF_GP_ERROR;
        length = sf_gp_error_pack(packet + SF_GP_HEADER_LENGTH, &error);
        break;
    }
    case RIGHT:
        break;
    }
    header.length = (uint32_t)length;
    sf_gp_header_pack(packet, &header);
    return send(fd, packet, SF_GP_HEADER_LENGTH + length, MSG_NOSIGNAL) > 0;
}

static void *serve(void *opaque)
{
    static _Thread_local uint8_t packet[SF_GP_MAX_MESSAGE];
    int fd = (int)(intptr_t)opaque;
    struct sf_gp_header header;
    const uint8_t *payload;
    ssize_t got;

    while ((got = recv(fd, packet, sizeof(packet), 0)) > 0) {
        CHECK(sf_gp_packet_parse(&header, &payload, packet, (size_t)got));
        CHECK(sf_gp_request_valid(header.type, payload, header.length));
        atomic_fetch_add(&asked, 1);
        if (!answer(fd, &header, payload)) {
            break;
        }
    }
    close(fd);
    return NULL;
}

/* ---- tests ---- */

static void test_right(void)
{
    struct sf_result results[3] = { { 0 } };
    sf_ticket *ticket = sf_request_ticket(2, 0), *other;
    char *data;
    size_t length;

    CHECK(ticket && sf_ticket_granted(ticket) == 2 && sf_ticket_id(ticket) == TICKET);
    CHECK(sf_join(ticket, results, 3) == 2);
    CHECK(results[0].id == 1 && results[1].status == 20 && results[2].id == 0);
    CHECK(results[1].state == SF_EXITED && strcmp(results[1].text, "well") == 0);
    CHECK(sf_join(ticket, results, 0) == 2 && sf_join_timed(ticket, results, 1, 0) == 2);
    data = sf_result_get(ticket, 2, &length);
    CHECK(data && length == 100000 && data[0] == 2 && data[length - 1] == 2 && data[length] == '\0');
    CHECK(sf_result_read(ticket, 1, data, 10, 99995) == 5 && sf_result_read(ticket, 1, data, 10, 100000) == 0);
    CHECK(sf_result_read(ticket, 1, data, 100000, 0) == 100000);
    free(data);
    CHECK(sf_kill(ticket) == 0 && sf_release(ticket) == 0);
    CHECK(sf_sync(NULL, 0) == 0 && sf_sync("abc", 3) == 0);
    CHECK(sf_id() == 2 && sf_count() == 9);

    other = sf_ticket_open(TICKET);
    CHECK(other && sf_ticket_granted(other) == 0);
    CHECK(sf_clone(ticket) == 2);
    CHECK(sf_join(ticket, results, 3) == -1 && errno == ECHILD); /* it is the parent's now */
    CHECK(sf_kill(ticket) == -1 && errno == ECHILD && strstr(sf_error(), "0000000000000055"));
    CHECK(sf_clone(ticket) == -1 && errno == ECHILD);
    sf_ticket_free(ticket);
    sf_ticket_free(other);
    sf_ticket_free(NULL);
}

static void test_arguments(void)
{
    unsigned before = atomic_load(&asked);
    sf_ticket *ticket = sf_ticket_open(1);
    char byte;

    CHECK(!sf_request_ticket(0, 0) && errno == EINVAL);
    CHECK(!sf_request_ticket(SF_MAX_CLONES + 1, 0) && errno == EINVAL);
    CHECK(!sf_request_ticket(1, 2) && errno == EINVAL);
    CHECK(!sf_ticket_open(0) && errno == EINVAL);
    CHECK(sf_clone(NULL) == -1 && errno == EINVAL);
    CHECK(sf_join(ticket, NULL, 1) == -1 && errno == EINVAL);
    CHECK(sf_sync(&byte, SF_MAX_RESULT + 1ul) == -1 && errno == EFBIG);
    CHECK(sf_sync(NULL, 1) == -1 && errno == EINVAL);
    CHECK(sf_result_read(ticket, 0, &byte, 1, 0) == -1 && errno == EINVAL);
    CHECK(sf_result_read(ticket, 1, NULL, 1, 0) == -1 && errno == EINVAL);
    CHECK(strcmp(sf_state_name(-1), "?") == 0 && strcmp(sf_state_name(SF_LOST), "lost") == 0);
    CHECK(atomic_load(&asked) == before);
    sf_ticket_free(ticket);
}

static void expect_all(int error)
{
    struct sf_result results[2];
    sf_ticket *ticket = sf_ticket_open(TICKET);
    size_t length;

    CHECK(!sf_request_ticket(2, 0) && errno == error);
    CHECK(sf_clone(ticket) == -1 && errno == error);
    CHECK(sf_join(ticket, results, 2) == -1 && errno == error);
    CHECK(sf_id() == -1 && errno == error);
    if (atomic_load(&mode) != TRUNCATED) { /* nothing to cut off, or not to be seen */
        CHECK(sf_kill(ticket) == -1 && errno == error);
        CHECK(sf_sync("a", 1) == -1 && errno == error);
        CHECK(!sf_result_get(ticket, 1, &length) && errno == error);
    }
    CHECK(sf_error()[0] != '\0');
    sf_ticket_free(ticket);
}

static void test_wrong(void)
{
    static const struct {
        enum mode mode;
        int error;
    } cases[] = { { WRONG_TYPE, EPROTO }, { WRONG_REQUEST, EPROTO }, { TRUNCATED, EPROTO },
                  { TOO_LONG, EPROTO },   { HANG_UP, ECONNRESET },   { REFUSE, EDQUOT } };
    struct sf_result results[2];
    sf_ticket *ticket = sf_ticket_open(TICKET);

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        atomic_store(&mode, cases[i].mode);
        expect_all(cases[i].error);
    }
    /* A table of two that ends after one: the second window begins with id 1 again. */
    atomic_store(&mode, SHORT_MEMBER);
    CHECK(sf_join(ticket, results, 2) == -1 && errno == EPROTO);
    atomic_store(&mode, RIGHT);
    setenv("SF_AGENT_SOCKET", "/nonexistent/agent.sock", 1);
    expect_all(ENOENT);
    agent_socket_use();
    sf_ticket_free(ticket);
}

static void on_signal(int signal)
{
}

static void *interrupt(void *opaque)
{
    unsigned before = *(unsigned *)opaque;

    while (atomic_load(&asked) == before) {
        usleep(1000);
    }
    for (int i = 0; i < 20; i++) { /* until one meets the call within the system */
        kill(getpid(), SIGUSR1);
        usleep(1000);
    }
    return NULL;
}

/* A handler interrupts sf_join(); sf_id() and the like go on. */
static void test_signals(void)
{
    struct sigaction action = { .sa_handler = on_signal };
    unsigned before = atomic_load(&asked);
    struct sf_result result;
    sf_ticket *ticket = sf_ticket_open(TICKET);
    pthread_t thread;
    sigset_t set;

    sigaction(SIGUSR1, &action, NULL);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, NULL); /* threads inherit it: only this one is hit */
    CHECK(pthread_create(&thread, NULL, interrupt, &before) == 0);
    atomic_store(&mode, SILENT);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    CHECK(sf_join(ticket, &result, 1) == -1 && errno == EINTR);
    atomic_store(&mode, RIGHT);
    for (int i = 0; i < CALLS; i++) {
        CHECK(sf_id() == 2);
    }
    pthread_join(thread, NULL);
    sf_ticket_free(ticket);
}

static void *call_often(void *opaque)
{
    sf_ticket *ticket = opaque;
    struct sf_result results[2];

    for (int i = 0; i < CALLS; i++) {
        CHECK(sf_id() == 2 && sf_join(ticket, results, 2) == 2 && results[1].status == 20);
        CHECK(!sf_request_ticket(0, 0) && strstr(sf_error(), "a ticket for 0 clones"));
    }
    return NULL;
}

static void test_threads(void)
{
    sf_ticket *ticket = sf_ticket_open(TICKET);
    pthread_t threads[THREADS];

    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_create(&threads[i], NULL, call_often, ticket) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    sf_ticket_free(ticket);
}

/* Where there is no agent, sf_exit() is exit(). */
static void test_exit(void)
{
    int status;
    pid_t pid;

    setenv("SF_AGENT_SOCKET", "/nonexistent/agent.sock", 1);
    pid = fork();
    if (pid == 0) {
        sf_exit(42);
    }
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 42);
    agent_socket_use();
}

int main(void)
{
    test_exit();
    agent_socket_open(serve);
    test_right();
    test_arguments();
    test_wrong();
    test_signals();
    test_threads();
    agent_socket_remove();
    return 0;
}
