/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The agent's end of the virtio-serial port.
 *
 * The port is found by its name: udev makes a link of that name, without udev the name stands in sysfs. When nobody
 * is at the host's end, poll() says POLLHUP for ever; the port is then left out of poll() and the kernel is asked for a
 * SIGIO when the host connects. A slow retry stands behind that, and is all there is for a port that does not exist
 * yet, and for the unix sockets and ptys that stand for a port in tests.
 */
#include "guest-agent/agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <syslog.h>
#include <termios.h>
#include <unistd.h>

#define UDEV_PORT       "/dev/virtio-ports/" SF_GP_PORT
#define SYSFS_PORTS     "/sys/class/virtio-ports"
#define READS_PER_TURN  16      /* of AGENT_READ_SIZE; then programs get their turn */

void port_init(struct port *port, const char *wanted)
{
    port->wanted = wanted;
    port->fd = -1;
    port->virtio = false;
    port->connected = false;
    port->greeted = false;
    port->wipe = false;
    port->open_error = 0;
    port->out_at = 0;
    port->out_length = 0;
    sf_frame_decoder_init(&port->decoder);
}

/* Path of the device whose name in sysfs is SF_GP_PORT. */
static bool find_in_sysfs(char *path, size_t size)
{
    DIR *ports = opendir(SYSFS_PORTS);
    struct dirent *entry;
    bool found = false;

    while (ports && !found && (entry = readdir(ports))) {
        char name[sizeof(SF_GP_PORT) + 1] = "";
        ssize_t length;
        int fd;

        if (entry->d_name[0] == '.' ||
            snprintf(path, size, SYSFS_PORTS "/%s/name", entry->d_name) >= (int)size) {
            continue;
        }
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0) {
            continue;
        }
        length = read(fd, name, sizeof(name) - 1);
        close(fd);
        name[length > 0 ? length : 0] = '\0';
        name[strcspn(name, "\n")] = '\0';
        found = strcmp(name, SF_GP_PORT) == 0 && snprintf(path, size, "/dev/%s", entry->d_name) < (int)size;
    }
    if (ports) {
        closedir(ports);
    }
    return found;
}

static int open_socket(const char *path)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd;

    if (strlen(path) >= sizeof(address.sun_path)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(address.sun_path, path, strlen(path));
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        int error = errno;

        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

static int open_device(const char *path)
{
    int fd = open(path, O_RDWR | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    struct termios raw;

    if (fd >= 0 && tcgetattr(fd, &raw) == 0) {
        cfmakeraw(&raw);
        tcsetattr(fd, TCSANOW, &raw);
    }
    return fd;
}

/*
 * QEMU tells the host of a port's end at most once a second, so the host may not have seen that an agent before this
 * one had the port. And the kernel may tell of the host's going and coming after the new host's HELLO has been read and
 * answered. In both cases the host takes the agent for greeted. On the sockets that stand for a port the connection
 * itself is the news.
 */
static void ask_for_hello(struct port *port)
{
    uint8_t payload[SF_GP_HELLO_LENGTH];
    struct sf_gp_hello hello = { .version = SF_GP_VERSION };

    port_restart_output(port);
    port_put(port, SF_GP_HELLO, 0, payload, sf_gp_hello_pack(payload, &hello));
    port_flush(port);
}

static void port_open(struct port *port)
{
    char path[PATH_MAX];
    struct stat status;

    if (port->wanted) {
        snprintf(path, sizeof(path), "%s", port->wanted);
    } else if (access(UDEV_PORT, F_OK) == 0) {
        snprintf(path, sizeof(path), "%s", UDEV_PORT);
    } else if (!find_in_sysfs(path, sizeof(path))) {
        return;
    }
    if (stat(path, &status) < 0) {
        return;
    }
    port->fd = S_ISSOCK(status.st_mode) ? open_socket(path) : open_device(path);
    if (port->fd < 0) {
        if (errno != port->open_error && errno != ECONNREFUSED) {
            agent_log(LOG_ERR, "port %s: %s; trying again", path, strerror(errno));
        }
        port->open_error = errno;
        return;
    }
    port->open_error = 0;
    port->virtio = S_ISCHR(status.st_mode) && !isatty(port->fd);
    port->connected = true;
    port->greeted = false;
    agent_log(LOG_NOTICE, "port %s is open", path);
    if (port->virtio) {
        ask_for_hello(port);
    }
}

static void port_close(struct port *port)
{
    close(port->fd);
    port->fd = -1;
    port->connected = false;
    port->greeted = false;
}

static void port_async(const struct port *port, bool on)
{
    int flags = fcntl(port->fd, F_GETFL);

    fcntl(port->fd, F_SETOWN, getpid());
    fcntl(port->fd, F_SETFL, on ? flags | O_ASYNC : flags & ~O_ASYNC);
}

void port_try(struct port *port)
{
    struct pollfd state = { .fd = port->fd, .events = POLLIN };

    if (port->fd < 0) {
        port_open(port);
    } else if (!port->connected && poll(&state, 1, 0) >= 0 && !(state.revents & POLLHUP)) {
        port->connected = true;
        port_async(port, false);
        agent_log(LOG_DEBUG, "the host is back");
        ask_for_hello(port);
    }
}

void port_hangup(struct port *port)
{
    if (port->fd < 0 || !port->connected) {
        return;
    }
    agent_log(LOG_DEBUG, "the host has gone; requests wait for it");
    port->out_at = port->out_length = 0; /* what it lacks is sent anew after its next HELLO */
    if (!port->virtio) {
        port_close(port);
        return;
    }
    port->connected = false;
    port->greeted = false;
    port_async(port, true);
    port_try(port); /* it may have come back before SIGIO was asked for */
}

void port_read(struct port *port, port_message *message, void *opaque)
{
    for (int turn = 0; turn < READS_PER_TURN && port->fd >= 0; turn++) {
        ssize_t got = read(port->fd, port->in, sizeof(port->in));
        const uint8_t *data = port->in, *payload;
        struct sf_gp_header header;
        size_t length;

        if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
            return;
        }
        if (got <= 0) {
            port_hangup(port);
            return;
        }
        length = (size_t)got;
        while (sf_frame_decoder_next(&port->decoder, &data, &length, &header, &payload)) {
            message(opaque, &header, payload);
        }
        if (port->wipe) {
            explicit_bzero(port->in, (size_t)got);
            port->wipe = false;
        }
        if ((size_t)got < sizeof(port->in) && !port->virtio) {
            return; /* a virtio port gives one host buffer at a time: ask again */
        }
    }
}

bool port_put(struct port *port, uint8_t type, uint32_t request, const void *payload, size_t length)
{
    size_t put;

    if (port->out_at == port->out_length) {
        port->out_at = port->out_length = 0;
    }
    put = sf_frame_encode(port->out + port->out_length, sizeof(port->out) - port->out_length, type, request, payload,
                          length);
    port->out_length += put;
    return put > 0;
}

void port_flush(struct port *port)
{
    while (port->fd >= 0 && port->connected && port->out_at < port->out_length) {
        ssize_t put = write(port->fd, port->out + port->out_at, port->out_length - port->out_at);

        if (put < 0 && (errno == EAGAIN || errno == EINTR)) {
            return; /* poll() says when to go on */
        }
        if (put < 0) {
            port_hangup(port);
            return;
        }
        port->out_at += (size_t)put;
    }
}

void port_restart_output(struct port *port)
{
    port->out[0] = 0;
    port->out_at = 0;
    port->out_length = 1;
}

void port_wipe_message(struct port *port, size_t payload_length)
{
    explicit_bzero(port->decoder.decoded, SF_GP_HEADER_LENGTH + payload_length);
    port->wipe = true; /* the encoded bytes, once all of them are decoded */
}
