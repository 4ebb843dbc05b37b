/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The page server of sf-pager alone, over made-up memory, for tests and benchmarks with real NBD tools.
 *
 *   page_server --unix PATH | --tcp ADDRESS  [--tls DIR | --psk FILE] [--unit OU] [--snapshot ID] [--size MIB]
 *               [--content pattern|file:PATH] [--limit NAME=N]... [--wait]
 *
 * The snapshot has two blocks: "pc.ram" of SIZE MiB, a base with one delta over it; "cache", 1 MiB, a page cache of
 * which only the first half is there, the rest comes with the first fetch of it (its last page fails with EIO); and a
 * device state of 5000 bytes. In pc.ram every third 64 KiB is a hole in the base; the delta covers the second 64 KiB.
 * Prints "port N" (0: unix), then does what it reads, a line each: set, allow NAME..., stats, quit; answers "ok ...".
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "sfvmm/pager/nbd_server.h"

#define UNIT         65536u
#define CACHE_LENGTH (1u << 20)
#define STATE_LENGTH 5000u
#define MIB          (1ull << 20)

static struct page_store *store;
static int stop_fds[2];

static void die(const char *what)
{
    fprintf(stderr, "page_server: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int new_memfd(uint64_t length)
{
    int fd = memfd_create("page-server", MFD_CLOEXEC);

    if (fd < 0 || ftruncate(fd, (off_t)length) < 0) {
        die("memfd");
    }
    return fd;
}

/* Each 8 bytes say where they are and which layer they belong to: what tests compare with. */
static void fill(int fd, uint64_t offset, uint64_t length, uint64_t layer)
{
    static uint64_t words[UNIT / 8];

    for (uint64_t at = offset; at < offset + length; at += UNIT) {
        for (unsigned i = 0; i < UNIT / 8; i++) {
            words[i] = (layer << 56 | (at + 8 * i)) + 1;
        }
        uint64_t n = length - (at - offset) < UNIT ? length - (at - offset) : UNIT;
        if (pwrite(fd, words, n, (off_t)at) != (ssize_t)n) {
            die("pwrite");
        }
    }
}

static int open_content(const char *path, uint64_t size)
{
    char *bytes = malloc(MIB);
    int from = open(path, O_RDONLY | O_CLOEXEC), to = new_memfd(size);
    ssize_t n;

    if (from < 0 || !bytes) {
        die(path);
    }
    for (uint64_t at = 0; at < size && (n = read(from, bytes, MIB)) > 0; at += (uint64_t)n) {
        if (pwrite(to, bytes, (size_t)n, (off_t)at) != n) {
            die("pwrite");
        }
    }
    free(bytes);
    close(from);
    return to;
}

static struct sf_qc_extent *new_extent(uint64_t offset, uint64_t length)
{
    struct sf_qc_extent *extent = calloc(1, sizeof(*extent));

    extent->offset = offset;
    extent->length = length;
    return extent;
}

static void set(const char *snapshot, uint64_t size, const char *content)
{
    struct page_block *blocks = calloc(2, sizeof(*blocks));
    int state = new_memfd(STATE_LENGTH);

    strcpy(blocks[0].id, "pc.ram");
    blocks[0].length = size;
    if (strncmp(content, "file:", 5) == 0) {
        blocks[0].base = open_content(content + 5, size);
    } else {
        blocks[0].base = new_memfd(size);
        for (uint64_t at = 0; at < size; at += UNIT) {
            if (at / UNIT % 3 != 2) {
                fill(blocks[0].base, at, UNIT, 0);
            }
        }
        blocks[0].n_layers = 1;
        blocks[0].layers[0] = (struct page_layer){ new_memfd(size), 1, new_extent(UNIT, UNIT) };
        fill(blocks[0].layers[0].delta, UNIT, UNIT, 1);
    }
    strcpy(blocks[1].id, "cache");
    blocks[1].length = CACHE_LENGTH;
    blocks[1].is_cache = true;
    blocks[1].base = new_memfd(CACHE_LENGTH);
    blocks[1].n_present = 1;
    blocks[1].present = new_extent(0, CACHE_LENGTH);
    fill(blocks[1].base, 0, CACHE_LENGTH / 2, 0);
    fill(state, 0, STATE_LENGTH, 2);
    page_store_set(store, snapshot, blocks, 2, state, STATE_LENGTH);
    page_store_note(store, 1, 0, CACHE_LENGTH / 2, false);
}

/* Instead of memtap: answers fetches of the block "cache". */
static void *fetcher(void *data)
{
    struct pollfd fds[2] = { { page_store_fetch_eventfd(store), POLLIN, 0 }, { stop_fds[0], POLLIN, 0 } };

    while (poll(fds, 2, -1) >= 0 && !fds[1].revents) {
        struct page_fetch *fetch = page_store_take_fetches(store), *next;
        for (; fetch; fetch = next) {
            uint64_t end = fetch->offset + fetch->length;
            next = fetch->next;
            if (end <= CACHE_LENGTH - SF_PAGE_SIZE) {
                const struct page_block *block = page_store_block(store, fetch->block);
                fill(block->base, fetch->offset, fetch->length, 0);
                page_store_note(store, fetch->block, fetch->offset, fetch->length, false);
            }
            fetch->done(fetch->data, end <= CACHE_LENGTH - SF_PAGE_SIZE ? 0 : EIO);
            free(fetch);
        }
    }
    return NULL;
}

static int listen_unix(const char *path)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    unlink(path);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 128) < 0) {
        die(path);
    }
    return fd;
}

static int listen_tcp(const char *text, unsigned *port)
{
    struct sockaddr_in address = { .sin_family = AF_INET };
    socklen_t length = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (inet_pton(AF_INET, text, &address.sin_addr) != 1 || fd < 0 ||
        bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 128) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &length) < 0) {
        die(text);
    }
    *port = ntohs(address.sin_port);
    return fd;
}

static void set_limit(struct nbd_server_limits *limits, const char *text)
{
    const struct {
        const char *name;
        unsigned *limit;
    } all[] = {
        { "connections=", &limits->connections },
        { "per-peer=", &limits->connections_per_peer },
        { "hello=", &limits->hello },
        { "message=", &limits->message },
        { "output=", &limits->output },
        { "pending=", &limits->pending },
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(all); i++) {
        if (g_str_has_prefix(text, all[i].name)) {
            *all[i].limit = (unsigned)atoi(text + strlen(all[i].name));
            return;
        }
    }
    errno = EINVAL;
    die(text);
}

static bool obey(struct nbd_server *server, char *line, const char *snapshot, uint64_t size, const char *content)
{
    char *rest = NULL, *word = strtok_r(line, " \n", &rest);
    const char *names[64];
    unsigned n = 0;

    if (!word || strcmp(word, "quit") == 0) {
        return false;
    }
    if (strcmp(word, "set") == 0) {
        set(snapshot, size, content);
    } else if (strcmp(word, "allow") == 0) {
        while (n < G_N_ELEMENTS(names) && (word = strtok_r(NULL, " \n", &rest)) != NULL) {
            names[n++] = word;
        }
        nbd_server_allow(server, names, n);
    } else {
        struct nbd_server_stats stats;
        nbd_server_get_stats(server, &stats);
        printf("ok %u %lu %lu\n", stats.connections, (unsigned long)stats.served_bytes, (unsigned long)stats.refused);
        return true;
    }
    printf("ok\n");
    return true;
}

int main(int argc, char **argv)
{
    struct nbd_server_options options = { .listen_fd = -1, .snapshot = "s-1" };
    const char *content = "pattern";
    uint64_t size = 16 * MIB;
    unsigned port = 0;
    bool wait = false;
    GError *error = NULL;
    pthread_t thread;
    char line[4096];

    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--wait") == 0) {
            wait = true;
            continue;
        }
        i++;
        if (strcmp(argv[i - 1], "--unix") == 0) {
            options.listen_fd = listen_unix(value);
        } else if (strcmp(argv[i - 1], "--tcp") == 0) {
            options.listen_fd = listen_tcp(value, &port);
        } else if (strcmp(argv[i - 1], "--tls") == 0) {
            options.tls_directory = value;
        } else if (strcmp(argv[i - 1], "--psk") == 0) {
            options.psk_file = value;
        } else if (strcmp(argv[i - 1], "--unit") == 0) {
            options.tls_unit = value;
        } else if (strcmp(argv[i - 1], "--snapshot") == 0) {
            options.snapshot = value;
        } else if (strcmp(argv[i - 1], "--size") == 0) {
            size = strtoull(value, NULL, 10) * MIB;
        } else if (strcmp(argv[i - 1], "--content") == 0) {
            content = value;
        } else if (strcmp(argv[i - 1], "--limit") == 0) {
            set_limit(&options.limits, value);
        } else {
            errno = EINVAL;
            die(argv[i - 1]);
        }
    }
    store = page_store_new();
    struct nbd_server *server = nbd_server_new(store, &options, &error);
    if (!server || !nbd_server_start(server, &error) || pipe(stop_fds) < 0) {
        fprintf(stderr, "page_server: %s\n", error ? error->message : strerror(errno));
        return 1;
    }
    pthread_create(&thread, NULL, fetcher, NULL);
    if (!wait) {
        set(options.snapshot, size, content);
    }
    printf("port %u\n", port);
    while (fgets(line, sizeof(line), stdin) && obey(server, line, options.snapshot, size, content)) {
    }
    close(stop_fds[1]);
    pthread_join(thread, NULL);
    nbd_server_stop(server);
    nbd_server_free(server);
    page_store_free(store);
    return 0;
}
