/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * Between fork() and exec only async-signal-safe calls are made, as the daemon has worker threads. The child tells a
 * failure through a pipe that closes at the exec. It execs an open descriptor: a QEMU built in a place that the
 * unprivileged user can't reach (a home directory's cache) runs all the same.
 *
 * The child waits at a gate, a pipe, until its pid is on record: killed in between, sfvmmd leaves no QEMU that nobody
 * knows of.
 *
 * A child of ours must be reaped; a QEMU that we found again after a restart is nobody's child any more (or init's).
 * Both are watched through a pidfd, which is readable once the process has ended.
 */
#include "sfvmm/process/process.h"

#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define STAT_BYTES      1024 /* of /proc/PID/stat */
#define STAT_START_TIME 22   /* its field */
#define STAT_AFTER_NAME 3    /* the field behind the name */

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

extern char **environ;

typedef enum { STEP_SESSION, STEP_FDS, STEP_USER, STEP_EXEC } Step;

static const char *const step_names[] = {
    [STEP_SESSION] = "can't begin a session of its own",
    [STEP_FDS] = "can't hand over its descriptors",
    [STEP_USER] = "can't change to its user",
    [STEP_EXEC] = "can't be executed",
};

struct failure {
    Step step;
    int error;
};

/* ---- in the child ---- */

G_NORETURN static void child_fail(int report, Step step)
{
    struct failure failure = { step, errno };
    ssize_t ignored = write(report, &failure, sizeof(failure));

    (void)ignored;
    _exit(127);
}

/* All first above the places where they go to, so that none is overwritten before it is moved. */
static int child_move_fds(const int *fds, int n, int log, int *program, int *report)
{
    int above = SF_PROCESS_FIRST_FD + n;
    int moved[SF_PROCESS_FDS_MAX];

    *program = fcntl(*program, F_DUPFD_CLOEXEC, above);
    *report = fcntl(*report, F_DUPFD_CLOEXEC, above);
    log = fcntl(log, F_DUPFD_CLOEXEC, above);
    if (*program < 0 || *report < 0 || log < 0) {
        return -1;
    }
    for (int i = 0; i < n; i++) {
        moved[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, above);
        if (moved[i] < 0) {
            return -1;
        }
    }
    for (int i = 0; i < n; i++) {
        if (dup2(moved[i], SF_PROCESS_FIRST_FD + i) < 0) {
            return -1;
        }
    }
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(log, STDOUT_FILENO) < 0 || dup2(log, STDERR_FILENO) < 0) {
        return -1;
    }
    /* Whatever a library has opened without O_CLOEXEC must not reach QEMU. */
    return syscall(SYS_close_range, above, ~0U, 1u << 2 /* CLOSE_RANGE_CLOEXEC */);
}

static int child_drop_privileges(uid_t uid, gid_t gid)
{
    if (geteuid() == 0 && (uid != 0 || gid != 0) &&
        (setgroups(0, NULL) < 0 || setresgid(gid, gid, gid) < 0 || setresuid(uid, uid, uid) < 0)) {
        return -1;
    }
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

/* End of file: sfvmmd has died. */
static void child_wait(const int *gate)
{
    char byte;
    ssize_t n;

    close(gate[1]);
    do {
        n = read(gate[0], &byte, sizeof(byte));
    } while (n < 0 && errno == EINTR);
    if (n != sizeof(byte)) {
        _exit(127);
    }
}

G_NORETURN static void child_run(const SfProcessOptions *options, int program, int report, const int *gate)
{
    sigset_t none;

    child_wait(gate);
    sigemptyset(&none);
    for (int i = 1; i < NSIG; i++) {
        signal(i, SIG_DFL);
    }
    sigprocmask(SIG_SETMASK, &none, NULL);
    umask(077);
    if (setsid() < 0) {
        child_fail(report, STEP_SESSION);
    }
    setpriority(PRIO_PROCESS, 0, 0); /* sfvmmd may run before its VMs, they all run alike */
    if (child_move_fds((const int *)(void *)options->fds->data, options->fds->len, options->log, &program, &report) <
        0) {
        child_fail(report, STEP_FDS);
    }
    if (child_drop_privileges(options->uid, options->gid) < 0) {
        child_fail(report, STEP_USER);
    }
    syscall(SYS_execveat, program, "", options->argv->pdata, environ, AT_EMPTY_PATH);
    if (errno == ENOENT) { /* a script: its interpreter can't open a descriptor that closes at the exec */
        execve(options->program, (char **)options->argv->pdata, environ);
    }
    child_fail(report, STEP_EXEC);
}

/* ---- in the parent ---- */

gboolean sf_process_start(const SfProcessOptions *options, pid_t *pid, int *pidfd, GError **error)
{
    struct failure failure;
    int report[2], gate[2];
    int program = open(options->program, O_PATH | O_CLOEXEC);
    ssize_t n;

    g_assert(options->fds->len <= SF_PROCESS_FDS_MAX);
    if (program < 0 || pipe2(report, O_CLOEXEC) < 0) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "%s: %s", options->program, g_strerror(errno));
        if (program >= 0) {
            close(program);
        }
        return FALSE;
    }
    if (pipe2(gate, O_CLOEXEC) < 0) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "%s: no pipe: %s", options->program,
                    g_strerror(errno));
        close(program);
        close(report[0]);
        close(report[1]);
        return FALSE;
    }
    *pid = fork();
    if (*pid == 0) {
        child_run(options, program, report[1], gate);
    }
    failure.error = errno;
    close(program);
    close(report[1]);
    close(gate[0]);
    if (*pid > 0 && options->forked) {
        options->forked(*pid, options->data);
    }
    n = *pid > 0 ? write(gate[1], "", 1) : 0; /* a child that has been killed meanwhile shows below */
    close(gate[1]);
    if (*pid < 0) {
        close(report[0]);
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(failure.error), "no new process: %s",
                    g_strerror(failure.error));
        return FALSE;
    }
    do {
        n = read(report[0], &failure, sizeof(failure)); /* ends at the exec */
    } while (n < 0 && errno == EINTR);
    close(report[0]);
    if (n == sizeof(failure)) {
        waitpid(*pid, NULL, 0);
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(failure.error), "%s %s: %s", options->program,
                    step_names[failure.step], g_strerror(failure.error));
        return FALSE;
    }
    *pidfd = syscall(SYS_pidfd_open, *pid, 0);
    if (*pidfd < 0) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "%s: no pidfd: %s", options->program,
                    g_strerror(errno));
        kill(*pid, SIGKILL);
        waitpid(*pid, NULL, 0);
        return FALSE;
    }
    return TRUE;
}

guint64 sf_process_start_time(pid_t pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/stat", pid);
    char text[STAT_BYTES];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n;
    char *p;

    if (fd < 0) {
        return 0;
    }
    n = read(fd, text, sizeof(text) - 1);
    close(fd);
    if (n <= 0) {
        return 0;
    }
    text[n] = '\0';
    p = strrchr(text, ')'); /* a name may hold anything, parentheses too */
    for (int field = STAT_AFTER_NAME - 1; p && field < STAT_START_TIME; field++) {
        p = strchr(p + 1, ' ');
    }
    return p ? g_ascii_strtoull(p + 1, NULL, 10) : 0;
}

/* It may be dead and unreaped for long: init has other things to do. */
static gboolean has_ended(int pidfd)
{
    struct pollfd poll_fd = { .fd = pidfd, .events = POLLIN };

    return poll(&poll_fd, 1, 0) > 0;
}

int sf_process_open(pid_t pid, guint64 start_time)
{
    int pidfd = pid > 0 && start_time > 0 ? syscall(SYS_pidfd_open, pid, 0) : -1;

    /* The time is read after the open: if it is right, then the pidfd is of that process. */
    if (pidfd >= 0 && (sf_process_start_time(pid) != start_time || has_ended(pidfd))) {
        close(pidfd);
        return -1;
    }
    return pidfd;
}

char *sf_process_reap(int pidfd, const char *program)
{
    siginfo_t info = { 0 };

    if (waitid(P_PIDFD, pidfd, &info, WEXITED | WNOHANG) < 0 || info.si_pid == 0) {
        return NULL;
    }
    if (info.si_code == CLD_EXITED) {
        return g_strdup_printf("%s ended with status %d", program, info.si_status);
    }
    return g_strdup_printf("%s was ended by signal %d (%s)", program, info.si_status, g_strsignal(info.si_status));
}
