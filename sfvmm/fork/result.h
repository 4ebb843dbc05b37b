/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a clone hands back: a file in the ticket's directory, written in pieces and renamed when whole, so that a
 * reader never sees half of one and a restart of sfvmmd loses none.
 */
#ifndef SF_RESULT_H
#define SF_RESULT_H

#include <glib.h>

/*
 * Write the piece at `offset` of a result of `total` bytes (at most SF_GP_MAX_RESULT). *received is where the next
 * piece must begin; a piece at 0 begins anew, one that was written before (sent twice after a restart) is taken and
 * changes nothing. *whole: the result is complete and has replaced the last one.
 */
gboolean sf_result_write(const char *directory, guint id, guint64 offset, guint64 total, const void *data, gsize length,
                         guint64 *received, gboolean *whole, GError **error);

/* At most `length` bytes from `offset` of the last whole result; empty at its end, and when there is none. */
GBytes *sf_result_read(const char *directory, guint id, guint64 offset, gsize length, GError **error);

/* Bytes of the last whole result; 0: none. */
guint64 sf_result_length(const char *directory, guint id);

/* Bytes that have come of a result that is not whole yet: `received` after a restart. */
guint64 sf_result_pending(const char *directory, guint id);

#endif
