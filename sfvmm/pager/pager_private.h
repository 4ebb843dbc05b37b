/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of pager.h share: pager.c and pager_*.c. Nobody else includes this. */
#ifndef SF_PAGER_PRIVATE_H
#define SF_PAGER_PRIVATE_H

#include "sfvmm/pager/pager.h"

#define SF_PAGER_FOLDER         "pager" /* of the run directory */
#define SF_PAGER_FILE_JSON      "pager.json"
#define SF_PAGER_MODE_DIRECTORY 0700

/* An entry of the ledger. */
typedef struct {
    SfPagerRequest *request;
    int fds[SF_PAGER_MAX_FDS];
    guint n_fds;
} SfPagerOrder;

struct _SfPager {
    GObject parent_instance;
    char *id, *binary, *directory;
    uid_t uid;
    gid_t gid;
    SfFaultHandler handler;

    int listener; /* of pager.sock */
    int socket;
    guint in_source, out_source;
    GQueue waiting; /* of Waiting */
    GQueue unsent;  /* of Unsent */
    gint64 last_id;

    pid_t pid;
    guint64 start_time;
    int pidfd;
    guint exit_source;
    gint64 started; /* g_get_monotonic_time() */
    guint short_lives;
    gboolean stopped;
    gboolean failed; /* given up */
    gboolean complete;
    guint n_keys; /* names of directories of keys that are taken */
    GQueue early; /* of JsonObject: events that came during the adoption */
    guint early_source;
    guint fault_seconds; /* 0: the default */

    GPtrArray *ledger; /* of SfPagerOrder */
    SfSnapshot *snapshot;
    SfPageCache *cache;
    GArray *fds; /* of sf_pager_fds() */
    SfPrefetch prefetch;
    JsonObject *multicast_stats; /* as told last; NULL: none */
};

/* pager.c: without a process. */
SfPager *sf_pager_new(const char *run_directory, const char *snapshot);
char *sf_pager_path(const SfPager *pager, const char *file);                    /* of its directory; caller frees */
gboolean sf_pager_fail_errno(SfPager *pager, GError **error, const char *what); /* always FALSE */

/* pager_connection.c: the connection. */
void sf_pager_read(SfPager *pager); /* begins to, when there is a socket */
void sf_pager_disconnect(SfPager *pager, const char *reason);
void sf_pager_handle_event(SfPager *pager, const char *event, JsonObject *object);
SfPagerRequest *sf_pager_request_new(SfPagerDo what, const char *text);
/* Sends; the request gets its number here. task: gets the answer (a JsonObject), taken in every case; or NULL. */
gboolean sf_pager_send_request(SfPager *pager, SfPagerRequest *request, const int *fds, guint n_fds, GTask *task,
                               GError **error);
/* Of what the process says: NULL, 0 and FALSE if it is not there, or of another type. */
const char *sf_pager_text_of(JsonObject *object, const char *member);
guint64 sf_pager_int_of(JsonObject *object, const char *member);
gboolean sf_pager_flag_of(JsonObject *object, const char *member);

/* The ledger. text NULL: any. */
void sf_pager_ledger_remove(SfPager *pager, SfPagerDo what, const char *text);
const SfPagerOrder *sf_pager_ledger_find(SfPager *pager, SfPagerDo what, const char *text); /* the first; or NULL */
/*
 * Into the ledger and out. Takes the request; copies the descriptors. While the process is being replaced, the ledger
 * alone counts: TRUE.
 */
gboolean sf_pager_order(SfPager *pager, SfPagerRequest *request, const int *fds, guint n_fds, GError **error);
void sf_pager_order_free(gpointer order);

/* pager_process.c */
gboolean sf_pager_listen(SfPager *pager, GError **error); /* before it is started */
gboolean sf_pager_start_process(SfPager *pager, GError **error);
gboolean sf_pager_connect(SfPager *pager, GError **error);
void sf_pager_watch_process(SfPager *pager, int pidfd); /* takes pidfd */

/* pager_keys.c: appends the descriptor of what `security` needs; nothing for PLAIN. It is the caller's. */
gboolean sf_pager_add_keys(SfPager *pager, SfPagerSecurity security, const char *keys, gboolean server, int *fds,
                           guint *n_fds, GError **error);

/* pager_orders.c: of SfFaultHandler. */
gboolean sf_pager_attach(gpointer owner, const char *vm, pid_t pid, int uffd, const SfMappedBlock *blocks, guint n,
                         GError **error);
void sf_pager_detach(gpointer owner, const char *vm);

#endif
