/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/cluster/slurm_command.h"

#include <grp.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#define OUTPUT_MAX (4u << 20) /* bytes; squeue has some 60 for a job */

typedef struct {
    uid_t uid;
    gid_t gid;
    gboolean change_user, dies_with_us;
} ChildSetup;

typedef struct {
    GSubprocess *process;
    char *program;
    guint timer;
    GCancellable *cancellable;
    gulong cancel_handler;
} Command;

static void command_free(gpointer data)
{
    Command *command = data;

    g_clear_handle_id(&command->timer, g_source_remove);
    if (command->cancel_handler) {
        g_cancellable_disconnect(command->cancellable, command->cancel_handler);
    }
    g_clear_object(&command->cancellable);
    g_clear_object(&command->process);
    g_free(command->program);
    g_free(command);
}

void sf_slurm_output_free(SfSlurmOutput *output)
{
    if (output) {
        g_free(output->out);
        g_free(output->err);
        g_free(output);
    }
}

/* In the child: system calls only. A change of user clears what happens when the parent dies, so that comes last. */
static void set_up_child(gpointer data)
{
    const ChildSetup *setup = data;

    if (setup->change_user && (setgroups(0, NULL) < 0 || setgid(setup->gid) < 0 || setuid(setup->uid) < 0)) {
        _exit(EXIT_FAILURE);
    }
    if (setup->dies_with_us) {
        prctl(PR_SET_PDEATHSIG, SIGTERM);
    }
}

/* Ours without what would set options of Slurm's commands, or make them think that they run within a job. */
static GStrv environment(const SfSlurmOptions *options)
{
    static const char *const prefixes[] = { "SLURM_", "SALLOC_", "SCANCEL_", "SCONTROL_", "SINFO_", "SQUEUE_" };
    GStrv env = g_get_environ();
    g_auto(GStrv) names = g_listenv();

    for (char **name = names; *name; name++) {
        for (guint i = 0; i < G_N_ELEMENTS(prefixes); i++) {
            if (g_str_has_prefix(*name, prefixes[i]) && strcmp(*name, "SLURM_CONF") != 0) {
                env = g_environ_unsetenv(env, *name);
            }
        }
    }
    env = g_environ_setenv(env, "LC_ALL", "C.UTF-8", TRUE);
    return options->conf ? g_environ_setenv(env, "SLURM_CONF", options->conf, TRUE) : env;
}

static void on_cancelled(GCancellable *cancellable, gpointer data)
{
    Command *command = data;

    g_subprocess_send_signal(command->process, SIGTERM);
}

static gboolean on_timeout(gpointer data)
{
    Command *command = data;

    command->timer = 0;
    g_subprocess_send_signal(command->process, SIGTERM);
    return G_SOURCE_REMOVE;
}

/* Empty bytes have no data. Caller frees. */
static char *text_of(GBytes *bytes)
{
    gsize length;
    const char *data = g_bytes_get_data(bytes, &length);

    return g_strndup(data ? data : "", length);
}

static void on_ended(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(GTask) task = data;
    Command *command = g_task_get_task_data(task);
    g_autoptr(GBytes) out = NULL, err = NULL;
    GError *error = NULL;
    SfSlurmOutput *output;

    g_clear_handle_id(&command->timer, g_source_remove);
    if (!g_subprocess_communicate_finish(G_SUBPROCESS(source), result, &out, &err, &error)) {
        g_task_return_error(task, error);
        return;
    }
    if (g_bytes_get_size(out) + g_bytes_get_size(err) > OUTPUT_MAX) {
        g_task_return_new_error(task, G_IO_ERROR, G_IO_ERROR_MESSAGE_TOO_LARGE, "%s: it printed more than %u MiB",
                                command->program, OUTPUT_MAX >> 20);
        return;
    }
    output = g_new0(SfSlurmOutput, 1);
    output->ok = g_subprocess_get_successful(command->process);
    output->out = text_of(out);
    output->err = text_of(err);
    g_task_return_pointer(task, output, (GDestroyNotify)sf_slurm_output_free);
}

void sf_slurm_command_async(const SfSlurmOptions *options, const char *const *argv, guint timeout_ms,
                            gboolean dies_with_us, GCancellable *cancellable, GAsyncReadyCallback callback,
                            gpointer data)
{
    GTask *task = g_task_new(NULL, NULL, callback, data);
    Command *command = g_new0(Command, 1);
    ChildSetup *setup = g_new0(ChildSetup, 1);
    g_autoptr(GSubprocessLauncher) launcher =
        g_subprocess_launcher_new(G_SUBPROCESS_FLAGS_STDOUT_PIPE | G_SUBPROCESS_FLAGS_STDERR_PIPE);
    g_auto(GStrv) env = environment(options);
    GError *error = NULL;

    *setup = (ChildSetup){ options->uid, options->gid, geteuid() == 0 && options->uid != 0, dies_with_us };
    command->program = g_strdup(argv[0]);
    g_task_set_task_data(task, command, command_free);
    g_subprocess_launcher_set_environ(launcher, env);
    g_subprocess_launcher_set_cwd(launcher, "/");
    g_subprocess_launcher_set_child_setup(launcher, set_up_child, setup, g_free);
    command->process = g_subprocess_launcher_spawnv(launcher, argv, &error);
    if (!command->process) {
        g_prefix_error(&error, "%s (package slurm-client): ", argv[0]);
        g_task_return_error(task, error);
        g_object_unref(task);
        return;
    }
    command->timer = g_timeout_add(timeout_ms, on_timeout, command);
    if (cancellable) {
        command->cancellable = g_object_ref(cancellable);
        command->cancel_handler = g_cancellable_connect(cancellable, G_CALLBACK(on_cancelled), command, NULL);
    }
    g_subprocess_communicate_async(command->process, NULL, NULL, on_ended, task);
}

SfSlurmOutput *sf_slurm_command_finish(GAsyncResult *result, GError **error)
{
    return g_task_propagate_pointer(G_TASK(result), error);
}
