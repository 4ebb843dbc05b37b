/* SPDX-License-Identifier: GPL-2.0-or-later */
/* QEMU messages: what is right goes through unchanged, what is wrong is refused, no descriptor is left open. */
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "sfvmm/wire/page_run.h"
#include "sfvmm/wire/qemu_message.h"
#include "tests/unit/open_fds.h"

#define SERIAL     7u
#define KERNEL_FDS 253 /* the kernel's limit for one message */

/* A packet that only the header is given of. */
static GByteArray *packet(guint16 type, guint32 serial, const void *payload, gsize length)
{
    struct sf_qc_header header = { .magic = SF_QC_MAGIC, .type = type, .serial = serial, .length = length };
    GByteArray *bytes = g_byte_array_new();

    g_byte_array_append(bytes, (const guint8 *)&header, sizeof(header));
    if (length) {
        g_byte_array_append(bytes, payload, length);
    }
    return bytes;
}

static GBytes *hello_payload(guint n_blocks)
{
    struct sf_qc_hello_reply reply = { .version = SF_QC_VERSION,
                                       .n_blocks = n_blocks,
                                       .page_size = SF_PAGE_SIZE,
                                       .vcpus = 2,
                                       .running = 1,
                                       .qemu_version = "10.0.13",
                                       .machine = "pc-q35-10.0",
                                       .accel = "tcg",
                                       .cpu = "qemu64-x86_64-cpu" };
    GByteArray *bytes = g_byte_array_new();

    g_byte_array_append(bytes, (guint8 *)&reply, sizeof(reply));
    for (guint i = 0; i < n_blocks; i++) {
        struct sf_qc_block block = { .length = 1u << 30 };
        g_snprintf(block.id, sizeof(block.id), "block%u", i);
        g_byte_array_append(bytes, (guint8 *)&block, sizeof(block));
    }
    return g_byte_array_free_to_bytes(bytes);
}

static GBytes *snapshot_payload(guint n_blocks, guint has_delta)
{
    struct sf_qc_snapshot_reply reply = { .state_length = 1000, .device_length = 100, .n_blocks = n_blocks };
    GByteArray *bytes = g_byte_array_new();

    g_byte_array_append(bytes, (guint8 *)&reply, sizeof(reply));
    for (guint i = 0; i < n_blocks; i++) {
        struct sf_qc_snapshot_block block = { .length = 1u << 30, .has_delta = has_delta, .n_extents = has_delta };
        g_snprintf(block.id, sizeof(block.id), "block%u", i);
        g_byte_array_append(bytes, (guint8 *)&block, sizeof(block));
    }
    return g_byte_array_free_to_bytes(bytes);
}

static GBytes *map_payload(guint n_blocks)
{
    struct sf_qc_map_reply reply = { .n_blocks = n_blocks, .uffd = n_blocks ? 17 : -1, .total = 1000 };
    GByteArray *bytes = g_byte_array_new();

    g_byte_array_append(bytes, (guint8 *)&reply, sizeof(reply));
    for (guint i = 0; i < n_blocks; i++) {
        struct sf_qc_mapped_block block = { .address = (guint64)(i + 1) << 32, .length = 1u << 30 };
        g_snprintf(block.id, sizeof(block.id), "block%u", i);
        g_byte_array_append(bytes, (guint8 *)&block, sizeof(block));
    }
    return g_byte_array_free_to_bytes(bytes);
}

static void test_requests(void)
{
    struct sf_qc_disk disks[2] = { { .node = "a", .overlay = "b" }, { .node = "c", .overlay = "d" } };
    struct sf_qc_header header;
    struct sf_qc_snapshot body;

    g_autoptr(GBytes) request = sf_qc_request_snapshot(SERIAL, SF_QC_SNAPSHOT_SHARED_BASE, disks, 2);
    const char *bytes = g_bytes_get_data(request, NULL);
    memcpy(&header, bytes, sizeof(header));
    memcpy(&body, bytes + sizeof(header), sizeof(body));
    g_assert_cmpuint(header.magic, ==, SF_QC_MAGIC);
    g_assert_cmpuint(header.type, ==, SF_QC_SNAPSHOT);
    g_assert_cmpuint(header.serial, ==, SERIAL);
    g_assert_cmpuint(header.length, ==, sizeof(body) + sizeof(disks));
    g_assert_cmpuint(g_bytes_get_size(request), ==, sizeof(header) + header.length);
    g_assert_cmpuint(body.n_disks, ==, 2);
    g_assert_cmpmem(bytes + sizeof(header) + sizeof(body), sizeof(disks), disks, sizeof(disks));

    g_autoptr(GBytes) check = sf_qc_request_check(SERIAL);
    g_assert_cmpuint(g_bytes_get_size(check), ==, sizeof(header));
    g_autoptr(GBytes) thaw = sf_qc_request_thaw(SERIAL);
    g_assert_cmpuint(g_bytes_get_size(thaw), ==, sizeof(header));
    g_autoptr(GBytes) avoided = sf_qc_request_avoided(SERIAL);
    g_assert_cmpuint(g_bytes_get_size(avoided), ==, sizeof(header));
    g_autoptr(GBytes) fold = sf_qc_request_fold(SERIAL, 5);
    g_assert_cmpuint(g_bytes_get_size(fold), ==, sizeof(header) + sizeof(struct sf_qc_fold));
    g_autoptr(GBytes) share = sf_qc_request_share(SERIAL, 5);
    g_assert_cmpuint(g_bytes_get_size(share), ==, sizeof(header) + sizeof(struct sf_qc_fold));
    g_autoptr(GBytes) hello = sf_qc_request_hello(SERIAL);
    g_assert_cmpuint(g_bytes_get_size(hello), ==, sizeof(header) + sizeof(struct sf_qc_hello));
    g_autoptr(GBytes) load = sf_qc_request_load(SERIAL, check);
    g_assert_cmpuint(g_bytes_get_size(load), ==, 2 * sizeof(header));
    g_autoptr(GBytes) map = sf_qc_request_map(SERIAL, check);
    memcpy(&header, g_bytes_get_data(map, NULL), sizeof(header));
    g_assert_cmpuint(header.type, ==, SF_QC_MAP);
    g_assert_cmpuint(g_bytes_get_size(map), ==, 2 * sizeof(header));

    struct sf_qc_load mapped_body;
    g_autoptr(GBytes) mapped = sf_qc_request_load_mapped(SERIAL, SF_QC_LOAD_RESUME, 5);
    bytes = g_bytes_get_data(mapped, NULL);
    memcpy(&header, bytes, sizeof(header));
    g_assert_cmpuint(header.type, ==, SF_QC_LOAD);
    g_assert_cmpuint(g_bytes_get_size(mapped), ==, sizeof(header) + sizeof(mapped_body));
    memcpy(&mapped_body, bytes + sizeof(header), sizeof(mapped_body));
    g_assert_cmpuint(mapped_body.flags, ==, SF_QC_LOAD_RESUME | SF_QC_LOAD_MAPPED);
    g_assert_cmpuint(mapped_body.n_blocks, ==, 0);
    g_assert_cmpuint(mapped_body.state_length, ==, 5);
}

static void assert_header_refused(const void *bytes, gsize length)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(sf_qc_message_parse(bytes, length, NULL, 0, &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA);
}

static void test_header(void)
{
    struct sf_qc_running event = { .at = 5 };
    g_autoptr(GByteArray) good = packet(SF_QC_EVENT_RUNNING, 0, &event, sizeof(event));
    g_autoptr(SfQcMessage) message = sf_qc_message_parse(good->data, good->len, NULL, 0, NULL);

    g_assert_nonnull(message);
    g_assert_cmpuint(g_bytes_get_size(message->payload), ==, sizeof(event));

    for (gsize i = 0; i < good->len; i++) {
        assert_header_refused(good->data, i);
    }
    /* Of the header no bit may change; the payload is none of its business. */
    for (gsize bit = 0; bit < 8 * sizeof(struct sf_qc_header); bit++) {
        good->data[bit / 8] ^= 1u << bit % 8;
        assert_header_refused(good->data, good->len);
        good->data[bit / 8] ^= 1u << bit % 8;
    }
    g_autoptr(GByteArray) request = packet(SF_QC_HELLO, SERIAL, NULL, 0);
    assert_header_refused(request->data, request->len);
    g_autoptr(GByteArray) no_serial = packet(SF_QC_HELLO | SF_QC_REPLY, 0, NULL, 0);
    assert_header_refused(no_serial->data, no_serial->len);
}

static void test_check_reply(void)
{
    struct sf_qc_error text = { .text = "disk0: \x1b[31mbroken\n" };
    g_autoptr(GError) error = NULL;
    g_autoptr(GByteArray) bytes = packet(SF_QC_THAW | SF_QC_REPLY, SERIAL, NULL, 0);
    g_autoptr(SfQcMessage) message = sf_qc_message_parse(bytes->data, bytes->len, NULL, 0, NULL);

    g_assert_true(sf_qc_check_reply(message, SF_QC_THAW, SERIAL, NULL));
    g_assert_false(sf_qc_check_reply(message, SF_QC_THAW, SERIAL + 1, &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA);
    g_clear_error(&error);
    g_assert_false(sf_qc_check_reply(message, SF_QC_FOLD, SERIAL, &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA);
    g_clear_error(&error);

    g_autoptr(GByteArray) failure = packet(SF_QC_ERROR, SERIAL, &text, sizeof(text));
    g_autoptr(SfQcMessage) failed = sf_qc_message_parse(failure->data, failure->len, NULL, 0, NULL);
    g_assert_false(sf_qc_check_reply(failed, SF_QC_THAW, SERIAL, &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_FAILED);
    g_assert_cmpstr(error->message, ==, "disk0:  [31mbroken");
    g_clear_error(&error);

    memset(text.text, 'x', sizeof(text.text));
    g_autoptr(GBytes) endless = g_bytes_new(&text, sizeof(text));
    g_autofree char *parsed = NULL;
    g_assert_false(sf_qc_parse_error(endless, 0, &parsed, &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA);
}

/* Parses as what it says it is; for corruption tests. */
static gboolean parse_any(guint16 type, GBytes *payload, guint n_fds)
{
    struct sf_qc_hello_reply hello;
    struct sf_qc_block blocks[SF_QC_MAX_BLOCKS];
    struct sf_qc_snapshot_reply snapshot;
    struct sf_qc_snapshot_block snapshot_blocks[SF_QC_MAX_BLOCKS];
    struct sf_qc_map_reply map;
    struct sf_qc_mapped_block mapped_blocks[SF_QC_MAX_BLOCKS];
    g_autoptr(GError) error = NULL;
    gboolean ok = type == SF_QC_HELLO ? sf_qc_parse_hello(payload, n_fds, &hello, blocks, &error)
                  : type == SF_QC_MAP
                      ? sf_qc_parse_map(payload, n_fds, &map, mapped_blocks, &error)
                      : sf_qc_parse_snapshot(payload, n_fds, &snapshot, snapshot_blocks, &error);

    g_assert_true(ok == (error == NULL));
    return ok;
}

static void check_payload(guint16 type, GBytes *payload, guint n_fds)
{
    gsize length;
    const guint8 *good = g_bytes_get_data(payload, &length);

    g_assert_true(parse_any(type, payload, n_fds));
    g_assert_false(parse_any(type, payload, n_fds + 1));
    g_assert_false(parse_any(type, payload, n_fds - 1));
    for (gsize i = 0; i < length; i++) {
        g_autoptr(GBytes) cut = g_bytes_new(good, i);
        g_assert_false(parse_any(type, cut, n_fds));
    }
    for (gsize bit = 0; bit < 8 * length; bit++) {
        g_autofree guint8 *bad = g_memdup2(good, length);
        bad[bit / 8] ^= 1u << bit % 8;
        g_autoptr(GBytes) changed = g_bytes_new_static(bad, length);
        parse_any(type, changed, n_fds); /* must not crash; some values are as good */
    }
    g_autofree guint8 *longer = g_malloc0(length + 1);
    memcpy(longer, good, length);
    g_autoptr(GBytes) extended = g_bytes_new_static(longer, length + 1);
    g_assert_false(parse_any(type, extended, n_fds));
}

static void test_payloads(void)
{
    g_autoptr(GBytes) hello = hello_payload(2);
    g_autoptr(GBytes) plain = snapshot_payload(1, 0);
    g_autoptr(GBytes) layered = snapshot_payload(3, 1);
    g_autoptr(GBytes) map = map_payload(2);

    check_payload(SF_QC_HELLO, hello, 2);
    check_payload(SF_QC_SNAPSHOT, plain, 2);
    check_payload(SF_QC_SNAPSHOT, layered, 1 + 3 * 3);
    check_payload(SF_QC_MAP, map, 1);
}

/* The reply to MAP with one field changed must be refused. */
static void assert_map_refused(guint n_blocks, guint n_fds, gsize offset, guint64 value, gsize size)
{
    g_autoptr(GBytes) payload = map_payload(n_blocks);
    g_autofree guint8 *bytes = g_memdup2(g_bytes_get_data(payload, NULL), g_bytes_get_size(payload));

    memcpy(bytes + offset, &value, size);
    g_autoptr(GBytes) changed = g_bytes_new_static(bytes, g_bytes_get_size(payload));
    g_assert_false(parse_any(SF_QC_MAP, changed, n_fds));
}

static void test_map(void)
{
    const gsize second = sizeof(struct sf_qc_map_reply) + sizeof(struct sf_qc_mapped_block);
    const gsize address = second + G_STRUCT_OFFSET(struct sf_qc_mapped_block, address);
    const gsize length = second + G_STRUCT_OFFSET(struct sf_qc_mapped_block, length);
    const gsize uffd = G_STRUCT_OFFSET(struct sf_qc_map_reply, uffd);
    g_autoptr(GBytes) none = map_payload(0);
    g_autoptr(GBytes) most = map_payload(SF_QC_MAX_BLOCKS), too_many = map_payload(SF_QC_MAX_BLOCKS + 1);

    g_assert_true(parse_any(SF_QC_MAP, none, 0));
    g_assert_false(parse_any(SF_QC_MAP, none, 1));
    g_assert_true(parse_any(SF_QC_MAP, most, 1));
    g_assert_false(parse_any(SF_QC_MAP, too_many, 1));
    assert_map_refused(0, 0, uffd, 3, sizeof(gint32));
    assert_map_refused(2, 1, uffd, G_MAXUINT32, sizeof(gint32)); /* -1 */
    assert_map_refused(2, 1, address, 0, sizeof(guint64));
    assert_map_refused(2, 1, address, (2ull << 32) + 1, sizeof(guint64));
    assert_map_refused(2, 1, address, (1ull << 32) + SF_PAGE_SIZE, sizeof(guint64)); /* within the first block */
    assert_map_refused(2, 1, address, (1ull << 32) - SF_PAGE_SIZE, sizeof(guint64)); /* reaches into it */
    assert_map_refused(2, 1, address, G_MAXUINT64 - SF_PAGE_SIZE + 1, sizeof(guint64));
    assert_map_refused(2, 1, length, 0, sizeof(guint64));
    assert_map_refused(2, 1, second + 5, '0', sizeof(guint8)); /* "block0" once more */
}

/* Only a clone's memory can be lazy. */
static void test_lazy_block(void)
{
    const gsize at = sizeof(struct sf_qc_hello_reply) + G_STRUCT_OFFSET(struct sf_qc_block, mode);
    g_autoptr(GBytes) payload = hello_payload(1);
    gsize size;
    const guint8 *good = g_bytes_get_data(payload, &size);

    for (guint32 mode = SF_QC_RAM_SHARED; mode <= SF_QC_RAM_LAYERED; mode++) {
        for (guint32 flags = 0; flags <= SF_QC_BLOCK_LAZY << 1; flags++) {
            g_autofree guint8 *bytes = g_memdup2(good, size);
            memcpy(bytes + at, &mode, sizeof(mode));
            memcpy(bytes + at + sizeof(mode), &flags, sizeof(flags));
            g_autoptr(GBytes) changed = g_bytes_new_static(bytes, size);
            gboolean right = flags == 0 || (flags == SF_QC_BLOCK_LAZY && mode == SF_QC_RAM_LAYERED);
            g_assert_true(parse_any(SF_QC_HELLO, changed, 1) == right);
        }
    }
}

static void test_bounds(void)
{
    g_autoptr(GBytes) too_many = hello_payload(SF_QC_MAX_BLOCKS + 1);
    g_autoptr(GBytes) none = snapshot_payload(0, 0);
    g_autofree char *text = NULL;
    g_autoptr(GBytes) empty = g_bytes_new(NULL, 0);
    g_autoptr(GBytes) some = g_bytes_new("vga: no\n", 8);

    g_assert_false(parse_any(SF_QC_HELLO, too_many, SF_QC_MAX_BLOCKS + 1));
    g_assert_false(parse_any(SF_QC_SNAPSHOT, none, 1));
    g_assert_true(sf_qc_parse_check(empty, 0, &text, NULL));
    g_assert_cmpstr(text, ==, "");
    g_clear_pointer(&text, g_free);
    g_assert_true(sf_qc_parse_check(some, 0, &text, NULL));
    g_assert_cmpstr(text, ==, "vga: no");
    g_assert_false(sf_qc_parse_check(empty, 1, &text, NULL));

    GByteArray *twice = g_byte_array_new();
    g_autoptr(GBytes) hello = hello_payload(2);
    g_byte_array_append(twice, g_bytes_get_data(hello, NULL), g_bytes_get_size(hello));
    memcpy(twice->data + sizeof(struct sf_qc_hello_reply) + sizeof(struct sf_qc_block), "block0", 6);
    g_autoptr(GBytes) repeated = g_byte_array_free_to_bytes(twice);
    g_assert_false(parse_any(SF_QC_HELLO, repeated, 2));
}

static void test_extents(void)
{
    const guint64 page = SF_PAGE_SIZE, length = 10 * SF_PAGE_SIZE;
    const struct sf_qc_extent good[] = { { 0, page }, { page, page }, { 4 * page, 6 * page } };
    const struct sf_qc_extent bad[][2] = {
        { { 0, 0 }, { page, page } },         /* empty */
        { { 0, 2 * page }, { page, page } },  /* overlap */
        { { 2 * page, page }, { 0, page } },  /* order */
        { { 0, page }, { page, 10 * page } }, /* behind the end */
        { { 1, page }, { 2 * page, page } },  /* unaligned */
        { { 0, page }, { 2 * page, page + 1 } },
        { { 0, page }, { G_MAXUINT64 - page + 1, page } },
        { { 0, page }, { page, G_MAXUINT64 - page + 1 } },
    };

    g_assert_true(sf_qc_check_extents(good, G_N_ELEMENTS(good), length, NULL));
    g_assert_true(sf_qc_check_extents(NULL, 0, length, NULL));
    for (guint i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_assert_false(sf_qc_check_extents(bad[i], 2, length, NULL));
    }
}

/* ---- Over a socket ---- */

typedef struct {
    int ours, theirs;
    guint fds_before;
} Channel;

static void channel_open(Channel *channel, gconstpointer data)
{
    int pair[2];

    channel->fds_before = count_open_fds();
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), ==, 0);
    channel->ours = pair[0];
    channel->theirs = pair[1];
}

static void channel_close(Channel *channel, gconstpointer data)
{
    close(channel->ours);
    if (channel->theirs >= 0) {
        close(channel->theirs);
    }
    g_assert_cmpuint(count_open_fds(), ==, channel->fds_before);
}

/* What a peer without manners would send. */
static void send_raw(int socket, const void *bytes, gsize length, guint n_fds)
{
    struct iovec iov = { .iov_base = (void *)bytes, .iov_len = length };
    union {
        char room[CMSG_SPACE(KERNEL_FDS * sizeof(int))];
        struct cmsghdr align;
    } control = { 0 };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
    int fds[KERNEL_FDS];

    for (guint i = 0; i < n_fds; i++) {
        fds[i] = socket;
    }
    if (n_fds) {
        msg.msg_control = &control;
        msg.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
    }
    g_assert_cmpint(sendmsg(socket, &msg, MSG_NOSIGNAL), ==, (gssize)length);
}

static void assert_refused(Channel *channel, int code)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(sf_qc_receive(channel->ours, &error));
    g_assert_error(error, G_IO_ERROR, code);
}

static void test_receive(Channel *channel, gconstpointer data)
{
    g_autoptr(GBytes) payload = hello_payload(2);
    g_autoptr(GByteArray) bytes =
        packet(SF_QC_HELLO | SF_QC_REPLY, SERIAL, g_bytes_get_data(payload, NULL), g_bytes_get_size(payload));
    int fds[SF_QC_MAX_FDS];

    assert_refused(channel, G_IO_ERROR_WOULD_BLOCK);
    send_raw(channel->theirs, bytes->data, bytes->len, 2);
    g_autoptr(SfQcMessage) message = sf_qc_receive(channel->ours, NULL);
    g_assert_nonnull(message);
    g_assert_cmpuint(message->n_fds, ==, 2);
    g_assert_true(g_bytes_equal(message->payload, payload));
    for (guint i = 0; i < 2; i++) {
        g_assert_true(fcntl(message->fds[i], F_GETFD) & FD_CLOEXEC);
    }
    g_assert_cmpuint(sf_qc_message_steal_fds(message, fds), ==, 2);
    g_assert_cmpuint(message->n_fds, ==, 0);
    close(fds[0]);
    close(fds[1]);

    send_raw(channel->theirs, bytes->data, bytes->len, 2);
    sf_qc_message_free(sf_qc_receive(channel->ours, NULL)); /* closes them */

    close(channel->theirs);
    channel->theirs = -1;
    assert_refused(channel, G_IO_ERROR_CONNECTION_CLOSED);
}

static void test_receive_bad(Channel *channel, gconstpointer data)
{
    g_autofree char *large = g_malloc0(SF_QC_MAX_MESSAGE + 1);
    struct sf_qc_header header = { .magic = SF_QC_MAGIC, .type = SF_QC_THAW | SF_QC_REPLY, .serial = SERIAL };

    send_raw(channel->theirs, large, SF_QC_MAX_MESSAGE + 1, 3); /* too long */
    assert_refused(channel, G_IO_ERROR_INVALID_DATA);
    send_raw(channel->theirs, &header, sizeof(header), SF_QC_MAX_FDS + 1);
    assert_refused(channel, G_IO_ERROR_INVALID_DATA);
    send_raw(channel->theirs, &header, sizeof(header), KERNEL_FDS);
    assert_refused(channel, G_IO_ERROR_INVALID_DATA);
    send_raw(channel->theirs, "hello", 5, 4); /* no message */
    assert_refused(channel, G_IO_ERROR_INVALID_DATA);

    send_raw(channel->theirs, &header, sizeof(header), SF_QC_MAX_FDS); /* and still in step */
    g_autoptr(SfQcMessage) message = sf_qc_receive(channel->ours, NULL);
    g_assert_nonnull(message);
    g_assert_cmpuint(message->n_fds, ==, SF_QC_MAX_FDS);
}

static void test_send(Channel *channel, gconstpointer data)
{
    g_autoptr(GBytes) request = sf_qc_request_hello(SERIAL);
    g_autofree char *room = g_malloc(SF_QC_MAX_MESSAGE);
    g_autoptr(GError) error = NULL;
    guint sent = 0;

    g_assert_true(sf_qc_send(channel->ours, request, NULL, 0, NULL));
    g_assert_cmpint(read(channel->theirs, room, SF_QC_MAX_MESSAGE), ==, (gssize)g_bytes_get_size(request));
    g_assert_cmpmem(room, g_bytes_get_size(request), g_bytes_get_data(request, NULL), g_bytes_get_size(request));

    while (sf_qc_send(channel->ours, request, NULL, 0, &error)) {
        sent++;
    }
    g_assert_cmpuint(sent, >, 0);
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK);
    g_clear_error(&error);

    close(channel->theirs);
    channel->theirs = -1;
    g_assert_false(sf_qc_send(channel->ours, request, NULL, 0, &error));
    g_assert_nonnull(error);
    g_clear_error(&error);

    g_autoptr(GBytes) large = g_bytes_new_take(g_malloc0(SF_QC_MAX_MESSAGE + 1), SF_QC_MAX_MESSAGE + 1);
    g_assert_false(sf_qc_send(channel->ours, large, NULL, 0, &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_MESSAGE_TOO_LARGE);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/qemu-message/requests", test_requests);
    g_test_add_func("/qemu-message/header", test_header);
    g_test_add_func("/qemu-message/check-reply", test_check_reply);
    g_test_add_func("/qemu-message/payloads", test_payloads);
    g_test_add_func("/qemu-message/bounds", test_bounds);
    g_test_add_func("/qemu-message/map", test_map);
    g_test_add_func("/qemu-message/lazy-block", test_lazy_block);
    g_test_add_func("/qemu-message/extents", test_extents);
    g_test_add("/qemu-message/receive", Channel, NULL, channel_open, test_receive, channel_close);
    g_test_add("/qemu-message/receive-bad", Channel, NULL, channel_open, test_receive_bad, channel_close);
    g_test_add("/qemu-message/send", Channel, NULL, channel_open, test_send, channel_close);
    return g_test_run();
}
