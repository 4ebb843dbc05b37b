/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfRun: a run of guest memory. Page maps are arrays of them, sorted and disjoint; memory/ finds them, descriptor/
 * packs them.
 */
#ifndef SF_PAGE_RUN_H
#define SF_PAGE_RUN_H

#include <glib.h>

#define SF_PAGE_SIZE 4096u /* of every guest that we fork (x86_64) and of page maps, bytes */

typedef struct {
    guint64 offset, length; /* bytes, multiples of SF_PAGE_SIZE; length > 0 */
} SfRun;

#endif
