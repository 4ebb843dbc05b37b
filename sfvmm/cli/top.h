/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One picture of `sfctl top`, as a function of two samples: apart from the command, for the tests. */
#ifndef SF_CTL_TOP_H
#define SF_CTL_TOP_H

#include <glib.h>
#include <json-glib/json-glib.h>

typedef enum { SF_TOP_BY_NAME, SF_TOP_BY_CPU, SF_TOP_BY_PRIVATE } SfTopOrder;

typedef struct {
    guint width, height;      /* of the terminal; height 0: as many lines as there are, width 0: as wide as needed */
    guint cpus;               /* of the host */
    guint skip;               /* rows scrolled away */
    gboolean color, unicode;
    gboolean shells;          /* a row for each shell, instead of one for all of a family */
    gboolean keys;            /* the line that says which keys there are */
    SfTopOrder order;
    const char *clock;        /* "21:04:33" */
} SfTopView;

/*
 * now, before: results of vm.usage, elapsed_ns apart; before may be NULL: no rates yet. Lines end in newlines. Caller
 * frees.
 */
char *sf_top_render(JsonObject *now, JsonObject *before, guint64 elapsed_ns, const SfTopView *view);

#endif
