/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a clone with workers hands over as its result: a table of them, and behind it the workers' own results.
 *
 *    0       4       8            16
 *    +-------+-------+------------+-----------+-----------+- - -+------------------+- - -
 *    | magic | count | generation | worker 1  | worker 2  |     | bytes of results |
 *    +-------+-------+------------+-----------+-----------+- - -+------------------+- - -
 *                                 | state, status, signal, zero: 4 bytes each
 *                                 | offset, length: 8 bytes each; from the table's beginning
 *
 * All integers are little-endian. The generation grows each time that the table is handed over. It is libsf's own
 * format, between a parent and its clones; the host takes it for bytes.
 */
#ifndef SF_WORKER_TABLE_H
#define SF_WORKER_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SF_WORKER_TABLE_MAGIC  0x54574653u  /* "SFWT" */
#define SF_WORKER_HEAD_LENGTH  16u
#define SF_WORKER_ENTRY_LENGTH 32u

struct sf_worker_entry {
    uint32_t state;     /* SF_GP_STATE_RUNNING, _EXITED, _FAILED or _LOST */
    int32_t status;     /* EXITED: of sf_exit(). LOST without a signal: of exit(). FAILED: errno of fork() */
    uint32_t signal;    /* LOST: that ended it; else 0 */
    uint64_t offset;
    uint64_t length;
};

/* Bytes of the table of count workers. */
size_t sf_worker_table_length(unsigned count);

/* Writes just those. */
void sf_worker_table_pack(uint8_t *table, uint64_t generation, const struct sf_worker_entry *entries, unsigned count);

/*
 * table: of sf_worker_table_length(count) bytes. False when it is not that of count workers, when a field is out of its
 * range, or a result lies in the table or behind SF_GP_MAX_RESULT.
 */
bool sf_worker_table_parse(const uint8_t *table, uint64_t *generation, struct sf_worker_entry *entries, unsigned count);

#endif
