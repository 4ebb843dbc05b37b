/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation: isolation in stages, each of which the next one can't undo.
 *
 *     sfvmmd, before the exec    own session, unprivileged user (when sfvmmd is root), no_new_privs, no descriptors but
 *                                those that it is given
 *     here, before any input     no core file (it would hold keys) and not dumpable: processes of the same user, as a
 *                                QEMU that its guest has taken over, can't look into it; Landlock: no file may be
 *                                written or made, only system libraries, name service and the own directory are read;
 *                                seccomp: only the calls of the list below
 *     afterwards                 descriptors come over the socket on which sfvmmd talks to it
 *
 * A call outside the list fails with EPERM. io_uring's operations pass seccomp by: there Landlock and the user's rights
 * count, and the page server restricts its ring to what it needs.
 *
 * A kernel without Landlock is no reason to stop: the rest holds.
 */
#include "sfvmm/process/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <seccomp.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *const calls[] = {
    /* descriptors */
    "read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2", "lseek",
    "close", "close_range", "fcntl", "dup", "dup2", "dup3", "fstat", "newfstatat", "stat", "statx", "lstat",
    "fstatfs", "access", "faccessat", "faccessat2", "readlink", "readlinkat", "openat", "open", "getdents64", "pipe2",
    "eventfd2", "timerfd_create", "timerfd_settime", "memfd_create", "ftruncate", "ioctl", "splice", "sendfile",
    "flock", "fallocate", "umask", "getcwd",
    /* waiting */
    "poll", "ppoll", "select", "pselect6", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2",
    "nanosleep", "clock_nanosleep", "futex", "restart_syscall", "sched_yield",
    /* sockets */
    "socket", "socketpair", "connect", "bind", "accept4", "accept", "shutdown", "getsockopt", "setsockopt", "listen",
    "getsockname", "getpeername", "sendto", "sendmsg", "sendmmsg", "recvfrom", "recvmsg", "recvmmsg",
    "io_uring_setup", "io_uring_enter", "io_uring_register",
    /* memory, threads, time */
    "mmap", "munmap", "mremap", "mprotect", "madvise", "brk", "clone", "clone3", "set_robust_list", "rseq",
    "set_tid_address", "membarrier", "sigaltstack", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "tgkill",
    "exit", "exit_group", "gettid", "getpid", "getppid", "getuid", "geteuid", "getgid", "getegid", "getresuid",
    "getresgid", "sched_getaffinity", "sched_setaffinity", "setpriority", "getpriority", "prlimit64", "getrlimit",
    "getrusage", "sysinfo", "uname", "getrandom", "clock_gettime", "clock_getres", "gettimeofday", "time", "times",
    "prctl", "arch_prctl", "sched_getparam", "sched_getscheduler", "getcpu",
};

static gboolean fail(GError **error, const char *what, int code)
{
    g_set_error(error, G_IO_ERROR, g_io_error_from_errno(code), "sandbox: %s: %s", what, g_strerror(code));
    return FALSE;
}

/* ---- Landlock ---- */

#define FILES_READ (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR)
/* Everything of the first version of the interface; files that are open already are not concerned. */
#define FILES_ALL                                                                                                      \
    (LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_WRITE_FILE | FILES_READ | LANDLOCK_ACCESS_FS_REMOVE_DIR |         \
     LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_MAKE_CHAR | LANDLOCK_ACCESS_FS_MAKE_DIR |                     \
     LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_MAKE_FIFO |                       \
     LANDLOCK_ACCESS_FS_MAKE_BLOCK | LANDLOCK_ACCESS_FS_MAKE_SYM)

static void allow_reading(int ruleset, const char *path)
{
    struct landlock_path_beneath_attr rule = { .allowed_access = FILES_READ,
                                               .parent_fd = open(path, O_PATH | O_CLOEXEC) };

    if (rule.parent_fd >= 0) { /* what is not there needs no rule */
        syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0);
        close(rule.parent_fd);
    }
}

static gboolean enter_landlock(const char *directory, GError **error)
{
    /* Names of hosts, and what libraries load when they are first used. /proc: descriptors by path. */
    static const char *const readable[] = { "/etc", "/usr", "/lib", "/lib64", "/proc", "/run/systemd/resolve",
                                            "/dev/urandom" };
    struct landlock_ruleset_attr attributes = { .handled_access_fs = FILES_ALL };
    int ruleset = syscall(SYS_landlock_create_ruleset, &attributes, sizeof(attributes), 0);
    gboolean ok;

    if (ruleset < 0) {
        g_message("sandbox: this kernel has no Landlock (%s); files are protected by their rights alone",
                  g_strerror(errno));
        return TRUE;
    }
    for (guint i = 0; i < G_N_ELEMENTS(readable); i++) {
        allow_reading(ruleset, readable[i]);
    }
    if (directory) {
        allow_reading(ruleset, directory);
    }
    ok = syscall(SYS_landlock_restrict_self, ruleset, 0) == 0 || fail(error, "Landlock", errno);
    close(ruleset);
    return ok;
}

/* ---- seccomp ---- */

static gboolean enter_seccomp(GError **error)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
    int result = filter ? 0 : -ENOMEM;

    for (guint i = 0; result == 0 && i < G_N_ELEMENTS(calls); i++) {
        int number = seccomp_syscall_resolve_name(calls[i]);
        if (number >= 0) { /* a call that this architecture or library does not know is not needed */
            result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, number, 0);
        }
    }
    if (result == 0) {
        result = seccomp_load(filter);
    }
    if (filter) {
        seccomp_release(filter);
    }
    return result == 0 || fail(error, "seccomp", -result);
}

gboolean sf_sandbox_enter(const char *program, const char *directory, GError **error)
{
    struct rlimit none = { 0, 0 };

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) {
        return fail(error, "no_new_privs", errno);
    }
    if (setrlimit(RLIMIT_CORE, &none) < 0) {
        return fail(error, "no core files", errno);
    }
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0) {
        return fail(error, "not dumpable", errno);
    }
    if (geteuid() == 0) {
        g_warning("%s runs as root: set `user` (sfvmmd.conf) to an unprivileged user", program);
    }
    return enter_landlock(directory, error) && enter_seccomp(error);
}
