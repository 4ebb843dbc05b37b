/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Working sets as they travel and lie on record. */
#include "sfvmm/control/working_sets.h"

#include <string.h>

#include "sfvmm/wire/pager_message.h"

#define RUN(...) ((struct sf_pager_run){ __VA_ARGS__ })

static GArray *runs_new(const struct sf_pager_run *runs, guint n)
{
    GArray *array = g_array_new(FALSE, FALSE, sizeof(*runs));

    return g_array_append_vals(array, runs, n);
}

static void test_round_trip(void)
{
    const struct sf_pager_run runs[] = {
        RUN(.block = 1, .pages = 2, .offset = 5 * SF_PAGE_SIZE),
        RUN(.block = 0, .pages = 1, .offset = 0),
    };
    g_autoptr(GArray) array = runs_new(runs, G_N_ELEMENTS(runs));
    g_autoptr(GBytes) bytes = sf_working_set_pack(array);
    g_autoptr(JsonObject) object = json_object_new();

    sf_working_set_to_json(bytes, object, "runs");
    g_autoptr(GBytes) again = sf_working_set_from_json(object, "runs");
    g_assert_nonnull(again);
    g_autoptr(GArray) unpacked = sf_working_set_unpack(again, NULL);
    g_assert_cmpuint(unpacked->len, ==, G_N_ELEMENTS(runs));
    g_assert_cmpmem(unpacked->data, sizeof(runs), runs, sizeof(runs));
}

/* A hint of somebody else: what does not fit is left out. */
static void test_fits(void)
{
    const struct sf_pager_run runs[] = {
        RUN(.block = 0, .pages = 8, .offset = 0),                /* all of it */
        RUN(.block = 0, .pages = 9, .offset = 0),                /* beyond the end */
        RUN(.block = 0, .pages = 1, .offset = 8 * SF_PAGE_SIZE), /* behind it */
        RUN(.block = 0, .pages = G_MAXUINT32, .offset = 7 * SF_PAGE_SIZE),
        RUN(.block = 0, .pages = 0, .offset = 0),
        RUN(.block = 0, .pages = 1, .offset = 1),
        RUN(.block = 1, .pages = 1, .offset = 0), /* no such block */
        RUN(.block = 0, .pages = 1, .offset = G_MAXUINT64 - SF_PAGE_SIZE + 1),
    };
    SfSnapshot snapshot = { .n_blocks = 1 };
    g_autoptr(GArray) array = runs_new(runs, G_N_ELEMENTS(runs));
    g_autoptr(GBytes) bytes = sf_working_set_pack(array);

    snapshot.blocks[0].length = 8 * SF_PAGE_SIZE;
    g_autoptr(GArray) unpacked = sf_working_set_unpack(bytes, &snapshot);
    g_assert_cmpuint(unpacked->len, ==, 1);
    g_assert_cmpmem(unpacked->data, sizeof(runs[0]), runs, sizeof(runs[0]));
}

static void test_bounds(void)
{
    g_autoptr(GArray) many = g_array_new(FALSE, TRUE, sizeof(struct sf_pager_run));
    g_autoptr(JsonObject) object = json_object_new();
    g_autofree char *text = g_strnfill(SF_WORKING_SET_TEXT_MAX + 1, 'A');

    g_array_set_size(many, SF_WORKING_SET_RUNS_MAX + 1);
    g_autoptr(GBytes) bytes = sf_working_set_pack(many);
    g_assert_cmpuint(g_bytes_get_size(bytes), ==, SF_WORKING_SET_RUNS_MAX * sizeof(struct sf_pager_run));
    sf_working_set_to_json(bytes, object, "runs");
    g_autoptr(GBytes) longest = sf_working_set_from_json(object, "runs");
    g_assert_true(g_bytes_equal(longest, bytes));
    json_object_set_string_member(object, "long", text);
    json_object_set_int_member(object, "number", 7);
    json_object_set_string_member(object, "empty", "");
    g_assert_null(sf_working_set_from_json(object, "long"));
    g_assert_null(sf_working_set_from_json(object, "number"));
    g_assert_null(sf_working_set_from_json(object, "empty"));
    g_assert_null(sf_working_set_from_json(object, "none"));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/working-sets/round-trip", test_round_trip);
    g_test_add_func("/working-sets/fits", test_fits);
    g_test_add_func("/working-sets/bounds", test_bounds);
    return g_test_run();
}
