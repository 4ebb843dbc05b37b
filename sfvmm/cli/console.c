/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sfctl console: this terminal as the VM's serial console.
 *
 *      stdin --raw--> escape filter --> console.sock --> QEMU's serial port
 *      stdout <-- tail of console.log, then <-- console.sock
 *
 * The terminal is in raw mode meanwhile (term.c restores it on every way out), so that ^C and ^Z are the guest's. Stdin
 * and stdout are not made non-blocking, for they may be shared with the shell.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "sfvmm/cli/cli.h"
#include "sfvmm/cli/console.h"
#include "sfvmm/cli/term.h"

#define ESCAPE            0x1d      /* ^], as telnet and virsh have it */
#define CHUNK             4096u
#define REPLAY_BYTES      16384     /* of the log, looked at */
#define REPLAY_LINES      24u       /* of the log, shown: a screen */

const char *sf_console_tail(const char *log, gsize length, guint lines)
{
    const char *start = log + length;

    while (start > log) {
        if (start[-1] == '\n' && start < log + length && lines-- == 1) {
            break;
        }
        start--;
    }
    return start;
}

gsize sf_console_filter(char *input, gsize length, gboolean *detach)
{
    char *escape = memchr(input, ESCAPE, length);
    *detach = escape != NULL;
    return escape ? (gsize)(escape - input) : length;
}

static gboolean write_all(int fd, const char *data, gsize length)
{
    while (length > 0) {
        ssize_t n = write(fd, data, length);
        if (n < 0 && errno == EAGAIN) {
            struct pollfd pollfd = {.fd = fd, .events = POLLOUT};
            poll(&pollfd, 1, -1);
        } else if (n < 0 && errno != EINTR) {
            return FALSE;
        } else if (n > 0) {
            data += n;
            length -= (gsize)n;
        }
    }
    return TRUE;
}

/* The last lines of the log: somebody who comes later sees where the guest stands. */
static void replay(const char *path)
{
    char tail[REPLAY_BYTES];
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;

    if (fd < 0) {
        return;
    }
    off_t end = lseek(fd, 0, SEEK_END);
    off_t from = MAX(end - (off_t)sizeof(tail), 0);
    ssize_t n = end > 0 ? pread(fd, tail, sizeof(tail), from) : 0;
    close(fd);
    if (n > 0) {
        const char *start = sf_console_tail(tail, (gsize)n, REPLAY_LINES);
        write_all(STDOUT_FILENO, start, (gsize)(tail + n - start));
    }
}

static int connect_console(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    if (!path || strlen(path) >= sizeof(address.sun_path)) {
        errno = path ? ENAMETOOLONG : ENOENT;
        return -1;
    }
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0) {
        int error_number = errno;
        close(fd);
        errno = error_number;
        return -1;
    }
    return fd;
}

typedef enum { DETACHED, VM_ENDED, OUTPUT_CLOSED } End;

/* Copies both ways. When the input ends (a pipe), the output goes on. */
static End copy_both(int console, gboolean raw)
{
    char buffer[CHUNK];
    struct pollfd fds[] = {{.fd = console, .events = POLLIN}, {.fd = STDIN_FILENO, .events = POLLIN}};

    for (;;) {
        if (poll(fds, G_N_ELEMENTS(fds), -1) < 0) {
            continue;      /* EINTR: a handler that returns has nothing for us */
        }
        if (fds[0].revents) {
            ssize_t n = read(console, buffer, sizeof(buffer));
            if (n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN)) {
                return VM_ENDED;
            }
            if (n > 0 && !write_all(STDOUT_FILENO, buffer, (gsize)n)) {
                return OUTPUT_CLOSED;
            }
        }
        if (fds[1].revents) {
            gboolean detach = FALSE;
            ssize_t n = read(STDIN_FILENO, buffer, sizeof(buffer));
            if (n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN)) {
                if (raw) {
                    return DETACHED;      /* the terminal hung up */
                }
                fds[1].fd = -1;
                continue;
            }
            gsize keep = n > 0 ? sf_console_filter(buffer, (gsize)n, &detach) : 0;
            if (keep > 0 && !write_all(console, buffer, keep)) {
                return VM_ENDED;
            }
            if (detach) {
                return DETACHED;
            }
        }
    }
}

int sf_ctl_console_attach(SfCtl *ctl, const char *name)
{
    g_autoptr(GError) error = NULL;

    if (!sf_ctl_is_local(ctl, "console")) {
        return SF_CTL_ERROR;
    }
    g_autoptr(JsonObject) result = sf_client_call(ctl->client, "vm.status", sf_ctl_params("vm", name), SF_CTL_SOON_MS,
                                                  &error);
    if (!result) {
        return sf_ctl_fail_call(ctl, error);
    }
    JsonObject *vm = sf_ctl_object(result, "vm");
    if (sf_ctl_string(vm, "domain")) {
        g_autofree char *hint = g_strdup_printf("`virsh console %s` is its console", sf_ctl_string(vm, "domain"));
        return sf_ctl_fail(ctl, hint, "VM \"%s\": it is a libvirt domain", name);
    }
    int console = connect_console(sf_ctl_string(vm, "console"));
    if (console < 0) {
        return sf_ctl_fail(ctl, "another `sfctl console` may hold it", "VM \"%s\": its console does not answer: %s",
                           name, g_strerror(errno));
    }
    gboolean person = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
    if (person) {
        printf("Console of \"%s\". ^] detaches.\n", name);
    }
    fflush(stdout);
    signal(SIGPIPE, SIG_IGN);      /* a VM that ends is told by the return value of write() */
    gboolean raw = sf_term_enter(SF_TERM_RAW);
    replay(sf_ctl_string(vm, "console_log"));
    End end = copy_both(console, raw);
    sf_term_leave();
    close(console);
    if (person) {
        printf(end == DETACHED ? "\nDetached from \"%s\"; it goes on.\n" : "\nThe console of \"%s\" has closed.\n",
               name);
    }
    return SF_CTL_OK;
}

int sf_ctl_console(SfCtl *ctl, int argc, char **argv)
{
    if (ctl->json) {
        return sf_ctl_usage("console",
                            "console: there is no --json for it; `sfctl status VM --json` has the socket's path");
    }
    return sf_ctl_console_attach(ctl, argv[0]);
}
