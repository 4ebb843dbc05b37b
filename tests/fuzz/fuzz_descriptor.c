/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The descriptor's decoder. The first byte of an input says what the rest is: a descriptor; a page map, which must come
 * back the same when it is packed again; or (checksums and offsets keep a fuzzer out) bytes to put into a good
 * descriptor, three of the input for each: where (16 bits), what.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "sfvmm/descriptor/descriptor.h"
#include "sfvmm/descriptor/page_map.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MODES       3
#define EDIT_LENGTH 3          /* bytes of the input for each byte that is put in */
#define PAGES_MAX   (1u << 22) /* of the page map's block */

static void decode(const void *bytes, size_t size)
{
    g_autoptr(GBytes) given = g_bytes_new(bytes, size);
    g_autoptr(GError) error = NULL;
    g_autoptr(SfDescriptor) d = sf_descriptor_decode(given, &error);

    if ((d == NULL) != (error != NULL)) {
        abort();
    }
    if (d) { /* then it can be shown, and sent on */
        g_autofree char *text = sf_descriptor_to_text(d);
        g_autoptr(JsonNode) json = sf_descriptor_to_json(d);
        g_autoptr(GBytes) again = sf_descriptor_encode(d, NULL);
        if (!text || !json || !again) {
            abort();
        }
    }
}

static void page_map(const uint8_t *data, size_t size)
{
    g_autoptr(GArray) runs = sf_page_map_unpack(data, size, PAGES_MAX * (guint64)SF_PAGE_SIZE, G_MAXUINT, NULL);

    if (!runs) {
        return;
    }
    g_autoptr(GByteArray) again = sf_page_map_pack(runs);
    if (!sf_page_map_check(runs, PAGES_MAX * (guint64)SF_PAGE_SIZE, NULL) || again->len != size ||
        (size && memcmp(again->data, data, size) != 0)) {
        abort();
    }
}

/* A small one with each kind of part in it. */
static GBytes *good_descriptor(void)
{
    const SfRun run = { SF_PAGE_SIZE, 8 * SF_PAGE_SIZE };
    GArray *runs = g_array_new(FALSE, FALSE, sizeof(SfRun));
    g_autoptr(SfDescriptor) d = sf_descriptor_new();

    g_array_append_val(runs, run);
    sf_descriptor_add_block(d, "pc.ram", 64 * SF_PAGE_SIZE, runs);
    sf_descriptor_add_disk(d, "disk0", 1 << 20, "qcow2", "/image");
    d->id = g_strdup("s-1");
    d->vm = g_strdup("vm1");
    d->machine = g_strdup("q35");
    d->cpu = g_strdup("qemu64");
    d->accel = g_strdup("tcg");
    d->qemu_version = g_strdup("10.0.13");
    d->config_hash = g_strdup("0123");
    d->vcpus = 1;
    d->memory = 64 * SF_PAGE_SIZE;
    d->lineage = g_strsplit("s-0", " ", 0);
    d->page_sources = g_strsplit("nbd://h/s nbd://i/s", " ", 0);
    d->device_state = g_bytes_new_take(g_malloc0(256), 256);
    return sf_descriptor_encode(d, NULL);
}

static void edit(const uint8_t *data, size_t size)
{
    static GBytes *good;

    good = good ? good : good_descriptor();
    gsize length = g_bytes_get_size(good);
    g_autofree uint8_t *bytes = g_memdup2(g_bytes_get_data(good, NULL), length);
    for (; size >= EDIT_LENGTH; data += EDIT_LENGTH, size -= EDIT_LENGTH) {
        bytes[(data[0] | data[1] << 8) % length] = data[2];
    }
    decode(bytes, length);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) {
        return 0;
    }
    switch (data[0] % MODES) {
    case 0:
        decode(data + 1, size - 1);
        break;
    case 1:
        page_map(data + 1, size - 1);
        break;
    default:
        edit(data + 1, size - 1);
    }
    return 0;
}
