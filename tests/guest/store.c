/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "tests/guest/store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <linux/fs.h>

#define PAGE          4096u
#define DEVICE_SLOT   65536u
#define FILE_SLOT     65536u
#define MIB           (1ull << 20)
#define RESERVE       (28 * MIB)        /* left to the guest when a store takes all memory */
#define LARGE_PUT     (1u << 20)        /* fill of a device: synced each MiB */

void store_pattern(void *data, size_t length, uint64_t number, uint64_t slot)
{
    uint64_t *word = data;
    uint64_t value = (number + 1) * 0x9e3779b97f4a7c15ull ^ (slot + 1) * 0xc2b2ae3d27d4eb4full;

    for (size_t i = 0; i < length / sizeof(*word); i++) {
        word[i] = value;
        value += 0x165667b19e3779f9ull;
    }
}

static struct store *store_new(const char *name, size_t slot_size, char *error)
{
    struct store *store = calloc(1, sizeof(*store));

    if (!store || posix_memalign(&store->buffer, PAGE, slot_size)
        || posix_memalign(&store->expected, PAGE, slot_size)) {
        snprintf(error, STORE_TEXT, "no memory for store %s", name);
        free(store);
        return NULL;
    }
    snprintf(store->name, sizeof(store->name), "%s", name);
    store->slot_size = slot_size;
    store->fd = -1;
    return store;
}

static bool memory_put(struct store *store, uint64_t slot, const void *data)
{
    memcpy(store->memory + slot * store->slot_size, data, store->slot_size);
    return true;
}

static bool memory_get(struct store *store, uint64_t slot, void *data)
{
    memcpy(data, store->memory + slot * store->slot_size, store->slot_size);
    return true;
}

static void memory_shut(struct store *store)
{
    munmap(store->memory, store->slots * store->slot_size);
}

/* MemAvailable of /proc/meminfo, bytes; 0: unknown. */
static uint64_t memory_available(void)
{
    unsigned long long kib = 0;
    char line[128];
    FILE *file = fopen("/proc/meminfo", "re");

    while (file && fgets(line, sizeof(line), file)) {
        if (sscanf(line, "MemAvailable: %llu", &kib) == 1) {
            break;
        }
    }
    if (file) {
        fclose(file);
    }
    return kib * 1024;
}

struct store *store_open_memory(const char *name, uint64_t mib, char *error)
{
    uint64_t bytes = mib * MIB, available = memory_available();
    struct store *store;

    if (!bytes && available > RESERVE) {
        bytes = (available - RESERVE) / MIB * MIB;
    }
    if (!bytes || bytes > available) {
        snprintf(error, STORE_TEXT, "%llu MiB wanted, the guest has %llu", (unsigned long long)mib,
                 (unsigned long long)(available / MIB));
        return NULL;
    }
    store = store_new(name, PAGE, error);
    if (!store) {
        return NULL;
    }
    store->memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (store->memory == MAP_FAILED) {
        snprintf(error, STORE_TEXT, "mmap of %llu bytes: %s", (unsigned long long)bytes, strerror(errno));
        free(store);
        return NULL;
    }
    store->slots = bytes / PAGE;
    store->put = memory_put;
    store->get = memory_get;
    store->shut = memory_shut;
    return store;
}

static bool whole(struct store *store, const char *verb, uint64_t slot, ssize_t done)
{
    if (done == (ssize_t)store->slot_size) {
        return true;
    }
    snprintf(store->error, sizeof(store->error), "%s of slot %llu: %s", verb, (unsigned long long)slot,
             done < 0 ? strerror(errno) : "short");
    return false;
}

static bool device_put(struct store *store, uint64_t slot, const void *data)
{
    bool sync = store->churning || slot % (LARGE_PUT / DEVICE_SLOT) == 0;

    return whole(store, "write", slot, pwrite(store->fd, data, store->slot_size, slot * store->slot_size))
        && (!sync || whole(store, "sync", slot, fdatasync(store->fd) ? -1 : (ssize_t)store->slot_size));
}

static bool device_get(struct store *store, uint64_t slot, void *data)
{
    return whole(store, "read", slot, pread(store->fd, data, store->slot_size, slot * store->slot_size));
}

static void fd_shut(struct store *store)
{
    close(store->fd);
}

struct store *store_open_device(const char *name, const char *path, uint64_t mib, char *error)
{
    int fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
    uint64_t size = 0;
    struct store *store;

    if (fd < 0 || ioctl(fd, BLKGETSIZE64, &size) < 0 || size < (mib ? mib * MIB : DEVICE_SLOT)) {
        snprintf(error, STORE_TEXT, "%s: %s, %llu bytes", path, strerror(errno), (unsigned long long)size);
        if (fd >= 0) {
            close(fd);
        }
        return NULL;
    }
    store = store_new(name, DEVICE_SLOT, error);
    if (!store) {
        close(fd);
        return NULL;
    }
    store->fd = fd;
    store->slots = (mib ? mib * MIB : size) / DEVICE_SLOT;
    store->put = device_put;
    store->get = device_get;
    store->shut = fd_shut;
    return store;
}

static void file_name(char *text, size_t size, uint64_t slot)
{
    snprintf(text, size, "slot-%llu", (unsigned long long)slot);
}

static bool folder_put(struct store *store, uint64_t slot, const void *data)
{
    char path[64];
    int fd;
    ssize_t done = -1;

    file_name(path, sizeof(path), slot);
    fd = openat(store->fd, path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd >= 0) {
        done = write(fd, data, store->slot_size);
        if (fsync(fd) < 0) {
            done = -1;
        }
        close(fd);
    }
    return whole(store, "write", slot, done);
}

static bool folder_get(struct store *store, uint64_t slot, void *data)
{
    char path[64];
    int fd;
    ssize_t done = -1;

    file_name(path, sizeof(path), slot);
    fd = openat(store->fd, path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);     /* from the disk, not from the page cache */
        done = read(fd, data, store->slot_size);
        close(fd);
    }
    return whole(store, "read", slot, done);
}

struct store *store_open_folder(const char *name, const char *path, uint64_t slots, char *error)
{
    int fd;
    struct store *store;

    mkdir(path, 0700);
    fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || !slots) {
        snprintf(error, STORE_TEXT, "%s: %s", path, slots ? strerror(errno) : "no slots");
        if (fd >= 0) {
            close(fd);
        }
        return NULL;
    }
    store = store_new(name, FILE_SLOT, error);
    if (!store) {
        close(fd);
        return NULL;
    }
    store->fd = fd;
    store->slots = slots;
    store->put = folder_put;
    store->get = folder_get;
    store->shut = fd_shut;
    return store;
}

void store_close(struct store *store)
{
    uint64_t ignored;

    if (store->churning) {
        store_settle(store, &ignored);
    }
    store->shut(store);
    free(store->buffer);
    free(store->expected);
    free(store);
}

bool store_fill(struct store *store, uint64_t number, uint64_t step, uint64_t first)
{
    for (uint64_t slot = first; slot < store->slots; slot += step) {
        store_pattern(store->buffer, store->slot_size, number, slot);
        if (!store->put(store, slot, store->buffer)) {
            return false;
        }
    }
    return store->fd < 0 || fsync(store->fd) == 0;
}

static bool slot_holds(struct store *store, uint64_t slot, uint64_t number)
{
    const uint64_t *want = store->expected, *have = store->buffer;

    store_pattern(store->expected, store->slot_size, number, slot);
    if (!store->get(store, slot, store->buffer)) {
        return false;
    }
    if (memcmp(want, have, store->slot_size) == 0) {
        return true;
    }
    for (size_t i = 0; i < store->slot_size / sizeof(*want); i++) {
        if (want[i] != have[i]) {
            snprintf(store->error, sizeof(store->error),
                     "slot %llu of %llu, word %zu: want %016llx (number %llu), have %016llx", (unsigned long long)slot,
                     (unsigned long long)store->slots, i, (unsigned long long)want[i], (unsigned long long)number,
                     (unsigned long long)have[i]);
            break;
        }
    }
    return false;
}

bool store_verify(struct store *store, uint64_t number, uint64_t step, uint64_t first)
{
    for (uint64_t slot = first; slot < store->slots; slot += step) {
        if (!slot_holds(store, slot, number)) {
            return false;
        }
    }
    return true;
}

static void *churn(void *data)
{
    struct store *store = data;

    while (!atomic_load(&store->stop)) {
        uint64_t number = atomic_load(&store->written), slot = number % store->slots;

        store_pattern(store->buffer, store->slot_size, number, slot);
        if (!store->put(store, slot, store->buffer)) {
            break;
        }
        atomic_store(&store->written, number + 1);
    }
    return NULL;
}

bool store_churn(struct store *store)
{
    if (store->churning) {
        return true;
    }
    atomic_store(&store->stop, false);
    atomic_store(&store->written, 0);
    store->error[0] = 0;
    store->churning = pthread_create(&store->thread, NULL, churn, store) == 0;
    return store->churning;
}

bool store_settle(struct store *store, uint64_t *written)
{
    uint64_t count;

    atomic_store(&store->stop, true);
    if (store->churning) {
        pthread_join(store->thread, NULL);
    }
    store->churning = false;
    *written = count = atomic_load(&store->written);
    if (store->error[0]) {
        return false;
    }
    /* The last round is whole up to slot count-1; slots behind it hold the round before. */
    for (uint64_t slot = 0; slot < store->slots && slot < count; slot++) {
        uint64_t number = (count - 1 - slot) / store->slots * store->slots + slot;

        if (!slot_holds(store, slot, number)) {
            return false;
        }
    }
    return true;
}
