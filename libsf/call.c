/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Packets to and from sf-agent.
 *
 * Every call makes a connection of its own, which ends with the call: no state is shared between threads, none is
 * inherited over fork(), and nothing has to be put right in a clone, whose memory is a copy of the parent's: the
 * connection of sf_clone() exists in all of them, and in each the agent of that VM answers on it.
 */
#include "libsf/call.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "snowflock.h"

#define SOCKET_VARIABLE "SF_AGENT_SOCKET"

/* ---- errors ---- */

static _Thread_local char error_text[2 * SF_TEXT_LENGTH];

__attribute__((format(printf, 2, 3))) int sf_failed(int error, const char *format, ...)
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

/* ---- one request, one answer ---- */

uint64_t sf_now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void sf_call_end(struct sf_call *call)
{
    int error = errno;

    if (call->fd >= 0) {
        close(call->fd);
    }
    errno = error;
}

int sf_call_begin(struct sf_call *call)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    const char *path = secure_getenv(SOCKET_VARIABLE);

    *call = (struct sf_call){ .fd = -1 };
    if (!path || path[0] == '\0') {
        path = SF_GP_SOCKET;
    }
    if (strlen(path) >= sizeof(address.sun_path)) {
        return sf_failed(ENAMETOOLONG, "%s: longer than the path of a unix socket may be", path);
    }
    memcpy(address.sun_path, path, strlen(path));
    call->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (call->fd < 0) {
        return sf_failed(errno, "socket: %s", strerror(errno));
    }
    while (connect(call->fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        int error = errno;

        if (error == EINTR) {
            continue; /* a unix socket's connect() leaves nothing behind */
        }
        sf_call_end(call);
        call->fd = -1;
        return sf_failed(error, "%s: %s%s", path, strerror(error),
                      error == ENOENT || error == ECONNREFUSED ? ": does sf-agent run in this VM?"
                      : error == EACCES                        ? ": only root and members of its group may use it"
                                                               : "");
    }
    return 0;
}

/* Waits until the answer can be read: 1; 0 at the deadline; -1. */
static int call_wait(const struct sf_call *call)
{
    struct pollfd state = { .fd = call->fd, .events = POLLIN };

    for (;;) {
        int timeout = -1, ready;

        if (call->deadline_ms != 0) {
            uint64_t now = sf_now_ms();

            timeout = call->deadline_ms <= now ? 0 : (int)(call->deadline_ms - now);
        }
        ready = poll(&state, 1, timeout);
        if (ready >= 0) {
            return ready;
        }
        if (errno != EINTR || call->interruptible) {
            return sf_failed(errno, "waiting for sf-agent: %s", strerror(errno));
        }
    }
}

/* A packet of header, argument and data. */
static int call_send(struct sf_call *call, uint8_t type, const uint8_t *argument, size_t argument_length,
                     const void *data, size_t data_length)
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
            return sf_failed(errno, "asking sf-agent: %s", strerror(errno));
        }
    }
    return 0;
}

/*
 * Sends one request and receives its answer's payload into reply (capacity at least SF_GP_ERROR_LENGTH).
 * Returns the payload's length; -1, errno ETIMEDOUT at the deadline.
 */
ssize_t sf_call_ask(struct sf_call *call, uint8_t type, const uint8_t *argument, size_t argument_length,
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
            return ready < 0 ? -1 : sf_failed(ETIMEDOUT, "not answered in time");
        }
        got = recvmsg(call->fd, &message, 0);
        if (got >= 0 || errno != EINTR || call->interruptible) {
            break;
        }
    }
    if (got < 0 && errno == EINTR) {
        return sf_failed(EINTR, "interrupted by a signal");
    }
    if (got == 0 || (got < 0 && errno == ECONNRESET)) {
        return sf_failed(ECONNRESET, "sf-agent ended the connection");
    }
    if (got < 0) {
        return sf_failed(errno, "answer of sf-agent: %s", strerror(errno));
    }
    if (message.msg_flags & MSG_TRUNC || !sf_gp_header_parse(&header, head, (size_t)got) ||
        header.length != (size_t)got - SF_GP_HEADER_LENGTH) {
        return sf_failed(EPROTO, "sf-agent sent a malformed packet of %zd bytes", got);
    }
    /* Request 0: an error of the connection. */
    if (header.type == SF_GP_ERROR && (header.request == call->request || header.request == 0) &&
        sf_gp_error_parse(&error, reply, header.length)) {
        return sf_failed((int)error.error, "%s", error.text[0] ? error.text : strerror((int)error.error));
    }
    if (header.type != (type | SF_GP_REPLY) || header.request != call->request) {
        return sf_failed(EPROTO, "sf-agent answered %s with %s", sf_gp_type_name(type), sf_gp_type_name(header.type));
    }
    return (ssize_t)header.length;
}

/* A whole call: connection, request, answer. */
ssize_t sf_ask(uint8_t type, const uint8_t *argument, size_t argument_length, uint8_t *reply, size_t capacity)
{
    struct sf_call call;
    ssize_t length = -1;

    if (sf_call_begin(&call) == 0) {
        length = sf_call_ask(&call, type, argument, argument_length, NULL, 0, reply, capacity);
    }
    sf_call_end(&call);
    return length;
}

int sf_malformed(uint8_t type)
{
    return sf_failed(EPROTO, "the host's answer to %s is malformed", sf_gp_type_name(type));
}
