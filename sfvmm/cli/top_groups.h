/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The lines of `sfctl top` about multicast: a row for each snapshot whose pages come to this host, or leave it. */
#ifndef SF_CLI_TOP_GROUPS_H
#define SF_CLI_TOP_GROUPS_H

#include <json-glib/json-glib.h>
#include "sfvmm/cli/top.h"

/* groups: "multicast" of vm.usage; NULL or empty: nothing is appended. */
void sf_top_append_groups(GString *out, JsonArray *groups, const SfTopView *view);

#endif
