/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Page maps in bytes: for each run of present pages two numbers, the gap before it and its length, both in pages, each
 * as a LEB128 varint (7 bits a byte, lowest first, the top bit says that more follow).
 *
 *      pages   0 1 2 3 4 5 6 7 8 9        runs 2..4, 7..7      -->   02 03 02 01
 *              . . X X X . . X . .
 *
 * There is one way to write a map: varints without needless bytes, no empty run, no empty gap but before the first run.
 */
#ifndef SF_PAGE_MAP_H
#define SF_PAGE_MAP_H

#include <gio/gio.h>
#include "sfvmm/wire/page_run.h"

/* Runs (of SfRun: page-aligned, sorted, disjoint, not touching; TRUE for those of memory/) to bytes. Caller owns the
 * result. */
GByteArray *sf_page_map_pack(const GArray *runs);

/* Bytes to runs within a block of length bytes; at most max_runs. Anything that pack() does not write is an error. */
GArray *sf_page_map_unpack(const guint8 *bytes, gsize n_bytes, guint64 length, guint max_runs, GError **error);

/* Are the runs what pack() wants, within a block of length bytes? */
gboolean sf_page_map_check(const GArray *runs, guint64 length, GError **error);

#endif
