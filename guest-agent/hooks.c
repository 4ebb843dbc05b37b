/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The hooks of a fork: executable files in /etc/snowflock/clone.d, run in the order of their names (as run-parts has
 * it), one after the other, each in its own process group, with SF_* in the environment and nothing on standard input.
 * Before them, in the same way, the scripts for network managers (managers.c).
 *
 * The names are read when the agent starts, and again in a clone only if the folder has changed since: its descriptor
 * is kept, and one fstat() tells. (Renaming or removing the folder changes its ctime as well.)
 */
#include "guest-agent/agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#include "guest-agent/managers.h"

#define HOOK_NAME_CHARACTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
#define TIME_STAMP_STEP_S    1 /* file systems' time stamps are finer than that */
#define HOOK_PATH            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

static int by_name(const void *a, const void *b)
{
    return strcmp(a, b);
}

/* The names that run-parts takes: no dot, so that backups and package leftovers are no hooks. */
static bool is_hook_name(const char *name)
{
    return name[0] != '\0' && name[strspn(name, HOOK_NAME_CHARACTERS)] == '\0';
}

static bool is_executable(int directory, const char *name)
{
    struct stat status;

    return fstatat(directory, name, &status, 0) == 0 && S_ISREG(status.st_mode) && status.st_mode & 0111;
}

static bool same_time(struct timespec a, struct timespec b)
{
    return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

/* Takes the names of an open folder; false if there are too many. */
static bool read_names(struct identity *identity, DIR *directory)
{
    struct dirent *entry;

    while ((entry = readdir(directory))) {
        if (!is_hook_name(entry->d_name)) {
            continue;
        }
        if (identity->hooks == AGENT_MAX_HOOKS || strlen(entry->d_name) >= AGENT_HOOK_NAME_LEN) {
            return false;
        }
        strcpy(identity->hook_names[identity->hooks++], entry->d_name);
    }
    qsort(identity->hook_names, identity->hooks, sizeof(identity->hook_names[0]), by_name);
    return true;
}

static bool refuse(struct identity *identity, struct sf_gp_error *error, int number, const char *text)
{
    identity->hooks = 0;
    identity->hooks_certain = false;
    error->error = (uint32_t)number;
    sf_gp_text_set(error->text, sizeof(error->text), "%s: %s", identity->options->hooks, text);
    return false;
}

/* Reads the folder anew. */
static bool read_folder(struct identity *identity, struct sf_gp_error *error)
{
    struct timespec now;
    DIR *directory;
    bool all;
    int fd;

    if (identity->hooks_fd >= 0) {
        close(identity->hooks_fd);
    }
    identity->hooks = 0;
    identity->hooks_fd = open(identity->options->hooks, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (identity->hooks_fd < 0) {
        return errno == ENOENT || refuse(identity, error, errno, strerror(errno));
    }
    /* A change that comes so soon behind this one that it gets the same time stamp would not be seen. */
    clock_gettime(CLOCK_REALTIME, &now);
    identity->hooks_certain = fstat(identity->hooks_fd, &identity->hooks_status) == 0 &&
                              identity->hooks_status.st_mtim.tv_sec < now.tv_sec - TIME_STAMP_STEP_S &&
                              identity->hooks_status.st_ctim.tv_sec < now.tv_sec - TIME_STAMP_STEP_S;
    fd = dup(identity->hooks_fd);
    directory = fd >= 0 ? fdopendir(fd) : NULL;
    if (!directory) {
        int number = errno;

        if (fd >= 0) {
            close(fd);
        }
        return refuse(identity, error, number, strerror(number));
    }
    all = read_names(identity, directory);
    closedir(directory);
    return all || refuse(identity, error, E2BIG, "too many hooks, or a name that is too long");
}

void hooks_init(struct identity *identity)
{
    struct sf_gp_error error;

    identity->hooks_fd = -1;
    if (!(identity->options->skip & AGENT_SKIP_HOOKS) && !read_folder(identity, &error)) {
        agent_log(LOG_WARNING, "%s; clones will fail", error.text);
    }
}

bool hooks_begin(struct identity *identity, struct sf_gp_error *error)
{
    const struct stat *old = &identity->hooks_status;
    struct stat status;

    identity->next_hook = 0;
    if (identity->hooks_fd >= 0 && identity->hooks_certain && fstat(identity->hooks_fd, &status) == 0 &&
        same_time(status.st_mtim, old->st_mtim) && same_time(status.st_ctim, old->st_ctim)) {
        return true;
    }
    return read_folder(identity, error);
}

/* NAME=value in a buffer of its own. */
#define ENVIRONMENT_TEXT (SF_GP_NAME_LEN + 16)
#define VARIABLES        7 /* without those of a network */

/* Starts identity->hook_path. */
static bool start(struct identity *identity, struct sf_gp_error *error)
{
    const struct sf_gp_identity *value = &identity->value;
    struct network_environment network = { 0 };
    char *path = identity->hook_path, id[ENVIRONMENT_TEXT], count[ENVIRONMENT_TEXT], ticket[ENVIRONMENT_TEXT];
    char parent[ENVIRONMENT_TEXT], hostname[ENVIRONMENT_TEXT], socket[PATH_MAX];
    char *const argv[] = { path, NULL };
    char *environment[VARIABLES + NETWORK_VARIABLES + 1] = { id,       count,  ticket,           parent,
                                                             hostname, socket, (char *)HOOK_PATH };
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    pid_t pid;
    int result;

    snprintf(id, sizeof(id), "SF_ID=%" PRIu32, value->id);
    snprintf(count, sizeof(count), "SF_COUNT=%" PRIu32, value->count);
    snprintf(ticket, sizeof(ticket), "SF_TICKET=%016" PRIx64, value->ticket);
    snprintf(parent, sizeof(parent), "SF_PARENT=%s", value->parent);
    snprintf(hostname, sizeof(hostname), "SF_HOSTNAME=%s", value->hostname);
    snprintf(socket, sizeof(socket), "SF_AGENT_SOCKET=%s", identity->options->socket);
    if (identity->network) {
        network_describe(identity->network, &network);
        for (size_t i = 0; i < NETWORK_VARIABLES; i++) {
            environment[VARIABLES + i] = network.text[i];
        }
    }

    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    result = posix_spawn(&pid, path, &files, &attributes, argv, environment);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
    if (result != 0) {
        error->error = (uint32_t)result;
        sf_gp_text_set(error->text, sizeof(error->text), "hook %s: %s", path, strerror(result));
        return false;
    }
    identity->hook_pid = pid;
    setpriority(PRIO_PROCESS, (id_t)pid, identity->hook_nice); /* before it starts anything that lives on */
    return true;
}

enum hook_start hooks_start_next(struct identity *identity, struct sf_gp_error *error)
{
    const char *script = managers_next_script(&identity->managers);

    if (script) {
        snprintf(identity->hook_path, sizeof(identity->hook_path), "%s", script);
        return start(identity, error) ? HOOK_STARTED : HOOK_FAILED;
    }
    while (identity->next_hook < identity->hooks) {
        const char *name = identity->hook_names[identity->next_hook++];

        if (is_executable(identity->hooks_fd, name)) {
            snprintf(identity->hook_path, sizeof(identity->hook_path), "%s/%s", identity->options->hooks, name);
            return start(identity, error) ? HOOK_STARTED : HOOK_FAILED;
        }
    }
    return HOOK_NONE;
}
