/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sfctl: the operator's command. Finds the command in the tables of the groups, parses its options, runs it.
 *
 *     sfctl [global options] COMMAND [options] [arguments]       global options are taken anywhere
 *
 * Help, usage and completion all come from the tables, so that they cannot differ from what is parsed.
 */
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "sfvmm/cli/cli.h"

#define NAME_WIDTH     12     /* of the first column of `sfctl help` */
#define OPTION_WIDTH   26     /* of the first column of the options in `sfctl help COMMAND` */

static const struct {
    const char *title;
    const SfCtlCommand *commands;
} groups[] = {
    {"Virtual machines", sf_ctl_vm_commands},
    {"Forking", sf_ctl_fork_commands},
    {"Watching", sf_ctl_watch_commands},
    {"Snapshots", sf_ctl_descriptor_commands},
    {"Saved snapshots", sf_ctl_snapshot_commands},
    {"Hosts", sf_ctl_cluster_commands},
    {"libvirt", sf_ctl_domain_commands},
    {"The daemon", sf_ctl_daemon_commands},
};

static char *option_socket, *option_color;
static gboolean option_json, option_help, option_version;

static const GOptionEntry global_options[] = {
    { "socket", 's', 0, G_OPTION_ARG_FILENAME, &option_socket, "Control socket of sfvmmd, or tls://HOST[:PORT]",
      "PATH" },
    { "json", 'j', 0, G_OPTION_ARG_NONE, &option_json, "One JSON object instead of text", NULL },
    { "color", 0, 0, G_OPTION_ARG_STRING, &option_color, "auto (default), always or never", "WHEN" },
    { "help", 'h', 0, G_OPTION_ARG_NONE, &option_help, "Show help", NULL },
    { "version", 'V', 0, G_OPTION_ARG_NONE, &option_version, "Show the version", NULL },
    { NULL },
};

static const SfCtlCommand *find_command(const char *name)
{
    for (guint g = 0; g < G_N_ELEMENTS(groups); g++) {
        for (const SfCtlCommand *command = groups[g].commands; command->name; command++) {
            if (strcmp(command->name, name) == 0) {
                return command;
            }
        }
    }
    return NULL;
}

static void print_options(const char *title, const GOptionEntry *options)
{
    printf("\n%s:\n", title);
    for (; options->long_name; options++) {
        if (options->flags & G_OPTION_FLAG_HIDDEN) {
            continue;
        }
        char letter[] = {'-', options->short_name, ',', ' ', 0};
        g_autofree char *left = g_strdup_printf("%s--%s%s%s", options->short_name ? letter : "    ", options->long_name,
                                                options->arg_description ? " " : "",
                                                options->arg_description ? options->arg_description : "");
        printf("  %-*s  %s\n", OPTION_WIDTH, left, options->description);
    }
}

static int print_command_help(const SfCtlCommand *command)
{
    printf("Usage: sfctl %s%s%s\n\n%s.\n", command->name, *command->args ? " " : "", command->args, command->summary);
    if (command->help) {
        printf("\n%s\n", command->help);
    }
    if (command->options) {
        print_options("Options", command->options);
    }
    print_options("Global options", global_options);
    return SF_CTL_OK;
}

static int print_help(void)
{
    puts("Usage: sfctl [OPTIONS] COMMAND ...\n\nFork running virtual machines. One line for each command:");
    for (guint g = 0; g < G_N_ELEMENTS(groups); g++) {
        printf("\n%s:\n", groups[g].title);
        for (const SfCtlCommand *command = groups[g].commands; command->name; command++) {
            printf("  %-*s %s\n", NAME_WIDTH, command->name, command->summary);
        }
    }
    print_options("Global options", global_options);
    puts("\n`sfctl help COMMAND` says more; so does sfctl(1).\n\n"
         "A first fork:\n"
         "  sfctl run debian.qcow2 --name web --wait-agent\n"
         "  sfctl clone web --count 8\n"
         "  sfctl top");
    return SF_CTL_OK;
}

/* Lines for the completion script: commands, or the options and the kind of arguments of one. */
static int print_names(const char *name)
{
    const SfCtlCommand *command = name ? find_command(name) : NULL;

    if (!name) {
        for (guint g = 0; g < G_N_ELEMENTS(groups); g++) {
            for (command = groups[g].commands; command->name; command++) {
                puts(command->name);
            }
        }
        puts("help");
        return SF_CTL_OK;
    }
    if (!command) {
        return SF_CTL_ERROR;
    }
    printf("args %s\n", command->complete ? command->complete : "");
    for (guint i = 0; i < 2; i++) {
        const GOptionEntry *option = i == 0 ? command->options : global_options;
        for (; option && option->long_name; option++) {
            const char *arg = option->arg_description;
            printf("--%s%s%s\n", option->long_name, arg ? "=" : "", arg ? arg : "");
        }
    }
    return SF_CTL_OK;
}

static int run_help(int argc, char **argv)
{
    if (argc > 0 && strcmp(argv[0], "--names") == 0) {
        return print_names(argc > 1 ? argv[1] : NULL);
    }
    if (argc == 0 || strcmp(argv[0], "help") == 0 || *argv[0] == '-') {
        return print_help();
    }
    const SfCtlCommand *command = find_command(argv[0]);
    if (!command) {
        return sf_ctl_usage(NULL, "\"%s\": no such command", argv[0]);
    }
    return print_command_help(command);
}

/* The first word that is not a global option, which is the command; its index in argv, or argc. */
static int find_command_word(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--socket") == 0 || strcmp(argv[i], "-s") == 0 || strcmp(argv[i], "--color") == 0) {
            i++;
        } else if (*argv[i] != '-') {
            return i;
        }
    }
    return argc;
}

/* The command with the most letters in common at its start, for a typing error; NULL: nothing near. */
static const char *nearest_command(const char *name)
{
    const char *nearest = NULL;
    gsize best = 1;

    for (guint g = 0; g < G_N_ELEMENTS(groups); g++) {
        for (const SfCtlCommand *command = groups[g].commands; command->name; command++) {
            gsize common = 0;
            while (name[common] && name[common] == command->name[common]) {
                common++;
            }
            if (common > best) {
                best = common;
                nearest = command->name;
            }
        }
    }
    return nearest;
}

static guint terminal_width(void)
{
    struct winsize size;
    return isatty(STDOUT_FILENO) && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

static gboolean set_color(SfCtl *ctl)
{
    const char *no_color = g_getenv("NO_COLOR");

    if (!option_color || strcmp(option_color, "auto") == 0) {
        ctl->color = isatty(STDOUT_FILENO) && !(no_color && *no_color) && g_strcmp0(g_getenv("TERM"), "dumb") != 0;
    } else if (strcmp(option_color, "always") == 0) {
        ctl->color = TRUE;
    } else if (strcmp(option_color, "never") == 0) {
        ctl->color = FALSE;
    } else {
        return FALSE;
    }
    return TRUE;
}

static int run_command(const SfCtlCommand *command, int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    SfCtl ctl = {0};

    g_option_context_set_help_enabled(context, FALSE);
    if (command->options) {
        g_option_context_add_main_entries(context, command->options, NULL);
    }
    g_option_context_add_main_entries(context, global_options, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error)) {
        return sf_ctl_usage(command->name, "%s: %s", command->name, error->message);
    }
    if (option_help) {
        return print_command_help(command);
    }
    if (argc > 1 && strcmp(argv[1], "--") == 0) {
        argc--;
        argv++;
    }
    argc--;
    argv++;
    if (argc < command->min_args) {
        return sf_ctl_usage(command->name, "%s: an argument is missing: sfctl %s %s", command->name, command->name,
                            command->args);
    }
    if (argc > command->max_args) {
        return sf_ctl_usage(command->name, "%s: \"%s\" is one argument too many", command->name,
                            argv[command->max_args]);
    }
    if (!set_color(&ctl)) {
        return sf_ctl_usage(NULL, "--color: \"%s\" is not one of auto, always, never", option_color);
    }
    ctl.json = option_json;
    ctl.width = terminal_width();
    ctl.unicode = g_get_charset(NULL);
    ctl.client = sf_client_new(option_socket);
    int code = command->run(&ctl, argc, argv);
    sf_client_free(ctl.client);
    if (fflush(stdout) != 0 && code == SF_CTL_OK) {
        code = SF_CTL_ERROR;
    }
    return code;
}

int main(int argc, char **argv)
{
    setlocale(LC_ALL, "");
    setlocale(LC_NUMERIC, "C");    /* 1.5 MiB everywhere: what is printed can be typed */

    int word = find_command_word(argc, argv);
    if (word == argc) {
        for (int i = 1; i < argc; i++) {
            if (strcmp(argv[i], "--version") == 0 || strcmp(argv[i], "-V") == 0) {
                puts("sfctl " SF_VERSION);
                return SF_CTL_OK;
            }
            if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
                return print_help();
            }
        }
        if (argc > 1) {
            return sf_ctl_usage(NULL, "a command is missing");
        }
        print_help();
        return SF_CTL_USAGE;
    }
    const char *name = argv[word];
    if (strcmp(name, "help") == 0) {
        return run_help(argc - word - 1, argv + word + 1);
    }
    const SfCtlCommand *command = find_command(name);
    if (!command) {
        const char *near = nearest_command(name);
        return near ? sf_ctl_usage(NULL, "\"%s\": no such command; did you mean \"%s\"?", name, near)
                    : sf_ctl_usage(NULL, "\"%s\": no such command", name);
    }
    /* The command's own word leaves argv; what stood before it are global options, to be parsed with the rest. */
    for (int i = word; i < argc; i++) {
        argv[i] = argv[i + 1];
    }
    return run_command(command, argc - 1, argv);
}
