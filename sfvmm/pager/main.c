/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sf-pager: started by sfvmmd, one for each snapshot and host. Descriptor 3 is the listening socket on which sfvmmd
 * talks to it, 4 its directory. It ends by a signal; what it holds is in memfds that others have too.
 */
#include <glib-unix.h>
#include <malloc.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include "sfvmm/pager/control.h"
#include "sfvmm/process/sandbox.h"

#define FD_LISTENER  3
#define HEAP_BYTES   (8 << 20)  /* buffers of this size are no mappings of their own: those fault anew each time */
#define HEAP_SPARE   (64 << 20) /* free memory that is kept */

static gboolean on_signal(gpointer data)
{
    g_main_loop_quit(data);
    return G_SOURCE_REMOVE;
}

/* Each clone and each layer needs some. */
static void raise_file_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

int main(int argc, char **argv)
{
    int fault_seconds = 0;
    gboolean version = FALSE;
    GOptionEntry entries[] = {
        { "fault-seconds", 'f', 0, G_OPTION_ARG_INT, &fault_seconds, "bound of one page fault", "SECONDS" },
        { "version", 'V', 0, G_OPTION_ARG_NONE, &version, "print the version", NULL },
        { NULL },
    };
    g_autoptr(GOptionContext) context = g_option_context_new("SNAPSHOT");
    g_autoptr(GError) error = NULL;

    g_option_context_set_summary(context, "Serves and fetches the memory of one snapshot. Started by sfvmmd.");
    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error)) {
        g_printerr("sf-pager: %s\n", error->message);
        return EXIT_FAILURE;
    }
    if (version) {
        g_print("sf-pager %s\n", SF_VERSION);
        return EXIT_SUCCESS;
    }
    if (argc != 2 || fault_seconds < 0) {
        g_printerr("usage: sf-pager [-f SECONDS] SNAPSHOT\n");
        return EXIT_FAILURE;
    }
    raise_file_limit();
    mallopt(M_MMAP_THRESHOLD, HEAP_BYTES);
    mallopt(M_TRIM_THRESHOLD, HEAP_SPARE);
    signal(SIGPIPE, SIG_IGN);
    if (!sf_sandbox_enter("sf-pager", "/proc/self/fd/4", &error)) {
        g_printerr("sf-pager: %s\n", error->message);
        return EXIT_FAILURE;
    }
    Control *control = control_new(argv[1], FD_LISTENER, fault_seconds, &error);
    if (!control) {
        g_printerr("sf-pager: snapshot %s: %s\n", argv[1], error->message);
        return EXIT_FAILURE;
    }
    g_autoptr(GMainLoop) loop = g_main_loop_new(NULL, FALSE);
    g_unix_signal_add(SIGTERM, on_signal, loop);
    g_unix_signal_add(SIGINT, on_signal, loop);
    g_main_loop_run(loop);
    control_free(control);
    return EXIT_SUCCESS;
}
