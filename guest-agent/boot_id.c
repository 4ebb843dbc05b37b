/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The boot ID tells programs which running kernel they are on. The kernel has made it when it is first asked, so clones
 * have their parent's. Programs that hold two members of a cluster for one machine take ways to each other that are none:
 * UCX, under MPICH and Open MPI, then uses shared memory.
 *
 * In front of the kernel's file lies one of the agent's, by a bind mount, as container managers do. It is made at the
 * agent's start with what the kernel says, and stays mapped, so that a clone only stores some bytes (identity.c says why).
 */
#include "guest-agent/boot_id.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/vfs.h>
#include <syslog.h>
#include <unistd.h>

#include "guest-agent/agent.h"

#define KERNEL_FILE  "/proc/sys/kernel/random/boot_id"
#define OWN_FILE     "boot_id"
#define TEXT_LENGTH  37 /* "01234567-89ab-4cde-8f01-23456789abcd\n" */
#define RANDOM_BYTES 16

static bool read_text(char *text)
{
    int fd = open(KERNEL_FILE, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, text, TEXT_LENGTH);

    if (fd >= 0) {
        close(fd);
    }
    return got == TEXT_LENGTH;
}

/* The file with this text, mapped; NULL with errno. */
static char *map_own(const char *path, const char *text)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0444), number;
    char *map = MAP_FAILED;

    if (fd < 0) {
        return NULL;
    }
    if (pwrite(fd, text, TEXT_LENGTH, 0) == TEXT_LENGTH) {
        map = mmap(NULL, TEXT_LENGTH, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    number = errno;
    close(fd);
    errno = number;
    return map == MAP_FAILED ? NULL : map;
}

/* Whether a file is there in front of the kernel's: that of an earlier agent, or of a container's manager. */
static bool is_covered(void)
{
    struct statfs status;

    return statfs(KERNEL_FILE, &status) == 0 && status.f_type != PROC_SUPER_MAGIC;
}

char *boot_id_cover(const char *run_dir)
{
    char path[PATH_MAX], text[TEXT_LENGTH], *map;

    snprintf(path, sizeof(path), "%s/" OWN_FILE, run_dir);
    if (!read_text(text)) {
        agent_log(LOG_WARNING, KERNEL_FILE ": %s: clones will have one boot ID", strerror(errno));
        return NULL;
    }
    map = map_own(path, text);
    if (!map || (!is_covered() && mount(path, KERNEL_FILE, NULL, MS_BIND, NULL) < 0)) {
        agent_log(LOG_WARNING, "%s: %s: clones will have one boot ID", path, strerror(errno));
    }
    return map;
}

void boot_id_renew(char *map)
{
    uint8_t bytes[RANDOM_BYTES];

    if (getrandom(bytes, sizeof(bytes), GRND_NONBLOCK) != sizeof(bytes)) {
        return; /* never: it was seeded a moment ago */
    }
    bytes[6] = (bytes[6] & 0x0f) | 0x40; /* RFC 9562: version 4 */
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    for (unsigned i = 0, at = 0; i < RANDOM_BYTES; i++) {
        at += map[at] == '-';
        map[at++] = "0123456789abcdef"[bytes[i] >> 4];
        map[at++] = "0123456789abcdef"[bytes[i] & 0x0f];
    }
}
