/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libsf: packets to and from sf-agent.
 *
 * Every call makes a connection of its own, which ends with the call: no state is shared between threads, none is
 * inherited over fork(), and nothing has to be put right in a clone, whose memory is a copy of the parent's: the
 * connection of sf_clone() exists in all of them, and in each the agent of that VM answers on it. What changes in a
 * ticket handle is atomic.
 */
#include "snowflock.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "libsf/wire/message.h"

_Static_assert(SF_MAX_CLONES == SF_GP_MAX_CLONES && SF_MAX_RESULT == SF_GP_MAX_RESULT &&
               SF_TEXT_LENGTH == SF_GP_TEXT_LEN && SF_MAX_CHECKPOINT == SF_GP_CHECKPOINT_MAX,
               "the public limits are those of the protocol");
_Static_assert(SF_STARTING == SF_GP_STATE_STARTING && SF_RUNNING == SF_GP_STATE_RUNNING &&
               SF_EXITED == SF_GP_STATE_EXITED && SF_FAILED == SF_GP_STATE_FAILED && SF_LOST == SF_GP_STATE_LOST &&
               SF_KILLED == SF_GP_STATE_KILLED, "the public states are those of the protocol");

#define SOCKET_VARIABLE "SF_AGENT_SOCKET"
#define MEMBERS_LENGTH  (SF_GP_MEMBERS_PER_REPLY * SF_GP_MEMBER_LENGTH)
#define RESULT_START    (64u * 1024) /* first allocation of sf_result_get() */

enum ticket_state { TICKET_FRESH, TICKET_FORKED, TICKET_FOREIGN };

struct sf_ticket {
    uint64_t id;
    atomic_uint granted;
    atomic_int state;
};

/* ---- errors ---- */

static _Thread_local char error_text[2 * SF_TEXT_LENGTH];

__attribute__((format(printf, 2, 3))) static int failed(int error, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(error_text, sizeof(error_text), format, arguments);
    va_end(arguments);
    errno = error;
    return -1;
}

const char *sf_error(void)
{
    return error_text;
}

const char *sf_version(void)
{
    return SF_VERSION;
}

const char *sf_state_name(int state)
{
    return state < 0 ? "?" : sf_gp_state_name((uint32_t)state);
}

/* ---- one request, one answer ---- */

struct call {
    int fd;
    uint32_t request;
    uint64_t deadline_ms;   /* CLOCK_MONOTONIC; 0: none */
    bool interruptible;
};

static uint64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void call_end(struct call *call)
{
    int error = errno;

    if (call->fd >= 0) {
        close(call->fd);
    }
    errno = error;
}

static int call_begin(struct call *call)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    const char *path = secure_getenv(SOCKET_VARIABLE);

    *call = (struct call){ .fd = -1 };
    if (!path || path[0] == '\0') {
        path = SF_GP_SOCKET;
    }
    if (strlen(path) >= sizeof(address.sun_path)) {
        return failed(ENAMETOOLONG, "%s: longer than the path of a unix socket may be", path);
    }
    memcpy(address.sun_path, path, strlen(path));
    call->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (call->fd < 0) {
        return failed(errno, "socket: %s", strerror(errno));
    }
    while (connect(call->fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        int error = errno;

        if (error == EINTR) {
            continue; /* a unix socket's connect() leaves nothing behind */
        }
        call_end(call);
        call->fd = -1;
        return failed(error, "%s: %s%s", path, strerror(error),
                      error == ENOENT || error == ECONNREFUSED ? ": does sf-agent run in this VM?"
                      : error == EACCES                        ? ": only root and members of its group may use it"
                                                               : "");
    }
    return 0;
}

/* Waits until the answer can be read: 1; 0 at the deadline; -1. */
static int call_wait(const struct call *call)
{
    struct pollfd state = { .fd = call->fd, .events = POLLIN };

    for (;;) {
        int timeout = -1, ready;

        if (call->deadline_ms != 0) {
            uint64_t now = now_ms();

            timeout = call->deadline_ms <= now ? 0 : (int)(call->deadline_ms - now);
        }
        ready = poll(&state, 1, timeout);
        if (ready >= 0) {
            return ready;
        }
        if (errno != EINTR || call->interruptible) {
            return failed(errno, "waiting for sf-agent: %s", strerror(errno));
        }
    }
}

/* A packet of header, argument and data. */
static int call_send(struct call *call, uint8_t type, const uint8_t *argument, size_t argument_length, const void *data,
                     size_t data_length)
{
    struct sf_gp_header header = { .version = SF_GP_VERSION, .type = type, .request = ++call->request,
                                   .length = (uint32_t)(argument_length + data_length) };
    uint8_t head[SF_GP_HEADER_LENGTH];
    struct iovec parts[] = {
        { head, sizeof(head) }, { (void *)argument, argument_length }, { (void *)data, data_length }
    };
    struct msghdr message = { .msg_iov = parts, .msg_iovlen = 3 };

    sf_gp_header_pack(head, &header);
    while (sendmsg(call->fd, &message, MSG_NOSIGNAL) < 0) {
        if (errno == EPIPE || errno == ECONNRESET) {
            return 0; /* the reason may stand in its last packet */
        }
        if (errno != EINTR || call->interruptible) {
            return failed(errno, "asking sf-agent: %s", strerror(errno));
        }
    }
    return 0;
}

/*
 * Sends one request and receives its answer's payload into reply (capacity at least SF_GP_ERROR_LENGTH).
 * Returns the payload's length; -1, errno ETIMEDOUT at the deadline.
 */
static ssize_t call_ask(struct call *call, uint8_t type, const uint8_t *argument, size_t argument_length,
                        const void *data, size_t data_length, uint8_t *reply, size_t capacity)
{
    uint8_t head[SF_GP_HEADER_LENGTH];
    struct iovec parts[] = { { head, sizeof(head) }, { reply, capacity } };
    struct msghdr message = { .msg_iov = parts, .msg_iovlen = 2 };
    struct sf_gp_header header;
    struct sf_gp_error error;
    ssize_t got;

    if (call_send(call, type, argument, argument_length, data, data_length) < 0) {
        return -1;
    }
    for (;;) {
        int ready = call_wait(call);

        if (ready <= 0) {
            return ready < 0 ? -1 : failed(ETIMEDOUT, "not answered in time");
        }
        got = recvmsg(call->fd, &message, 0);
        if (got >= 0 || errno != EINTR || call->interruptible) {
            break;
        }
    }
    if (got < 0 && errno == EINTR) {
        return failed(EINTR, "interrupted by a signal");
    }
    if (got == 0 || (got < 0 && errno == ECONNRESET)) {
        return failed(ECONNRESET, "sf-agent ended the connection");
    }
    if (got < 0) {
        return failed(errno, "answer of sf-agent: %s", strerror(errno));
    }
    if (message.msg_flags & MSG_TRUNC || !sf_gp_header_parse(&header, head, (size_t)got) ||
        header.length != (size_t)got - SF_GP_HEADER_LENGTH) {
        return failed(EPROTO, "sf-agent sent a malformed packet of %zd bytes", got);
    }
    /* Request 0: an error of the connection. */
    if (header.type == SF_GP_ERROR && (header.request == call->request || header.request == 0) &&
        sf_gp_error_parse(&error, reply, header.length)) {
        return failed((int)error.error, "%s", error.text[0] ? error.text : strerror((int)error.error));
    }
    if (header.type != (type | SF_GP_REPLY) || header.request != call->request) {
        return failed(EPROTO, "sf-agent answered %s with %s", sf_gp_type_name(type), sf_gp_type_name(header.type));
    }
    return (ssize_t)header.length;
}

/* A whole call: connection, request, answer. */
static ssize_t ask(uint8_t type, const uint8_t *argument, size_t argument_length, uint8_t *reply, size_t capacity)
{
    struct call call;
    ssize_t length = -1;

    if (call_begin(&call) == 0) {
        length = call_ask(&call, type, argument, argument_length, NULL, 0, reply, capacity);
    }
    call_end(&call);
    return length;
}

static int malformed(uint8_t type)
{
    return failed(EPROTO, "the host's answer to %s is malformed", sf_gp_type_name(type));
}

/* ---- tickets ---- */

static sf_ticket *ticket_new(uint64_t id, unsigned granted)
{
    sf_ticket *ticket = malloc(sizeof(*ticket));

    if (!ticket) {
        failed(ENOMEM, "no memory for a ticket");
        return NULL;
    }
    ticket->id = id;
    atomic_init(&ticket->granted, granted);
    atomic_init(&ticket->state, TICKET_FRESH);
    return ticket;
}

static int check_ticket(const sf_ticket *ticket)
{
    if (!ticket) {
        return failed(EINVAL, "no ticket");
    }
    if (atomic_load(&ticket->state) == TICKET_FOREIGN) {
        return failed(ECHILD, "ticket %016" PRIx64 " is that of this clone's parent", ticket->id);
    }
    return 0;
}

sf_ticket *sf_request_ticket(unsigned count, unsigned flags)
{
    struct sf_gp_ticket want = { .count = count, .flags = flags };
    uint8_t argument[SF_GP_TICKET_LENGTH], reply[SF_GP_ERROR_LENGTH];
    struct sf_gp_granted granted;
    ssize_t length;

    if (count < 1 || count > SF_MAX_CLONES || flags != 0) {
        failed(EINVAL, "a ticket for %u clones, flags %#x: 1 to %u clones are possible, flags must be 0", count, flags,
               SF_MAX_CLONES);
        return NULL;
    }
    sf_gp_ticket_pack(argument, &want);
    length = ask(SF_GP_TICKET, argument, sizeof(argument), reply, sizeof(reply));
    if (length < 0) {
        return NULL;
    }
    if (!sf_gp_granted_parse(&granted, reply, (size_t)length) || granted.granted > count) {
        malformed(SF_GP_TICKET);
        return NULL;
    }
    return ticket_new(granted.ticket, granted.granted);
}

sf_ticket *sf_ticket_open(uint64_t id)
{
    if (id == 0) {
        failed(EINVAL, "0 is not the number of a ticket");
        return NULL;
    }
    return ticket_new(id, 0);
}

unsigned sf_ticket_granted(const sf_ticket *ticket)
{
    return ticket ? atomic_load(&ticket->granted) : 0;
}

uint64_t sf_ticket_id(const sf_ticket *ticket)
{
    return ticket ? ticket->id : 0;
}

void sf_ticket_free(sf_ticket *ticket)
{
    free(ticket);
}

/* ---- fork ---- */

int sf_clone(sf_ticket *ticket)
{
    uint8_t argument[SF_GP_CLONE_LENGTH], reply[SF_GP_ERROR_LENGTH];
    struct sf_gp_cloned cloned;
    ssize_t length;
    int fresh = TICKET_FRESH;

    if (check_ticket(ticket) < 0) {
        return -1;
    }
    if (!atomic_compare_exchange_strong(&ticket->state, &fresh, TICKET_FORKED)) {
        return failed(EALREADY, "ticket %016" PRIx64 " was used: each fork needs a ticket of its own", ticket->id);
    }
    sf_gp_clone_pack(argument, &(struct sf_gp_clone){ .ticket = ticket->id });
    length = ask(SF_GP_CLONE, argument, sizeof(argument), reply, sizeof(reply));
    if (length < 0) {
        int error = errno;

        /* The host knows whether it was used; a second attempt asks it. */
        atomic_store(&ticket->state, error == ECHILD ? TICKET_FOREIGN : TICKET_FRESH);
        errno = error;
        return -1;
    }
    if (!sf_gp_cloned_parse(&cloned, reply, (size_t)length)) {
        return malformed(SF_GP_CLONE);
    }
    if (atomic_load(&ticket->granted) == 0) {
        atomic_store(&ticket->granted, cloned.count);
    }
    if (cloned.id > 0) {
        atomic_store(&ticket->state, TICKET_FOREIGN);
    }
    return (int)cloned.id;
}

/* ---- checkpoints ---- */

static int check_name(const char *name)
{
    if (!name || !sf_gp_checkpoint_name_valid(name)) {
        return failed(EINVAL, "checkpoint name \"%.64s\": 1 to %d of a-z, 0-9 and '-' are needed, a letter or digit first",
                      name ? name : "", SF_MAX_CHECKPOINT);
    }
    return 0;
}

/* A request that is a name. */
static ssize_t ask_name(uint8_t type, const char *name, uint8_t *reply, size_t capacity)
{
    struct sf_gp_checkpoint checkpoint = { .name = "" };
    uint8_t argument[SF_GP_CHECKPOINT_LENGTH];

    if (check_name(name) < 0) {
        return -1;
    }
    memcpy(checkpoint.name, name, strlen(name));
    sf_gp_checkpoint_pack(argument, &checkpoint);
    return ask(type, argument, sizeof(argument), reply, capacity);
}

int sf_checkpoint_parent(const char *name)
{
    uint8_t reply[SF_GP_ERROR_LENGTH];
    struct sf_gp_cloned cloned;
    ssize_t length = ask_name(SF_GP_CHECKPOINT, name, reply, sizeof(reply));

    if (length < 0) {
        return -1;
    }
    return sf_gp_cloned_parse(&cloned, reply, (size_t)length) ? (int)cloned.id : malformed(SF_GP_CHECKPOINT);
}

sf_ticket *sf_create_clones(const char *name, unsigned count)
{
    struct sf_gp_create create = { .count = count };
    uint8_t argument[SF_GP_CREATE_LENGTH], reply[SF_GP_ERROR_LENGTH];
    struct sf_gp_granted granted;
    sf_ticket *ticket;
    ssize_t length;

    if (check_name(name) < 0) {
        return NULL;
    }
    if (count < 1 || count > SF_MAX_CLONES) {
        failed(EINVAL, "%u clones: 1 to %u are possible", count, SF_MAX_CLONES);
        return NULL;
    }
    memcpy(create.name, name, strlen(name));
    sf_gp_create_pack(argument, &create);
    length = ask(SF_GP_CREATE, argument, sizeof(argument), reply, sizeof(reply));
    if (length < 0) {
        return NULL;
    }
    if (!sf_gp_granted_parse(&granted, reply, (size_t)length) || granted.granted > count) {
        malformed(SF_GP_CREATE);
        return NULL;
    }
    ticket = ticket_new(granted.ticket, granted.granted);
    if (ticket) {
        atomic_store(&ticket->state, TICKET_FORKED);
    }
    return ticket;
}

int sf_checkpoint_forget(const char *name)
{
    uint8_t reply[SF_GP_ERROR_LENGTH];
    ssize_t length = ask_name(SF_GP_FORGET, name, reply, sizeof(reply));

    if (length < 0) {
        return -1;
    }
    return length == 0 ? 0 : malformed(SF_GP_FORGET);
}

static int self(struct sf_gp_self *self)
{
    uint8_t reply[SF_GP_ERROR_LENGTH];
    ssize_t length = ask(SF_GP_SELF, NULL, 0, reply, sizeof(reply));

    if (length < 0) {
        return -1;
    }
    return sf_gp_self_parse(self, reply, (size_t)length) ? 0 : malformed(SF_GP_SELF);
}

int sf_id(void)
{
    struct sf_gp_self me;

    return self(&me) < 0 ? -1 : (int)me.id;
}

int sf_count(void)
{
    struct sf_gp_self me;

    return self(&me) < 0 ? -1 : (int)me.count;
}

/* ---- addresses ---- */

static int addresses(struct sf_gp_network *network)
{
    uint8_t reply[SF_GP_ERROR_LENGTH];
    ssize_t length = ask(SF_GP_ADDRESSES, NULL, 0, reply, sizeof(reply));

    if (length < 0) {
        /* An agent that does not know the question takes it for a malformed packet. */
        return errno == EPROTO ? failed(ENOSYS, "sf-agent is older than this library and knows no addresses") : -1;
    }
    return sf_gp_network_parse(network, reply, (size_t)length) ? 0 : malformed(SF_GP_ADDRESSES);
}

static int put_address(uint32_t address, char *buffer, size_t size)
{
    int length = snprintf(buffer, size, "%u.%u.%u.%u", address >> 24, address >> 16 & 0xff, address >> 8 & 0xff,
                          address & 0xff);

    return (size_t)length < size ? 0 : failed(ERANGE, "an address does not fit into %zu bytes", size);
}

int sf_address(int id, char *buffer, size_t size)
{
    struct sf_gp_network network;

    if (addresses(&network) < 0) {
        return -1;
    }
    if (id == SF_SELF || id == 0) {
        return put_address(id == 0 ? network.parent : network.address, buffer, size);
    }
    if (id < 0 || (uint32_t)id > network.count) {
        return failed(EINVAL, "no clone of the newest fork has id %d", id);
    }
    return put_address(network.first + (uint32_t)id - 1, buffer, size);
}

int sf_parent_address(char *buffer, size_t size)
{
    return sf_address(0, buffer, size);
}

/* ---- a clone's end ---- */

int sf_sync(const void *data, size_t length)
{
    struct sf_gp_sync sync = { .offset = 0, .total = length };
    uint8_t argument[SF_GP_SYNC_LENGTH], reply[SF_GP_ERROR_LENGTH];
    struct call call;
    ssize_t got;

    if (length > SF_MAX_RESULT) {
        return failed(EFBIG, "a result of %zu bytes: at most %u are possible", length, SF_MAX_RESULT);
    }
    if (!data && length > 0) {
        return failed(EINVAL, "no data");
    }
    if (call_begin(&call) < 0) {
        return -1;
    }
    do {
        size_t piece = length - sync.offset < SF_GP_MAX_CHUNK ? length - sync.offset : SF_GP_MAX_CHUNK;

        sf_gp_sync_pack(argument, &sync);
        got = call_ask(&call, SF_GP_SYNC, argument, sizeof(argument),
                       piece > 0 ? (const char *)data + sync.offset : NULL, piece, reply, sizeof(reply));
        sync.offset += piece;
    } while (got == 0 && sync.offset < length);
    call_end(&call);
    if (got < 0) {
        return -1;
    }
    return got == 0 ? 0 : malformed(SF_GP_SYNC);
}

/* Standard output ends here too. A stream that another thread holds (it may wait there for ever) is left alone. */
static void flush_output(void)
{
    if (ftrylockfile(stdout) == 0) {
        fflush(stdout);
        funlockfile(stdout);
    }
}

/* Returns only if the host cannot be told. */
static void end_clone(int status)
{
    uint8_t argument[SF_GP_EXIT_LENGTH], reply[SF_GP_ERROR_LENGTH];

    flush_output();
    sf_gp_exit_pack(argument, &(struct sf_gp_exit){ .status = status });
    if (ask(SF_GP_EXIT, argument, sizeof(argument), reply, sizeof(reply)) == 0) {
        for (;;) {
            pause(); /* the host ends this VM */
        }
    }
    fprintf(stderr, "sf_exit: %s\n", sf_error());
}

void sf_exit(int status)
{
    struct sf_gp_self me;

    if (self(&me) == 0 && me.id > 0) {
        end_clone(status);
    }
    exit(status);
}

int sf_exit_with(int status, const void *data, size_t length)
{
    if (sf_sync(data, length) < 0) {
        return -1;
    }
    end_clone(status); /* only a clone's data is taken */
    exit(status);
}

/* ---- the parent's side ---- */

/* One window of the member table. Returns the members in it; *all: of the whole table; *running: some still run. */
static int join_window(struct call *call, const struct sf_gp_join *join, struct sf_result *results, size_t n,
                       unsigned *all, bool *running, uint8_t *reply)
{
    uint8_t argument[SF_GP_JOIN_LENGTH];
    struct sf_gp_member member;
    ssize_t length;
    int members;

    sf_gp_join_pack(argument, join);
    length = call_ask(call, SF_GP_JOIN, argument, sizeof(argument), NULL, 0, reply, MEMBERS_LENGTH);
    if (length < 0) {
        return -1;
    }
    members = (int)(length / SF_GP_MEMBER_LENGTH);
    if (members == 0 || length % SF_GP_MEMBER_LENGTH != 0) {
        return malformed(SF_GP_JOIN);
    }
    for (int i = 0; i < members; i++) {
        if (!sf_gp_member_parse(&member, reply + (size_t)i * SF_GP_MEMBER_LENGTH, SF_GP_MEMBER_LENGTH) ||
            member.id != join->first + (unsigned)i) {
            return malformed(SF_GP_JOIN);
        }
        *all = member.count;
        *running = *running || member.state == SF_GP_STATE_STARTING || member.state == SF_GP_STATE_RUNNING;
        if (member.id <= n) {
            struct sf_result *result = &results[member.id - 1];

            *result = (struct sf_result){ .id = member.id, .state = (int)member.state, .status = member.status,
                                          .result_length = member.result_length };
            memcpy(result->text, member.text, sizeof(result->text));
        }
    }
    return members;
}

/* The whole table, the first window with join flags `flags`. */
static int join_table(const sf_ticket *ticket, struct sf_result *results, size_t n, uint32_t flags,
                      uint64_t deadline_ms, bool *running)
{
    struct sf_gp_join join = { .ticket = ticket->id, .flags = flags, .first = 1 };
    uint8_t *reply = malloc(MEMBERS_LENGTH);
    struct call call;
    unsigned all = 0;
    int members = -1;

    *running = false;
    if (!reply) {
        return failed(ENOMEM, "no memory for the table of clones");
    }
    if (call_begin(&call) == 0) {
        call.interruptible = true;
        call.deadline_ms = deadline_ms;
        do {
            members = join_window(&call, &join, results, n, &all, running, reply);
            join.first += members > 0 ? (uint32_t)members : 0;
            join.flags = SF_GP_JOIN_NOHANG; /* what comes behind the first window has ended too */
        } while (members > 0 && join.first <= all);
    }
    call_end(&call);
    free(reply);
    return members < 0 ? -1 : (int)all;
}

int sf_join_timed(sf_ticket *ticket, struct sf_result *results, size_t n, int timeout_ms)
{
    uint64_t deadline_ms = timeout_ms > 0 ? now_ms() + (uint64_t)timeout_ms : 0;
    bool running;
    int all;

    if (check_ticket(ticket) < 0) {
        return -1;
    }
    if (!results && n > 0) {
        return failed(EINVAL, "no room for %zu results", n);
    }
    all = join_table(ticket, results, n, timeout_ms == 0 ? SF_GP_JOIN_NOHANG : 0, deadline_ms, &running);
    if (all < 0 && errno == ETIMEDOUT && timeout_ms > 0) {
        all = join_table(ticket, results, n, SF_GP_JOIN_NOHANG, 0, &running);
    }
    return all < 0 ? -1 : running ? 0 : all;
}

int sf_join(sf_ticket *ticket, struct sf_result *results, size_t n)
{
    return sf_join_timed(ticket, results, n, -1);
}

ssize_t sf_result_read(sf_ticket *ticket, unsigned id, void *buffer, size_t length, uint64_t offset)
{
    struct sf_gp_fetch fetch = { .id = id, .offset = offset };
    uint8_t argument[SF_GP_FETCH_LENGTH], *reply;
    struct call call;
    size_t done = 0;
    ssize_t got = -1;

    if (check_ticket(ticket) < 0) {
        return -1;
    }
    if (id < 1 || id > SF_MAX_CLONES || (!buffer && length > 0)) {
        return failed(EINVAL, "result of clone %u: no such clone, or no room for it", id);
    }
    reply = malloc(SF_GP_MAX_CHUNK);
    if (!reply) {
        return failed(ENOMEM, "no memory for a piece of a result");
    }
    fetch.ticket = ticket->id;
    if (call_begin(&call) == 0) {
        call.interruptible = true;
        do {
            fetch.length = (uint32_t)(length - done < SF_GP_MAX_CHUNK ? length - done : SF_GP_MAX_CHUNK);
            fetch.offset = offset + done;
            sf_gp_fetch_pack(argument, &fetch);
            got = call_ask(&call, SF_GP_FETCH, argument, sizeof(argument), NULL, 0, reply, SF_GP_MAX_CHUNK);
            if (got > (ssize_t)fetch.length) {
                got = malformed(SF_GP_FETCH);
            } else if (got > 0) {
                memcpy((char *)buffer + done, reply, (size_t)got);
                done += (size_t)got;
            }
        } while (got > 0 && got == (ssize_t)fetch.length && done < length);
    }
    call_end(&call);
    free(reply);
    return got < 0 ? -1 : (ssize_t)done;
}

char *sf_result_get(sf_ticket *ticket, unsigned id, size_t *length)
{
    size_t capacity = RESULT_START, have = 0;
    char *data = malloc(capacity + 1);

    while (data) {
        ssize_t got = sf_result_read(ticket, id, data + have, capacity - have, have);
        char *larger;

        if (got < 0 || have + (size_t)got > SF_MAX_RESULT) {
            int error = got < 0 ? errno : EFBIG;

            free(data);
            errno = error;
            return NULL;
        }
        have += (size_t)got;
        if (have < capacity) {
            data[have] = '\0';
            if (length) {
                *length = have;
            }
            return data;
        }
        capacity *= 2;
        larger = realloc(data, capacity + 1);
        if (!larger) {
            free(data);
        }
        data = larger;
    }
    failed(ENOMEM, "no memory for the result of clone %u", id);
    return NULL;
}

/* A request that names a ticket and is answered by an empty message. */
static int tell(sf_ticket *ticket, uint8_t type)
{
    uint8_t argument[SF_GP_KILL_LENGTH], reply[SF_GP_ERROR_LENGTH];
    ssize_t length;

    if (check_ticket(ticket) < 0) {
        return -1;
    }
    sf_gp_kill_pack(argument, &(struct sf_gp_kill){ .ticket = ticket->id });
    length = ask(type, argument, sizeof(argument), reply, sizeof(reply));
    if (length < 0) {
        return -1;
    }
    return length == 0 ? 0 : malformed(type);
}

int sf_kill(sf_ticket *ticket)
{
    return tell(ticket, SF_GP_KILL);
}

int sf_release(sf_ticket *ticket)
{
    return tell(ticket, SF_GP_RELEASE);
}
