/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where missing pages come from: NBD servers, through libnbd.
 *
 *      struct source   what is known of one: URI, keys. Immutable, shared by the threads
 *      struct sources  those of one thread, in order of preference
 *      struct link     one connection for one RAM block: connects, negotiates, waits for its export's name, reads; when
 *                      it breaks, again with growing delays, with the next source. Belongs to one thread and its loop
 *      struct read     one range on its way
 *
 *          connecting --> waiting --> asking --> ready          waiting: TCP, TLS and NBD are done, the export is not
 *              ^                        |          |            known yet, as the snapshot does not exist
 *              +------- broken <--------+----------+
 */
#ifndef SF_PAGER_SOURCE_H
#define SF_PAGER_SOURCE_H

#include <stdbool.h>
#include <stdint.h>
#include "sfvmm/pager/loop.h"
#include "sfvmm/pager/page_store.h"
#include "sfvmm/wire/page_run.h"

enum source_security { SOURCE_PLAIN, SOURCE_X509, SOURCE_PSK };

struct source {
    char *uri;
    enum source_security security;
    char *keys; /* path of the directory with the certificates, or of the file with the key */
    char *user; /* of a key */
};

#define SOURCES_MAX 8

struct sources {
    unsigned n;
    const struct source *all[SOURCES_MAX]; /* borrowed */
};

/* The name of a block's export: the path of the URI, unescaped, with {block} replaced. NULL: no memory. free() it. */
char *source_export_name(const char *uri, const char *block);

/* Is it a URI that we can use? A text that says what is wrong with it, or NULL. */
const char *source_check_uri(const char *uri);

#define READ_MAX   (1u << 20) /* bytes of one read */
#define READ_PAGES (READ_MAX / SF_PAGE_SIZE)

struct link;
struct waiter;
struct fetch_group;

/* A range of one block, page-aligned. The owner fills the first part; link_read() the second. */
struct read {
    struct read *next; /* the owner's list */
    unsigned block;
    uint64_t offset;
    uint32_t length;
    struct waiter *waiters;     /* memtap's */
    struct fetch_group *group;  /* memtap's */
    int64_t since;              /* the owner's: when it was wanted, loop_now() */
    uint32_t attempts;          /* the owner's */
    uint32_t user;              /* the owner's */
    bool routed, urgent;        /* route's: it is on its way by multicast; somebody waits */

    struct read *next_in_flight;
    struct link *link;
    bool completed;
    int error;                       /* errno; 0: data holds length bytes */
    uint32_t seen;                   /* bytes that have come */
    uint64_t zero[READ_PAGES / 64];  /* pages that the server said are zero */
    uint8_t *data;
};

struct read *read_new(unsigned block, uint64_t offset, uint32_t length); /* aborts without memory */
void read_free(struct read *read);
bool read_page_is_zero(const struct read *read, uint32_t page);
/*
 * Puts what has come into the block's memfd, but for zeros, and notes it; unasked: nobody waits for it. false and
 * errno: it can't be written.
 */
bool read_keep(const struct read *read, struct page_store *store, bool unasked);

struct link_handlers {
    void (*ready)(struct link *link, void *owner);              /* reads can be sent; the first time or again */
    void (*done)(struct link *link, struct read *read, void *owner); /* with its data, or an error: then it may be sent
                                                                      * again. The owner has it back */
    /* It broke or could not be made; goes on trying. */
    void (*down)(struct link *link, const char *reason, void *owner);
};

/* role: for messages ("demand"). The loop and sources outlive it. It connects at once when there is a source. */
struct link *link_new(struct loop *loop, const struct sources *sources, const char *role,
                      const struct link_handlers *handlers, void *owner);
void link_free(struct link *link); /* reads in flight are freed */

/* Now it is known what it is for; name and length: of the block. Once. */
void link_assign(struct link *link, unsigned block, const char *name, uint64_t length);

/* A source has been added. */
void link_sources_changed(struct link *link);

bool link_is_ready(const struct link *link);
bool link_is_connected(const struct link *link); /* ready, or waiting for its export's name */
unsigned link_block(const struct link *link);
unsigned link_in_flight(const struct link *link);
const char *link_source(const struct link *link); /* URI of the source in use */

/* Takes the read; done() follows, never from within. Only when ready and read->block is its block. */
void link_read(struct link *link, struct read *read);

/*
 * Once in each turn of the loop: bounds and retries, then done() of what has come. Returns ms until it wants to be
 * called again; -1.
 */
int link_turn(struct link *link, int64_t now);

#endif
