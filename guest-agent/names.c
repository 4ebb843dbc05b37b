/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "guest-agent/names.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <syslog.h>
#include <unistd.h>

#include "guest-agent/agent.h"

#define BEGIN    "# begin of snowflock: the newest fork's members, written by sf-agent\n"
#define END      "# end of snowflock\n"
#define FILE_MAX (1 << 20) /* bytes of a file that is read; a longer one is left alone */
#define MODE     0644

/* The file without the part that is ours; NULL with errno. To be freed. */
static char *read_others(const char *path, struct stat *status)
{
    FILE *file = fopen(path, "re");
    char *text, *begin, *end;

    memset(status, 0, sizeof(*status));
    status->st_mode = MODE;
    if (!file) {
        return errno == ENOENT ? strdup("") : NULL;
    }
    if (fstat(fileno(file), status) < 0 || status->st_size > FILE_MAX) {
        errno = EFBIG;
        fclose(file);
        return NULL;
    }
    text = calloc(1, (size_t)status->st_size + 1);
    if (text) {
        (void)!fread(text, 1, (size_t)status->st_size, file); /* shorter: it is being written by somebody else */
    }
    fclose(file);
    if (!text) {
        return NULL;
    }
    begin = strstr(text, BEGIN);
    end = begin ? strstr(begin, END) : NULL;
    if (end) {
        memmove(begin, end + strlen(END), strlen(end + strlen(END)) + 1);
    }
    return text;
}

static void put_line(FILE *file, uint32_t address, const char *name, uint32_t id)
{
    fprintf(file, "%u.%u.%u.%u ", address >> 24, address >> 16 & 0xff, address >> 8 & 0xff, address & 0xff);
    if (id == 0) {
        fprintf(file, "sf-parent %s\n", name);
    } else {
        fprintf(file, "sf-%u %s-%u\n", id, name, id);
    }
}

static bool write_all(FILE *file, const char *others, const struct sf_gp_network *value)
{
    size_t length = strlen(others);

    fputs(others, file);
    fputs(length > 0 && others[length - 1] != '\n' ? "\n" BEGIN : BEGIN, file);
    put_line(file, value->parent, value->name, 0);
    for (uint32_t id = 1; id <= value->count; id++) {
        put_line(file, value->first + id - 1, value->name, id);
    }
    fputs(END, file);
    return fflush(file) == 0 && !ferror(file);
}

static bool replace(const char *path, const char *others, const struct stat *status, const struct sf_gp_network *value)
{
    char temporary[PATH_MAX];
    FILE *file;
    bool ok;
    int fd;

    snprintf(temporary, sizeof(temporary), "%s.sf-new", path);
    unlink(temporary);
    fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    file = fd >= 0 ? fdopen(fd, "w") : NULL;
    if (!file) {
        return false;
    }
    ok = write_all(file, others, value) && fchown(fd, status->st_uid, status->st_gid) == 0 &&
         fchmod(fd, status->st_mode & 07777) == 0;
    fclose(file);
    ok = ok && rename(temporary, path) == 0;
    if (!ok) {
        int number = errno;

        unlink(temporary);
        errno = number;
    }
    return ok;
}

void names_write(const char *path, const struct sf_gp_network *value)
{
    struct stat status;
    char *others = read_others(path, &status);

    if (!others || !replace(path, others, &status, value)) {
        agent_log(LOG_WARNING, "%s: the cluster's names are not written: %s", path, strerror(errno));
    }
    free(others);
}
