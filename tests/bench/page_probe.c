/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Times of single pages, for scripts/bench memory. Prints one number a line, nanoseconds each.
 *
 *   page_probe nbd URI COUNT [TLSDIR|PSKFILE USER]   4 KiB reads at random places, one at a time, by libnbd
 *   page_probe serve ADDRESS                         raw TCP: answers 28 bytes with 4124; prints its port first
 *   page_probe tcp ADDRESS PORT COUNT                round trips to it
 *   page_probe fault COUNT                           userfaultfd of this host: handler thread, pwrite and wake
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <libnbd.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PAGE    4096u
#define REQUEST 28u          /* as an NBD request */
#define REPLY   (28u + PAGE) /* as a structured reply with one page */
#define WARM_UP 64u          /* round trips that are not printed */

static void die(const char *what)
{
    fprintf(stderr, "page_probe: %s: %s\n", what, strerror(errno));
    exit(1);
}

static long now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000l + time.tv_nsec;
}

static void report(unsigned i, long start)
{
    long took = now() - start;

    if (i >= WARM_UP) {
        printf("%ld\n", took);
    }
}

/* ---- NBD ---- */

static void nbd_fails(void)
{
    fprintf(stderr, "page_probe: %s\n", nbd_get_error());
    exit(1);
}

static void probe_nbd(const char *uri, unsigned count, const char *keys, const char *user)
{
    struct nbd_handle *nbd = nbd_create();
    static char page[PAGE];
    int64_t size;

    if (!nbd || nbd_set_uri_allow_local_file(nbd, true) < 0 ||
        (keys && !user && nbd_set_tls_certificates(nbd, keys) < 0) ||
        (user && (nbd_set_tls_psk_file(nbd, keys) < 0 || nbd_set_tls_username(nbd, user) < 0)) ||
        nbd_connect_uri(nbd, uri) < 0 || (size = nbd_get_size(nbd)) < (int64_t)PAGE) {
        nbd_fails();
    }
    srandom(1);
    for (unsigned i = 0; i < count + WARM_UP; i++) {
        uint64_t offset = (uint64_t)random() % ((uint64_t)size / PAGE) * PAGE;
        long start = now();
        if (nbd_pread(nbd, page, PAGE, offset, 0) < 0) {
            nbd_fails();
        }
        report(i, start);
    }
    nbd_close(nbd);
}

/* ---- Raw TCP ---- */

static void send_all(int fd, const char *bytes, size_t n)
{
    if (send(fd, bytes, n, MSG_NOSIGNAL) != (ssize_t)n) {
        die("send");
    }
}

static int receive_all(int fd, char *bytes, size_t n)
{
    while (n > 0) {
        ssize_t got = recv(fd, bytes, n, 0);
        if (got <= 0) {
            return -1;
        }
        bytes += got;
        n -= (size_t)got;
    }
    return 0;
}

static void set_no_delay(int fd)
{
    int one = 1;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

static void serve_tcp(const char *text)
{
    struct sockaddr_in address = { .sin_family = AF_INET };
    socklen_t length = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), client;
    static char reply[REPLY];

    if (inet_pton(AF_INET, text, &address.sin_addr) != 1 || fd < 0 ||
        bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 1) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &length) < 0) {
        die(text);
    }
    printf("%u\n", ntohs(address.sin_port));
    fflush(stdout);
    while ((client = accept(fd, NULL, NULL)) >= 0) {
        char request[REQUEST];
        set_no_delay(client);
        while (receive_all(client, request, sizeof(request)) == 0) {
            send_all(client, reply, sizeof(reply));
        }
        close(client);
    }
}

static void probe_tcp(const char *text, unsigned port, unsigned count)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    static char request[REQUEST], reply[REPLY];

    if (inet_pton(AF_INET, text, &address.sin_addr) != 1 || fd < 0 ||
        connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        die(text);
    }
    set_no_delay(fd);
    for (unsigned i = 0; i < count + WARM_UP; i++) {
        long start = now();
        send_all(fd, request, sizeof(request));
        if (receive_all(fd, reply, sizeof(reply)) < 0) {
            die("the server has gone");
        }
        report(i, start);
    }
    close(fd);
}

/* ---- userfaultfd ---- */

struct faults {
    int uffd, memfd;
    char *memory;
    unsigned count;
};

/* As memtap does it: read the fault, write the page to the memfd, wake. */
static void *answer(void *data)
{
    const struct faults *faults = data;
    static char page[PAGE];

    memset(page, 1, sizeof(page));
    for (unsigned i = 0; i < faults->count; i++) {
        struct pollfd ready = { faults->uffd, POLLIN, 0 };
        struct uffd_msg message;
        if (poll(&ready, 1, -1) < 0 || read(faults->uffd, &message, sizeof(message)) != sizeof(message)) {
            die("userfaultfd");
        }
        unsigned long address = message.arg.pagefault.address & ~(unsigned long)(PAGE - 1);
        struct uffdio_range range = { address, PAGE };
        off_t offset = (off_t)(address - (unsigned long)faults->memory);
        if (pwrite(faults->memfd, page, PAGE, offset) != PAGE || ioctl(faults->uffd, UFFDIO_WAKE, &range) < 0) {
            die("wake");
        }
    }
    return NULL;
}

static int open_uffd(void)
{
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    int fd = device >= 0 ? ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK)
                         : (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    struct uffdio_api api = { .api = UFFD_API };

    if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0) {
        die("userfaultfd");
    }
    if (device >= 0) {
        close(device);
    }
    return fd;
}

static void probe_fault(unsigned count)
{
    struct faults faults = { open_uffd(), memfd_create("page-probe", MFD_CLOEXEC), NULL, count + WARM_UP };
    size_t length = (size_t)faults.count * PAGE;
    pthread_t thread;

    if (faults.memfd < 0 || ftruncate(faults.memfd, (off_t)length) < 0) {
        die("memfd");
    }
    faults.memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, faults.memfd, 0);
    struct uffdio_register range = { .range = { (unsigned long)faults.memory, length },
                                     .mode = UFFDIO_REGISTER_MODE_MISSING };
    if (faults.memory == MAP_FAILED || ioctl(faults.uffd, UFFDIO_REGISTER, &range) < 0) {
        die("register");
    }
    pthread_create(&thread, NULL, answer, &faults);
    for (unsigned i = 0; i < faults.count; i++) {
        long start = now();
        if (*(volatile char *)(faults.memory + (size_t)i * PAGE) != 1) {
            die("wrong content");
        }
        report(i, start);
    }
    pthread_join(thread, NULL);
}

int main(int argc, char **argv)
{
    const char *mode = argc > 2 ? argv[1] : "";

    if (strcmp(mode, "nbd") == 0 && argc > 3) {
        probe_nbd(argv[2], (unsigned)atoi(argv[3]), argc > 4 ? argv[4] : NULL, argc > 5 ? argv[5] : NULL);
    } else if (strcmp(mode, "serve") == 0) {
        serve_tcp(argv[2]);
    } else if (strcmp(mode, "tcp") == 0 && argc > 4) {
        probe_tcp(argv[2], (unsigned)atoi(argv[3]), (unsigned)atoi(argv[4]));
    } else if (strcmp(mode, "fault") == 0) {
        probe_fault((unsigned)atoi(argv[2]));
    } else {
        fprintf(stderr, "usage: the comment on top of page_probe.c\n");
        return 2;
    }
    return 0;
}
