/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * A message is one packet (packet.h). The structs of qemu_channel.h are the wire format itself (little-endian, no
 * implicit padding), hence the assertions below.
 *
 * Payload checks copy into the caller's structs: no alignment demands on the bytes, no lifetimes to mind.
 */
#include "sfvmm/wire/qemu_message.h"

#include <string.h>
#include "sfvmm/wire/packet.h"
#include "sfvmm/wire/page_run.h"

G_STATIC_ASSERT(G_BYTE_ORDER == G_LITTLE_ENDIAN);
G_STATIC_ASSERT(sizeof(struct sf_qc_header) == 16);
G_STATIC_ASSERT(sizeof(struct sf_qc_block) == SF_QC_NAME_LEN + 16);
G_STATIC_ASSERT(sizeof(struct sf_qc_hello_reply) == 24 + 4 * SF_QC_NAME_LEN);
G_STATIC_ASSERT(sizeof(struct sf_qc_snapshot_reply) == 80);
G_STATIC_ASSERT(sizeof(struct sf_qc_snapshot_block) == SF_QC_NAME_LEN + 24);
G_STATIC_ASSERT(sizeof(struct sf_qc_load_block) == SF_QC_NAME_LEN + 24 + 4 * SF_QC_MAX_LAYERS);
G_STATIC_ASSERT(sizeof(struct sf_qc_map_reply) == 16);
G_STATIC_ASSERT(sizeof(struct sf_qc_mapped_block) == SF_QC_NAME_LEN + 16);

#define VCPUS_MAX   4096u        /* far above any machine type: only sanity */
#define ADDRESS_MAX (1ull << 56) /* the end of a process's addresses on x86-64 with five page table levels */

G_GNUC_PRINTF(2, 3) static gboolean invalid(GError **error, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "sf channel: QEMU broke the protocol: %s", text);
    return FALSE;
}

void sf_qc_message_free(SfQcMessage *message)
{
    if (!message) {
        return;
    }
    sf_packet_close_fds(message->fds, message->n_fds);
    g_bytes_unref(message->payload);
    g_free(message);
}

guint sf_qc_message_steal_fds(SfQcMessage *message, int *fds)
{
    guint n_fds = message->n_fds;

    memcpy(fds, message->fds, n_fds * sizeof(int));
    message->n_fds = 0;
    return n_fds;
}

static gboolean is_event(guint16 type)
{
    return type == SF_QC_EVENT_RUNNING;
}

static gboolean is_reply(guint16 type)
{
    guint16 request = type & ~SF_QC_REPLY;

    return type == SF_QC_ERROR || ((type & SF_QC_REPLY) && request >= SF_QC_HELLO && request <= SF_QC_SHARE);
}

static gboolean check_header(const struct sf_qc_header *header, gsize packet_length, GError **error)
{
    if (header->magic != SF_QC_MAGIC) {
        return invalid(error, "wrong magic 0x%08x", header->magic);
    }
    if (!is_event(header->type) && !is_reply(header->type)) {
        return invalid(error, "unknown type 0x%04x", header->type);
    }
    if (header->zero) {
        return invalid(error, "reserved field is 0x%04x", header->zero);
    }
    if (is_event(header->type) != (header->serial == 0)) {
        return invalid(error, "type 0x%04x with serial %u", header->type, header->serial);
    }
    if (header->length != packet_length - sizeof(*header)) {
        return invalid(error, "length %u in a packet of %zu bytes", header->length, packet_length);
    }
    return TRUE;
}

SfQcMessage *sf_qc_message_parse(const void *bytes, gsize length, const int *fds, guint n_fds, GError **error)
{
    struct sf_qc_header header;

    if (length < sizeof(header) || length > SF_QC_MAX_MESSAGE || n_fds > SF_QC_MAX_FDS) {
        sf_packet_close_fds(fds, n_fds);
        invalid(error, "packet of %zu bytes and %u descriptors", length, n_fds);
        return NULL;
    }
    memcpy(&header, bytes, sizeof(header));
    if (!check_header(&header, length, error)) {
        sf_packet_close_fds(fds, n_fds);
        return NULL;
    }

    SfQcMessage *message = g_new0(SfQcMessage, 1);
    message->header = header;
    message->payload = g_bytes_new((const char *)bytes + sizeof(header), header.length);
    message->n_fds = n_fds;
    if (n_fds) {
        memcpy(message->fds, fds, n_fds * sizeof(int));
    }
    return message;
}

static const SfPacketKind qc_packet = { "sf channel", "QEMU", SF_QC_MAX_MESSAGE, SF_QC_MAX_FDS };

SfQcMessage *sf_qc_receive(int socket, GError **error)
{
    g_autofree char *bytes = g_malloc(SF_QC_MAX_MESSAGE);
    int fds[SF_QC_MAX_FDS];
    guint n_fds;
    gsize length = sf_packet_receive(&qc_packet, socket, bytes, fds, &n_fds, error);

    return length > 0 ? sf_qc_message_parse(bytes, length, fds, n_fds, error) : NULL;
}

gboolean sf_qc_send(int socket, GBytes *packet, const int *fds, guint n_fds, GError **error)
{
    gsize length;
    const void *bytes = g_bytes_get_data(packet, &length);

    return sf_packet_send(&qc_packet, socket, bytes, length, fds, n_fds, error);
}

/* A packet of a header, a fixed part and a second part. */
static GBytes *build(guint16 type, guint32 serial, const void *fixed, gsize n_fixed, const void *more, gsize n_more)
{
    struct sf_qc_header header = { .magic = SF_QC_MAGIC, .type = type, .serial = serial, .length = n_fixed + n_more };
    GByteArray *packet = g_byte_array_sized_new(sizeof(header) + n_fixed + n_more);

    g_assert(serial != 0);
    g_byte_array_append(packet, (const guint8 *)&header, sizeof(header));
    if (n_fixed) {
        g_byte_array_append(packet, fixed, n_fixed);
    }
    if (n_more) {
        g_byte_array_append(packet, more, n_more);
    }
    return g_byte_array_free_to_bytes(packet);
}

GBytes *sf_qc_request_hello(guint32 serial)
{
    struct sf_qc_hello hello = { .version = SF_QC_VERSION };

    return build(SF_QC_HELLO, serial, &hello, sizeof(hello), NULL, 0);
}

GBytes *sf_qc_request_check(guint32 serial)
{
    return build(SF_QC_CHECK, serial, NULL, 0, NULL, 0);
}

GBytes *sf_qc_request_snapshot(guint32 serial, guint32 flags, const struct sf_qc_disk *disks, guint n_disks)
{
    struct sf_qc_snapshot snapshot = { .flags = flags, .n_disks = n_disks };

    g_assert(n_disks <= SF_QC_MAX_DISKS);
    return build(SF_QC_SNAPSHOT, serial, &snapshot, sizeof(snapshot), disks, n_disks * sizeof(*disks));
}

GBytes *sf_qc_request_load(guint32 serial, GBytes *payload)
{
    gsize length;
    const void *bytes = g_bytes_get_data(payload, &length);

    return build(SF_QC_LOAD, serial, bytes, length, NULL, 0);
}

GBytes *sf_qc_request_map(guint32 serial, GBytes *payload)
{
    gsize length;
    const void *bytes = g_bytes_get_data(payload, &length);

    return build(SF_QC_MAP, serial, bytes, length, NULL, 0);
}

GBytes *sf_qc_request_load_mapped(guint32 serial, guint32 flags, guint64 state_length)
{
    struct sf_qc_load load = { .flags = flags | SF_QC_LOAD_MAPPED, .state_length = state_length };

    return build(SF_QC_LOAD, serial, &load, sizeof(load), NULL, 0);
}

GBytes *sf_qc_request_fold(guint32 serial, guint64 max_bytes)
{
    struct sf_qc_fold fold = { .max_bytes = max_bytes };

    return build(SF_QC_FOLD, serial, &fold, sizeof(fold), NULL, 0);
}

GBytes *sf_qc_request_share(guint32 serial, guint64 max_bytes)
{
    struct sf_qc_fold share = { .max_bytes = max_bytes };

    return build(SF_QC_SHARE, serial, &share, sizeof(share), NULL, 0);
}

GBytes *sf_qc_request_thaw(guint32 serial)
{
    return build(SF_QC_THAW, serial, NULL, 0, NULL, 0);
}

GBytes *sf_qc_request_avoided(guint32 serial)
{
    return build(SF_QC_AVOIDED, serial, NULL, 0, NULL, 0);
}

gboolean sf_qc_check_reply(const SfQcMessage *message, guint16 request_type, guint32 serial, GError **error)
{
    g_autofree char *text = NULL;

    if (message->header.serial != serial) {
        return invalid(error, "reply to request %u, expected %u", message->header.serial, serial);
    }
    if (message->header.type == SF_QC_ERROR) {
        if (sf_qc_parse_error(message->payload, message->n_fds, &text, error)) {
            g_set_error_literal(error, G_IO_ERROR, G_IO_ERROR_FAILED, text);
        }
        return FALSE;
    }
    if (message->header.type != (request_type | SF_QC_REPLY)) {
        return invalid(error, "type 0x%04x answers a request 0x%04x", message->header.type, request_type);
    }
    return TRUE;
}

/* Copies the fixed part of a payload; the rest must be count things of size bytes each (both bounded by the caller). */
static gboolean take(GBytes *payload, const char *what, void *fixed, gsize n_fixed, GError **error)
{
    gsize length;
    const void *bytes = g_bytes_get_data(payload, &length);

    if (length < n_fixed) {
        return invalid(error, "%s of %zu bytes, at least %zu expected", what, length, n_fixed);
    }
    memcpy(fixed, bytes, n_fixed);
    return TRUE;
}

static gboolean take_array(GBytes *payload, const char *what, gsize n_fixed, void *array, guint32 count, guint32 limit,
                           gsize size, GError **error)
{
    gsize length;
    const char *bytes = g_bytes_get_data(payload, &length);

    if (count > limit) {
        return invalid(error, "%s with %u parts, at most %u", what, count, limit);
    }
    if (length != n_fixed + count * size) {
        return invalid(error, "%s of %zu bytes, %zu expected", what, length, n_fixed + count * size);
    }
    memcpy(array, bytes + n_fixed, count * size);
    return TRUE;
}

static gboolean take_exactly(GBytes *payload, const char *what, void *fixed, gsize n_fixed, guint n_fds, GError **error)
{
    if (g_bytes_get_size(payload) != n_fixed) {
        return invalid(error, "%s of %zu bytes, %zu expected", what, g_bytes_get_size(payload), n_fixed);
    }
    if (n_fds) {
        return invalid(error, "%s with %u descriptors", what, n_fds);
    }
    return take(payload, what, fixed, n_fixed, error);
}

/* A name: printable UTF-8, not empty, NUL-terminated within its field, NUL to the field's end. */
static gboolean check_name(const char name[SF_QC_NAME_LEN], const char *what, GError **error)
{
    gsize length = strnlen(name, SF_QC_NAME_LEN);

    if (length == 0 || length == SF_QC_NAME_LEN || !g_utf8_validate(name, length, NULL)) {
        return invalid(error, "%s is empty, not NUL-terminated or not UTF-8", what);
    }
    for (gsize i = 0; i < SF_QC_NAME_LEN; i++) {
        if (i < length ? g_ascii_iscntrl(name[i]) : name[i] != '\0') {
            return invalid(error, "%s has control characters or is not NUL-padded", what);
        }
    }
    return TRUE;
}

static gboolean check_length(guint64 length, const char *what, GError **error)
{
    if (length == 0 || length % SF_PAGE_SIZE || length > SF_QC_MAX_LENGTH) {
        return invalid(error, "%s has the length %" G_GUINT64_FORMAT, what, length);
    }
    return TRUE;
}

gboolean sf_qc_parse_hello(GBytes *payload, guint n_fds, struct sf_qc_hello_reply *reply,
                           struct sf_qc_block blocks[SF_QC_MAX_BLOCKS], GError **error)
{
    if (!take(payload, "HELLO", reply, sizeof(*reply), error)) {
        return FALSE;
    }
    if (reply->version != SF_QC_VERSION) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                    "sf channel: this QEMU speaks version %u, sfvmmd %u; install those that were built together",
                    reply->version, SF_QC_VERSION);
        return FALSE;
    }
    if (!take_array(payload, "HELLO", sizeof(*reply), blocks, reply->n_blocks, SF_QC_MAX_BLOCKS, sizeof(*blocks),
                    error)) {
        return FALSE;
    }
    if (n_fds != reply->n_blocks) {
        return invalid(error, "HELLO with %u descriptors for %u blocks", n_fds, reply->n_blocks);
    }
    if (reply->page_size != SF_PAGE_SIZE || reply->vcpus == 0 || reply->vcpus > VCPUS_MAX || reply->running > 1 ||
        reply->loaded > 1) {
        return invalid(error, "HELLO with page size %u, %u vCPUs, running %u, loaded %u", reply->page_size,
                       reply->vcpus, reply->running, reply->loaded);
    }
    if (!check_name(reply->qemu_version, "QEMU's version", error) ||
        !check_name(reply->machine, "machine type", error) || !check_name(reply->accel, "accelerator", error) ||
        !check_name(reply->cpu, "CPU type", error)) {
        return FALSE;
    }
    for (guint i = 0; i < reply->n_blocks; i++) {
        if (!check_name(blocks[i].id, "a block's id", error) || !check_length(blocks[i].length, blocks[i].id, error)) {
            return FALSE;
        }
        if (blocks[i].mode > SF_QC_RAM_LAYERED ||
            (blocks[i].flags && (blocks[i].flags != SF_QC_BLOCK_LAZY || blocks[i].mode != SF_QC_RAM_LAYERED))) {
            return invalid(error, "block %s with mode %u, flags 0x%x", blocks[i].id, blocks[i].mode, blocks[i].flags);
        }
        for (guint j = 0; j < i; j++) {
            if (strcmp(blocks[i].id, blocks[j].id) == 0) {
                return invalid(error, "block %s twice", blocks[i].id);
            }
        }
    }
    return TRUE;
}

/* A text for people: whatever QEMU put there, as UTF-8 without control characters other than line ends. */
static char *printable(const char *bytes, gsize length)
{
    char *text = g_utf8_make_valid(bytes, strnlen(bytes, length));

    for (char *p = text; *p; p++) {
        if (g_ascii_iscntrl(*p) && *p != '\n') {
            *p = ' ';
        }
    }
    return g_strchomp(text);
}

gboolean sf_qc_parse_check(GBytes *payload, guint n_fds, char **text, GError **error)
{
    gsize length;
    const char *bytes = g_bytes_get_data(payload, &length);

    if (n_fds) {
        return invalid(error, "CHECK with %u descriptors", n_fds);
    }
    *text = length ? printable(bytes, length) : g_strdup("");
    return TRUE;
}

gboolean sf_qc_parse_snapshot(GBytes *payload, guint n_fds, struct sf_qc_snapshot_reply *reply,
                              struct sf_qc_snapshot_block blocks[SF_QC_MAX_BLOCKS], GError **error)
{
    guint expected_fds = 1; /* the state */

    if (!take(payload, "SNAPSHOT", reply, sizeof(*reply), error) ||
        !take_array(payload, "SNAPSHOT", sizeof(*reply), blocks, reply->n_blocks, SF_QC_MAX_BLOCKS, sizeof(*blocks),
                    error)) {
        return FALSE;
    }
    if (reply->n_blocks == 0 || reply->zero) {
        return invalid(error, "SNAPSHOT with %u blocks, reserved field %u", reply->n_blocks, reply->zero);
    }
    if (reply->device_length == 0 || reply->device_length > reply->state_length ||
        reply->state_length > SF_QC_MAX_STATE) {
        return invalid(error, "SNAPSHOT with %" G_GUINT64_FORMAT " bytes of state, %" G_GUINT64_FORMAT " of devices",
                       reply->state_length, reply->device_length);
    }
    for (guint i = 0; i < reply->n_blocks; i++) {
        struct sf_qc_snapshot_block *block = &blocks[i];
        if (!check_name(block->id, "a block's id", error) || !check_length(block->length, block->id, error)) {
            return FALSE;
        }
        if (block->has_delta > 1 || block->folded > block->length || (!block->has_delta && block->n_extents) ||
            block->n_extents > SF_QC_MAX_EXTENTS || block->n_extents > block->length / SF_PAGE_SIZE) {
            return invalid(error, "block %s: has_delta %u, %u extents, %" G_GUINT64_FORMAT " bytes folded", block->id,
                           block->has_delta, block->n_extents, block->folded);
        }
        for (guint j = 0; j < i; j++) {
            if (strcmp(block->id, blocks[j].id) == 0) {
                return invalid(error, "block %s twice", block->id);
            }
        }
        expected_fds += block->has_delta ? 3 : 1; /* base, delta, extents */
    }
    if (n_fds != expected_fds) {
        return invalid(error, "SNAPSHOT with %u descriptors, %u expected", n_fds, expected_fds);
    }
    return TRUE;
}

/* Is it a block at a plausible place, another one than the first n, and apart from them? */
static gboolean check_mapped_block(const struct sf_qc_mapped_block *blocks, guint n, GError **error)
{
    const struct sf_qc_mapped_block *block = &blocks[n];

    if (!check_name(block->id, "a block's id", error) || !check_length(block->length, block->id, error)) {
        return FALSE;
    }
    if (block->address == 0 || block->address % SF_PAGE_SIZE || block->address > ADDRESS_MAX ||
        block->length > ADDRESS_MAX - block->address) {
        return invalid(error, "block %s at address 0x%" G_GINT64_MODIFIER "x", block->id, block->address);
    }
    for (guint i = 0; i < n; i++) {
        if (strcmp(block->id, blocks[i].id) == 0) {
            return invalid(error, "block %s twice", block->id);
        }
        if (block->address < blocks[i].address + blocks[i].length &&
            blocks[i].address < block->address + block->length) {
            return invalid(error, "blocks %s and %s at the same address", blocks[i].id, block->id);
        }
    }
    return TRUE;
}

gboolean sf_qc_parse_map(GBytes *payload, guint n_fds, struct sf_qc_map_reply *reply,
                         struct sf_qc_mapped_block blocks[SF_QC_MAX_BLOCKS], GError **error)
{
    if (!take(payload, "MAP", reply, sizeof(*reply), error) ||
        !take_array(payload, "MAP", sizeof(*reply), blocks, reply->n_blocks, SF_QC_MAX_BLOCKS, sizeof(*blocks),
                    error)) {
        return FALSE;
    }
    /* Exactly one userfaultfd if a block is lazy, else none. */
    if (n_fds != (reply->n_blocks > 0) || (reply->n_blocks > 0 ? reply->uffd < 0 : reply->uffd != -1)) {
        return invalid(error, "MAP with %u descriptors and userfaultfd %d for %u lazy blocks", n_fds, reply->uffd,
                       reply->n_blocks);
    }
    for (guint i = 0; i < reply->n_blocks; i++) {
        if (!check_mapped_block(blocks, i, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

gboolean sf_qc_parse_load(GBytes *payload, guint n_fds, struct sf_qc_load_reply *reply, GError **error)
{
    return take_exactly(payload, "LOAD", reply, sizeof(*reply), n_fds, error);
}

gboolean sf_qc_parse_fold(GBytes *payload, guint n_fds, struct sf_qc_fold_reply *reply, GError **error)
{
    return take_exactly(payload, "FOLD, THAW or SHARE", reply, sizeof(*reply), n_fds, error);
}

gboolean sf_qc_parse_avoided(GBytes *payload, guint n_fds, struct sf_qc_avoided_reply *reply, GError **error)
{
    return take_exactly(payload, "AVOIDED", reply, sizeof(*reply), n_fds, error);
}

gboolean sf_qc_parse_error(GBytes *payload, guint n_fds, char **text, GError **error)
{
    struct sf_qc_error reply;

    if (!take_exactly(payload, "ERROR", &reply, sizeof(reply), n_fds, error)) {
        return FALSE;
    }
    if (reply.text[0] == '\0' || reply.text[SF_QC_TEXT_LEN - 1] != '\0') {
        return invalid(error, "ERROR with a text that is empty or not NUL-terminated");
    }
    *text = printable(reply.text, sizeof(reply.text));
    return TRUE;
}

gboolean sf_qc_parse_running(GBytes *payload, guint n_fds, struct sf_qc_running *event, GError **error)
{
    return take_exactly(payload, "EVENT_RUNNING", event, sizeof(*event), n_fds, error);
}

gboolean sf_qc_check_extents(const struct sf_qc_extent *extents, guint n, guint64 length, GError **error)
{
    guint64 end = 0; /* of the extent before */

    for (guint i = 0; i < n; i++) {
        const struct sf_qc_extent *extent = &extents[i];
        if (extent->length == 0 || extent->length % SF_PAGE_SIZE || extent->offset % SF_PAGE_SIZE ||
            extent->offset < end || extent->offset > length || extent->length > length - extent->offset) {
            return invalid(error,
                           "extent %u is %" G_GUINT64_FORMAT "+%" G_GUINT64_FORMAT ", after %" G_GUINT64_FORMAT
                           ", in a block of %" G_GUINT64_FORMAT " bytes",
                           i, extent->offset, extent->length, end, length);
        }
        end = extent->offset + extent->length;
    }
    return TRUE;
}
