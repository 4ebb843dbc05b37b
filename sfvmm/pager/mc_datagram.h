/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mc_datagram: what multicast datagrams consist of. Encoders and strict decoders: bytes in, values out; no state, no
 * allocation. docs/multicast.md says what the fields are for.
 *
 * Every datagram, both ways; all integers are big-endian:
 *
 *       0               1               2               3
 *      +---------------+---------------+---------------+---------------+
 *    0 |                          'S' 'F' 'M' 'C'                      |
 *      +---------------+---------------+---------------+---------------+
 *    4 |   version 1   |     type      |            sender             |   sender: 0 is the origin
 *      +---------------+---------------+---------------+---------------+
 *    8 |                                                               |
 *      +                    tag of the snapshot                        +
 *   12 |                                                               |
 *      +---------------+---------------+---------------+---------------+
 *   16 |                                                               |
 *      +          incarnation: of the sender's process                 +
 *   20 |                                                               |
 *      +---------------+---------------+---------------+---------------+
 *   24 |                                                               |
 *      +          sequence: 1, 2, 3 ... within an incarnation          +
 *   28 |                                                               |
 *      +===============+===============+===============+===============+
 *   32 |  encrypted: what the type says (mc_seal.h)                    |
 *      ~                                                               ~
 *      +===============+===============+===============+===============+
 *      |  authentication tag, 16 bytes, over header and ciphertext     |
 *      +---------------+---------------+---------------+---------------+
 *
 * MC_DATA, from the origin to the group, decrypted: an announcement, then records up to the end.
 *
 *      +---------------+---------------+---------------+---------------+
 *    0 |    back-off: first requests are spread over this time, us     |
 *    4 |    wait of demand: a request made now leaves within about, us |
 *    8 |    wait of prefetch: the same, us                             |
 *   12 |    report interval, ms        |         receivers             |
 *      +---------------+---------------+---------------+---------------+
 *
 *      +---------------+---------------+---------------+---------------+
 *      |  kind: ZERO   |     block     |            pages              |   pages, from this one on, are zero
 *      |                            page                               |
 *      +---------------+---------------+---------------+---------------+
 *
 *      +---------------+---------------+---------------+---------------+
 *      |kind: RAW, LZ4 |     block     |            length             |   length: of the bytes in this record
 *      |                            page                               |
 *      |            total              |            offset             |   of the page's whole body: its length;
 *      +---------------+---------------+---------------+---------------+   where these bytes belong in it
 *      ~                        length bytes                           ~
 *      +---------------+---------------+---------------+---------------+
 *
 *      +---------------+---------------+---------------+---------------+
 *      | kind: DISMISS |       0       |           receiver            |   this receiver is to use unicast
 *      |                      for this time, ms                        |
 *      +---------------+---------------+---------------+---------------+
 *
 *      +---------------+---------------+---------------+---------------+
 *      |  kind: CHUNK  |       0       |            length             |   length: of the bytes in this record
 *      |                            offset                             |   where they belong in the blob
 *      |                            total                              |   the blob's length
 *      |                     id: the first 8 bytes                     |
 *      |                   of the blob's SHA-256 digest                |
 *      +---------------+---------------+---------------+---------------+
 *      ~                        length bytes                           ~
 *      +---------------+---------------+---------------+---------------+
 *
 *      kind PAD: this byte and all that follow are 0
 *
 * A body that does not fit travels in fragments: offset is a multiple of MC_FRAGMENT_UNIT, and so is length, but for
 * the body's last. A page's body is 4096 raw bytes, or an LZ4 block of fewer bytes that unpacks to just 4096.
 *
 * A blob is cut into chunks of mc_chunk_length() bytes, the last shorter; a chunk fills a datagram.
 *
 * MC_REQUEST, from a receiver to the origin's own address, decrypted: a report, then runs of pages.
 *
 *      +---------------+---------------+---------------+---------------+
 *    0 |               incarnation of the origin                       |
 *    4 |               that the report is about                        |
 *    8 |               highest sequence                                |
 *   12 |               that has come                                   |
 *   16 |               datagrams that have come                        |
 *   20 |                                                               |
 *   24 |               datagrams that are missing                      |
 *   28 |                                                               |
 *   32 |     flags     |       0       |            runs               |
 *      +---------------+---------------+---------------+---------------+
 *   36 |   priority    |     block     |            pages              |   a run
 *   40 |                            page                               |
 *      +---------------+---------------+---------------+---------------+
 *      ~                          more runs                            ~
 *
 * A run of priority MC_CHUNKS is of chunks, by number: block is 0. Such runs stand in a request of their own.
 */
#ifndef SF_PAGER_MC_DATAGRAM_H
#define SF_PAGER_MC_DATAGRAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "sfvmm/wire/page_run.h"

#define MC_MAGIC   0x53464d43u
#define MC_VERSION 1u
#define MC_DATA    1u /* types */
#define MC_REQUEST 2u

#define MC_HEADER_LENGTH 32u
#define MC_TAG_LENGTH    16u /* AES-256-GCM's */
#define MC_OVERHEAD      (MC_HEADER_LENGTH + MC_TAG_LENGTH)

/*
 * Payload of UDP, bytes: what MTU 1450 (VXLAN) leaves behind IPv6 and UDP headers; what any link of IPv6 carries; what
 * UDP can have. All datagrams of a batch but the last have just the configured length, as UDP_SEGMENT wants it.
 */
#define MC_PAYLOAD_DEFAULT 1402u
#define MC_PAYLOAD_MIN     512u
#define MC_PAYLOAD_MAX     65000u

#define MC_BLOB_MAX      (4u << 20) /* bytes: many times a descriptor; what is longer goes by unicast */
#define MC_BLOCKS_MAX    16u    /* SF_QC_MAX_BLOCKS */
#define MC_RECEIVERS_MAX 65535u /* ids 1 .. 65535 */
#define MC_RUN_MAX       4096u  /* pages of one run or zero record */
#define MC_FRAGMENT_UNIT 16u    /* so that a page half received is 256 bits */
#define MC_FRAGMENT_MIN  64u    /* shorter room is padded: a fragment costs 12 bytes */

enum {
    MC_KIND_PAD = 0,
    MC_KIND_ZERO = 1,
    MC_KIND_RAW = 2,
    MC_KIND_LZ4 = 3,
    MC_KIND_DISMISS = 4,
    MC_KIND_CHUNK = 5,
};

#define MC_FLAG_LEAVING 1u /* will ask for nothing more and report nothing more */
#define MC_FLAG_UNICAST 2u /* uses unicast for now; listens */

/* Of a request: the lower number is served first. */
enum mc_priority {
    MC_DEMAND = 0, /* somebody waits */
    MC_PREFETCH = 1,
    MC_PRIORITIES
};
#define MC_CHUNKS 2u /* in the place of a priority: a run of chunks */

struct mc_header {
    uint8_t type;
    uint16_t sender;
    uint64_t tag, incarnation, sequence;
};

struct mc_announcement {
    uint32_t backoff_us, wait_us[MC_PRIORITIES];
    uint16_t report_ms, receivers;
};

struct mc_record {
    uint8_t kind; /* MC_KIND_*, never PAD */
    uint8_t block;
    uint16_t pages;         /* ZERO: from page on */
    uint32_t page;          /* number: offset in the block / SF_PAGE_SIZE */
    uint16_t total, offset; /* RAW, LZ4 */
    uint16_t length;
    const uint8_t *bytes;
    uint16_t receiver; /* DISMISS */
    uint32_t dismiss_ms;
    uint64_t blob_id; /* CHUNK */
    uint32_t blob_total, blob_offset;
};

struct mc_report {
    uint64_t incarnation, highest, received, missing;
    uint8_t flags; /* MC_FLAG_* */
};

struct mc_run {
    uint8_t priority; /* enum mc_priority, or MC_CHUNKS: then pages are chunks */
    uint8_t block;
    uint16_t pages; /* > 0 */
    uint32_t page;
};

/* What pages there are: runs and pages outside are refused. */
struct mc_shape {
    unsigned n_blocks;             /* at most MC_BLOCKS_MAX */
    uint32_t pages[MC_BLOCKS_MAX]; /* of each block */
};

#define MC_ANNOUNCEMENT_LENGTH 16u
#define MC_PAGE_HEADER_LENGTH  12u /* of RAW and LZ4 */
#define MC_SHORT_RECORD_LENGTH 8u  /* of ZERO and DISMISS */
#define MC_CHUNK_HEADER_LENGTH 20u /* of CHUNK */
#define MC_REPORT_LENGTH       36u
#define MC_RUN_LENGTH          8u

/* Header in front of a datagram of n bytes. false: not one of ours, or too short to be one. */
bool mc_header_decode(const uint8_t *bytes, size_t n, struct mc_header *header);
void mc_header_encode(uint8_t bytes[MC_HEADER_LENGTH], const struct mc_header *header);

/* Bytes of each chunk but a blob's last, with datagrams of `payload` bytes. */
uint32_t mc_chunk_length(unsigned payload);
uint32_t mc_chunk_count(uint32_t total, unsigned payload); /* of a blob of total > 0 bytes */

/* ---- MC_DATA, decrypted: n bytes ---- */

/*
 * The whole datagram is checked: every record well-formed, within the shape, nothing after the last. Only then may
 * mc_data_next() walk it. false: nothing of it may be used. shape NULL: it is not known yet; records of pages are not
 * to be used then.
 */
bool mc_data_decode(const uint8_t *bytes, size_t n, const struct mc_shape *shape, struct mc_announcement *announcement);

/* *at: 0 for the first. false: no more. Bytes of the record point into `bytes`. */
bool mc_data_next(const uint8_t *bytes, size_t n, size_t *at, struct mc_record *record);

/* ---- MC_REQUEST, decrypted ---- */

/* As above: false, and nothing of it may be used. n_runs: how many. */
bool mc_request_decode(const uint8_t *bytes, size_t n, const struct mc_shape *shape, struct mc_report *report,
                       unsigned *n_runs);
struct mc_run mc_request_run(const uint8_t *bytes, unsigned i); /* i < n_runs */

/* Into bytes (length of them, at least MC_REPORT_LENGTH + n_runs * MC_RUN_LENGTH). Returns the bytes used. */
size_t mc_request_encode(uint8_t *bytes, const struct mc_report *report, const struct mc_run *runs, unsigned n_runs);

#endif
