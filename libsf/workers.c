/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Workers of a hierarchical ticket, in one clone.
 *
 *    sf_clone() returned here as clone c
 *       |
 *       +-- fork --> worker, id 1 + (c - 1) * per_vm     returns to the program; a process group of its own
 *       +-- fork --> worker, the next id                 returns to the program
 *       |
 *    the keeper: never returns                 <-- orders (SYNC, END, LEAVE) of its workers, SIGCHLD
 *       | takes all that has come, hands one table to the host (worker_table.h), then answers
 *       +-- all have ended: ends the VM
 *
 * An order is one packet of the worker's socket with two descriptors: a socket for the answer, and a memfd with the
 * worker's result if it hands one over. So threads, and processes that a worker has forked, may give orders at once.
 * The keeper answers when the host has what was handed over, as sf_sync() promises; if the host does not take it,
 * everything that came with it is undone and its givers get the reason. Who has said END is killed, with its process
 * group; who ends otherwise is lost, and the table says by which signal.
 *
 * A VM that is forked once more, by a worker or by any other program of it, has the keeper and all workers too. They have
 * no business there: the keeper asks sf-agent each time which VM it is in, and ends its workers if that has changed. A
 * worker that called sf_clone() itself has left before (LEAVE): it is what the new VM was made for.
 *
 * The keeper has all signals blocked. State: `worker` is set once, in a new process that has one thread.
 */
#include "libsf/workers.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "libsf/call.h"
#include "libsf/vm.h"
#include "libsf/worker_table.h"
#include "snowflock.h"

#define ORDER_FDS 2
#define LOOK_MS   1000 /* how often the keeper looks at its workers unasked: another thread may have got its SIGCHLD */

enum order_kind { ORDER_SYNC, ORDER_END, ORDER_LEAVE };

struct order {
    uint32_t kind;
    int32_t status;     /* of END */
};

struct answer {
    int32_t error;      /* 0: done */
    char text[SF_TEXT_LENGTH];
};

/* ---- the worker's side ---- */

static struct {
    int fd;             /* to the keeper */
    unsigned id;        /* 0: this process is no worker */
    unsigned count;     /* of the ticket */
} worker;

unsigned sf_worker_id(void)
{
    return worker.id;
}

unsigned sf_worker_count(void)
{
    return worker.id > 0 ? worker.count : 0;
}

/* -1: the keeper has gone. */
static int send_order(const struct order *order, const int *fds, size_t n)
{
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(ORDER_FDS * sizeof(int))];
    } control = { .space = { 0 } };
    struct iovec part = { (void *)order, sizeof(*order) };
    struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };

    if (n > 0) {
        struct cmsghdr *head = &control.align;

        message.msg_control = control.space;
        message.msg_controllen = CMSG_SPACE(n * sizeof(int));
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(n * sizeof(int));
        memcpy(CMSG_DATA(head), fds, n * sizeof(int));
    }
    while (sendmsg(worker.fd, &message, MSG_NOSIGNAL) < 0) {
        if (errno != EINTR) {
            return sf_failed(errno, "the process that keeps worker %u: %s", worker.id, strerror(errno));
        }
    }
    return 0;
}

static int receive_answer(int fd)
{
    struct answer answer;
    ssize_t got;

    do {
        got = recv(fd, &answer, sizeof(answer), 0);
    } while (got < 0 && errno == EINTR);
    if (got != sizeof(answer)) {
        return sf_failed(ECONNRESET, "the process that keeps worker %u has gone", worker.id);
    }
    return answer.error == 0 ? 0 : sf_failed(answer.error, "%s", answer.text);
}

static int give_order(const struct order *order, int data_fd)
{
    int pair[2], fds[ORDER_FDS], status;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
        return sf_failed(errno, "socketpair: %s", strerror(errno));
    }
    fds[0] = pair[1];
    fds[1] = data_fd;
    status = send_order(order, fds, data_fd < 0 ? 1 : 2);
    close(pair[1]); /* so that the answer ends when the keeper does */
    if (status == 0) {
        status = receive_answer(pair[0]);
    }
    close(pair[0]);
    return status;
}

/* A memfd with the data; -1. */
static int data_file(const char *data, size_t length)
{
    int fd = memfd_create("sf-result", MFD_CLOEXEC);

    while (fd >= 0 && length > 0) {
        ssize_t put = write(fd, data, length);

        if (put < 0 && errno != EINTR) {
            int error = errno;

            close(fd);
            errno = error;
            fd = -1;
        } else if (put > 0) {
            data += put;
            length -= (size_t)put;
        }
    }
    return fd < 0 ? sf_failed(errno, "no memory for a result: %s", strerror(errno)) : fd;
}

static int give_data(const struct order *order, const void *data, size_t length)
{
    int fd = data_file(data, length), status;

    if (fd < 0) {
        return -1;
    }
    status = give_order(order, fd);
    close(fd);
    return status;
}

int sf_worker_sync(const void *data, size_t length)
{
    return give_data(&(struct order){ .kind = ORDER_SYNC }, data, length);
}

int sf_worker_end(int status, const void *data, size_t length, bool with_data)
{
    struct order order = { .kind = ORDER_END, .status = status };

    if ((with_data ? give_data(&order, data, length) : give_order(&order, -1)) < 0) {
        return -1;
    }
    for (;;) {
        pause(); /* the keeper ends this process */
    }
}

void sf_worker_leave(void)
{
    if (worker.id > 0) {
        send_order(&(struct order){ .kind = ORDER_LEAVE }, NULL, 0);
        close(worker.fd);
        worker.id = 0;
    }
}

/* ---- the keeper's side ---- */

struct ward {
    pid_t pid;              /* 0: it has ended */
    int fd;                 /* its orders */
    int data;               /* its result; -1: none */
    struct sf_worker_entry entry;
};

/* An order that waits for the host, and how to undo it. */
struct waiting {
    struct ward *ward;
    int answer;
    bool ends;
    struct sf_worker_entry entry;
    int data;               /* the former one */
    bool replaced;
};

struct keeper {
    uint64_t ticket;
    unsigned clone;
    unsigned count;
    uint64_t generation;
    bool changed;           /* the host does not know all of it */
    unsigned waiting_count;
    struct ward *wards;
    struct waiting *waiting;    /* at most one for each ward in a round */
    struct pollfd *polls;       /* count, and the one of SIGCHLD */
};

static void close_fd(int fd)
{
    if (fd >= 0) {
        close(fd);
    }
}

static void ward_kill(const struct ward *ward)
{
    if (ward->pid > 0) {
        kill(-ward->pid, SIGKILL);
        kill(ward->pid, SIGKILL); /* should it have gone to another group */
    }
}

/* The VM is another one, or its host cannot be told: what is left of it here is of no use. */
__attribute__((noreturn)) static void stand_down(struct keeper *keeper)
{
    for (unsigned i = 0; i < keeper->count; i++) {
        ward_kill(&keeper->wards[i]);
        close_fd(keeper->wards[i].fd);
        close_fd(keeper->wards[i].data);
    }
    for (;;) {
        pause();
    }
}

/* One packet; false: none is there, or the worker's end is closed. fds: those that came, else -1. */
static bool receive_order(int from, struct order *order, int fds[ORDER_FDS])
{
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(ORDER_FDS * sizeof(int))];
    } control;
    struct iovec part = { order, sizeof(*order) };
    struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.space,
                              .msg_controllen = sizeof(control.space) };
    ssize_t got = recvmsg(from, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    const struct cmsghdr *head = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;

    fds[0] = fds[1] = -1;
    if (head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
        memcpy(fds, CMSG_DATA(head), head->cmsg_len - CMSG_LEN(0));
    }
    return got == sizeof(*order);
}

static void ward_replace(struct ward *ward, struct waiting *waiting, int data)
{
    struct stat status;

    waiting->data = ward->data;
    waiting->replaced = true;
    ward->data = data;
    ward->entry.length = fstat(data, &status) == 0 ? (uint64_t)status.st_size : 0;
}

/* Takes an order of a worker, if it has given one. True: taken. */
static bool keeper_take(struct keeper *keeper, struct ward *ward)
{
    struct waiting *waiting = &keeper->waiting[keeper->waiting_count];
    struct order order;
    int fds[ORDER_FDS];

    if (!receive_order(ward->fd, &order, fds)) {
        return false;
    }
    if (order.kind == ORDER_LEAVE) {
        ward->pid = 0; /* not one of those that are killed */
        stand_down(keeper);
    }
    *waiting = (struct waiting){ .ward = ward, .answer = fds[0], .ends = order.kind == ORDER_END,
                                 .entry = ward->entry, .data = -1 };
    if (fds[1] >= 0) {
        ward_replace(ward, waiting, fds[1]);
    }
    if (waiting->ends) {
        ward->entry.state = SF_GP_STATE_EXITED;
        ward->entry.status = order.status;
    }
    keeper->waiting_count++;
    keeper->changed = true;
    return true;
}

/* The table and all results in one piece of memory for free(); NULL. */
static uint8_t *keeper_gather(struct keeper *keeper, size_t *length)
{
    size_t table = sf_worker_table_length(keeper->count), at = table;
    struct sf_worker_entry *entries = calloc(keeper->count, sizeof(*entries));
    uint8_t *all;

    for (unsigned i = 0; entries && i < keeper->count; i++) {
        entries[i] = keeper->wards[i].entry;
        entries[i].offset = at;
        at += entries[i].length;
        if (at > SF_MAX_RESULT) {
            sf_failed(EFBIG, "the results of the workers of clone %u together: more than %u bytes", keeper->clone,
                      SF_MAX_RESULT);
            free(entries);
            return NULL;
        }
    }
    all = entries ? malloc(at) : NULL;
    if (!all) {
        sf_failed(ENOMEM, "no memory for the results of clone %u", keeper->clone);
        free(entries);
        return NULL;
    }
    sf_worker_table_pack(all, ++keeper->generation, entries, keeper->count);
    for (unsigned i = 0; i < keeper->count; i++) {
        size_t done = 0, want = entries[i].length;
        ssize_t got = 1;

        while (done < want && got > 0) {
            got = pread(keeper->wards[i].data, all + entries[i].offset + done, want - done, (off_t)done);
            done += got > 0 ? (size_t)got : 0;
        }
        memset(all + entries[i].offset + done, 0, want - done); /* its writer has cut the file */
    }
    free(entries);
    *length = at;
    return all;
}

/* Hands everything to the host, if this is still its VM. */
static int keeper_sync(struct keeper *keeper)
{
    struct sf_gp_self self;
    size_t length;
    uint8_t *all;
    int status;

    if (sf_vm_self(&self) < 0) {
        return -1;
    }
    if (self.ticket != keeper->ticket || self.id != keeper->clone) {
        stand_down(keeper);
    }
    all = keeper_gather(keeper, &length);
    status = all ? sf_vm_sync(all, length) : -1;
    free(all);
    return status;
}

/* The host knows it, or (error != 0) does not take it. */
static void waiting_finish(struct waiting *waiting, int error)
{
    struct answer answer = { .error = error };
    struct ward *ward = waiting->ward;

    if (error != 0) {
        snprintf(answer.text, sizeof(answer.text), "%s", sf_error());
        if (ward->pid > 0) {
            ward->entry.state = waiting->entry.state;
            ward->entry.status = waiting->entry.status;
        }
        if (waiting->replaced) {
            int data = ward->data;

            ward->data = waiting->data;
            ward->entry.length = waiting->entry.length;
            waiting->data = data;
        }
    }
    close_fd(waiting->data);
    if (waiting->answer >= 0) {
        send(waiting->answer, &answer, sizeof(answer), MSG_NOSIGNAL | MSG_DONTWAIT);
        close(waiting->answer);
    }
    if (error == 0 && waiting->ends) {
        ward_kill(ward);
    }
}

/* Tells the host what has changed, and the workers whether it knows. */
static void keeper_tell(struct keeper *keeper)
{
    bool asked = keeper->waiting_count > 0;
    int error = keeper_sync(keeper) < 0 ? errno : 0;

    while (keeper->waiting_count > 0) {
        waiting_finish(&keeper->waiting[--keeper->waiting_count], error);
    }
    /* What remains after an undo is as good as what the host took before, but for deaths: once more. */
    keeper->changed = error != 0 && asked;
}

/* A worker has ended; its last orders are still taken. */
static void ward_ended(struct keeper *keeper, struct ward *ward, int status)
{
    while (keeper->waiting_count < keeper->count && keeper_take(keeper, ward)) {
    }
    kill(-ward->pid, SIGKILL); /* what it has left behind */
    ward->pid = 0;
    close_fd(ward->fd);
    ward->fd = -1;
    if (ward->entry.state == SF_GP_STATE_RUNNING) {
        ward->entry.state = SF_GP_STATE_LOST;
        ward->entry.signal = WIFSIGNALED(status) ? (uint32_t)WTERMSIG(status) : 0;
        ward->entry.status = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
        keeper->changed = true;
    }
}

static void keeper_reap(struct keeper *keeper)
{
    for (unsigned i = 0; i < keeper->count; i++) {
        struct ward *ward = &keeper->wards[i];
        int status;

        if (ward->pid > 0 && waitpid(ward->pid, &status, WNOHANG) == ward->pid) {
            ward_ended(keeper, ward, status);
        }
    }
}

/* Waits for something to happen, and takes all of it. */
static void keeper_round(struct keeper *keeper)
{
    struct pollfd *child = &keeper->polls[keeper->count];
    struct signalfd_siginfo info;

    for (unsigned i = 0; i < keeper->count; i++) {
        keeper->polls[i] = (struct pollfd){ .fd = keeper->wards[i].fd, .events = POLLIN };
    }
    if (poll(keeper->polls, keeper->count + 1, keeper->changed ? 0 : LOOK_MS) < 0) {
        return;
    }
    for (unsigned i = 0; i < keeper->count; i++) {
        struct ward *ward = &keeper->wards[i];

        if (keeper->polls[i].revents != 0 && !keeper_take(keeper, ward) && keeper->polls[i].revents & POLLHUP) {
            close(ward->fd); /* it has ended, or runs another program */
            ward->fd = -1;
        }
    }
    while (read(child->fd, &info, sizeof(info)) > 0) {
    }
    keeper_reap(keeper);
}

__attribute__((noreturn)) static void keeper_run(struct keeper *keeper)
{
    bool alive = true, well = true;

    while (alive) {
        keeper_round(keeper);
        if (keeper->changed) {
            keeper_tell(keeper);
        }
        alive = keeper->changed;
        for (unsigned i = 0; i < keeper->count; i++) {
            alive = alive || keeper->wards[i].pid > 0;
        }
    }
    for (unsigned i = 0; i < keeper->count; i++) {
        const struct sf_worker_entry *entry = &keeper->wards[i].entry;

        well = well && entry->state == SF_GP_STATE_EXITED && entry->status == 0;
    }
    sf_vm_end(well ? EXIT_SUCCESS : EXIT_FAILURE);
    stand_down(keeper);
}

/* ---- making workers ---- */

static bool keeper_init(struct keeper *keeper, int signal_fd)
{
    keeper->wards = calloc(keeper->count, sizeof(*keeper->wards));
    keeper->waiting = calloc(keeper->count, sizeof(*keeper->waiting));
    keeper->polls = calloc(keeper->count + 1, sizeof(*keeper->polls));
    if (!keeper->wards || !keeper->waiting || !keeper->polls || signal_fd < 0) {
        free(keeper->wards);
        free(keeper->waiting);
        free(keeper->polls);
        close_fd(signal_fd);
        sf_failed(ENOMEM, "no memory, or no descriptor, for %u workers", keeper->count);
        return false;
    }
    for (unsigned i = 0; i < keeper->count; i++) {
        keeper->wards[i] = (struct ward){ .fd = -1, .data = -1 };
    }
    keeper->polls[keeper->count] = (struct pollfd){ .fd = signal_fd, .events = POLLIN };
    return true;
}

/* In a new worker: nothing of the keeper is left but the socket. */
static void become_worker(struct keeper *keeper, int fd, unsigned id, unsigned count)
{
    setpgid(0, 0);
    for (unsigned i = 0; i < keeper->count; i++) {
        close_fd(keeper->wards[i].fd);
    }
    close(keeper->polls[keeper->count].fd);
    free(keeper->wards);
    free(keeper->waiting);
    free(keeper->polls);
    worker.fd = fd;
    worker.count = count;
    worker.id = id;
}

/* 1: this is the new worker; 0: it was made; -1: not, errno. */
static int make_worker(struct keeper *keeper, struct ward *ward, unsigned id, unsigned count)
{
    int pair[2], error;
    pid_t pid;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
        return -1;
    }
    pid = fork();
    if (pid == 0) {
        close(pair[0]);
        become_worker(keeper, pair[1], id, count);
        return 1;
    }
    error = errno;
    close(pair[1]);
    if (pid < 0) {
        close(pair[0]);
        errno = error;
        return -1;
    }
    setpgid(pid, pid); /* as the worker does: whoever comes first */
    ward->pid = pid;
    ward->fd = pair[0];
    ward->entry.state = SF_GP_STATE_RUNNING;
    return 0;
}

int sf_workers_fork(uint64_t ticket, unsigned clone, unsigned per_vm, unsigned workers)
{
    unsigned before = (clone - 1) * per_vm;
    struct keeper keeper = { .ticket = ticket, .clone = clone,
                             .count = workers - before < per_vm ? workers - before : per_vm };
    struct sigaction standard = { .sa_handler = SIG_DFL }, old_action;
    sigset_t all, child, old_mask;

    sigfillset(&all);
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    if (!keeper_init(&keeper, signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK))) {
        return -1;
    }
    pthread_sigmask(SIG_BLOCK, &all, &old_mask);
    sigaction(SIGCHLD, &standard, &old_action);
    for (unsigned i = 0; i < keeper.count; i++) {
        struct ward *ward = &keeper.wards[i];
        int made = make_worker(&keeper, ward, before + i + 1, workers);

        if (made > 0) {
            sigaction(SIGCHLD, &old_action, NULL);
            pthread_sigmask(SIG_SETMASK, &old_mask, NULL);
            return (int)(before + i + 1);
        }
        if (made < 0) {
            ward->entry = (struct sf_worker_entry){ .state = SF_GP_STATE_FAILED, .status = errno };
            keeper.changed = true;
        }
    }
    keeper_run(&keeper);
}
