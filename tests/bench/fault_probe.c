/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Pages between real sf-pagers, for scripts/bench memory and multicast. Processes, which may be in different network
 * namespaces:
 *
 *   fault_probe origin PAGER DIR KEYS|- ADDRESS MIB [NAME...]
 *       serves MIB of random memory as s-1/pc.ram to these hosts, or "h2", until its input ends; prints its port. Lines of its input:
 *       "invite NAME"   prints an invitation to its multicast group, one line
 *       "sum"           prints a checksum of the memory
 *   fault_probe remote PAGER DIR KEYS|- URI MIB faults COUNT
 *       one fault at a time at random places, nothing prefetched: prints a line "NS" for each
 *   fault_probe remote PAGER DIR KEYS|- URI MIB complete
 *       all of it in the background: prints "NS"
 *   fault_probe remote PAGER DIR KEYS|- URI MIB group INVITATION|- ADDRESS ORIGIN
 *       joins the group, from this address (-: does not), prints "ready", waits for a line; then all of it in the
 *       background: prints "NS SUM", SUM of its memory
 *
 * KEYS: directory of the pages certificates; "-": plain. DIR: a directory of its own for each.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "sfvmm/pager/multicast_group.h"
#include "sfvmm/pager/pager.h"

#define STATE_LENGTH 4096u
#define PIECE        (1u << 20)
#define WARM_UP      64u
#define NOBODY       65534
#define BOUND        (300 * G_USEC_PER_SEC)

static GMainLoop *loop;
static SfPageCache *cache;
static guint64 length;
static guint n_faults;

static void die(const char *what, const GError *error)
{
    fprintf(stderr, "fault_probe: %s: %s\n", what, error ? error->message : g_strerror(errno));
    exit(1);
}

static gint64 now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * G_GINT64_CONSTANT(1000000000) + time.tv_nsec;
}

static int new_memfd(guint64 size)
{
    int fd = memfd_create("fault-probe", MFD_CLOEXEC);

    if (fd < 0 || ftruncate(fd, (off_t)size) < 0) {
        die("memfd", NULL);
    }
    return fd;
}

static void on_lost(SfPager *pager, const char *reason, gpointer data)
{
    fprintf(stderr, "fault_probe: lost: %s\n", reason);
    exit(1);
}

static SfPager *start(char **argv, int listen_fd)
{
    gboolean plain = strcmp(argv[4], "-") == 0, root = geteuid() == 0;
    SfPagerOptions options = {
        .binary = argv[2],
        .run_directory = argv[3],
        .snapshot = "s-1",
        .uid = root ? NOBODY : geteuid(),
        .gid = root ? NOBODY : getegid(),
        .listen_fd = listen_fd,
        .security = plain ? SF_PAGER_PLAIN : SF_PAGER_X509,
        .keys = plain ? NULL : argv[4],
    };
    g_autoptr(GError) error = NULL;
    SfPager *pager = sf_pager_start(&options, &error);

    if (!pager) {
        die("sf-pager", error);
    }
    g_signal_connect(pager, "lost", G_CALLBACK(on_lost), NULL);
    g_signal_connect(pager, "failed", G_CALLBACK(on_lost), NULL);
    return pager;
}

/* ---- origin ---- */

static int listen_tcp(const char *text, guint *port)
{
    struct sockaddr_in address = { .sin_family = AF_INET };
    socklen_t size = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (inet_pton(AF_INET, text, &address.sin_addr) != 1 || fd < 0 ||
        bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 16) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &size) < 0) {
        die(text, NULL);
    }
    *port = ntohs(address.sin_port);
    return fd;
}

static SfSnapshot *complete_snapshot(SfRamBase *base)
{
    struct {
        struct sf_qc_snapshot_reply reply;
        struct sf_qc_snapshot_block block;
    } payload = {
        .reply = { .state_length = STATE_LENGTH, .device_length = 100, .n_blocks = 1, .pause = 1, .at = 1 },
        .block = { .id = "pc.ram", .length = length },
    };
    g_autoptr(GBytes) bytes = g_bytes_new(&payload, sizeof(payload));
    g_autofree char *piece = g_malloc(PIECE);
    g_autoptr(GError) error = NULL;
    int fds[2] = { new_memfd(STATE_LENGTH), new_memfd(length) };

    for (guint64 at = 0; at < length; at += PIECE) {
        if (getrandom(piece, PIECE, 0) != PIECE || pwrite(fds[1], piece, PIECE, (off_t)at) != PIECE) {
            die("random memory", NULL);
        }
    }
    SfSnapshot *snapshot = sf_snapshot_new("s-1", base, NULL, bytes, fds, 2, &error);
    if (!snapshot) {
        die("snapshot", error);
    }
    return snapshot;
}

static void print_sum(int memfd)
{
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_MD5);
    g_autofree guchar *piece = g_malloc(PIECE);

    for (guint64 at = 0; at < length; at += PIECE) {
        if (pread(memfd, piece, PIECE, (off_t)at) != PIECE) {
            die("memory can't be read", NULL);
        }
        g_checksum_update(sum, piece, PIECE);
    }
    printf("%s\n", g_checksum_get_string(sum));
    fflush(stdout);
}

typedef struct {
    SfPager *pager;
    SfSnapshot *snapshot;
    SfMulticast *group; /* made with the first invitation */
    const char *address;
} Origin;

static void print_invitation(Origin *origin, const char *name)
{
    SfMulticastConfig config;
    g_autoptr(GError) error = NULL;

    sf_multicast_config_init(&config);
    if (!origin->group) {
        origin->group = sf_multicast_new(&config, origin->pager, (guint64)getpid(), origin->address, 1, &error);
    }
    if (!origin->group) {
        die("multicast", error);
    }
    g_autoptr(JsonObject) invitation = sf_multicast_invite(origin->group, name, origin->address);
    g_autoptr(JsonNode) node = json_node_init_object(json_node_alloc(), invitation);
    g_autofree char *text = json_to_string(node, FALSE);
    printf("%s\n", text);
    fflush(stdout);
}

static gboolean on_input(GIOChannel *channel, GIOCondition condition, gpointer data)
{
    Origin *origin = data;
    g_autofree char *line = NULL;

    if (g_io_channel_read_line(channel, &line, NULL, NULL, NULL) != G_IO_STATUS_NORMAL) {
        g_main_loop_quit(loop);
        return G_SOURCE_REMOVE;
    }
    g_strstrip(line);
    if (g_str_has_prefix(line, "invite ")) {
        print_invitation(origin, line + strlen("invite "));
    } else {
        print_sum(origin->snapshot->blocks[0].base);
    }
    return G_SOURCE_CONTINUE;
}

static void origin(char **argv)
{
    static const char *const one[] = { "h2", NULL };
    const char *const *names = argv[7] ? (const char *const *)argv + 7 : one;
    g_autoptr(GIOChannel) input = g_io_channel_unix_new(STDIN_FILENO);
    g_autoptr(GError) error = NULL;
    guint port;
    SfPager *pager = start(argv, listen_tcp(argv[5], &port));
    Origin self = { .pager = pager, .snapshot = complete_snapshot(sf_ram_base_new()), .address = argv[5] };

    if (!sf_pager_allow(pager, names, &error) || !sf_pager_set_snapshot(pager, self.snapshot, &error)) {
        die("sf-pager", error);
    }
    printf("%u\n", port);
    fflush(stdout);
    g_io_add_watch(input, G_IO_IN | G_IO_HUP, on_input, &self);
    g_main_loop_run(loop);
    sf_pager_stop(pager);
    sf_multicast_free(self.group);
}

/* ---- remote ---- */

static char *map(SfMappedBlock *block, int *uffd)
{
    struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM };
    struct uffdio_register area = { .mode = UFFDIO_REGISTER_MODE_MISSING };
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    char *memory =
        mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, cache->blocks[0].memory_ro, 0);

    *uffd = device >= 0 ? ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK)
                        : (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    area.range.start = (guintptr)memory;
    area.range.len = length;
    if (*uffd < 0 || memory == MAP_FAILED || ioctl(*uffd, UFFDIO_API, &api) < 0 ||
        ioctl(*uffd, UFFDIO_REGISTER, &area) < 0) {
        die("userfaultfd", NULL);
    }
    strcpy(block->id, "pc.ram");
    block->address = (guintptr)memory;
    block->length = length;
    return memory;
}

/* Pages in an order that no read-ahead guesses; each once. */
static gpointer touch(gpointer data)
{
    const char *memory = data;
    guint64 n_pages = length / SF_PAGE_SIZE, page = 0;

    for (guint i = 0; i < n_faults + WARM_UP; i++) {
        page = (page + n_pages / 2 + n_pages / 5 + 1) % n_pages;
        gint64 begin = now();
        (void)*(volatile const char *)(memory + page * SF_PAGE_SIZE);
        gint64 took = now() - begin;
        if (i >= WARM_UP) {
            printf("%" G_GINT64_FORMAT "\n", took);
        }
    }
    g_main_loop_quit(loop);
    return NULL;
}

static void probe_faults(SfPager *pager)
{
    const SfFaultHandler *handler = sf_pager_fault_handler(pager);
    g_autoptr(GError) error = NULL;
    SfMappedBlock block = { .id = "" };
    int uffd;
    char *memory = map(&block, &uffd);

    if (!sf_pager_set_prefetch(pager, 0, &error) ||
        !handler->attach(handler->owner, "probe", getpid(), uffd, &block, 1, &error)) {
        die("attach", error);
    }
    GThread *thread = g_thread_new("touch", touch, memory);
    g_main_loop_run(loop);
    g_thread_join(thread);
    handler->detach(handler->owner, "probe");
}

static void on_complete(SfPager *pager, gpointer data)
{
    printf("%" G_GINT64_FORMAT "\n", now() - *(gint64 *)data);
    g_main_loop_quit(loop);
}

static void on_sources(SfPager *pager, guint up, gpointer data)
{
    if (up > 0) {
        g_main_loop_quit(loop);
    }
}

static void probe_completion(SfPager *pager)
{
    gint64 begin = now();
    g_autoptr(GError) error = NULL;

    g_signal_connect(pager, "complete", G_CALLBACK(on_complete), &begin);
    if (!sf_pager_complete(pager, &error)) {
        die("completion", error);
    }
    g_main_loop_run(loop);
    if (sf_page_cache_resident_bytes(cache) != length) {
        fprintf(stderr, "fault_probe: it said complete and is not\n");
        exit(1);
    }
}

static void join_group(SfPager *pager, char **argv)
{
    g_autoptr(JsonNode) node = json_from_string(argv[8], NULL);
    g_autoptr(GError) error = NULL;

    if (strcmp(argv[8], "-") != 0 &&
        !sf_multicast_join(pager, json_node_get_object(node), argv[9], argv[10], &error)) {
        die("multicast", error);
    }
}

static void probe_group(SfPager *pager)
{
    char line[16];

    printf("ready\n");
    fflush(stdout);
    if (!fgets(line, sizeof(line), stdin)) {
        return;
    }
    probe_completion(pager);
    print_sum(cache->blocks[0].memory);
}

static void remote(int argc, char **argv)
{
    gboolean group = strcmp(argv[7], "group") == 0 && argc > 10;
    gboolean plain = strcmp(argv[4], "-") == 0;
    SfPageSource source = { .uri = argv[5],
                            .security = plain ? SF_PAGER_PLAIN : SF_PAGER_X509,
                            .keys = plain ? NULL : argv[4] };
    SfPager *pager;
    g_autofree char *state = g_malloc0(STATE_LENGTH);
    g_autoptr(GBytes) bytes = g_bytes_new(state, STATE_LENGTH);
    g_autoptr(GArray) runs = g_array_new(FALSE, FALSE, sizeof(SfRun));
    SfRun run = { .offset = 0, .length = length };
    SfCachedBlockSpec spec = { .id = "pc.ram", .length = length, .present = runs };
    g_autoptr(GError) error = NULL;

    g_array_append_val(runs, run);
    pager = start((char *[]){ argv[0], argv[1], argv[2], argv[3], (char *)"-" }, -1);
    gulong handler = g_signal_connect(pager, "sources", G_CALLBACK(on_sources), NULL);
    if (group) {
        join_group(pager, argv);
    }
    if (!sf_pager_add_source(pager, &source, &error)) {
        die("source", error);
    }
    cache = sf_page_cache_new(&spec, 1, SF_AVOID_ALL, &error);
    SfSnapshot *snapshot = cache ? sf_snapshot_new_cached("s-1", sf_ram_base_new(), cache, bytes, 100, &error) : NULL;
    if (!snapshot || !sf_pager_set_snapshot(pager, snapshot, &error)) {
        die("snapshot", error);
    }
    g_main_loop_run(loop); /* connected */
    g_signal_handler_disconnect(pager, handler);
    if (strcmp(argv[7], "faults") == 0 && argc > 8) {
        n_faults = (guint)atoi(argv[8]);
        probe_faults(pager);
    } else if (group) {
        probe_group(pager);
    } else {
        probe_completion(pager);
    }
    sf_pager_stop(pager);
}

static gboolean on_bound(gpointer data)
{
    fprintf(stderr, "fault_probe: it takes too long\n");
    exit(1);
}

int main(int argc, char **argv)
{
    if (argc < 7 || (strcmp(argv[1], "remote") == 0 && argc < 8)) {
        fprintf(stderr, "usage: the comment on top of fault_probe.c\n");
        return 2;
    }
    loop = g_main_loop_new(NULL, FALSE);
    length = (guint64)atoi(argv[6]) << 20;
    g_mkdir_with_parents(argv[3], 0755);
    if (strcmp(argv[1], "origin") == 0) {
        origin(argv);
    } else {
        g_timeout_add_seconds(BOUND / G_USEC_PER_SEC, on_bound, NULL);
        remote(argc, argv);
    }
    return 0;
}
