/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The file working-set of a saved snapshot: what its first clone touched, in that order, so that the next ones have it
 * before they ask. Text, a run of pages a line: "BLOCK OFFSET LENGTH", in bytes. It only says what is fetched first: one
 * that is missing, damaged or made up costs time, nothing else. Any thread.
 */
#ifndef SF_WORKING_SET_H
#define SF_WORKING_SET_H

#include "sfvmm/store/saved.h"
#include "sfvmm/wire/pager_message.h"

#define SF_WORKING_SET_FILE      "working-set"
#define SF_WORKING_SET_LINES_MAX 65536u

/* runs: of struct sf_pager_run, blocks by their index in saved. Those that fit no block are left out. Caller frees. */
char *sf_working_set_format(const SfSaved *saved, const GArray *runs);
GArray *sf_working_set_parse(const SfSaved *saved, const char *text);

/* NULL: there is none, or none that can be read. */
GArray *sf_working_set_read(const SfSaved *saved);
gboolean sf_working_set_write(const SfSaved *saved, const GArray *runs, GError **error);

#endif
