/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sfctl: what its commands share. A command is one line in a table (SfCtlCommand), a table is one group, a group is one
 * file; main.c finds the command, parses its options and runs it. Single-threaded.
 */
#ifndef SF_CTL_CLI_H
#define SF_CTL_CLI_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include "sfvmm/cli/table.h"
#include "sfvmm/client/client.h"

/* Exit codes. Documented in sfctl(1); never change them. */
#define SF_CTL_OK       0
#define SF_CTL_ERROR    1     /* what was asked did not happen */
#define SF_CTL_USAGE    2     /* the command line is wrong; nothing was asked */

#define SF_CTL_NO_LIMIT     (-1)      /* a timeout in ms */
#define SF_CTL_SOON_MS      30000     /* for requests that the daemon answers from memory */
#define SF_CTL_NS_PER_MS    G_GUINT64_CONSTANT(1000000)
#define SF_CTL_NS_PER_S     G_GUINT64_CONSTANT(1000000000)

typedef struct {
    SfClient *client;
    gboolean json;            /* --json */
    gboolean color;           /* for stdout */
    gboolean unicode;         /* the terminal's character set is UTF-8 */
    guint width;              /* columns of stdout's terminal, 0: not a terminal */
    gboolean clock_known;
    gint64 clock_ahead; /* ns that CLOCK_MONOTONIC of sfvmmd's host is ahead of ours, once known */
} SfCtl;

typedef struct {
    const char *name;
    const char *args;                 /* as usage shows them: "VM --count N" */
    const char *summary;              /* one line, no full stop */
    const char *help;                 /* paragraphs and examples for `sfctl help NAME` */
    const GOptionEntry *options;      /* may be NULL */
    int min_args, max_args;
    int (*run)(SfCtl *ctl, int argc, char **argv);    /* argv: the arguments without options; returns an exit code */
    const char *complete;             /* what an argument is, for completion: "vm", "ticket", "file", "vm ticket" ... */
} SfCtlCommand;

/* The groups, each ends in a command without name. */
extern const SfCtlCommand sf_ctl_vm_commands[];
extern const SfCtlCommand sf_ctl_fork_commands[];
extern const SfCtlCommand sf_ctl_watch_commands[];
extern const SfCtlCommand sf_ctl_descriptor_commands[];
extern const SfCtlCommand sf_ctl_snapshot_commands[];
extern const SfCtlCommand sf_ctl_cluster_commands[];
extern const SfCtlCommand sf_ctl_domain_commands[];
extern const SfCtlCommand sf_ctl_daemon_commands[];

/* Commands with a file of their own. */
int sf_ctl_run(SfCtl *ctl, int argc, char **argv);
extern const GOptionEntry sf_ctl_run_options[];
int sf_ctl_daemon_status(SfCtl *ctl, int argc, char **argv);
int sf_ctl_console(SfCtl *ctl, int argc, char **argv);
int sf_ctl_console_attach(SfCtl *ctl, const char *vm);
int sf_ctl_top(SfCtl *ctl, int argc, char **argv);
extern const GOptionEntry sf_ctl_top_options[];
int sf_ctl_timeline(SfCtl *ctl, int argc, char **argv);
extern const GOptionEntry sf_ctl_timeline_options[];

/* `sfctl: MESSAGE` and, when there is one, a line with the hint. Return SF_CTL_ERROR or SF_CTL_USAGE. */
int sf_ctl_fail(SfCtl *ctl, const char *hint, const char *format, ...) G_GNUC_PRINTF(3, 4);
int sf_ctl_usage(const char *command, const char *format, ...) G_GNUC_PRINTF(2, 3);

/*
 * TRUE: sfvmmd is on this machine. Else says that the command `what` uses files of its host, which are not here, and
 * must be given there.
 */
gboolean sf_ctl_is_local(SfCtl *ctl, const char *what);

/* CLOCK_MONOTONIC of sfvmmd's host now, ns; it is asked for the first time, when it is another. */
gint64 sf_ctl_now_ns(SfCtl *ctl);

/* Prints what a call returned as error: message and hint; with --json an object on stdout too. Returns SF_CTL_ERROR. */
int sf_ctl_fail_call(SfCtl *ctl, const GError *error);

/* The code of the daemon's last answer is this one. */
gboolean sf_ctl_error_is(const SfCtl *ctl, const char *code);

/* A call that may take long: on a terminal shows on stderr what is waited for and since when. what: "VM \"web\" boots".
 */
JsonObject *sf_ctl_call_patiently(SfCtl *ctl, const char *what, const char *method, JsonObject *params, int timeout_ms,
                                  GError **error);

/* The same for `clone`, of a VM or of a libvirt domain that is none yet. */
JsonObject *sf_ctl_clone_patiently(SfCtl *ctl, const char *what, JsonObject *params, GError **error);

/* A line on stdout, with nothing in it that the terminal would obey. NULL prints "?". */
void sf_ctl_print(const char *text);

/* One object, one line, on stdout. */
void sf_ctl_print_json(JsonObject *object);

/* To stdout, through the table's layout. */
void sf_ctl_print_table(const SfCtl *ctl, const SfTable *table);

/* For `{"vm": name}` and the like. Caller owns. */
JsonObject *sf_ctl_params(const char *member, const char *value);

/*
 * The full id of the ticket that starts with these hex digits (at least SF_CTL_TICKET_PREFIX_MIN), asking the daemon
 * unless all 16 are there. NULL + error: none, or several.
 */
#define SF_CTL_TICKET_LENGTH        16u
#define SF_CTL_TICKET_PREFIX_MIN    4u
gboolean sf_ctl_looks_like_ticket(const char *text);
char *sf_ctl_find_ticket(SfCtl *ctl, const char *text, GError **error);

/* Members of an object that the daemon sent; what is missing or of another type is NULL, 0 or FALSE. Borrowed. */
const char *sf_ctl_string(JsonObject *object, const char *member);
gint64 sf_ctl_int(JsonObject *object, const char *member);
gboolean sf_ctl_bool(JsonObject *object, const char *member);
JsonObject *sf_ctl_object(JsonObject *object, const char *member);
JsonArray *sf_ctl_array(JsonObject *object, const char *member);          /* only objects in it, else NULL */

/* Colour of a state of a VM, ticket or clone. */
SfStyle sf_ctl_state_style(const char *state);

/* Ends the line of progress that sf_ctl_call_patiently() shows, if there is one. */
void sf_ctl_progress_clear(void);

#endif
