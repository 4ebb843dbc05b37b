/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Tickets, and where the resource managers put their clones. */
#include <string.h>

#include "sfvmm/cluster/resource_manager.h"

#define VM_MEMORY (256ull << 20)
#define MIB       (1ull << 20)

static const SfLimits limits = { .clones_per_ticket = 64, .clones_per_vm = 96, .clones = 8, .memory = 1ull << 40 };

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

static SfTicket *request(SfResourceManager *manager, const char *vm, guint count)
{
    g_autoptr(GError) error = NULL;
    SfTicket *ticket = sf_resource_manager_request(manager, vm, VM_MEMORY, count, FALSE, 0, &error);

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
    g_assert_null(sf_resource_manager_request(manager, "db", VM_MEMORY, 1, FALSE, 0, &error));
    g_assert_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_CAPACITY);
    g_assert_nonnull(strstr(error->message, "slots"));
    g_clear_error(&error);
    sf_resource_manager_host_up(manager, "d", 4, MIB, FALSE);
    g_assert_null(sf_resource_manager_request(manager, "db", VM_MEMORY, 9, TRUE, 0, &error));
    g_assert_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_CAPACITY);
    g_assert_cmpuint(booked(manager, "d"), ==, 0);
    give_back(manager, ticket);

    g_clear_error(&error);
    g_assert_true(sf_resource_manager_drain_host(manager, "", TRUE, NULL));
    g_assert_true(sf_resource_manager_drain_host(manager, "d", TRUE, NULL));
    g_assert_null(sf_resource_manager_request(manager, "db", VM_MEMORY, 1, FALSE, 0, &error));
    g_assert_nonnull(strstr(error->message, "drains"));
    assert_nothing_booked(manager);
    sf_resource_manager_free(manager);
}

static void test_quotas(void)
{
    const SfLimits few = { .clones_per_ticket = 3, .clones_per_vm = 4, .clones = 100, .memory = 1ull << 40 };
    SfResourceManager *manager = sf_resource_manager_local_new(&few);
    SfTicket *first = request(manager, "web", 9), *second = request(manager, "web", 9);
    g_autoptr(GError) error = NULL;

    g_assert_cmpuint(first->granted, ==, 3);
    g_assert_cmpuint(second->granted, ==, 1);
    g_assert_null(sf_resource_manager_request(manager, "web", VM_MEMORY, 1, FALSE, 0, &error));
    g_assert_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_QUOTA);
    g_clear_error(&error);
    g_assert_null(sf_resource_manager_request(manager, "db", VM_MEMORY, 4, TRUE, 0, &error));
    g_assert_nonnull(strstr(error->message, "clones-per-ticket"));
    g_clear_error(&error);
    g_assert_false(sf_resource_manager_add_host(manager, "b", "192.0.2.1", 0, 0, &error));
    g_assert_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_HOST);
    give_back(manager, first);
    give_back(manager, second);
    assert_nothing_booked(manager);
    sf_resource_manager_free(manager);
}

/* A host's memory counts as its slots do. */
static void test_memory(void)
{
    const guint64 each = sf_resource_manager_clone_memory(VM_MEMORY);
    const SfLimits little = {
        .clones_per_ticket = 64, .clones_per_vm = 64, .clones = 64, .memory = each * 2 + each / 2
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
    g_assert_null(sf_resource_manager_request(manager, "db", VM_MEMORY, 1, FALSE, 0, &error));
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
    object = sf_ticket_to_json(ticket);
    again = sf_ticket_from_json(object, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(again->places->len, ==, ticket->places->len);
    g_assert_cmpuint(sf_ticket_count_at(again, ""), ==, 2);
    g_assert_cmpstr(g_ptr_array_index(again->refused_by, 0), ==, "x");
    g_assert_null(again->origin);
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
    g_test_add_func("/resource_manager/memory", test_memory);
    g_test_add_func("/resource_manager/reassign", test_reassign);
    g_test_add_func("/resource_manager/lend", test_lend);
    g_test_add_func("/resource_manager/hosts", test_hosts);
    g_test_add_func("/resource_manager/record", test_record);
    return g_test_run();
}
