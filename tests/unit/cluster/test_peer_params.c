/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a peer's request may say, and what not. */
#include <string.h>

#include "sfvmm/cluster/peer.h"
#include "sfvmm/cluster/peer_params.h"
#include "sfvmm/wire/json_line.h"

#define TEXT_MAX  4
#define ARRAY_MAX 2

static JsonObject *params_of(const char *text)
{
    g_autoptr(GError) error = NULL;
    JsonObject *params = sf_json_line_parse(text, strlen(text), &error);

    g_assert_no_error(error);
    return params;
}

static void test_good(void)
{
    g_autoptr(JsonObject) params =
        params_of("{\"text\":\"four\",\"none\":\"\",\"low\":-1,\"high\":9,\"yes\":true,\"no\":false,\"object\":{},"
                  "\"array\":[1,{}],\"texts\":[\"a\",\"\"],\"empty\":[],\"ticket\":\"00000000000000ff\"}");
    JsonObject *object;
    JsonArray *array;
    const char *text;
    gboolean flag;
    gint64 number;
    guint64 id;

    g_assert_true(sf_peer_param_text(params, "text", TEXT_MAX, &text, NULL));
    g_assert_cmpstr(text, ==, "four");
    g_assert_true(sf_peer_param_text(params, "none", 0, &text, NULL));
    g_assert_true(sf_peer_param_int(params, "low", -1, 9, &number, NULL));
    g_assert_cmpint(number, ==, -1);
    g_assert_true(sf_peer_param_int(params, "high", -1, 9, &number, NULL));
    g_assert_cmpint(number, ==, 9);
    g_assert_true(sf_peer_param_bool(params, "yes", &flag, NULL));
    g_assert_true(flag);
    g_assert_true(sf_peer_param_bool(params, "no", &flag, NULL));
    g_assert_false(flag);
    g_assert_true(sf_peer_param_object(params, "object", &object, NULL));
    g_assert_true(sf_peer_param_array(params, "array", ARRAY_MAX, &array, NULL));
    g_assert_cmpuint(json_array_get_length(array), ==, 2);
    g_assert_true(sf_peer_param_texts(params, "texts", ARRAY_MAX, &array, NULL));
    g_assert_true(sf_peer_param_texts(params, "empty", 0, &array, NULL));
    g_assert_true(sf_peer_param_ticket(params, &id, NULL));
    g_assert_cmpuint(id, ==, 255);
}

static void assert_bad(gboolean taken, GError *error, const char *member)
{
    g_autofree char *quoted = g_strdup_printf("\"%s\" must be ", member);

    g_assert_false(taken);
    g_assert_error(error, SF_PEER_ERROR, SF_PEER_ERROR_BAD_REQUEST);
    g_assert_true(g_str_has_prefix(error->message, quoted));
    g_error_free(error);
}

/* No member may be read as what it is not; "absent" is none. */
static void test_bad(void)
{
    g_autoptr(JsonObject) params =
        params_of("{\"text\":\"fives\",\"int\":10,\"real\":1.0,\"null\":null,\"bool\":true,\"object\":{},"
                  "\"array\":[\"a\",\"b\",\"c\"],\"mixed\":[\"a\",1],\"ticket\":\"00000000000000fg\"}");
    static const char *const members[] = {
        "text", "int", "real", "null", "bool", "object", "array", "mixed", "absent"
    };

    for (guint i = 0; i < G_N_ELEMENTS(members); i++) {
        const char *member = members[i];
        GError *error = NULL;
        JsonObject *object;
        JsonArray *array;
        const char *text;
        gboolean flag, taken;
        gint64 number;

        taken = sf_peer_param_text(params, member, TEXT_MAX, &text, &error);
        assert_bad(taken, g_steal_pointer(&error), member);
        taken = sf_peer_param_int(params, member, 0, 9, &number, &error);
        assert_bad(taken, g_steal_pointer(&error), member);
        taken = sf_peer_param_texts(params, member, ARRAY_MAX, &array, &error);
        assert_bad(taken, g_steal_pointer(&error), member);
        if (strcmp(member, "bool") != 0) {
            taken = sf_peer_param_bool(params, member, &flag, &error);
            assert_bad(taken, g_steal_pointer(&error), member);
        }
        if (strcmp(member, "object") != 0) {
            taken = sf_peer_param_object(params, member, &object, &error);
            assert_bad(taken, g_steal_pointer(&error), member);
        }
        if (strcmp(member, "mixed") != 0) {
            taken = sf_peer_param_array(params, member, ARRAY_MAX, &array, &error);
            assert_bad(taken, g_steal_pointer(&error), member);
        }
    }
    GError *error = NULL;
    guint64 id;
    gboolean taken = sf_peer_param_ticket(params, &id, &error);
    assert_bad(taken, error, "ticket");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/peer-params/good", test_good);
    g_test_add_func("/peer-params/bad", test_bad);
    return g_test_run();
}
