/* SPDX-License-Identifier: GPL-2.0-or-later */
/* JSON lines: framing at every split, strictness, bounds. */
#include <string.h>
#include "sfvmm/wire/json_line.h"

static void test_good(void)
{
    const char *const texts[] = {
        "{}",
        " \t{ \"a\" : [ ] } \r",
        "{\"id\":7,\"method\":\"clone\",\"params\":{\"count\":8}}",
        "{\"a\":[1,-9223372036854775808,9223372036854775807,0,-0,0.5,1e3,-2.5E-7,true,false,null]}",
        "{\"a\":[2e22,-1e17,8e-7,1e300,\"2e+22.0 \\\" 2e+22.0\"],\"1e+17.0\":1e17}",
        "{\"a\":\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\ud83d\\ude00\"}",
        "{\"a\":\"\xc3\xa9\"}",
        "{\"\":{\"\":{}}}",
    };

    for (guint i = 0; i < G_N_ELEMENTS(texts); i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(JsonObject) object = sf_json_line_parse(texts[i], strlen(texts[i]), &error);
        g_assert_no_error(error);
        g_assert_nonnull(object);

        /* What is written is read back the same. */
        g_autofree char *line = sf_json_line_format(object, NULL);
        g_assert_cmpint(line[strlen(line) - 1], ==, '\n');
        g_autoptr(JsonObject) again = sf_json_line_parse(line, strlen(line), &error);
        g_assert_no_error(error);
        g_autofree char *second = sf_json_line_format(again, NULL);
        g_assert_cmpstr(line, ==, second);
    }
}

static void test_bad(void)
{
    const char *const texts[] = {
        "",
        " ",
        "[]",
        "1",
        "null",
        "\"a\"",
        "{",
        "}",
        "{}}",
        "{} {}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{a:1}",
        "{'a':1}",
        "{\"a\":[1,]}",
        "{\"a\":[1 2]}",
        "{\"a\":01}",
        "{\"a\":+1}",
        "{\"a\":.5}",
        "{\"a\":1.}",
        "{\"a\":1e}",
        "{\"a\":-}",
        "{\"a\":0x10}",
        "{\"a\":NaN}",
        "{\"a\":Infinity}",
        "{\"a\":1e999}",
        "{\"a\":9223372036854775808}",
        "{\"a\":-9223372036854775809}",
        "{\"a\":tru}",
        "{\"a\":True}",
        "{\"a\":\"}",
        "{\"a\":\"\\\"}",
        "{\"a\":\"\\x41\"}",
        "{\"a\":\"\\u12\"}",
        "{\"a\":\"\\u0000\"}",
        "{\"a\":\"\\ud800\"}",
        "{\"a\":\"\\udc00\"}",
        "{\"a\":\"\\ud800\\u0041\"}",
        "{\"a\":\"\t\"}",
        "{\"a\":\"\xff\"}",
        "{\"a\":\"\xc3\"}",
        "{\"a\":1}//",
        "{/**/}",
        "var a = {}",
        "{\"a\"=1}",
        "{\"a\":1;}",
        "\xef\xbb\xbf{}",
    };

    for (guint i = 0; i < G_N_ELEMENTS(texts); i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(JsonObject) object = sf_json_line_parse(texts[i], strlen(texts[i]), &error);
        if (object) {
            g_error("taken for JSON: %s", texts[i]);
        }
        g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA);
    }
    g_autoptr(JsonObject) nul = sf_json_line_parse("{}\0", 3, NULL);
    g_assert_null(nul);
}

static JsonObject *parse_nested(guint depth)
{
    g_autoptr(GString) text = g_string_new("{\"a\":");

    for (guint i = 1; i < depth; i++) {
        g_string_append_c(text, '[');
    }
    for (guint i = 1; i < depth; i++) {
        g_string_append_c(text, ']');
    }
    g_string_append_c(text, '}');
    if (depth == 1) {
        g_string_assign(text, "{}");
    }
    return sf_json_line_parse(text->str, text->len, NULL);
}

static void test_depth(void)
{
    for (guint depth = 1; depth <= SF_JSON_DEPTH_MAX; depth++) {
        g_autoptr(JsonObject) object = parse_nested(depth);
        g_assert_nonnull(object);
    }
    g_assert_null(parse_nested(SF_JSON_DEPTH_MAX + 1));
    g_assert_null(parse_nested(SF_JSON_LINE_MAX / 4));

    /* Siblings are no depth. */
    g_autoptr(GString) wide = g_string_new("{\"a\":[");
    for (guint i = 0; i < 10 * SF_JSON_DEPTH_MAX; i++) {
        g_string_append(wide, "{},");
    }
    g_string_append(wide, "0]}");
    g_autoptr(JsonObject) object = sf_json_line_parse(wide->str, wide->len, NULL);
    g_assert_nonnull(object);
}

/* Takes everything out; members "n" of the objects as a text, '!' for a wrong line. */
static void drain(SfJsonLineReader *reader, GString *seen)
{
    for (;;) {
        g_autoptr(JsonObject) object = NULL;
        g_autoptr(GError) error = NULL;
        if (!sf_json_line_reader_next(reader, &object, &error)) {
            g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA);
            g_string_append_c(seen, '!');
        } else if (object) {
            g_string_append_printf(seen, "%d", (int)json_object_get_int_member(object, "n"));
        } else {
            return;
        }
    }
}

static void test_splits(void)
{
    static const char stream[] = "{\"n\":1}\n\n  \r\n{\"n\":2}\r\nnonsense\n{\"n\":3}\n[]\n{\"n\":4}\n{\"n\":5";
    gsize length = strlen(stream);

    for (gsize first = 0; first <= length; first++) {
        for (gsize second = first; second <= length; second++) {
            g_autoptr(SfJsonLineReader) reader = sf_json_line_reader_new();
            g_autoptr(GString) seen = g_string_new(NULL);
            sf_json_line_reader_push(reader, stream, first);
            drain(reader, seen);
            sf_json_line_reader_push(reader, stream + first, second - first);
            drain(reader, seen);
            sf_json_line_reader_push(reader, stream + second, length - second);
            drain(reader, seen);
            g_assert_cmpstr(seen->str, ==, "12!3!4");
            g_assert_cmpuint(sf_json_line_reader_pending(reader), ==, strlen("{\"n\":5"));
        }
    }
}

/* Pushes a line of length bytes in pieces; does it come out? */
static gboolean push_line(SfJsonLineReader *reader, gsize length)
{
    g_autofree char *spaces = g_strnfill(65536, ' ');
    g_autoptr(JsonObject) object = NULL;
    gboolean ok = TRUE;

    sf_json_line_reader_push(reader, "{}", 2);
    for (gsize left = length - 2; left && ok;) {
        gsize n = MIN(left, 65536);
        sf_json_line_reader_push(reader, spaces, n);
        left -= n;
        ok = sf_json_line_reader_next(reader, &object, NULL) && !object;
    }
    sf_json_line_reader_push(reader, "\n", 1);
    return sf_json_line_reader_next(reader, &object, NULL) && object;
}

static void test_too_long(void)
{
    g_autoptr(SfJsonLineReader) reader = sf_json_line_reader_new();
    g_autoptr(JsonObject) object = NULL;
    g_autoptr(GError) error = NULL;

    g_assert_true(push_line(reader, SF_JSON_LINE_MAX));
    g_assert_true(push_line(reader, SF_JSON_LINE_MAX));
    g_assert_false(push_line(reader, SF_JSON_LINE_MAX + 1));
    sf_json_line_reader_push(reader, "\n{}\n", 4);
    g_assert_false(sf_json_line_reader_next(reader, &object, &error)); /* it stays so */
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_MESSAGE_TOO_LARGE);
    g_assert_cmpuint(sf_json_line_reader_pending(reader), ==, 0); /* and holds no memory */
}

/* A long line may hold a long text, but not any number of values. */
static void test_many_values(void)
{
    for (guint i = 0; i < 2; i++) {
        const guint values = SF_JSON_VALUES_MAX - 2 + i; /* besides the object and the array */
        g_autoptr(GString) text = g_string_new("{\"a\":[0");
        g_autoptr(SfJsonLineReader) reader = sf_json_line_reader_new();
        g_autoptr(JsonObject) object = NULL;
        g_autoptr(GError) error = NULL;
        for (guint n = 1; n < values; n++) {
            g_string_append(text, ",0");
        }
        g_string_append(text, "]}\n");
        sf_json_line_reader_set_max(reader, text->len);
        sf_json_line_reader_push(reader, text->str, text->len);
        g_assert_true(sf_json_line_reader_next(reader, &object, &error) == (i == 0));
        g_assert_true((object != NULL) == (i == 0));
        g_assert_true(i == 0 || g_error_matches(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA));
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/json-line/good", test_good);
    g_test_add_func("/json-line/bad", test_bad);
    g_test_add_func("/json-line/depth", test_depth);
    g_test_add_func("/json-line/splits", test_splits);
    g_test_add_func("/json-line/too-long", test_too_long);
    g_test_add_func("/json-line/many-values", test_many_values);
    return g_test_run();
}
