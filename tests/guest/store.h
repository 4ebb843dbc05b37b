/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A store is an array of equal slots that can be put and got whole: RAM, a block device, or files of a folder. What a
 * slot holds follows from a number and from the slot's own index alone, so a reader can tell every single word of it:
 *
 *    word w of slot s holding number n  =  f(n, s, w)
 *
 * Two ways of filling it:
 *   fill    every slot (or each step-th) gets the same number; verify knows it
 *   churn   a thread puts number 0, 1, 2, ... into slots 0, 1, 2, ... around and around. At any instant, and so in any
 *           clone, slot s must hold the last number that is s modulo the slot count. Nothing else needs to be
 *           remembered: a lost, a doubled or a foreign write shows.
 *
 * A store is used by one thread at a time; while it is churned, by the churning thread alone.
 */
#ifndef SF_TESTS_STORE_H
#define SF_TESTS_STORE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STORE_TEXT 256

struct store {
    char name[32];
    size_t slot_size;            /* bytes, a multiple of 4096 */
    uint64_t slots;
    bool (*put)(struct store *store, uint64_t slot, const void *data);
    bool (*get)(struct store *store, uint64_t slot, void *data);
    void (*shut)(struct store *store);
    uint8_t *memory;             /* store of RAM */
    int fd;                      /* device or folder */
    void *buffer;                /* one slot, page-aligned */
    void *expected;              /* one slot */
    pthread_t thread;
    bool churning;
    atomic_bool stop;
    _Atomic uint64_t written;    /* numbers put by churn */
    char error[STORE_TEXT];
};

/* mib 0: as much as the guest can give without swapping or killing. */
struct store *store_open_memory(const char *name, uint64_t mib, char *error);
/* mib 0: the whole device. O_DIRECT, fdatasync after each put of churn. */
struct store *store_open_device(const char *name, const char *path, uint64_t mib, char *error);
/* `slots` files of 64 KiB, each put is a write and an fsync. */
struct store *store_open_folder(const char *name, const char *path, uint64_t slots, char *error);
void store_close(struct store *store);

bool store_fill(struct store *store, uint64_t number, uint64_t step, uint64_t first);
/* False: store->error says which slot and word, what was wanted and what is there. */
bool store_verify(struct store *store, uint64_t number, uint64_t step, uint64_t first);

bool store_churn(struct store *store);
/* Stop the thread and check every slot. *written: how many numbers were put. */
bool store_settle(struct store *store, uint64_t *written);

/* The pattern itself, for results too. */
void store_pattern(void *data, size_t length, uint64_t number, uint64_t slot);

#endif
