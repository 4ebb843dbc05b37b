/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Memory of a saved snapshot that lies behind a URI: its checksums are compared when all of it has come. What is used
 * before that is trusted (docs/saved-snapshots.md).
 *
 * Main thread only; the sums are computed in another.
 */
#ifndef SF_SAVED_VERIFY_H
#define SF_SAVED_VERIFY_H

#include "sfvmm/control/host.h"
#include "sfvmm/store/saved.h"

/*
 * When this sf-pager, which fills memory here from saved->memory_uri, has all of it, it is compared with what was
 * saved. If it is something else, the clones here are lost, with that reason. Once for each pager; takes a copy of what
 * it needs.
 */
void sf_saved_verify_when_complete(SfHost *host, SfPager *pager, const SfSaved *saved);

#endif
