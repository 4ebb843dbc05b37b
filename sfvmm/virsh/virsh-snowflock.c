/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * A file for libvirt's own tree: tools/virsh-snowflock.c, built into virsh by snowflock.patch. virsh has no plug-ins,
 * so this is how its help, options and completion come to know of Snowflock:
 *
 *     virsh -c URI sf-clone web --count 8
 *         '-- parsed by virsh's own tables --> sf-virsh -c URI sf-clone web --count=8 --> sfctl of the URI's host
 *
 * What a command does is said in one place, sf-virsh and sfctl; here stands only what virsh must know of it. Nothing is
 * asked of libvirtd but domain names, for completion, and the URI.
 */
#include <config.h>
#include "virsh-snowflock.h"

#include <sys/wait.h>

#include "internal.h"
#include "viralloc.h"
#include "virsh-completer-domain.h"
#include "virsh-util.h"

#define SF_VIRSH     "sf-virsh"
#define SF_VIRSH_ENV "SF_VIRSH" /* another path of it, for tests */

/* What differs between virsh 9 and 11: how a command and its options are described, and one name. */
#if LIBVIR_VERSION_NUMBER >= 11000000
#define INFO(command, text) static const vshCmdInfo info_##command = { .help = text, .desc = text }
#define INFO_OF(command)    &info_##command
#define ARGUMENT(option, text)                                                                                         \
    {                                                                                                                  \
        .name = option, .type = VSH_OT_STRING, .positional = true, .required = true, .help = text                      \
    }
#define VALUE(option, text)                                                                                            \
    {                                                                                                                  \
        .name = option, .type = VSH_OT_STRING, .help = text                                                            \
    }
#define IS_ARGUMENT(option) ((option)->positional)
#define optionText          vshCommandOptString
#else
#define INFO(command, text)                                                                                            \
    static const vshCmdInfo info_##command[] = { { .name = "help", .data = text },                                     \
                                                 { .name = "desc", .data = text },                                     \
                                                 { .name = NULL } }
#define INFO_OF(command) info_##command
#define ARGUMENT(option, text)                                                                                         \
    {                                                                                                                  \
        .name = option, .type = VSH_OT_DATA, .flags = VSH_OFLAG_REQ, .help = text                                      \
    }
#define VALUE(option, text)                                                                                            \
    {                                                                                                                  \
        .name = option, .type = VSH_OT_STRING, .flags = VSH_OFLAG_REQ_OPT, .help = text                                \
    }
#define IS_ARGUMENT(option) ((option)->type == VSH_OT_DATA)
#define optionText          vshCommandOptStringReq
#endif
#define NUMBER(option, text)                                                                                           \
    {                                                                                                                  \
        .name = option, .type = VSH_OT_INT, .help = text                                                               \
    }
#define SWITCH(option, text)                                                                                           \
    {                                                                                                                  \
        .name = option, .type = VSH_OT_BOOL, .help = text                                                              \
    }
#define JSON SWITCH("json", N_("one JSON object"))
#define END                                                                                                            \
    {                                                                                                                  \
        .name = NULL                                                                                                   \
    }

INFO(sf_clone, N_("fork a running domain"));
static const vshCmdOptDef opts_sf_clone[] = {
    VIRSH_COMMON_OPT_DOMAIN_FULL(VIR_CONNECT_LIST_DOMAINS_RUNNING),
    NUMBER("count", N_("how many clones (default 1)")),
    VALUE("timeout", N_("fail when it takes longer, as in 30s")),
    SWITCH("no-wait", N_("return when the clones run, don't wait for their agents")),
    SWITCH("quiet", N_("print only the ticket")),
    JSON,
    END,
};

INFO(sf_list, N_("VMs and clones that sfvmmd knows"));
static const vshCmdOptDef opts_sf_list[] = { JSON, END };

INFO(sf_join, N_("wait for all clones of a fork"));
static const vshCmdOptDef opts_sf_join[] = {
    ARGUMENT("ticket", N_("what sf-clone printed, or its first digits")),
    VALUE("timeout", N_("wait at most so long, as in 5m")),
    VALUE("results", N_("directory for the clones' results")),
    JSON,
    END,
};

INFO(sf_kill, N_("end the clones of a fork, or one of them"));
static const vshCmdOptDef opts_sf_kill[] = { ARGUMENT("ticket", N_("a ticket or a clone's name in sf-list")), END };

INFO(sf_snapshot, N_("save a VM of sfvmmd as a snapshot"));
static const vshCmdOptDef opts_sf_snapshot[] = {
    ARGUMENT("vm", N_("its name in sf-list")),
    ARGUMENT("name", N_("name of the snapshot")),
    END,
};

INFO(sf_snapshot_list, N_("saved snapshots"));
static const vshCmdOptDef opts_sf_snapshot_list[] = { JSON, END };

INFO(sf_hosts, N_("hosts that clones are placed on"));
static const vshCmdOptDef opts_sf_hosts[] = { JSON, END };

INFO(sf_domcheck, N_("what a domain lacks to be forkable"));
static const vshCmdOptDef opts_sf_domcheck[] = {
    VIRSH_COMMON_OPT_DOMAIN_FULL(0),
    SWITCH("fix", N_("add it to the domain's definition")),
    VALUE("network", N_("it is to be in this network: cluster")),
    VALUE("address", N_("its address there, as in 10.77.0.1/16")),
    VALUE("outside", N_("what the cluster reaches outside, as in '192.0.2.0/24 tcp 443'")),
    JSON,
    END,
};

/* The words of the command, as sf-virsh takes them: arguments, then options. NULL: virsh has said what is wrong. */
static GPtrArray *sfVirshWords(vshControl *ctl, const vshCmd *cmd)
{
    g_autoptr(GPtrArray) words = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GPtrArray) options = g_ptr_array_new_with_free_func(g_free);
    virshControl *priv = ctl->privData;
    g_autofree char *uri = virConnectGetURI(priv->conn);
    const char *program = g_getenv(SF_VIRSH_ENV);

    g_ptr_array_add(words, g_strdup(program ? program : SF_VIRSH));
    if (uri) {
        g_ptr_array_add(words, g_strdup("-c"));
        g_ptr_array_add(words, g_strdup(uri));
    }
    g_ptr_array_add(words, g_strdup(cmd->def->name));
    for (const vshCmdOptDef *opt = cmd->def->opts; opt->name; opt++) {
        const char *value = NULL;
        if (opt->type == VSH_OT_BOOL) {
            if (vshCommandOptBool(cmd, opt->name)) {
                g_ptr_array_add(options, g_strdup_printf("--%s", opt->name));
            }
            continue;
        }
        if (optionText(ctl, cmd, opt->name, &value) < 0) {
            return NULL;
        }
        if (value && IS_ARGUMENT(opt)) {
            g_ptr_array_add(words, g_strdup(value));
        } else if (value) {
            g_ptr_array_add(options, g_strdup_printf("--%s=%s", opt->name, value));
        }
    }
    for (guint i = 0; i < options->len; i++) {
        g_ptr_array_add(words, g_strdup(g_ptr_array_index(options, i)));
    }
    g_ptr_array_add(words, NULL);
    return g_steal_pointer(&words);
}

static bool cmdSnowflock(vshControl *ctl, const vshCmd *cmd)
{
    g_autoptr(GPtrArray) words = sfVirshWords(ctl, cmd);
    g_autoptr(GError) error = NULL;
    int status = 0;

    if (!words) {
        return false;
    }
    fflush(stdout);
    if (!g_spawn_sync(NULL, (char **)words->pdata, NULL, G_SPAWN_SEARCH_PATH | G_SPAWN_CHILD_INHERITS_STDIN, NULL, NULL,
                      NULL, NULL, &status, &error)) {
        vshError(ctl, _("%s can't be run: %s"), (const char *)words->pdata[0], error->message);
        return false;
    }
    return WIFEXITED(status) && WEXITSTATUS(status) == 0; /* it has said what went wrong */
}

#define COMMAND(text, command)                                                                                         \
    {                                                                                                                  \
        .name = text, .handler = cmdSnowflock, .opts = opts_##command, .info = INFO_OF(command)                        \
    }

/* clang-format off */
const vshCmdDef snowflockCmds[] = {
    COMMAND("sf-clone", sf_clone),
    COMMAND("sf-list", sf_list),
    COMMAND("sf-join", sf_join),
    COMMAND("sf-kill", sf_kill),
    COMMAND("sf-snapshot", sf_snapshot),
    COMMAND("sf-snapshot-list", sf_snapshot_list),
    COMMAND("sf-hosts", sf_hosts),
    COMMAND("sf-domcheck", sf_domcheck),
    { .name = NULL },
};
/* clang-format on */
