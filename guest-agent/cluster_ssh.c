/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "guest-agent/cluster_ssh.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <syslog.h>
#include <unistd.h>

#include "guest-agent/agent.h"

#define NUMBER_TEXT 16
#define SEARCH_PATH "PATH=/usr/sbin:/usr/bin:/sbin:/bin"

static int run(char *const argv[], int *status)
{
    char *const environment[] = { (char *)SEARCH_PATH, NULL };
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    pid_t pid;
    int result;

    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    result = posix_spawn(&pid, argv[0], &files, &attributes, argv, environment);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
    if (result != 0) {
        return result;
    }
    while (waitpid(pid, status, 0) < 0) {
        if (errno != EINTR) {
            return errno;
        }
    }
    return 0;
}

void cluster_ssh_prepare(const struct sf_gp_network *value)
{
    char subnet[NUMBER_TEXT], prefix[NUMBER_TEXT], name[SF_GP_NAME_LEN];
    char *const argv[] = { (char *)SF_CLUSTER_SSH, subnet, prefix, name, NULL };
    uint32_t a = value->address & ~(UINT32_MAX >> value->prefix);
    int status = 0, result;

    if (access(SF_CLUSTER_SSH, X_OK) < 0) {
        return;
    }
    snprintf(subnet, sizeof(subnet), "%u.%u.%u.%u", a >> 24, a >> 16 & 0xff, a >> 8 & 0xff, a & 0xff);
    snprintf(prefix, sizeof(prefix), "%" PRIu32, value->prefix);
    snprintf(name, sizeof(name), "%s", value->name);
    result = run(argv, &status);
    if (result != 0 || status != 0) {
        agent_log(LOG_WARNING, "%s: %s; members have no key of their cluster for ssh", SF_CLUSTER_SSH,
                  result ? strerror(result) : "it failed");
    }
}
