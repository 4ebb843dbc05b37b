/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The hooks of a fork: executable files in /etc/snowflock/clone.d, run in the order of their names (as run-parts has
 * it), one after the other, each in its own process group, with SF_* in the environment and nothing on standard input.
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
#include <sys/stat.h>
#include <unistd.h>

#define HOOK_NAME_CHARACTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
#define HOOK_PATH            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

static int by_name(const void *a, const void *b)
{
    return strcmp(a, b);
}

/* The names that run-parts takes: no dot, so that backups and package leftovers are no hooks. */
static bool is_hook(int directory, const char *name)
{
    struct stat status;

    return name[0] != '\0' && name[strspn(name, HOOK_NAME_CHARACTERS)] == '\0' &&
           fstatat(directory, name, &status, 0) == 0 && S_ISREG(status.st_mode) && status.st_mode & 0111;
}

bool hooks_list(struct identity *identity, struct sf_gp_error *error)
{
    const char *path = identity->options->hooks;
    DIR *directory = opendir(path);
    struct dirent *entry;

    identity->hooks = identity->next_hook = 0;
    if (!directory && errno == ENOENT) {
        return true;
    }
    if (!directory) {
        error->error = (uint32_t)errno;
        sf_gp_text_set(error->text, sizeof(error->text), "%s: %s", path, strerror(errno));
        return false;
    }
    while ((entry = readdir(directory))) {
        if (!is_hook(dirfd(directory), entry->d_name)) {
            continue;
        }
        if (identity->hooks == AGENT_MAX_HOOKS || strlen(entry->d_name) >= AGENT_HOOK_NAME_LEN) {
            error->error = E2BIG;
            sf_gp_text_set(error->text, sizeof(error->text), "%s: more than %d hooks, or a name longer than %d",
                           path, AGENT_MAX_HOOKS, AGENT_HOOK_NAME_LEN - 1);
            closedir(directory);
            return false;
        }
        strcpy(identity->hook_names[identity->hooks++], entry->d_name);
    }
    closedir(directory);
    qsort(identity->hook_names, identity->hooks, sizeof(identity->hook_names[0]), by_name);
    return true;
}

/* NAME=value in a buffer of its own. */
#define ENVIRONMENT_TEXT (SF_GP_NAME_LEN + 16)

bool hooks_start_next(struct identity *identity, struct sf_gp_error *error)
{
    const struct sf_gp_identity *value = &identity->value;
    const char *name = identity->hook_names[identity->next_hook++];
    char path[PATH_MAX], id[ENVIRONMENT_TEXT], count[ENVIRONMENT_TEXT], ticket[ENVIRONMENT_TEXT];
    char parent[ENVIRONMENT_TEXT], hostname[ENVIRONMENT_TEXT], socket[PATH_MAX];
    char *const argv[] = { path, NULL };
    char *const environment[] = { id, count, ticket, parent, hostname, socket, (char *)HOOK_PATH, NULL };
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    pid_t pid;
    int result;

    snprintf(path, sizeof(path), "%s/%s", identity->options->hooks, name);
    snprintf(id, sizeof(id), "SF_ID=%" PRIu32, value->id);
    snprintf(count, sizeof(count), "SF_COUNT=%" PRIu32, value->count);
    snprintf(ticket, sizeof(ticket), "SF_TICKET=%016" PRIx64, value->ticket);
    snprintf(parent, sizeof(parent), "SF_PARENT=%s", value->parent);
    snprintf(hostname, sizeof(hostname), "SF_HOSTNAME=%s", value->hostname);
    snprintf(socket, sizeof(socket), "SF_AGENT_SOCKET=%s", identity->options->socket);

    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes,
                             POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
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
    return true;
}
