/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The lines that peers exchange. */
#include <string.h>

#include "sfvmm/cluster/peer_message.h"
#include "sfvmm/wire/json_line.h"

#define HELLO_BUT(members) "{\"hello\":{" members "}}"
#define HELLO                                                                                                          \
    HELLO_BUT("\"protocol\":1,\"name\":\"h1\",\"version\":\"0.1.0\",\"instance\":\"0123456789abcdef\",\"facts\":{}")

static void test_good(void)
{
    static const struct {
        const char *text;
        SfPeerMessageKind kind;
    } lines[] = {
        { HELLO, SF_PEER_HELLO },
        { "{\"refused\":{\"message\":\"no\"}}", SF_PEER_REFUSED },
        { "{\"id\":1,\"method\":\"reserve\",\"params\":{\"count\":8}}", SF_PEER_REQUEST },
        { "{\"id\":9223372036854775807,\"result\":{}}", SF_PEER_RESULT },
        { "{\"id\":7,\"error\":{\"code\":\"no-capacity\",\"message\":\"full\"}}", SF_PEER_FAILURE },
        { "{\"event\":\"clone.exited\",\"data\":{\"id\":1}}", SF_PEER_EVENT },
    };

    for (guint i = 0; i < G_N_ELEMENTS(lines); i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(JsonObject) object = sf_json_line_parse(lines[i].text, strlen(lines[i].text), &error), again = NULL;
        SfPeerMessage message;
        g_assert_true(sf_peer_message_parse(object, &message, &error));
        g_assert_no_error(error);
        g_assert_cmpint(message.kind, ==, lines[i].kind);
        again = sf_peer_message_format(&message);
        g_autofree char *line = sf_json_line_format(again, NULL);
        g_strchomp(line);
        g_assert_cmpstr(line, ==, lines[i].text);
    }
}

/* A request may come without params; what we write always has them. */
static void test_no_params(void)
{
    const char *text = "{\"id\":3,\"method\":\"kill\"}";
    g_autoptr(JsonObject) object = sf_json_line_parse(text, strlen(text), NULL);
    SfPeerMessage message;

    g_assert_true(sf_peer_message_parse(object, &message, NULL));
    g_assert_null(message.body);
}

static void test_bad(void)
{
    static const char *const lines[] = {
        "{}",
        "{\"id\":1}",
        "{\"id\":0,\"result\":{}}",
        "{\"id\":-1,\"result\":{}}",
        "{\"id\":\"1\",\"result\":{}}",
        "{\"id\":1.5,\"result\":{}}",
        "{\"id\":1,\"result\":[]}",
        "{\"id\":1,\"result\":{},\"error\":{}}",
        "{\"id\":1,\"result\":{},\"more\":1}",
        "{\"id\":1,\"error\":{}}",
        "{\"id\":1,\"error\":{\"code\":\"\",\"message\":\"\"}}",
        "{\"id\":1,\"error\":{\"code\":\"a b\",\"message\":\"\"}}",
        "{\"id\":1,\"error\":{\"code\":\"a\",\"message\":1}}",
        "{\"id\":1,\"error\":{\"code\":\"a\",\"message\":\"\",\"hint\":\"\"}}",
        "{\"id\":1,\"method\":\"\",\"params\":{}}",
        "{\"id\":1,\"method\":\"A\",\"params\":{}}",
        "{\"id\":1,\"method\":7,\"params\":{}}",
        "{\"id\":1,\"method\":\"a\",\"params\":[]}",
        "{\"id\":1,\"method\":\"a\",\"params\":{},\"result\":{}}",
        "{\"method\":\"a\",\"params\":{}}",
        "{\"event\":\"a\"}",
        "{\"event\":\"a\",\"data\":null}",
        "{\"event\":\"a\",\"data\":{},\"id\":1}",
        "{\"event\":\"a\",\"data\":{},\"more\":1}",
        "{\"event\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\",\"data\":{}}",
        "{\"hello\":{}}",
        "{\"hello\":1}",
        HELLO_BUT("\"protocol\":0,\"name\":\"h1\",\"version\":\"1\",\"instance\":\"0123456789abcdef\",\"facts\":{}"),
        HELLO_BUT("\"protocol\":1,\"name\":\"\",\"version\":\"1\",\"instance\":\"0123456789abcdef\",\"facts\":{}"),
        HELLO_BUT("\"protocol\":1,\"name\":\"h1\",\"version\":\"1\",\"instance\":\"0123\",\"facts\":{}"),
        HELLO_BUT("\"protocol\":1,\"name\":\"h1\",\"version\":\"1\",\"instance\":\"0123456789abcdef\",\"facts\":[]"),
        HELLO_BUT("\"protocol\":1,\"name\":\"h1\",\"version\":\"1\",\"instance\":\"0123456789abcdef\""),
        HELLO_BUT(
            "\"protocol\":1,\"name\":\"h1\",\"version\":\"1\",\"instance\":\"0123456789abcdef\",\"facts\":{},\"x\":1"),
        "{\"refused\":{}}",
        "{\"refused\":{\"message\":7}}",
        "{\"refused\":{\"message\":\"\"},\"hello\":{}}",
    };

    for (guint i = 0; i < G_N_ELEMENTS(lines); i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(JsonObject) object = sf_json_line_parse(lines[i], strlen(lines[i]), NULL);
        SfPeerMessage message;
        g_assert_nonnull(object);
        if (sf_peer_message_parse(object, &message, &error)) {
            g_error("taken: %s", lines[i]);
        }
        g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA);
    }
}

/* A text that is too long is cut so that the other side takes it. */
static void test_long_text(void)
{
    g_autoptr(GString) text = g_string_new("x");
    SfPeerMessage message = { .kind = SF_PEER_FAILURE, .id = 1, .word = "failed" }, parsed;
    g_autoptr(JsonObject) object = NULL;

    while (text->len < 3 * SF_PEER_TEXT_MAX) {
        g_string_append(text, "\xc3\xa9");
    }
    message.text = text->str;
    object = sf_peer_message_format(&message);
    g_assert_true(sf_peer_message_parse(object, &parsed, NULL));
    g_assert_true(g_utf8_validate(parsed.text, -1, NULL));
    g_assert_cmpuint(strlen(parsed.text), >, SF_PEER_TEXT_MAX - 4);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/peer_message/good", test_good);
    g_test_add_func("/peer_message/no_params", test_no_params);
    g_test_add_func("/peer_message/bad", test_bad);
    g_test_add_func("/peer_message/long_text", test_long_text);
    return g_test_run();
}
