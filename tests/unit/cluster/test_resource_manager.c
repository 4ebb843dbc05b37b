/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Tickets, and where the resource managers put their clones. */
#include <string.h>

#include "sfvmm/cluster/resource_manager.h"

#define VM_MEMORY (256ull << 20)
#define MIB       (1ull << 20)

static const SfLimits limits = {
    .clones_per_ticket = 64, .quotas = { .vm = { .clones = 96 } }, .clones = 8, .memory = 1ull << 40, .waiting = 3
};

static SfResourceManager *manager_new(SfPolicy policy)
{
    SfResourceManager *manager = sf_resource_manager_static_new(&limits, "a", policy);

    for (const char *const *name = (const char *const[]){ "c", "b", "d", NULL }; *name; name++) {
        g_autoptr(GError) error = NULL;
        g_assert_true(sf_resource_manager_add_host(manager, *name, "192.0.2.1", 8, 1ull << 40, &error));
        g_assert_no_error(error);
        sf_resource_manager_host_up(manager, *name, 4, 1 * MIB, FALSE);
    }
    return manager;
}

/* A request and what came of it. */
typedef struct {
    SfResourceManager *manager;
    gboolean done;
    SfTicket *ticket;
    GError *error;
} Answer;

static void on_answer(GObject *source, GAsyncResult *result, gpointer data)
{
    Answer *answer = data;

    answer->ticket = sf_resource_manager_request_finish(answer->manager, result, &answer->error);
    answer->done = TRUE;
}

static void ask(Answer *answer, SfResourceManager *manager, const SfTicketRequest *what)
{
    *answer = (Answer){ .manager = manager };
    sf_resource_manager_request_async(manager, what, on_answer, answer);
}

static void wait_for(Answer *answer)
{
    while (!answer->done) {
        g_main_context_iteration(NULL, TRUE);
    }
}

/* What is to happen by itself has happened. */
static void settle(void)
{
    while (g_main_context_iteration(NULL, FALSE)) {
    }
}

static SfTicket *answer_of(SfResourceManager *manager, const SfTicketRequest *what, GError **error)
{
    Answer answer;

    ask(&answer, manager, what);
    wait_for(&answer);
    if (answer.error) {
        g_propagate_error(error, answer.error);
    }
    return answer.ticket;
}

static SfTicket *request_or_fail(SfResourceManager *manager, const char *vm, guint count, gboolean all, GError **error)
{
    const SfTicketRequest what = { .vm = vm, .memory = VM_MEMORY, .count = count, .all = all };

    return answer_of(manager, &what, error);
}

static SfTicket *request(SfResourceManager *manager, const char *vm, guint count)
{
    g_autoptr(GError) error = NULL;
    SfTicket *ticket = request_or_fail(manager, vm, count, FALSE, &error);

    g_assert_no_error(error);
    return ticket;
}

static void give_back(SfResourceManager *manager, SfTicket *ticket)
{
    sf_resource_manager_release(manager, ticket);
    sf_ticket_free(ticket);
}

static guint booked(SfResourceManager *manager, const char *host)
{
    return sf_resource_manager_host(manager, host)->booked;
}

static void assert_nothing_booked(SfResourceManager *manager)
{
    g_autoptr(GList) hosts = sf_resource_manager_hosts(manager);

    for (GList *item = hosts; item; item = item->next) {
        const SfClusterHost *host = item->data;
        g_assert_cmpuint(host->booked, ==, 0);
        g_assert_cmpuint(host->booked_memory, ==, 0);
    }
}

static void test_spread(void)
{
    SfResourceManager *manager = manager_new(SF_POLICY_SPREAD);
    SfTicket *first = request(manager, "web", 4), *second = request(manager, "web", 6);

    for (const char *const *name = (const char *const[]){ "", "b", "c", "d", NULL }; *name; name++) {
        g_assert_cmpuint(sf_ticket_count_at(first, *name), ==, 1);
    }
    g_assert_cmpuint(sf_ticket_count_at(second, ""), ==, 2);
    g_assert_cmpuint(sf_ticket_count_at(second, "b"), ==, 2);
    g_assert_cmpuint(sf_ticket_count_at(second, "c"), ==, 1);
    g_assert_true(sf_place_is_local(g_ptr_array_index(second->places, 0)));
    g_assert_false(sf_ticket_is_local(first));
    g_assert_cmpuint(booked(manager, ""), ==, 3);
    g_assert_cmpuint(booked(manager, "a"), ==, 3);
    give_back(manager, first);
    give_back(manager, second);
    assert_nothing_booked(manager);
    sf_resource_manager_free(manager);
}

static void test_pack(void)
{
    SfResourceManager *manager = manager_new(SF_POLICY_PACK);
    SfTicket *ticket = request(manager, "web", 10);

    g_assert_cmpuint(sf_ticket_count_at(ticket, ""), ==, 8);
    g_assert_cmpuint(sf_ticket_count_at(ticket, "b"), ==, 2);
    g_assert_cmpuint(ticket->places->len, ==, 2);
    give_back(manager, ticket);
    assert_nothing_booked(manager);
    sf_resource_manager_free(manager);
}

/* What is full, draining or not up gets nothing; who is asked for more than there is gives what there is, or says why.
 */
static void test_bounds(void)
{
    SfResourceManager *manager = manager_new(SF_POLICY_SPREAD);
    g_autoptr(GError) error = NULL;
    SfTicket *ticket;

    sf_resource_manager_host_down(manager, "b");
    g_assert_true(sf_resource_manager_drain_host(manager, "c", TRUE, NULL));
    sf_resource_manager_host_up(manager, "d", 4, MIB, TRUE);
    ticket = request(manager, "web", 32);
    g_assert_cmpuint(ticket->granted, ==, 8);
    g_assert_true(sf_ticket_is_local(ticket));
    g_assert_null(request_or_fail(manager, "db", 1, FALSE, &error));
    g_assert_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_CAPACITY);
    g_assert_nonnull(strstr(error->message, "slots"));
    g_clear_error(&error);
    sf_resource_manager_host_up(manager, "d", 4, MIB, FALSE);
    g_assert_null(request_or_fail(manager, "db", 9, TRUE, &error));
    g_assert_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_CAPACITY);
    g_assert_cmpuint(booked(manager, "d"), ==, 0);
    give_back(manager, ticket);

    g_clear_error(&error);
    g_assert_true(sf_resource_manager_drain_host(manager, "", TRUE, NULL));
    g_assert_true(sf_resource_manager_drain_host(manager, "d", TRUE, NULL));
    g_assert_null(request_or_fail(manager, "db", 1, FALSE, &error));
    g_assert_nonnull(strstr(error->message, "drains"));
    assert_nothing_booked(manager);
    sf_resource_manager_free(manager);
}

static void test_quotas(void)
{
    const SfLimits few = {
        .clones_per_ticket = 3, .quotas = { .vm = { .clones = 4 } }, .clones = 100, .memory = 1ull << 40
    };
    SfResourceManager *manager = sf_resource_manager_local_new(&few);
    SfTicket *first = request(manager, "web", 9), *second = request(manager, "web", 9);
    g_autoptr(GError) error = NULL;

    g_assert_cmpuint(first->granted, ==, 3);
    g_assert_cmpuint(second->granted, ==, 1);
    g_assert_null(request_or_fail(manager, "web", 1, FALSE, &error));
    g_assert_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_QUOTA);
    g_clear_error(&error);
    g_assert_null(request_or_fail(manager, "db", 4, TRUE, &error));
    g_assert_nonnull(strstr(error->message, "clones-per-ticket"));
    g_clear_error(&error);
    g_assert_false(sf_resource_manager_add_host(manager, "b", "192.0.2.1", 0, 0, &error));
    g_assert_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_HOST);
    give_back(manager, first);
    give_back(manager, second);
    assert_nothing_booked(manager);
    sf_resource_manager_free(manager);
}

static SfTicket *request_of(SfResourceManager *manager, const char *vm, guint32 user, guint count, GError **error)
{
    const SfTicketRequest what = { .vm = vm, .user = user, .memory = VM_MEMORY, .count = count };

    return answer_of(manager, &what, error);
}

/* A user's VMs together have what the user may have; some VMs and users have quotas of their own. */
static void test_users(void)
{
    const guint64 each = sf_resource_manager_clone_memory(VM_MEMORY);
    const SfQuota large = { .clones = 10 }, small = { .memory = each * 2 + 1 };
    g_autoptr(GHashTable) own_vm = g_hash_table_new(g_str_hash, g_str_equal), own_user = g_hash_table_new(NULL, NULL);
    const SfLimits rules = {
        .clones_per_ticket = 64,
        .clones = 100,
        .memory = 1ull << 40,
        .quotas = { .vm = { .clones = 3, .tickets = 2 },
                    .user = { .clones = 5 },
                    .own_vm = own_vm,
                    .own_user = own_user },
    };
    SfResourceManager *manager = sf_resource_manager_local_new(&rules);
    g_autoptr(GError) error = NULL;
    SfTicket *tickets[6];

    g_hash_table_insert(own_vm, (gpointer) "big", (gpointer)&large);
    g_hash_table_insert(own_user, GUINT_TO_POINTER(7), (gpointer)&small);
    tickets[0] = request_of(manager, "web", 1000, 9, &error);
    g_assert_cmpuint(tickets[0]->granted, ==, 3);
    tickets[1] = request_of(manager, "db", 1000, 9, &error);
    g_assert_cmpuint(tickets[1]->granted, ==, 2);
    g_assert_null(request_of(manager, "big", 1000, 1, &error));
    g_assert_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_QUOTA);
    g_assert_nonnull(strstr(error->message, "clones-per-user"));
    g_clear_error(&error);
    tickets[2] = request_of(manager, "big", 7, 9, &error);
    g_assert_cmpuint(tickets[2]->granted, ==, 2);
    g_assert_null(request_of(manager, "big", 7, 1, &error));
    g_assert_nonnull(strstr(error->message, "memory in [user 7]"));
    g_clear_error(&error);
    tickets[3] = request_of(manager, "x", 8, 1, &error);
    tickets[4] = request_of(manager, "x", 8, 1, &error);
    g_assert_null(request_of(manager, "x", 8, 1, &error));
    g_assert_nonnull(strstr(error->message, "tickets-per-vm"));
    g_clear_error(&error);
    give_back(manager, tickets[3]);
    tickets[3] = request_of(manager, "x", 8, 1, &error);
    g_assert_no_error(error);
    tickets[5] = NULL;
    for (SfTicket **ticket = tickets; *ticket; ticket++) {
        give_back(manager, *ticket);
    }
    tickets[0] = request_of(manager, "big", 1000, 9, &error);
    g_assert_cmpuint(tickets[0]->granted, ==, 5);
    give_back(manager, tickets[0]);
    assert_nothing_booked(manager);
    sf_resource_manager_free(manager);
}

/* Who may wait gets its ticket when something becomes free, in the order of coming, or an error when its time is over.
 */
static void test_queue(void)
{
    SfResourceManager *manager = manager_new(SF_POLICY_PACK);
    const SfTicketRequest one = { .vm = "one", .memory = VM_MEMORY, .count = 1, .wait_ms = 60000 };
    const SfTicketRequest many = { .vm = "many", .memory = VM_MEMORY, .count = 6, .all = TRUE, .wait_ms = 60000 };
    const SfTicketRequest late = { .vm = "late", .memory = VM_MEMORY, .count = 1, .wait_ms = 1 };
    const SfTicketRequest now = { .vm = "now", .memory = VM_MEMORY, .count = 1 };
    const SfTicketRequest gone = { .vm = "gone", .memory = VM_MEMORY, .count = 1, .wait_ms = 60000 };
    Answer first, second, third, fourth, fifth;
    SfTicket *all, *half;

    for (const char *const *name = (const char *const[]){ "b", "c", "d", NULL }; *name; name++) {
        sf_resource_manager_host_down(manager, *name);
    }
    half = request(manager, "web", 4);
    all = request(manager, "web", 9);
    g_assert_cmpuint(all->granted, ==, 4);
    ask(&first, manager, &many);
    ask(&second, manager, &one);
    ask(&third, manager, &late);
    g_assert_cmpuint(sf_resource_manager_waiting(manager), ==, 3);
    ask(&fourth, manager, &gone);
    wait_for(&fourth);
    g_assert_error(fourth.error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_CAPACITY);
    g_assert_nonnull(strstr(fourth.error->message, "waiting in sfvmmd.conf"));
    g_clear_error(&fourth.error);
    wait_for(&third);
    g_assert_error(third.error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_CAPACITY);
    g_assert_nonnull(strstr(third.error->message, "within 1 ms"));
    g_clear_error(&third.error);

    /* Four are free: the first needs six, and those who come later don't pass it. */
    give_back(manager, half);
    settle();
    g_assert_false(first.done || second.done);
    ask(&fifth, manager, &now);
    wait_for(&fifth);
    g_assert_nonnull(strstr(fifth.error->message, "others wait"));
    g_clear_error(&fifth.error);
    ask(&fourth, manager, &gone);
    sf_resource_manager_forget_vm(manager, "gone");
    wait_for(&fourth);
    g_assert_nonnull(strstr(fourth.error->message, "ended"));
    g_clear_error(&fourth.error);
    give_back(manager, all);
    wait_for(&first);
    wait_for(&second);
    g_assert_no_error(first.error);
    g_assert_cmpuint(first.ticket->granted, ==, 6);
    g_assert_no_error(second.error);
    give_back(manager, first.ticket);
    give_back(manager, second.ticket);
    g_assert_cmpuint(sf_resource_manager_waiting(manager), ==, 0);
    assert_nothing_booked(manager);
    sf_resource_manager_free(manager);
}

/* Who waits for a quota holds back nobody; who asks for more than can ever be waits for nothing. */
static void test_queue_of_quota(void)
{
    const SfLimits few = {
        .clones_per_ticket = 3, .quotas = { .vm = { .clones = 3 } }, .clones = 6, .memory = 1ull << 40, .waiting = 3
    };
    SfResourceManager *manager = sf_resource_manager_local_new(&few);
    SfTicketRequest what = { .vm = "web", .memory = VM_MEMORY, .count = 3, .wait_ms = 60000 };
    SfTicket *ticket = request(manager, "web", 3), *other;
    Answer waiting, never;

    ask(&waiting, manager, &what);
    other = request(manager, "db", 1);
    what.all = TRUE;
    what.count = 4;
    ask(&never, manager, &what);
    wait_for(&never);
    g_assert_error(never.error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_QUOTA);
    g_clear_error(&never.error);
    g_assert_false(waiting.done);
    give_back(manager, ticket);
    wait_for(&waiting);
    g_assert_no_error(waiting.error);
    give_back(manager, waiting.ticket);
    ticket = request(manager, "web", 3);
    what = (SfTicketRequest){ .vm = "web", .memory = VM_MEMORY, .count = 1, .wait_ms = 60000 };
    ask(&waiting, manager, &what);
    sf_resource_manager_release(manager, ticket);
    sf_ticket_free(ticket);
    sf_resource_manager_release(manager, other);
    sf_ticket_free(other);
    sf_resource_manager_free(manager); /* who waits is told */
    settle();
    g_assert_true(waiting.done);
    g_assert_error(waiting.error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_CAPACITY);
    g_clear_error(&waiting.error);
}

/* A host's memory counts as its slots do. */
static void test_memory(void)
{
    const guint64 each = sf_resource_manager_clone_memory(VM_MEMORY);
    const SfLimits little = {
        .clones_per_ticket = 64, .quotas = { .vm = { .clones = 64 } }, .clones = 64, .memory = each * 2 + each / 2
    };
    SfResourceManager *manager = sf_resource_manager_static_new(&little, "a", SF_POLICY_SPREAD);
    g_autoptr(GError) error = NULL;
    SfTicket *ticket, *other;

    g_assert_true(sf_resource_manager_add_host(manager, "b", "192.0.2.1", 0, 0, &error));
    other = request(manager, "x", 1);
    sf_resource_manager_host_up(manager, "b", 8, each * 3, FALSE);
    ticket = request(manager, "web", 64);
    g_assert_cmpuint(sf_ticket_count_at(ticket, ""), ==, 1);
    g_assert_cmpuint(sf_ticket_count_at(ticket, "b"), ==, 3);
    g_assert_null(request_or_fail(manager, "db", 1, FALSE, &error));
    g_assert_nonnull(strstr(error->message, "memory"));
    give_back(manager, ticket);
    give_back(manager, other);
    assert_nothing_booked(manager);
    sf_resource_manager_free(manager);
}

static void test_reassign(void)
{
    SfResourceManager *manager = manager_new(SF_POLICY_SPREAD);
    SfTicket *ticket = request(manager, "web", 8);
    g_autoptr(GPtrArray) places = NULL;
    g_autoptr(GError) error = NULL;
    guint sum = 0;

    g_assert_cmpuint(sf_ticket_count_at(ticket, "b"), ==, 2);
    places = sf_resource_manager_reassign(manager, ticket, "b", 2, &error);
    g_assert_no_error(error);
    for (guint i = 0; i < places->len; i++) {
        const SfPlace *place = g_ptr_array_index(places, i);
        g_assert_cmpstr(place->host, !=, "b");
        sum += place->count;
    }
    g_assert_cmpuint(sum, ==, 2);
    g_assert_cmpuint(sf_ticket_count_at(ticket, "b"), ==, 0);
    g_assert_cmpuint(booked(manager, "b"), ==, 0);
    g_assert_cmpuint(booked(manager, "") + booked(manager, "c") + booked(manager, "d"), ==, 8);

    /* Everybody refuses: the last one's clones have nowhere to go, and the books stay as they are. */
    for (const char *const *name = (const char *const[]){ "c", "d", NULL }; *name; name++) {
        g_autoptr(GPtrArray) moved =
            sf_resource_manager_reassign(manager, ticket, *name, sf_ticket_count_at(ticket, *name), &error);
        g_assert_no_error(error);
        g_assert_nonnull(moved);
    }
    g_assert_true(sf_ticket_is_local(ticket));
    g_assert_null(sf_resource_manager_reassign(manager, ticket, "", 3, &error));
    g_assert_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_CAPACITY);
    g_assert_cmpuint(booked(manager, ""), ==, 8);
    give_back(manager, ticket);
    assert_nothing_booked(manager);
    sf_resource_manager_free(manager);
}

static void test_lend(void)
{
    SfResourceManager *manager = manager_new(SF_POLICY_SPREAD);
    g_autoptr(GError) error = NULL;
    SfTicket *ticket = sf_resource_manager_lend(manager, "z", 7, "web", VM_MEMORY, 5, FALSE, &error), *more;

    g_assert_no_error(error);
    g_assert_cmpstr(ticket->origin, ==, "z");
    g_assert_cmpuint(ticket->id, ==, 7);
    g_assert_true(sf_ticket_is_local(ticket));
    g_assert_null(sf_resource_manager_lend(manager, "z", 8, "web", VM_MEMORY, 5, TRUE, &error));
    g_assert_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_CAPACITY);
    g_clear_error(&error);
    more = sf_resource_manager_lend(manager, "z", 8, "web", VM_MEMORY, 5, FALSE, &error);
    g_assert_cmpuint(more->granted, ==, 3);
    give_back(manager, more);
    sf_resource_manager_drain_host(manager, "a", TRUE, NULL);
    g_assert_null(sf_resource_manager_lend(manager, "z", 8, "web", VM_MEMORY, 1, FALSE, &error));
    g_assert_nonnull(strstr(error->message, "drains"));
    give_back(manager, ticket);
    assert_nothing_booked(manager);
    sf_resource_manager_free(manager);
}

static void test_hosts(void)
{
    SfResourceManager *manager = manager_new(SF_POLICY_SPREAD);
    SfTicket *ticket = request(manager, "web", 4);
    g_autoptr(GList) hosts = sf_resource_manager_hosts(manager);
    g_autoptr(GError) error = NULL;

    g_assert_cmpuint(g_list_length(hosts), ==, 4);
    g_assert_cmpstr(((SfClusterHost *)hosts->data)->name, ==, "a");
    g_assert_cmpstr(((SfClusterHost *)hosts->next->data)->name, ==, "b");
    g_assert_false(sf_resource_manager_add_host(manager, "b", "192.0.2.1", 0, 0, &error));
    g_assert_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_EXISTS);
    g_clear_error(&error);
    g_assert_false(sf_resource_manager_add_host(manager, "a", "192.0.2.1", 0, 0, &error));
    g_clear_error(&error);
    g_assert_false(sf_resource_manager_remove_host(manager, "b", &error));
    g_assert_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_HOST);
    g_clear_error(&error);
    g_assert_false(sf_resource_manager_remove_host(manager, "x", &error));
    g_assert_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_NO_SUCH_HOST);
    g_clear_error(&error);
    g_assert_false(sf_resource_manager_remove_host(manager, "a", &error));
    give_back(manager, ticket);
    g_assert_true(sf_resource_manager_remove_host(manager, "b", NULL));
    g_assert_null(sf_resource_manager_host(manager, "b"));
    sf_resource_manager_free(manager);
}

/* A record goes through JSON and comes out the same; a damaged one is refused; one of an earlier version is local. */
static void test_record(void)
{
    SfResourceManager *manager = manager_new(SF_POLICY_SPREAD), *later = manager_new(SF_POLICY_SPREAD);
    SfTicket *ticket = request(manager, "web", 5);
    g_autoptr(JsonObject) object = NULL;
    g_autoptr(GError) error = NULL;
    g_autoptr(SfTicket) again = NULL, old = NULL;
    JsonObject *place;

    g_ptr_array_add(ticket->refused_by, g_strdup("x"));
    ticket->user = 4000000000;
    ticket->allocation = g_strdup("12");
    sf_places_add(ticket->allotted, "b", 7);
    object = sf_ticket_to_json(ticket);
    again = sf_ticket_from_json(object, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(again->places->len, ==, ticket->places->len);
    g_assert_cmpuint(sf_ticket_count_at(again, ""), ==, 2);
    g_assert_cmpstr(g_ptr_array_index(again->refused_by, 0), ==, "x");
    g_assert_null(again->origin);
    g_assert_cmpuint(again->user, ==, 4000000000);
    g_assert_cmpstr(again->allocation, ==, "12");
    g_assert_cmpuint(sf_places_count_at(again->allotted, "b"), ==, 7);
    g_assert_null(again->revoked);
    sf_resource_manager_restore(later, again);
    g_assert_cmpuint(booked(later, ""), ==, 2);
    g_assert_cmpuint(booked(later, "b"), ==, 1);
    sf_resource_manager_release(later, again);
    assert_nothing_booked(later);

    place = json_array_get_object_element(json_object_get_array_member(object, "places"), 1);
    json_object_set_int_member(place, "count", 2);
    g_assert_null(sf_ticket_from_json(object, &error));
    g_assert_nonnull(error);
    json_object_set_int_member(place, "count", 1);
    json_object_set_string_member(place, "host", "");
    g_assert_null(sf_ticket_from_json(object, NULL));
    json_object_set_int_member(object, "places", 1);
    g_assert_null(sf_ticket_from_json(object, NULL));
    json_object_remove_member(object, "places");
    old = sf_ticket_from_json(object, NULL);
    g_assert_true(sf_ticket_is_local(old));
    give_back(manager, ticket);
    sf_resource_manager_free(manager);
    sf_resource_manager_free(later);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/resource_manager/spread", test_spread);
    g_test_add_func("/resource_manager/pack", test_pack);
    g_test_add_func("/resource_manager/bounds", test_bounds);
    g_test_add_func("/resource_manager/quotas", test_quotas);
    g_test_add_func("/resource_manager/users", test_users);
    g_test_add_func("/resource_manager/queue", test_queue);
    g_test_add_func("/resource_manager/queue_of_quota", test_queue_of_quota);
    g_test_add_func("/resource_manager/memory", test_memory);
    g_test_add_func("/resource_manager/reassign", test_reassign);
    g_test_add_func("/resource_manager/lend", test_lend);
    g_test_add_func("/resource_manager/hosts", test_hosts);
    g_test_add_func("/resource_manager/record", test_record);
    return g_test_run();
}
