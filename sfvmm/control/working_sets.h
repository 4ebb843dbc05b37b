/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Working sets as they travel between hosts and lie on record: runs of pages in the order of use, packed as 32 bits of
 * block, 32 of pages, 64 of offset, little-endian (docs/peers.md); in JSON as base64 of that. They are hints: what is
 * too long or fits no block is left out. No state.
 */
#ifndef SF_WORKING_SETS_H
#define SF_WORKING_SETS_H

#include <json-glib/json-glib.h>

#include "sfvmm/memory/snapshot.h"

#define SF_WORKING_SET_RUNS_MAX 32768u                          /* of one that travels between hosts */
#define SF_WORKING_SET_TEXT_MAX (SF_WORKING_SET_RUNS_MAX * 22u) /* in base64: 16 bytes a run */

/* runs: of struct sf_pager_run. The first SF_WORKING_SET_RUNS_MAX of them. */
GBytes *sf_working_set_pack(const GArray *runs);
/* snapshot: those that fit its blocks; NULL: all, for who checks them later. */
GArray *sf_working_set_unpack(GBytes *bytes, const SfSnapshot *snapshot);

/* A member of an object; NULL: it has none, or none of a bearable length. */
void sf_working_set_to_json(GBytes *bytes, JsonObject *object, const char *member);
GBytes *sf_working_set_from_json(JsonObject *object, const char *member);

#endif
