/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "agent_socket.h"

#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void *(*serve_connection)(void *fd);
static int listen_fd;
static char directory[] = "/tmp/sf-libsf-XXXXXX";
static char path[sizeof(directory) + 16];

static void *accept_calls(void *opaque)
{
    int fd;

    while ((fd = accept(listen_fd, NULL, NULL)) >= 0) {
        pthread_t thread;

        CHECK(pthread_create(&thread, NULL, serve_connection, (void *)(intptr_t)fd) == 0);
        pthread_detach(thread);
    }
    return NULL;
}

void agent_socket_open(void *(*serve)(void *fd))
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    pthread_t thread;

    serve_connection = serve;
    CHECK(mkdtemp(directory));
    snprintf(path, sizeof(path), "%s/agent.sock", directory);
    strcpy(address.sun_path, path);
    listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    CHECK(listen_fd >= 0 && bind(listen_fd, (struct sockaddr *)&address, sizeof(address)) == 0);
    CHECK(listen(listen_fd, 64) == 0 && pthread_create(&thread, NULL, accept_calls, NULL) == 0);
    agent_socket_use();
}

void agent_socket_use(void)
{
    setenv("SF_AGENT_SOCKET", path, 1);
}

void agent_socket_remove(void)
{
    unlink(path);
    rmdir(directory);
}
