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

static void put_address(FILE *file, uint32_t address)
{
    fprintf(file, "%u.%u.%u.%u ", address >> 24, address >> 16 & 0xff, address >> 8 & 0xff, address & 0xff);
}

static bool is_another_name(const char *host, const char *name)
{
    return host[0] && strcmp(host, name) != 0 && strcmp(host, "localhost") != 0 &&
           host[strspn(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.")] == '\0';
}

/*
 * A line of the others', without the parent's host name if it gives that a loopback address, as Debian does: of two
 * addresses of one name programs may take the one that leads nowhere. The line is left out when nothing else is in it.
 */
static void put_other_line(FILE *file, char *line, const char *parent_host)
{
    char *rest = line, *word;
    unsigned words = 0;

    if (strncmp(line, "127.", 4) != 0 || strchr(line, '#') || !parent_host[0]) {
        fputs(line, file);
        return;
    }
    while ((word = strsep(&rest, " \t\n"))) {
        if (*word && strcmp(word, parent_host) != 0) {
            if (words == 1) {
                fprintf(file, "%s", line); /* the address: strsep() has ended it */
            }
            if (words++ > 0) {
                fprintf(file, " %s", word);
            }
        }
    }
    if (words > 1) {
        fputc('\n', file);
    }
}

static void put_others(FILE *file, const char *others, const char *parent_host)
{
    while (*others) {
        size_t length = strcspn(others, "\n");
        char *line = strndup(others, length + (others[length] == '\n'));

        if (line) {
            put_other_line(file, line, parent_host);
        }
        free(line);
        others += length + (others[length] == '\n');
    }
}

static bool write_all(FILE *file, const char *others, const struct sf_gp_network *value, const char *parent_host)
{
    fputs(BEGIN, file);
    put_address(file, value->parent);
    fprintf(file, "sf-parent %s", value->name);
    if (is_another_name(parent_host, value->name)) {
        fprintf(file, " %s", parent_host);
    }
    fputc('\n', file);
    for (uint32_t id = 1; id <= value->count; id++) {
        put_address(file, value->first + id - 1);
        fprintf(file, "sf-%u %s-%u\n", id, value->name, id);
    }
    fputs(END, file);
    put_others(file, others, parent_host);
    return fflush(file) == 0 && !ferror(file);
}

static bool replace(const char *path, const char *others, const struct stat *status, const struct sf_gp_network *value,
                    const char *parent_host)
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
    ok = write_all(file, others, value, parent_host) && fchown(fd, status->st_uid, status->st_gid) == 0 &&
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

static bool same_file(const struct stat *a, const struct stat *b)
{
    return a->st_ino == b->st_ino && a->st_size == b->st_size && a->st_ctim.tv_sec == b->st_ctim.tv_sec &&
           a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

/* One system call: a clone pays for each, as it translates all kernel code anew under TCG. */
static bool are_written(const struct names *last, const char *path, const struct sf_gp_network *value,
                        const char *parent_host)
{
    const struct sf_gp_network *members = &last->members;
    struct stat status;

    return members->parent == value->parent && members->first == value->first && members->count == value->count &&
           strcmp(members->name, value->name) == 0 && strcmp(last->parent_host, parent_host) == 0 &&
           stat(path, &status) == 0 && same_file(&status, &last->file);
}

void names_write(struct names *last, const char *path, const struct sf_gp_network *value, const char *parent_host)
{
    struct stat status;
    char *others;

    if (are_written(last, path, value, parent_host)) {
        return;
    }
    others = read_others(path, &status);
    if (others && replace(path, others, &status, value, parent_host) && stat(path, &last->file) == 0) {
        last->members = *value;
        sf_gp_text_set(last->parent_host, sizeof(last->parent_host), "%s", parent_host);
    } else {
        agent_log(LOG_WARNING, "%s: the cluster's names are not written: %s", path, strerror(errno));
        memset(last, 0, sizeof(*last));
    }
    free(others);
}
