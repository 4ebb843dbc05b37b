/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Resource manager `slurm`: each ticket is a job of Slurm's that runs nothing, an allocation (salloc --no-shell).
 *
 *     salloc   "Granted job allocation 12" --> scontrol show job 12   which CPUs on which nodes
 *        |                                        |
 *        |  busy: fewer slots, if fewer will do   |  a node that is no host of ours, or not usable: the job is given
 *        |  (sinfo: how many are idle), at last   |  back, and another one asked for without it
 *        |  in Slurm's queue, if it may wait      |
 *        v                                        v
 *     error                                    ticket ...... release: scancel 12
 *
 * Nothing that Slurm gave is lost: the job's name is snowflock-HOST-TICKET. Every few seconds, and first thing after a
 * start, squeue says which jobs of that name pattern there are: one without a ticket is cancelled (sfvmmd died between
 * salloc and the ticket's record, or a scancel failed), a ticket without its job is revoked. And each job has a time
 * limit, after which Slurm ends it when nobody does. When Slurm does not answer, nothing is concluded.
 *
 * A slot is `vcpus` CPUs and the memory that is set aside for a clone. Slurm's commands are children; main thread only.
 */
#include "sfvmm/cluster/slurm.h"

#include <string.h>

#include "sfvmm/cluster/resource_manager_kind.h"
#include "sfvmm/cluster/slurm_command.h"
#include "sfvmm/cluster/slurm_text.h"

#define COMMAND_MS  20000u /* a command that does not wait; Slurm's own time-out for a message is 10 s */
#define NODES_TRIES 4u     /* jobs that are given back because of their nodes, before the request fails */
#define NAME_PREFIX "snowflock-"
#define MS_PER_S    1000u
#define WAIT_MIN_S  2u /* 1 second means "at once" to salloc */

typedef struct {
    guint64 id;
    gint64 since; /* g_get_monotonic_time() */
    gboolean completing;
} Job;

typedef struct {
    const SfSlurmOptions *options;
    char *prefix;        /* of our jobs' names: snowflock-HOST- */
    GHashTable *jobs;    /* guint64 * (ticket) -> Job * */
    GPtrArray *orders;   /* of Order, not owned: being asked for */
    GHashTable *useless; /* set of names of nodes that Slurm gave and that could not be used then */
    guint timer;
    gint64 looked;   /* when squeue was started that runs, 0: none does */
    gboolean silent; /* Slurm did not answer last time */
} Slurm;

/* One ticket's slots, on their way. */
typedef struct {
    SfResourceManager *manager;
    SfAllocation *allocation;
    GCancellable *cancellable;
    guint asked;      /* slots asked for at present */
    guint given_back; /* jobs */
    gboolean counted; /* sinfo has been asked */
    gboolean waiting; /* in Slurm's queue, for the least that will do */
    guint64 job;      /* 0: none yet */
} Order;

static Slurm *slurm_of(SfResourceManager *manager)
{
    return manager->state;
}

static char *job_name(Slurm *slurm, guint64 ticket)
{
    g_autofree char *id = sf_ticket_id_to_text(ticket);

    return g_strconcat(slurm->prefix, id, NULL);
}

/* ---- scancel ---- */

static void on_cancelled(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(SfSlurmOutput) output = sf_slurm_command_finish(result, &error);
    g_autofree char *complaint = output && !output->ok ? sf_slurm_parse_complaint(output->err) : NULL;

    if (error || (complaint && !sf_slurm_means_ended(complaint))) {
        g_message("scancel: %s; it is tried again later", error ? error->message : complaint);
    }
}

/* Its name, too: a Slurm that has lost its state may have given the number to somebody else. */
static void cancel_job(Slurm *slurm, guint64 job, const char *name)
{
    g_autofree char *id = g_strdup_printf("%" G_GUINT64_FORMAT, job);
    g_autofree char *of_name = g_strconcat("--name=", name, NULL);
    const char *argv[] = { "scancel", of_name, id, NULL };

    sf_slurm_command_async(slurm->options, argv, COMMAND_MS, FALSE, NULL, on_cancelled, NULL);
}

static void cancel_ticket(Slurm *slurm, guint64 job, guint64 ticket)
{
    g_autofree char *name = job_name(slurm, ticket);

    cancel_job(slurm, job, name);
}

/* ---- the list of jobs ---- */

/* The ticket that a job's name says, if the job is of this host's sfvmmd. */
static gboolean ticket_of_name(Slurm *slurm, const char *name, guint64 *ticket)
{
    return g_str_has_prefix(name, slurm->prefix) && sf_ticket_id_from_text(name + strlen(slurm->prefix), ticket);
}

static gboolean is_ordered(Slurm *slurm, guint64 ticket)
{
    for (guint i = 0; i < slurm->orders->len; i++) {
        if (((const Order *)g_ptr_array_index(slurm->orders, i))->allocation->ticket->id == ticket) {
            return TRUE;
        }
    }
    return FALSE;
}

static char *reason_of(Slurm *slurm, const Job *job, const SfSlurmJob *line)
{
    if (!line) {
        return g_strdup_printf("Slurm does not know its job %" G_GUINT64_FORMAT " any more", job->id);
    }
    if (strcmp(line->state, "TIMEOUT") == 0) {
        return g_strdup_printf("Slurm ended its job %" G_GUINT64_FORMAT ": TIMEOUT, after %u minutes (minutes in "
                               "[slurm] of sfvmmd.conf)",
                               job->id, slurm->options->minutes);
    }
    return g_strdup_printf("Slurm ended its job %" G_GUINT64_FORMAT ": %s", job->id, line->state);
}

/* Tickets whose job has ended, or is not there, are revoked. lines: guint64 * (job) -> SfSlurmJob *. */
static void revoke_ended(SfResourceManager *manager, GHashTable *lines, gint64 looked)
{
    Slurm *slurm = slurm_of(manager);
    g_autofree guint64 **tickets = (guint64 **)g_hash_table_get_keys_as_array(slurm->jobs, NULL);
    g_autoptr(GArray) ids = g_array_new(FALSE, FALSE, sizeof(guint64));

    for (guint i = 0; tickets[i]; i++) {
        g_array_append_val(ids, *tickets[i]);
    }
    for (guint i = 0; i < ids->len; i++) {
        guint64 ticket = g_array_index(ids, guint64, i);
        Job *job = g_hash_table_lookup(slurm->jobs, &ticket);
        const SfSlurmJob *line = job ? g_hash_table_lookup(lines, &job->id) : NULL;
        g_autofree char *reason = NULL;
        if (!job || job->since >= looked || (line && sf_slurm_state_is_alive(line->state))) {
            continue;
        }
        if (line && strcmp(line->state, "COMPLETING") == 0 && !job->completing) {
            job->completing = TRUE; /* the next look tells why, unless a node does not let go of it */
            continue;
        }
        reason = reason_of(slurm, job, line);
        g_hash_table_remove(slurm->jobs, &ticket);
        sf_resource_manager_revoke(manager, ticket, reason);
    }
}

/* Jobs of ours that no ticket has are cancelled. */
static void cancel_strays(Slurm *slurm, GPtrArray *jobs)
{
    for (guint i = 0; i < jobs->len; i++) {
        const SfSlurmJob *line = g_ptr_array_index(jobs, i);
        guint64 ticket;
        gboolean alive = sf_slurm_state_is_alive(line->state) || strcmp(line->state, "PENDING") == 0;
        if (alive && ticket_of_name(slurm, line->name, &ticket) && !is_ordered(slurm, ticket) &&
            !g_hash_table_contains(slurm->jobs, &ticket)) {
            g_message("Slurm job %" G_GUINT64_FORMAT ": its ticket %016" G_GINT64_MODIFIER
                      "x is not there any more; it is cancelled",
                      line->id, ticket);
            cancel_job(slurm, line->id, line->name);
        }
    }
}

static void take_list(SfResourceManager *manager, GPtrArray *jobs, gint64 looked)
{
    g_autoptr(GHashTable) lines = g_hash_table_new(g_int64_hash, g_int64_equal);

    for (guint i = 0; i < jobs->len; i++) {
        SfSlurmJob *line = g_ptr_array_index(jobs, i);
        g_hash_table_insert(lines, &line->id, line);
    }
    revoke_ended(manager, lines, looked);
    cancel_strays(slurm_of(manager), jobs);
}

static void on_listed(GObject *source, GAsyncResult *result, gpointer data)
{
    SfResourceManager *manager = data;
    Slurm *slurm = slurm_of(manager);
    gint64 looked = slurm->looked;
    g_autoptr(GError) error = NULL;
    g_autoptr(SfSlurmOutput) output = sf_slurm_command_finish(result, &error);
    g_autoptr(GPtrArray) jobs = output && output->ok ? sf_slurm_parse_queue(output->out, &error) : NULL;
    g_autofree char *complaint = output && !output->ok ? sf_slurm_parse_complaint(output->err) : NULL;

    slurm->looked = 0;
    if (!jobs && !slurm->silent) {
        g_warning("Slurm can't be asked for its jobs: %s", error ? error->message : complaint);
    }
    slurm->silent = !jobs;
    if (jobs) {
        take_list(manager, jobs, looked);
    }
}

static void look(SfResourceManager *manager)
{
    Slurm *slurm = slurm_of(manager);
    g_autofree char *user = g_strdup_printf("--user=%u", (guint)slurm->options->uid);
    const char *argv[] = { "squeue", "--noheader", "--states=all", user, "--format=%A|%T|%j", NULL };

    if (!slurm->looked) {
        slurm->looked = g_get_monotonic_time();
        sf_slurm_command_async(slurm->options, argv, COMMAND_MS, FALSE, NULL, on_listed, manager);
    }
}

static gboolean on_poll(gpointer data)
{
    Slurm *slurm = slurm_of(data);

    if (g_hash_table_size(slurm->jobs) > 0 || slurm->silent) {
        look(data);
    }
    return G_SOURCE_CONTINUE;
}

/* ---- an order ---- */

static void ask(Order *order);

static void add_job(Slurm *slurm, guint64 ticket, guint64 id)
{
    Job *job = g_new0(Job, 1);

    job->id = id;
    job->since = g_get_monotonic_time();
    g_hash_table_insert(slurm->jobs, g_memdup2(&ticket, sizeof(ticket)), job);
}

/* The order is done, and freed. Takes error. */
static void order_end(Order *order, GError *error)
{
    Slurm *slurm = slurm_of(order->manager);
    SfAllocation *allocation = order->allocation;
    SfTicket *ticket = allocation->ticket;

    g_ptr_array_remove_fast(slurm->orders, order);
    allocation->state = NULL;
    if (error && order->job) {
        cancel_ticket(slurm, order->job, ticket->id);
        g_ptr_array_set_size(ticket->allotted, 0);
    } else if (!error) {
        ticket->allocation = g_strdup_printf("%" G_GUINT64_FORMAT, order->job);
        add_job(slurm, ticket->id, order->job);
    }
    g_object_unref(order->cancellable);
    g_free(order);
    sf_allocation_done(allocation, error);
}

static GError *order_error(const Order *order, SfClusterError code, const char *words)
{
    return g_error_new(SF_CLUSTER_ERROR, code, "VM \"%s\": %u clones asked, Slurm gives none: %s",
                       order->allocation->ticket->vm, order->allocation->ticket->granted, words);
}

/* Slots of the job on each host of ours, as many as the ticket may use at most. FALSE: one of its nodes can't be used.
 */
static gboolean allot(Order *order, GPtrArray *nodes)
{
    SfResourceManager *manager = order->manager;
    SfTicket *ticket = order->allocation->ticket;
    gboolean usable = TRUE;
    guint sum = 0;

    for (guint i = 0; i < nodes->len; i++) {
        const SfSlurmNode *node = g_ptr_array_index(nodes, i);
        const SfClusterHost *host = sf_resource_manager_host(manager, node->name);
        guint slots = MIN(node->cpus / order->allocation->vcpus, order->asked - sum);
        if (!host || !sf_resource_manager_has_room(manager, host, ticket)) {
            g_hash_table_add(slurm_of(manager)->useless, g_strdup(node->name));
            usable = FALSE;
        } else {
            sf_places_add(ticket->allotted, sf_resource_manager_place_name(manager, host), (gint)slots);
            sum += slots;
        }
    }
    return usable && sum == order->asked;
}

static void on_shown(GObject *source, GAsyncResult *result, gpointer data)
{
    Order *order = data;
    Slurm *slurm = slurm_of(order->manager);
    GError *error = NULL;
    g_autoptr(SfSlurmOutput) output = sf_slurm_command_finish(result, &error);
    g_autoptr(GPtrArray) nodes = output ? sf_slurm_parse_nodes(output->out, order->job, &error) : NULL;

    if (!nodes) {
        g_autoptr(GError) why = error;
        order_end(order, order_error(order, SF_CLUSTER_ERROR_SCHEDULER, why->message));
    } else if (allot(order, nodes)) {
        order_end(order, NULL);
    } else if (++order->given_back >= NODES_TRIES || g_cancellable_is_cancelled(order->cancellable)) {
        order_end(order, order_error(order, SF_CLUSTER_ERROR_CAPACITY,
                                     "it gives nodes that are no hosts of this cluster, or are down, full or draining "
                                     "here (`sfctl host list`); name those that are by partition or constraint in "
                                     "[slurm] of sfvmmd.conf"));
    } else {
        g_ptr_array_set_size(order->allocation->ticket->allotted, 0);
        cancel_ticket(slurm, order->job, order->allocation->ticket->id);
        order->job = 0;
        ask(order);
    }
}

static void show(Order *order)
{
    g_autofree char *id = g_strdup_printf("%" G_GUINT64_FORMAT, order->job);
    const char *argv[] = { "scontrol", "--oneliner", "--details", "show", "job", id, NULL };

    sf_slurm_command_async(slurm_of(order->manager)->options, argv, COMMAND_MS, FALSE, NULL, on_shown, order);
}

/* ---- asking for less ---- */

static guint slots_idle(Order *order, GPtrArray *nodes)
{
    guint slots = 0;

    for (guint i = 0; i < nodes->len; i++) {
        const SfSlurmNode *node = g_ptr_array_index(nodes, i);
        const SfClusterHost *host = sf_resource_manager_host(order->manager, node->name);
        if (host && sf_resource_manager_has_room(order->manager, host, order->allocation->ticket)) {
            slots += node->cpus / order->allocation->vcpus;
        }
    }
    return slots;
}

/* So many slots less: what is idle, if that is less; Slurm may have reasons that idle CPUs don't show, so half then. */
static void on_counted(GObject *source, GAsyncResult *result, gpointer data)
{
    Order *order = data;
    g_autoptr(SfSlurmOutput) output = sf_slurm_command_finish(result, NULL);
    g_autoptr(GPtrArray) nodes = output && output->ok ? sf_slurm_parse_idle(output->out, NULL) : NULL;
    guint idle = nodes ? slots_idle(order, nodes) : 0;

    order->asked = MAX(order->allocation->least, idle > 0 && idle < order->asked ? idle : order->asked / 2);
    ask(order);
}

static void count_idle(Order *order)
{
    const SfSlurmOptions *options = slurm_of(order->manager)->options;
    g_autofree char *partition = options->partition ? g_strconcat("--partition=", options->partition, NULL) : NULL;
    const char *argv[] = { "sinfo", "--noheader", "--Node", "--format=%n|%C", partition, NULL };

    order->counted = TRUE;
    sf_slurm_command_async(options, argv, COMMAND_MS, FALSE, order->cancellable, on_counted, order);
}

/* Not now, or not so much. */
static void ask_for_less(Order *order, const char *complaint)
{
    SfAllocation *allocation = order->allocation;

    if (g_cancellable_is_cancelled(order->cancellable) || order->waiting ||
        (order->asked <= allocation->least && allocation->wait_ms == 0)) {
        order_end(order, order_error(order, SF_CLUSTER_ERROR_CAPACITY, complaint));
    } else if (order->asked <= allocation->least) {
        order->waiting = TRUE;
        ask(order);
    } else if (!order->counted) {
        count_idle(order);
    } else {
        order->asked = MAX(allocation->least, order->asked / 2);
        ask(order);
    }
}

/* ---- salloc ---- */

static void on_asked(GObject *source, GAsyncResult *result, gpointer data)
{
    Order *order = data;
    GError *error = NULL;
    g_autoptr(SfSlurmOutput) output = sf_slurm_command_finish(result, &error);
    g_autofree char *complaint = output ? sf_slurm_parse_complaint(output->err) : NULL;

    if (!output) {
        g_autoptr(GError) why = error;
        order_end(order, order_error(order, SF_CLUSTER_ERROR_SCHEDULER, why->message));
        return;
    }
    order->job = output->ok ? sf_slurm_parse_grant(output->err) : 0;
    if (order->job) {
        show(order);
    } else if (sf_slurm_means_busy(complaint) || g_cancellable_is_cancelled(order->cancellable)) {
        ask_for_less(order, complaint);
    } else {
        order_end(order, order_error(order, SF_CLUSTER_ERROR_SCHEDULER, *complaint ? complaint : "salloc failed"));
    }
}

static void add_option(GPtrArray *argv, const char *option, const char *value)
{
    if (value) {
        g_ptr_array_add(argv, g_strconcat(option, value, NULL));
    }
}

static void add_number(GPtrArray *argv, const char *option, guint64 value)
{
    g_ptr_array_add(argv, g_strdup_printf("%s%" G_GUINT64_FORMAT, option, value));
}

/* Nodes of earlier jobs that could not be used, and still can't. NULL: none. Only names that Slurm knows may stand
 * there. */
static char *useless_nodes(Order *order)
{
    Slurm *slurm = slurm_of(order->manager);
    g_autoptr(GString) list = g_string_new(NULL);
    GHashTableIter iter;
    const char *name;

    g_hash_table_iter_init(&iter, slurm->useless);
    while (g_hash_table_iter_next(&iter, (gpointer *)&name, NULL)) {
        const SfClusterHost *host = sf_resource_manager_host(order->manager, name);
        if (!host || !sf_resource_manager_has_room(order->manager, host, order->allocation->ticket)) {
            g_string_append_printf(list, "%s%s", list->len ? "," : "", name);
        }
    }
    return list->len ? g_strdup(list->str) : NULL;
}

static GPtrArray *salloc_argv(Order *order)
{
    const SfSlurmOptions *options = slurm_of(order->manager)->options;
    const SfAllocation *allocation = order->allocation;
    guint64 mib = (allocation->ticket->reserved + (1u << 20) - 1) >> 20;
    g_autofree char *name = job_name(slurm_of(order->manager), allocation->ticket->id);
    g_autofree char *exclude = useless_nodes(order);
    GPtrArray *argv = g_ptr_array_new_with_free_func(g_free);

    g_ptr_array_add(argv, g_strdup("salloc"));
    g_ptr_array_add(argv, g_strdup("--no-shell"));
    add_option(argv, "--job-name=", name);
    add_number(argv, "--ntasks=", order->asked);
    add_number(argv, "--cpus-per-task=", allocation->vcpus);
    add_number(argv, "--mem-per-cpu=", (mib + allocation->vcpus - 1) / allocation->vcpus);
    add_number(argv, "--time=", options->minutes);
    add_number(argv,
               "--immediate=", order->waiting ? MAX((allocation->wait_ms + MS_PER_S - 1) / MS_PER_S, WAIT_MIN_S) : 1);
    add_option(argv, "--account=", options->account);
    add_option(argv, "--partition=", options->partition);
    add_option(argv, "--constraint=", options->constraint);
    if (allocation->here) {
        const SfClusterHost *own = g_ptr_array_index(order->manager->hosts, 0);
        add_option(argv, "--nodelist=", own->name);
        g_ptr_array_add(argv, g_strdup("--nodes=1"));
    } else {
        add_option(argv, "--exclude=", exclude);
    }
    g_ptr_array_add(argv, NULL);
    return argv;
}

static void ask(Order *order)
{
    g_autoptr(GPtrArray) argv = salloc_argv(order);

    sf_slurm_command_async(slurm_of(order->manager)->options, (const char *const *)argv->pdata,
                           COMMAND_MS + (order->waiting ? order->allocation->wait_ms : 0), TRUE, order->cancellable,
                           on_asked, order);
}

/* ---- the kind ---- */

static void slurm_allocate(SfResourceManager *manager, SfAllocation *allocation)
{
    Order *order = g_new0(Order, 1);

    order->manager = manager;
    order->allocation = allocation;
    order->cancellable = g_cancellable_new();
    order->asked = allocation->ticket->granted;
    allocation->state = order;
    g_ptr_array_add(slurm_of(manager)->orders, order);
    ask(order);
}

static void slurm_abandon(SfResourceManager *manager, SfAllocation *allocation)
{
    Order *order = allocation->state;

    g_cancellable_cancel(order->cancellable);
}

/* One of the slots that the job has and no clone uses. */
static SfClusterHost *slurm_choose(SfResourceManager *manager, const SfTicket *ticket)
{
    for (guint i = 0; i < manager->hosts->len; i++) {
        SfClusterHost *host = g_ptr_array_index(manager->hosts, i);
        const char *name = sf_resource_manager_place_name(manager, host);
        if (sf_places_count_at(ticket->allotted, name) > sf_ticket_count_at(ticket, name) &&
            sf_resource_manager_has_room(manager, host, ticket)) {
            return host;
        }
    }
    return NULL;
}

static gboolean job_of(const SfTicket *ticket, guint64 *job)
{
    return g_ascii_string_to_unsigned(ticket->allocation, 10, 1, G_MAXUINT32, job, NULL);
}

static void slurm_release(SfResourceManager *manager, const SfTicket *ticket)
{
    Slurm *slurm = slurm_of(manager);
    guint64 job;

    g_hash_table_remove(slurm->jobs, &ticket->id);
    if (job_of(ticket, &job)) {
        cancel_ticket(slurm, job, ticket->id);
    }
}

static void slurm_restore(SfResourceManager *manager, const SfTicket *ticket)
{
    guint64 job;

    if (job_of(ticket, &job)) {
        add_job(slurm_of(manager), ticket->id, job);
    }
}

static void slurm_restored(SfResourceManager *manager)
{
    Slurm *slurm = slurm_of(manager);

    look(manager);
    slurm->timer = g_timeout_add_seconds(slurm->options->poll_seconds, on_poll, manager);
}

static void slurm_free(SfResourceManager *manager)
{
    Slurm *slurm = slurm_of(manager);

    g_clear_handle_id(&slurm->timer, g_source_remove);
    g_hash_table_unref(slurm->jobs);
    g_hash_table_unref(slurm->useless);
    g_ptr_array_unref(slurm->orders);
    g_free(slurm->prefix);
    g_free(slurm);
}

static const SfResourceManagerKind slurm_kind = {
    .name = "slurm",
    .many_hosts = TRUE,
    .choose = slurm_choose,
    .allocate = slurm_allocate,
    .abandon = slurm_abandon,
    .release = slurm_release,
    .restore = slurm_restore,
    .restored = slurm_restored,
    .free = slurm_free,
};

SfResourceManager *sf_resource_manager_slurm_new(const SfLimits *limits, const char *name,
                                                 const SfSlurmOptions *options)
{
    SfResourceManager *manager = sf_resource_manager_new(&slurm_kind, limits, name);
    Slurm *slurm = g_new0(Slurm, 1);

    slurm->options = options;
    slurm->prefix = g_strconcat(NAME_PREFIX, name, "-", NULL);
    slurm->jobs = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, g_free);
    slurm->useless = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    slurm->orders = g_ptr_array_new();
    manager->state = slurm;
    return manager;
}
