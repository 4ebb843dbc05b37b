/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One request to sf-agent and its answer; the error of a thread. A struct sf_call belongs to the function that began
 * it.
 */
#ifndef SF_CALL_H
#define SF_CALL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "libsf/wire/message.h"

struct sf_call {
    int fd;
    uint32_t request;
    uint64_t deadline_ms;   /* CLOCK_MONOTONIC; 0: none */
    bool interruptible;     /* a signal handler ends it: EINTR */
};

/* Sets errno and what sf_error() says. Returns -1. */
int sf_failed(int error, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* sf_failed(EPROTO): what was answered to a request of this type makes no sense. */
int sf_malformed(uint8_t type);

uint64_t sf_now_ms(void);

/* Connects. -1: sf_call_end() is allowed, not needed. */
int sf_call_begin(struct sf_call *call);
/* Keeps errno. */
void sf_call_end(struct sf_call *call);

/*
 * Sends one request, argument then data, and receives its answer's payload into reply (capacity at least
 * SF_GP_ERROR_LENGTH). Returns the payload's length; -1, errno ETIMEDOUT at the deadline.
 */
ssize_t sf_call_ask(struct sf_call *call, uint8_t type, const uint8_t *argument, size_t argument_length,
                    const void *data, size_t data_length, uint8_t *reply, size_t capacity);

/* A whole call: connection, request, answer. */
ssize_t sf_ask(uint8_t type, const uint8_t *argument, size_t argument_length, uint8_t *reply, size_t capacity);

#endif
