/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfAvoid: which pages a clone on another host does not fetch, as they would be thrown away. A set of flags that goes
 * with a ticket; docs/avoidance.md says what each does.
 */
#ifndef SF_AVOID_H
#define SF_AVOID_H

#include <glib.h>

#define SF_AVOID_FREE 1u /* what the VM never used, or has given away: not in the page map */
#define SF_AVOID_READ 2u /* what a disk read is about to overwrite: QEMU */
#define SF_AVOID_ALL  (SF_AVOID_FREE | SF_AVOID_READ)

/* "all", "none", or names with commas between: "free", "read", "free,read". FALSE + error: anything else. */
gboolean sf_avoid_parse(const char *text, guint *avoid, GError **error);

/* As parse() takes it. Static. */
const char *sf_avoid_to_text(guint avoid);

#endif
