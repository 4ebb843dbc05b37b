/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What QEMU says on the sf channel. An input is a byte that says how many descriptors come beside the packet, then the
 * packet. A payload is also read as extents. No real descriptor is involved: -1 stands for each.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "sfvmm/wire/qemu_message.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define BLOCK_LENGTH (1ull << 30)

static gboolean parse(const SfQcMessage *message, GError **error)
{
    struct sf_qc_hello_reply hello;
    struct sf_qc_block blocks[SF_QC_MAX_BLOCKS];
    struct sf_qc_snapshot_reply snapshot;
    struct sf_qc_snapshot_block snapshot_blocks[SF_QC_MAX_BLOCKS];
    struct sf_qc_map_reply map;
    struct sf_qc_mapped_block mapped_blocks[SF_QC_MAX_BLOCKS];
    struct sf_qc_load_reply load;
    struct sf_qc_fold_reply fold;
    struct sf_qc_avoided_reply avoided;
    struct sf_qc_running running;
    g_autofree char *text = NULL;

    switch (message->header.type) {
    case SF_QC_HELLO | SF_QC_REPLY:
        return sf_qc_parse_hello(message->payload, message->n_fds, &hello, blocks, error);
    case SF_QC_CHECK | SF_QC_REPLY:
        return sf_qc_parse_check(message->payload, message->n_fds, &text, error);
    case SF_QC_SNAPSHOT | SF_QC_REPLY:
        return sf_qc_parse_snapshot(message->payload, message->n_fds, &snapshot, snapshot_blocks, error);
    case SF_QC_MAP | SF_QC_REPLY:
        return sf_qc_parse_map(message->payload, message->n_fds, &map, mapped_blocks, error);
    case SF_QC_LOAD | SF_QC_REPLY:
        return sf_qc_parse_load(message->payload, message->n_fds, &load, error);
    case SF_QC_FOLD | SF_QC_REPLY:
    case SF_QC_THAW | SF_QC_REPLY:
    case SF_QC_SHARE | SF_QC_REPLY:
        return sf_qc_parse_fold(message->payload, message->n_fds, &fold, error);
    case SF_QC_AVOIDED | SF_QC_REPLY:
        return sf_qc_parse_avoided(message->payload, message->n_fds, &avoided, error);
    case SF_QC_EVENT_RUNNING:
        return sf_qc_parse_running(message->payload, message->n_fds, &running, error);
    default:
        return sf_qc_check_reply(message, SF_QC_HELLO, message->header.serial, error);
    }
}

static void extents(GBytes *payload)
{
    gsize size;
    const void *bytes = g_bytes_get_data(payload, &size);
    guint n = size / sizeof(struct sf_qc_extent);
    g_autofree struct sf_qc_extent *array = g_malloc(n * sizeof(*array));
    guint64 total = 0;

    if (n) {
        memcpy(array, bytes, n * sizeof(*array));
    }
    if (!sf_qc_check_extents(array, n, BLOCK_LENGTH, NULL)) {
        return;
    }
    for (guint i = 0; i < n; i++) {
        total += array[i].length;
    }
    if (total > BLOCK_LENGTH) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int fds[SF_QC_MAX_FDS + 1];
    g_autoptr(GError) error = NULL;

    if (size == 0) {
        return 0;
    }
    memset(fds, -1, sizeof(fds));
    g_autoptr(SfQcMessage) message =
        sf_qc_message_parse(data + 1, size - 1, fds, data[0] % (SF_QC_MAX_FDS + 2), &error);
    if ((message == NULL) != (error != NULL)) {
        abort();
    }
    if (message) {
        gboolean ok = parse(message, &error);
        if (ok != (error == NULL)) {
            abort();
        }
        extents(message->payload);
    }
    return 0;
}
