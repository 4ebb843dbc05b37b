/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What an NBD client sends, through a whole session over memory: decoder, negotiation, requests, replies. The first
 * byte of an input says how: bit 0 TLS wanted (by keys), bit 1 the snapshot comes only after half of the input, bits
 * 2-7 the size of the pieces. Whatever comes out must be well-formed NBD and bounded, and no turn may go on for ever.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sfvmm/pager/nbd_decode.h"
#include "sfvmm/pager/nbd_session.h"

#define LENGTH       (64u * SF_PAGE_SIZE) /* of each block */
#define STATE_LENGTH 5000u
#define TURNS_MAX    100000u
#define OUTPUT_CHECK (1u << 20) /* bytes of output that are looked at */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct tls_credentials *credentials;
static struct nbd_fetch *landed_first;

struct output {
    uint8_t *bytes;
    size_t n;
};

static bool allowed(void *owner, const char *peer)
{
    return true;
}

static void landed(void *owner, struct nbd_fetch *fetch)
{
    *nbd_fetch_link(fetch) = landed_first;
    landed_first = fetch;
}

static int new_memfd(uint64_t length)
{
    static const char text[] = "some content";
    int fd = memfd_create("fuzz", MFD_CLOEXEC);

    if (fd < 0 || ftruncate(fd, (off_t)length) < 0 || pwrite(fd, text, sizeof(text), 0) < 0) {
        abort();
    }
    return fd;
}

static struct sf_qc_extent *new_extent(uint64_t offset, uint64_t length)
{
    struct sf_qc_extent *extent = calloc(1, sizeof(*extent));

    extent->offset = offset;
    extent->length = length;
    return extent;
}

/* "a": base with a delta; "b": a page cache with a quarter of its pages, whose fetches fail. */
static void set(struct page_store *store)
{
    struct page_block *blocks = calloc(2, sizeof(*blocks));

    strcpy(blocks[0].id, "a");
    strcpy(blocks[1].id, "b");
    blocks[0].length = blocks[1].length = LENGTH;
    blocks[0].base = new_memfd(LENGTH);
    blocks[0].n_layers = 1;
    blocks[0].layers[0] = (struct page_layer){ new_memfd(LENGTH), 1, new_extent(SF_PAGE_SIZE, 3 * SF_PAGE_SIZE) };
    blocks[1].base = new_memfd(LENGTH);
    blocks[1].is_cache = true;
    blocks[1].n_present = 1;
    blocks[1].present = new_extent(0, LENGTH / 2);
    page_store_set(store, "s", blocks, 2, new_memfd(STATE_LENGTH), STATE_LENGTH);
    page_store_note(store, 1, 0, LENGTH / 4, false);
}

static void make_credentials(void)
{
    char path[] = "/tmp/fuzz-nbd-XXXXXX";
    int fd = mkstemp(path);
    static const char line[] = "user:00112233445566778899aabbccddeeff\n";

    if (fd < 0 || write(fd, line, sizeof(line) - 1) != sizeof(line) - 1) {
        abort();
    }
    close(fd);
    credentials = tls_credentials_new_psk(path, NULL);
    unlink(path);
    if (!credentials) {
        abort();
    }
}

/* Fetches of pages that are not there fail, as if by memtap. */
static void fail_fetches(struct page_store *store)
{
    struct page_fetch *fetch = page_store_take_fetches(store), *next;

    for (; fetch; fetch = next) {
        next = fetch->next;
        fetch->done(fetch->data, 5);
        free(fetch);
    }
    while (landed_first) {
        struct nbd_fetch *first = landed_first;
        landed_first = *nbd_fetch_link(first);
        nbd_fetch_land(first);
    }
}

static void run(struct nbd_session *session, struct page_store *store, struct output *output)
{
    for (unsigned turns = 0;; turns++) {
        enum nbd_turn turn = nbd_session_run(session);
        size_t n;
        const uint8_t *bytes = nbd_session_output(session, &n);
        if (turns == TURNS_MAX) {
            abort();
        }
        if (n > 0) {
            size_t kept = output->n < OUTPUT_CHECK ? MIN(n, OUTPUT_CHECK - output->n) : 0;
            memcpy(output->bytes + output->n, bytes, kept);
            output->n += kept;
            nbd_session_sent(session, n);
        }
        fail_fetches(store);
        if (turn == NBD_TURN_OVER || (turn == NBD_TURN_IDLE && n == 0)) {
            return;
        }
    }
}

/* Walks the output as far as its lengths are known without the input: to the first simple reply or TLS record. */
static void check(const struct output *output)
{
    size_t at = NBD_GREETING_LENGTH;

    if (output->n < at || sf_be_get64(output->bytes) != NBD_MAGIC) {
        abort();
    }
    while (output->n - at >= NBD_OPTION_REPLY_LENGTH) {
        const uint8_t *p = output->bytes + at;
        if (sf_be_get64(p) == NBD_OPTION_REPLY_MAGIC) {
            if (sf_be_get32(p + 16) > NBD_OPTION_DATA_MAX) {
                abort();
            }
            at += NBD_OPTION_REPLY_LENGTH + sf_be_get32(p + 16);
        } else if (sf_be_get32(p) == NBD_CHUNK_MAGIC) {
            if (sf_be_get32(p + 16) > LENGTH + 8 || (sf_be_get16(p + 4) & ~NBD_CHUNK_FLAG_DONE)) {
                abort();
            }
            at += NBD_CHUNK_LENGTH + sf_be_get32(p + 16);
        } else {
            return;
        }
        if (at > output->n) {
            if (output->n < OUTPUT_CHECK) {
                abort();
            }
            return;
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t how = size ? data[0] : 0;
    bool late = how & 2;
    size_t piece = (size_t)(how >> 2) * 16 + 1;
    struct output output = { malloc(OUTPUT_CHECK), 0 };
    struct page_store *store = page_store_new();
    struct nbd_service service = {
        .store = store, .snapshot = "s", .allowed = allowed, .landed = landed, .bounds = { 10, 10, 10, 10 }
    };

    if (!credentials) {
        make_credentials();
    }
    service.credentials = how & 1 ? credentials : NULL;
    if (!late) {
        set(store);
    }
    struct nbd_session *session = nbd_session_new(&service);
    run(session, store, &output);
    for (size_t at = 1; at < size;) {
        size_t n = MIN(MIN(piece, size - at), nbd_session_space(session));
        if (n == 0) {
            break;
        }
        nbd_session_input(session, data + at, n);
        at += n;
        if (late && at > size / 2) {
            set(store);
            late = false;
        }
        run(session, store, &output);
        service.now++;
        nbd_session_tick(session);
    }
    check(&output);
    nbd_session_free(session);
    fail_fetches(store);
    page_store_free(store);
    free(output.bytes);
    return 0;
}
