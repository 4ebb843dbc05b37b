/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Orders to sf-pager: what format() writes parse() reads, anything else is refused, descriptors arrive or leave no
 * trace.
 */
#include <fcntl.h>
#include <gio/gio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include "sfvmm/wire/json_line.h"
#include "sfvmm/wire/pager_message.h"
#include "tests/unit/open_fds.h"

static SfPagerRequest *parse(const char *text, guint n_fds)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) object = sf_json_line_parse(text, strlen(text), &error);
    SfPagerRequest *request;

    g_assert_no_error(error);
    request = sf_pager_request_parse(object, n_fds, &error);
    g_assert_true((request == NULL) == (error != NULL));
    return request;
}

static void test_round_trips(void)
{
    static const struct {
        const char *text;
        guint n_fds;
    } cases[] = {
        { "{\"id\":1,\"do\":\"serve\",\"security\":\"x509\"}", 2 },
        { "{\"id\":1,\"do\":\"serve\",\"security\":\"plain\"}", 1 },
        { "{\"id\":2,\"do\":\"snapshot\",\"snapshot\":\"s-1\",\"state_length\":4096,\"blocks\":[{\"id\":\"pc.ram\","
          "\"length\":8192,\"cache\":true,\"n_present\":1,\"layers\":[1,2]},{\"id\":\"b\",\"length\":4096,"
          "\"cache\":false,\"n_present\":0,\"layers\":[]}]}",
          8 },
        { "{\"id\":3,\"do\":\"source\",\"uri\":\"nbd://h/\",\"connections\":4,\"security\":\"psk\",\"user\":\"u\"}",
          1 },
        { "{\"id\":4,\"do\":\"attach\",\"vm\":\"web-3\",\"pid\":77,\"blocks\":[{\"id\":\"pc.ram\","
          "\"length\":4096,\"address\":140000000000000}]}",
          1 },
        { "{\"id\":5,\"do\":\"detach\",\"vm\":\"web-3\"}", 0 },
        { "{\"id\":6,\"do\":\"allow\",\"names\":[\"a\",\"b\"]}", 0 },
        { "{\"id\":6,\"do\":\"allow\",\"names\":[]}", 0 },
        { "{\"id\":7,\"do\":\"prefetch\",\"working_set\":true,\"neighbours\":false,\"complete\":true}", 0 },
        { "{\"id\":8,\"do\":\"working-set\",\"n\":3}", 1 },
        { "{\"id\":9,\"do\":\"multicast\",\"group\":\"239.195.1.2\",\"origin\":true,\"push\":false,\"port\":7411,"
          "\"payload\":1472,\"receivers\":8,\"min_rate\":0,\"max_rate\":125000000}",
          2 },
        { "{\"id\":9,\"do\":\"blob\",\"digest\":\"ab\",\"length\":80000}", 1 },
        { "{\"id\":9,\"do\":\"recorded\"}", 0 },
        { "{\"id\":10,\"do\":\"stats\"}", 0 },
        { "{\"id\":11,\"do\":\"recall\",\"index\":2}", 0 },
    };

    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(SfPagerRequest) request = NULL;
        g_autoptr(SfPagerRequest) again = NULL;
        guint n_fds = cases[i].n_fds;

        request = parse(cases[i].text, n_fds);
        g_assert_nonnull(request);
        g_autoptr(JsonObject) object = sf_pager_request_format(request);
        again = sf_pager_request_parse(object, n_fds, NULL);
        g_assert_nonnull(again);
        g_autoptr(JsonObject) second = sf_pager_request_format(again);
        g_autofree char *one = sf_json_line_format(object, NULL);
        g_autofree char *two = sf_json_line_format(second, NULL);
        g_assert_cmpstr(one, ==, two);
        g_assert_null(parse(cases[i].text, n_fds + 1));
    }
}

static void test_blob_id(void)
{
    static const char digest[] = "00ff00ff00ff00fe0123456789abcdef0123456789abcdef0123456789abcdef";
    static const char *const wrong[] = { "", "00ff00ff00ff00fe",
                                         "zzff00ff00ff00fe0123456789abcdef0123456789abcdef0123456789abcdef" };
    guint64 id;

    g_assert_true(sf_pager_blob_id(digest, &id));
    g_assert_cmphex(id, ==, 0x00ff00ff00ff00fe);
    for (guint i = 0; i < G_N_ELEMENTS(wrong); i++) {
        g_assert_false(sf_pager_blob_id(wrong[i], &id));
    }
}

static void test_refused(void)
{
    static const char *const cases[] = {
        "{\"do\":\"stats\"}",
        "{\"id\":0,\"do\":\"stats\"}",
        "{\"id\":1,\"do\":\"nothing\"}",
        "{\"id\":1,\"do\":5}",
        "{\"id\":1,\"do\":\"serve\",\"security\":\"none\"}",
        "{\"id\":1,\"do\":\"detach\",\"vm\":\"\"}",
        "{\"id\":1,\"do\":\"allow\",\"names\":[1]}",
        "{\"id\":1,\"do\":\"allow\",\"names\":{}}",
        "{\"id\":1,\"do\":\"prefetch\",\"working_set\":1,\"neighbours\":false,\"complete\":true}",
        "{\"id\":1,\"do\":\"working-set\",\"n\":-1}",
        "{\"id\":1,\"do\":\"blob\",\"digest\":\"ab\",\"length\":4194305}",
        "{\"id\":9,\"do\":\"multicast\",\"group\":\"239.195.1.2\",\"origin\":1,\"push\":false,\"port\":7411,"
        "\"payload\":1472,\"receivers\":8,\"min_rate\":0,\"max_rate\":0}",
        "{\"id\":9,\"do\":\"multicast\",\"group\":\"239.195.1.2\",\"origin\":true,\"push\":false,\"port\":70000,"
        "\"payload\":1472,\"receivers\":8,\"min_rate\":0,\"max_rate\":0}",
        "{\"id\":1,\"do\":\"working-set\",\"n\":99999999}",
        "{\"id\":1,\"do\":\"source\",\"uri\":\"nbd://h/\",\"connections\":400,\"security\":\"plain\"}",
        "{\"id\":1,\"do\":\"attach\",\"vm\":\"v\",\"blocks\":[]}",
        "{\"id\":1,\"do\":\"attach\",\"vm\":\"v\",\"blocks\":[{\"id\":\"a\",\"length\":4095,\"address\":0}]}",
        "{\"id\":1,\"do\":\"attach\",\"vm\":\"v\",\"blocks\":[{\"id\":\"a\",\"length\":4096,\"address\":5}]}",
        "{\"id\":1,\"do\":\"snapshot\",\"snapshot\":\"s\",\"state_length\":1,\"blocks\":[{\"id\":\"a\",\"length\":4096,"
        "\"cache\":false,\"n_present\":1,\"layers\":[]}]}",
        "{\"id\":1,\"do\":\"snapshot\",\"snapshot\":\"s\",\"state_length\":1,\"blocks\":[{\"id\":\"a\",\"length\":4096,"
        "\"cache\":false,\"n_present\":0,\"layers\":[\"x\"]}]}",
        "{\"id\":1,\"do\":\"snapshot\",\"snapshot\":\"s\",\"state_length\":1,\"blocks\":[{\"id\":\"a\",\"length\":4096,"
        "\"cache\":false,\"n_present\":0,\"layers\":[]},{\"id\":\"a\",\"length\":4096,\"cache\":false,\"n_present\":0,"
        "\"layers\":[]}]}",
    };

    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        for (guint n_fds = 0; n_fds < 4; n_fds++) {
            g_assert_null(parse(cases[i], n_fds));
        }
    }
}

static void test_packets(void)
{
    guint before = count_open_fds();
    int pair[2], fds[SF_PAGER_MAX_FDS];
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) object = json_object_new();

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), ==, 0);
    g_assert_null(sf_pager_receive(pair[0], &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK);
    g_clear_error(&error);
    json_object_set_int_member(object, "id", 5);
    for (guint i = 0; i < SF_PAGER_MAX_FDS; i++) {
        fds[i] = pair[1];
    }
    g_assert_true(sf_pager_send(pair[1], object, fds, SF_PAGER_MAX_FDS, &error));
    SfPagerPacket *packet = sf_pager_receive(pair[0], &error);
    g_assert_no_error(error);
    g_assert_cmpuint(packet->n_fds, ==, SF_PAGER_MAX_FDS);
    g_assert_cmpint(fcntl(packet->fds[0], F_GETFD) & FD_CLOEXEC, ==, FD_CLOEXEC);
    g_assert_cmpint(json_object_get_int_member(packet->object, "id"), ==, 5);
    sf_pager_packet_free(packet);
    g_assert_false(sf_pager_send(pair[1], object, fds, SF_PAGER_MAX_FDS + 1, &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_MESSAGE_TOO_LARGE);
    g_clear_error(&error);

    g_assert_cmpint(send(pair[1], "no json", 7, 0), ==, 7);
    g_assert_null(sf_pager_receive(pair[0], &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA);
    g_clear_error(&error);
    close(pair[1]);
    g_assert_null(sf_pager_receive(pair[0], &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_CONNECTION_CLOSED);
    close(pair[0]);
    g_assert_cmpuint(count_open_fds(), ==, before);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/pager-message/round-trips", test_round_trips);
    g_test_add_func("/pager-message/blob-id", test_blob_id);
    g_test_add_func("/pager-message/refused", test_refused);
    g_test_add_func("/pager-message/packets", test_packets);
    return g_test_run();
}
