/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Decoders of what an NBD client sends: bytes in, a checked struct out. They keep no state, allocate nothing and never
 * read beyond the bytes given; pointers in the results point into those bytes.
 */
#ifndef SF_NBD_DECODE_H
#define SF_NBD_DECODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "sfvmm/pager/nbd_protocol.h"
#include "sfvmm/wire/big_endian.h"

/* Data of one option: a name, and meta context queries. More is refused: nothing that we offer needs it. */
#define NBD_OPTION_DATA_MAX 8192
/* Payload of a write, which is refused but must be skipped; more than clients send (32 MiB), and the line is cut. */
#define NBD_SKIP_MAX (UINT32_C(32) << 20)

#define NBD_DECODE_MORE 0  /* not whole yet */
#define NBD_DECODE_BAD  -1 /* not NBD: the connection can't go on */

struct nbd_option {
    uint32_t option; /* NBD_OPT_* */
    uint32_t length;
    const uint8_t *data; /* NULL: more than NBD_OPTION_DATA_MAX; only the header is consumed, data has to be skipped */
};

struct nbd_info {
    const char *name; /* not terminated */
    uint32_t name_length;
    bool wants_name, wants_description;
};

struct nbd_meta {
    const char *name; /* not terminated */
    uint32_t name_length;
    uint32_t n_queries, queries_length;
    const uint8_t *queries; /* queries_length bytes: n_queries * (length, text), checked */
};

struct nbd_request {
    uint16_t flags, type; /* NBD_CMD_FLAG_*, NBD_CMD_* */
    uint64_t cookie, offset;
    uint32_t length;
};

/* These return the number of bytes consumed, NBD_DECODE_MORE or NBD_DECODE_BAD. */
int nbd_decode_client_flags(const uint8_t *bytes, size_t n, uint32_t *flags);
int nbd_decode_option(const uint8_t *bytes, size_t n, struct nbd_option *option);
int nbd_decode_request(const uint8_t *bytes, size_t n, struct nbd_request *request);

/* Data of INFO and GO, and of LIST_ and SET_META_CONTEXT: the data must be whole, and end where the content ends. */
bool nbd_decode_info(const struct nbd_option *option, struct nbd_info *info);
bool nbd_decode_meta(const struct nbd_option *option, struct nbd_meta *meta);

/* The next query of meta; *at is 0 for the first, and moves on. true while there is one. */
bool nbd_meta_next(const struct nbd_meta *meta, uint32_t *at, const char **query, uint32_t *length);

#endif
