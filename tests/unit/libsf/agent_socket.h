/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Where libsf finds sf-agent: a socket in a folder of its own, played by the test that has it. */
#pragma once
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "libsf/snowflock.h"

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: %s (errno %d, sf_error %s)\n", __FILE__, __LINE__, #condition, errno,    \
                    sf_error());                                                                             \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

/* Makes the socket and calls agent_socket_use(). Each connection gets a thread of its own in serve(), whose argument is the
 * descriptor, as an intptr_t; serve() closes it. */
void agent_socket_open(void *(*serve)(void *fd));

/* libsf looks there from now on. */
void agent_socket_use(void);

/* Removes socket and folder. */
void agent_socket_remove(void);
