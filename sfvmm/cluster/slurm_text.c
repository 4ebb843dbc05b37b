/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/cluster/slurm_text.h"

#include <string.h>

#define GRANTED       "salloc: Granted job allocation "
#define JOB_ID        "JobId="
#define NODES         "Nodes="
#define CPU_IDS       "CPU_IDs="
#define NAME_MAX_LEN  255u
#define COMPLAINT_MAX 300u
#define STATE_CHARS   "ABCDEFGHIJKLMNOPQRSTUVWXYZ_"

static void node_free(gpointer data)
{
    SfSlurmNode *node = data;

    g_free(node->name);
    g_free(node);
}

static void job_free(gpointer data)
{
    SfSlurmJob *job = data;

    g_free(job->state);
    g_free(job->name);
    g_free(job);
}

static gpointer bad(GError **error, const char *command, const char *what)
{
    g_autofree char *shown = g_utf8_make_valid(what, (gssize)MIN(strlen(what), COMPLAINT_MAX));

    g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "%s: its output is not understood: \"%s\"", command, shown);
    return NULL;
}

static gboolean parse_number(const char *text, guint64 max, guint64 *value)
{
    return g_ascii_isdigit(text[0]) && g_ascii_string_to_unsigned(text, 10, 0, max, value, NULL);
}

/* ---- salloc ---- */

guint64 sf_slurm_parse_grant(const char *text)
{
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    guint64 job = 0, value;

    for (char **line = lines; *line; line++) {
        if (!g_str_has_prefix(*line, GRANTED)) {
            continue;
        }
        if (job || !parse_number(*line + strlen(GRANTED), G_MAXUINT32, &value) || value == 0) {
            return 0;
        }
        job = value;
    }
    return job;
}

/* The last line that says "error", else the last one. */
char *sf_slurm_parse_complaint(const char *text)
{
    g_autofree char *valid = g_utf8_make_valid(text, -1);
    g_auto(GStrv) lines = g_strsplit(valid, "\n", -1);
    const char *chosen = "", *colon;

    for (char **line = lines; *line; line++) {
        g_strstrip(*line);
        if (**line && (strstr(*line, "error:") || !strstr(chosen, "error:"))) {
            chosen = *line;
        }
    }
    colon = strstr(chosen, "error: ");
    return g_utf8_substring(colon ? colon + strlen("error: ") : chosen, 0,
                            MIN(g_utf8_strlen(colon ? colon + strlen("error: ") : chosen, -1), COMPLAINT_MAX));
}

gboolean sf_slurm_means_busy(const char *complaint)
{
    static const char *const words[] = {
        "Unable to start",
        "Immediate execution impossible",
        "Requested nodes are busy",
        "Connection timed out",
        "Requested node configuration is not available",
        "More processors requested than permitted",
        "Job violates accounting/QOS policy",
        "Required node not available",
        "Requested partition configuration not "
        "available now",
        "node count specification invalid",
        "Node count specification invalid",
    };

    for (guint i = 0; i < G_N_ELEMENTS(words); i++) {
        if (strstr(complaint, words[i])) {
            return TRUE;
        }
    }
    return FALSE;
}

gboolean sf_slurm_means_ended(const char *complaint)
{
    return strstr(complaint, "already completing or completed") || strstr(complaint, "Invalid job id");
}

/* ---- lists of hosts ---- */

/* A name as a host may have it in Slurm. */
static gboolean name_is_valid(const char *name)
{
    gsize length = strlen(name);

    return length >= 1 && length <= NAME_MAX_LEN &&
           strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_") == length;
}

static gboolean expand_item(const char *head, const char *rest, GPtrArray *names);

/* One of what stands in brackets: "7" or "001-010", with what stands before and behind. */
static gboolean expand_range(const char *head, const char *range, const char *rest, GPtrArray *names)
{
    g_auto(GStrv) ends = g_strsplit(range, "-", 2);
    guint64 first, last;
    int width = (int)strlen(ends[0] ? ends[0] : "");

    if (!ends[0] || width > 9 || !parse_number(ends[0], G_MAXUINT32, &first) ||
        (ends[1] && !parse_number(ends[1], G_MAXUINT32, &last))) {
        return FALSE;
    }
    last = ends[1] ? last : first;
    if (last < first || last - first >= SF_SLURM_NODES_MAX) {
        return FALSE;
    }
    for (guint64 i = first; i <= last; i++) {
        g_autofree char *next = g_strdup_printf("%s%0*" G_GUINT64_FORMAT, head, width, i);
        if (!expand_item(next, rest, names)) {
            return FALSE;
        }
    }
    return TRUE;
}

/* head: what is done of a name; rest: "tail", or "text[ranges]tail". */
static gboolean expand_item(const char *head, const char *rest, GPtrArray *names)
{
    const char *open = strchr(rest, '['), *close = open ? strchr(open, ']') : NULL;
    g_autofree char *next = NULL;

    if (!open) {
        next = g_strconcat(head, rest, NULL);
        if (!name_is_valid(next) || names->len >= SF_SLURM_NODES_MAX) {
            return FALSE;
        }
        g_ptr_array_add(names, g_steal_pointer(&next));
        return TRUE;
    }
    if (!close || strlen(head) > NAME_MAX_LEN) {
        return FALSE;
    }
    {
        g_autofree char *before = g_strndup(rest, (gsize)(open - rest));
        g_autofree char *inside = g_strndup(open + 1, (gsize)(close - open - 1));
        g_auto(GStrv) ranges = g_strsplit(inside, ",", -1);
        next = g_strconcat(head, before, NULL);
        if (!*inside) {
            return FALSE;
        }
        for (char **range = ranges; *range; range++) {
            if (!expand_range(next, *range, close + 1, names)) {
                return FALSE;
            }
        }
    }
    return TRUE;
}

/* "a,n[1-3,7]-x": each name. */
static gboolean expand_hosts(const char *list, GPtrArray *names)
{
    while (*list) {
        gsize length = 0;
        gboolean inside = FALSE;
        g_autofree char *item = NULL;

        while (list[length] && (inside || list[length] != ',')) {
            inside = list[length] == '[' || (inside && list[length] != ']');
            length++;
        }
        item = g_strndup(list, length);
        if (!expand_item("", item, names)) {
            return FALSE;
        }
        list += length;
        if (*list == ',' && !*++list) {
            return FALSE;
        }
    }
    return names->len > 0;
}

/* How many "0-3,6" are; 0: it is none. */
static guint count_ids(const char *list)
{
    g_auto(GStrv) ranges = g_strsplit(list, ",", -1);
    guint64 sum = 0;

    for (char **range = ranges; *range; range++) {
        g_auto(GStrv) ends = g_strsplit(*range, "-", 2);
        guint64 first, last;
        if (!ends[0] || !parse_number(ends[0], SF_SLURM_CPUS_MAX, &first) ||
            (ends[1] && !parse_number(ends[1], SF_SLURM_CPUS_MAX, &last))) {
            return 0;
        }
        last = ends[1] ? last : first;
        if (last < first) {
            return 0;
        }
        sum += last - first + 1;
    }
    return sum <= SF_SLURM_CPUS_MAX ? (guint)sum : 0;
}

/* ---- scontrol ---- */

static gboolean add_nodes(GPtrArray *nodes, const char *list, guint cpus)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);

    if (!expand_hosts(list, names) || names->len + nodes->len > SF_SLURM_NODES_MAX) {
        return FALSE;
    }
    for (guint i = 0; i < names->len; i++) {
        SfSlurmNode *node = g_new0(SfSlurmNode, 1);
        node->name = g_strdup(g_ptr_array_index(names, i));
        node->cpus = cpus;
        g_ptr_array_add(nodes, node);
    }
    return TRUE;
}

/*
 *     JobId=12 JobName=... NumNodes=3 ... Nodes=h1 CPU_IDs=0-1 Mem=104 GRES= Nodes=h[2-3] CPU_IDs=0 Mem=52 GRES= ...
 *
 * Only a word "Nodes=" that "CPU_IDs=" follows is of these.
 */
GPtrArray *sf_slurm_parse_nodes(const char *text, guint64 job, GError **error)
{
    g_auto(GStrv) words = g_strsplit_set(text, " \t\n", -1);
    g_autoptr(GPtrArray) nodes = g_ptr_array_new_with_free_func(node_free);
    guint64 id = 0;

    if (!words[0] || !g_str_has_prefix(words[0], JOB_ID) ||
        !parse_number(words[0] + strlen(JOB_ID), G_MAXUINT32, &id) || id != job) {
        return bad(error, "scontrol", text);
    }
    for (char **word = words; *word; word++) {
        guint cpus;
        if (!g_str_has_prefix(word[0], NODES) || !word[1] || !g_str_has_prefix(word[1], CPU_IDS)) {
            continue;
        }
        cpus = count_ids(word[1] + strlen(CPU_IDS));
        if (cpus == 0 || !add_nodes(nodes, word[0] + strlen(NODES), cpus)) {
            return bad(error, "scontrol", word[0]);
        }
    }
    return nodes->len > 0 ? g_steal_pointer(&nodes) : bad(error, "scontrol", text);
}

/* ---- squeue and sinfo ---- */

GPtrArray *sf_slurm_parse_queue(const char *text, GError **error)
{
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    g_autoptr(GPtrArray) jobs = g_ptr_array_new_with_free_func(job_free);

    for (char **line = lines; *line; line++) {
        g_auto(GStrv) fields = g_strsplit(*line, "|", 3);
        guint64 id;
        SfSlurmJob *job;
        if (!**line) {
            continue;
        }
        if (g_strv_length(fields) != 3 || !parse_number(fields[0], G_MAXUINT32, &id) || !*fields[1] ||
            strspn(fields[1], STATE_CHARS) != strlen(fields[1])) {
            return bad(error, "squeue", *line);
        }
        job = g_new0(SfSlurmJob, 1);
        job->id = id;
        job->state = g_strdup(fields[1]);
        job->name = g_strdup(fields[2]);
        g_ptr_array_add(jobs, job);
    }
    return g_steal_pointer(&jobs);
}

static gboolean has_node(GPtrArray *nodes, const char *name)
{
    for (guint i = 0; i < nodes->len; i++) {
        if (strcmp(((const SfSlurmNode *)g_ptr_array_index(nodes, i))->name, name) == 0) {
            return TRUE;
        }
    }
    return FALSE;
}

/* name|allocated/idle/other/total; a node of several partitions has several lines. */
GPtrArray *sf_slurm_parse_idle(const char *text, GError **error)
{
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    g_autoptr(GPtrArray) nodes = g_ptr_array_new_with_free_func(node_free);

    for (char **line = lines; *line; line++) {
        g_auto(GStrv) fields = g_strsplit(*line, "|", 2);
        g_auto(GStrv) counts = g_strsplit(fields[0] && fields[1] ? fields[1] : "", "/", -1);
        guint64 idle;
        if (!**line) {
            continue;
        }
        if (g_strv_length(counts) != 4 || !name_is_valid(fields[0]) ||
            !parse_number(counts[1], SF_SLURM_CPUS_MAX, &idle)) {
            return bad(error, "sinfo", *line);
        }
        if (!has_node(nodes, fields[0]) && nodes->len < SF_SLURM_NODES_MAX) {
            SfSlurmNode *node = g_new0(SfSlurmNode, 1);
            node->name = g_strdup(fields[0]);
            node->cpus = (guint)idle;
            g_ptr_array_add(nodes, node);
        }
    }
    return g_steal_pointer(&nodes);
}

gboolean sf_slurm_state_is_alive(const char *state)
{
    static const char *const alive[] = {
        "RUNNING", "CONFIGURING", "SUSPENDED", "RESIZING", "SIGNALING", "STOPPED", NULL
    };

    return g_strv_contains(alive, state);
}
