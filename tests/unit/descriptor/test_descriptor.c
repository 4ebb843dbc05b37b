/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Descriptors: round trips, every truncation, every single-byte corruption, foreign parts, a real one's size. */
#include <libfdt.h>
#include <string.h>
#include "sfvmm/descriptor/descriptor.h"
#include "sfvmm/descriptor/page_map.h"

#define ROUNDS      300u /* of the random tests */
#define GIB         (1ull << 30)
#define EXTRA_ROOM  65536   /* for a tree that is edited */
#define SIZE_TARGET 102400u /* bytes, for a guest of 1 GiB */

/* Runs that pass sf_page_map_check(), within length bytes. */
static GArray *random_runs(guint64 length, guint most)
{
    GArray *runs = g_array_new(FALSE, FALSE, sizeof(SfRun));
    guint64 pages = length / SF_PAGE_SIZE, at = g_test_rand_bit() ? 0 : g_test_rand_int_range(0, 1000);

    while (at < pages && runs->len < most) {
        guint64 count = g_test_rand_int_range(1, g_test_rand_bit() ? 3 : 40000);
        count = MIN(count, pages - at);
        SfRun run = { .offset = at * SF_PAGE_SIZE, .length = count * SF_PAGE_SIZE };
        g_array_append_val(runs, run);
        at += count + g_test_rand_int_range(1, g_test_rand_bit() ? 3 : 40000);
    }
    return runs;
}

static SfDescriptor *descriptor_new(guint n_blocks, guint n_disks, gsize state_length)
{
    SfDescriptor *d = sf_descriptor_new();
    g_autofree guint8 *state = g_malloc0(state_length);

    d->id = g_strdup("s-4f31c2");
    d->vm = g_strdup("web");
    d->machine = g_strdup("pc-q35-10.0");
    d->cpu = g_strdup("qemu64");
    d->accel = g_strdup("tcg");
    d->qemu_version = g_strdup("10.0.13");
    d->config_hash = g_compute_checksum_for_string(G_CHECKSUM_SHA256, "configuration", -1);
    d->vcpus = 2;
    d->memory = n_blocks ? n_blocks * GIB : GIB;
    d->created = 1795380000123456789ull;
    d->lineage = g_strsplit("s-000001 s-000002", " ", 0);
    d->page_sources = g_strsplit("nbd://192.0.2.1/s-4f31c2", " ", 0);
    for (guint i = 0; i < n_blocks; i++) {
        g_autofree char *id = g_strdup_printf("ram%u", i);
        sf_descriptor_add_block(d, id, GIB, random_runs(GIB, 50));
    }
    for (guint i = 0; i < n_disks; i++) {
        g_autofree char *id = g_strdup_printf("disk%u", i);
        sf_descriptor_add_disk(d, id, (i + 1) * GIB, i % 2 ? "raw" : "qcow2", "/srv/image");
    }
    for (gsize i = 0; i < state_length; i += 1 + g_test_rand_int_range(0, 8)) {
        state[i] = g_test_rand_int();
    }
    d->device_state = g_bytes_new(state, state_length);
    return d;
}

static void assert_equal(const SfDescriptor *a, const SfDescriptor *b)
{
    g_autoptr(JsonNode) x = sf_descriptor_to_json(a);
    g_autoptr(JsonNode) y = sf_descriptor_to_json(b);

    g_assert_true(json_node_equal(x, y));
    g_assert_true(g_bytes_equal(a->device_state, b->device_state));
    for (guint i = 0; i < a->blocks->len; i++) {
        const GArray *p = ((SfDescriptorBlock *)g_ptr_array_index(a->blocks, i))->present;
        const GArray *q = ((SfDescriptorBlock *)g_ptr_array_index(b->blocks, i))->present;
        g_assert_cmpmem(p->data, p->len * sizeof(SfRun), q->data, q->len * sizeof(SfRun));
    }
}

static void test_round_trip(void)
{
    for (guint round = 0; round < ROUNDS; round++) {
        g_autoptr(SfDescriptor) d =
            descriptor_new(g_test_rand_int_range(0, SF_DESCRIPTOR_MAX_BLOCKS + 1),
                           g_test_rand_int_range(0, SF_DESCRIPTOR_MAX_DISKS + 1), g_test_rand_int_range(1, 100000));
        g_autoptr(GError) error = NULL;
        if (g_test_rand_bit()) {
            g_clear_pointer(&d->lineage, g_strfreev);
            g_clear_pointer(&d->page_sources, g_strfreev);
        }
        g_autoptr(GBytes) bytes = sf_descriptor_encode(d, &error);
        g_assert_no_error(error);
        g_autoptr(SfDescriptor) back = sf_descriptor_decode(bytes, &error);
        g_assert_no_error(error);
        assert_equal(d, back);

        /* There is one encoding of a descriptor. */
        g_autoptr(GBytes) again = sf_descriptor_encode(back, &error);
        g_assert_true(g_bytes_equal(bytes, again));
    }
}

/* Decodes bytes that may be wrong: an error that says so, or a descriptor that can be shown and encoded. */
static gboolean decode_any(const void *bytes, gsize length)
{
    g_autoptr(GBytes) given = g_bytes_new(bytes, length);
    g_autoptr(GError) error = NULL;
    g_autoptr(SfDescriptor) d = sf_descriptor_decode(given, &error);

    g_assert_true((d != NULL) == (error == NULL));
    if (d) {
        g_autofree char *text = sf_descriptor_to_text(d);
        g_autoptr(JsonNode) json = sf_descriptor_to_json(d);
        g_autoptr(GBytes) again = sf_descriptor_encode(d, &error);
        g_assert_no_error(error);
        g_assert_true(text && json && again);
    } else {
        g_assert_true(g_utf8_validate(error->message, -1, NULL));
    }
    return d != NULL;
}

static void test_truncations(void)
{
    g_autoptr(SfDescriptor) d = descriptor_new(2, 2, 500);
    g_autoptr(GBytes) bytes = sf_descriptor_encode(d, NULL);
    gsize length;
    const guint8 *data = g_bytes_get_data(bytes, &length);
    g_autofree guint8 *longer = g_malloc0(length + 1);

    g_assert_true(decode_any(data, length));
    for (gsize i = 0; i < length; i++) {
        g_assert_false(decode_any(data, i));
    }
    memcpy(longer, data, length);
    g_assert_false(decode_any(longer, length + 1));
}

static void test_corruptions(void)
{
    static const guint8 masks[] = { 0x01, 0x80, 0xff, 0x20 };
    g_autoptr(SfDescriptor) d = descriptor_new(2, 1, 300);
    g_autoptr(GBytes) bytes = sf_descriptor_encode(d, NULL);
    gsize length;
    const guint8 *data = g_bytes_get_data(bytes, &length);
    g_autofree guint8 *bad = g_memdup2(data, length);
    guint accepted = 0;

    for (gsize i = 0; i < length; i++) {
        for (guint m = 0; m < G_N_ELEMENTS(masks); m++) {
            bad[i] ^= masks[m];
            accepted += decode_any(bad, length);
            bad[i] = data[i];
        }
    }
    g_test_message("%u of %zu corruptions give another valid descriptor", accepted, length * G_N_ELEMENTS(masks));
    for (guint round = 0; round < ROUNDS; round++) { /* two at once */
        gsize i = g_test_rand_int_range(0, length), j = g_test_rand_int_range(0, length);
        bad[i] ^= 1 + g_test_rand_int_range(0, 255);
        bad[j] ^= 1 + g_test_rand_int_range(0, 255);
        decode_any(bad, length);
        bad[i] = data[i];
        bad[j] = data[j];
    }
}

/* ---- Foreign parts ---- */

typedef void Edit(void *tree);

static void set_version(void *tree)
{
    g_assert_cmpint(fdt_setprop_u32(tree, 0, "version", SF_DESCRIPTOR_VERSION + 1), ==, 0);
}

static void set_compatible(void *tree)
{
    g_assert_cmpint(fdt_setprop_string(tree, 0, "compatible", "linux,dummy-virt"), ==, 0);
}

static void add_property(void *tree)
{
    g_assert_cmpint(fdt_setprop_u32(tree, fdt_path_offset(tree, "/cpus"), "cores", 1), ==, 0);
}

static void remove_property(void *tree)
{
    g_assert_cmpint(fdt_delprop(tree, fdt_path_offset(tree, "/machine"), "accel"), ==, 0);
}

static void add_node(void *tree)
{
    g_assert_cmpint(fdt_add_subnode(tree, 0, "extra"), >, 0);
}

static void add_deep_node(void *tree)
{
    g_assert_cmpint(fdt_add_subnode(tree, fdt_path_offset(tree, "/memory/block@0/present"), "extra"), >, 0);
}

static void remove_node(void *tree)
{
    g_assert_cmpint(fdt_del_node(tree, fdt_path_offset(tree, "/disks")), ==, 0);
}

static void set_short_number(void *tree)
{
    g_assert_cmpint(fdt_setprop_u32(tree, fdt_path_offset(tree, "/memory"), "size", 4096), ==, 0);
}

static void set_length_of_state(void *tree)
{
    int node = fdt_path_offset(tree, "/device-state");

    g_assert_cmpint(fdt_setprop_u64(tree, node, "length", SF_DESCRIPTOR_MAX_STATE + 1ull), ==, 0);
}

static void set_crc(void *tree)
{
    g_assert_cmpint(fdt_setprop_u32(tree, fdt_path_offset(tree, "/device-state"), "crc32", 1), ==, 0);
}

static void set_encoding(void *tree)
{
    g_assert_cmpint(fdt_setprop_string(tree, fdt_path_offset(tree, "/device-state"), "encoding", "lzma"), ==, 0);
}

static void set_control_character(void *tree)
{
    g_assert_cmpint(fdt_setprop_string(tree, 0, "vm", "we\x1b[31mb"), ==, 0);
}

static void set_two_texts(void *tree)
{
    g_assert_cmpint(fdt_setprop(tree, 0, "vm", "we\0b", 5), ==, 0);
}

static void set_no_cpus(void *tree)
{
    g_assert_cmpint(fdt_setprop_u32(tree, fdt_path_offset(tree, "/cpus"), "count", 0), ==, 0);
}

static void set_unaligned_block(void *tree)
{
    g_assert_cmpint(fdt_setprop_u64(tree, fdt_path_offset(tree, "/memory/block@0"), "length", GIB + 1), ==, 0);
}

static void set_short_block(void *tree)
{
    g_assert_cmpint(fdt_setprop_u64(tree, fdt_path_offset(tree, "/memory/block@0"), "length", SF_PAGE_SIZE), ==, 0);
}

static void add_reservation(void *tree)
{
    g_assert_cmpint(fdt_add_mem_rsv(tree, 0, SF_PAGE_SIZE), ==, 0);
}

static void nothing(void *tree)
{
}

static void test_foreign(void)
{
    static Edit *const edits[] = {
        set_version,   set_compatible,   add_property,        remove_property, add_node,        add_deep_node,
        remove_node,   set_short_number, set_length_of_state, set_crc,         set_encoding,    set_control_character,
        set_two_texts, set_no_cpus,      set_unaligned_block, set_short_block, add_reservation, nothing,
    };
    g_autoptr(SfDescriptor) d = descriptor_new(1, 1, 3000);
    g_autoptr(GBytes) bytes = sf_descriptor_encode(d, NULL);
    gsize size = g_bytes_get_size(bytes) + EXTRA_ROOM;

    for (guint i = 0; i < G_N_ELEMENTS(edits); i++) {
        g_autofree void *tree = g_malloc0(size);
        g_autoptr(GError) error = NULL;
        g_assert_cmpint(fdt_open_into(g_bytes_get_data(bytes, NULL), tree, size), ==, 0);
        edits[i](tree);
        g_assert_cmpint(fdt_pack(tree), ==, 0);
        g_autoptr(GBytes) edited = g_bytes_new(tree, fdt_totalsize(tree));
        g_autoptr(SfDescriptor) decoded = sf_descriptor_decode(edited, &error);
        if (edits[i] == nothing) {
            g_assert_no_error(error);
        } else {
            const int code = edits[i] == set_version ? G_IO_ERROR_NOT_SUPPORTED : G_IO_ERROR_INVALID_DATA;
            g_assert_null(decoded);
            g_assert_error(error, G_IO_ERROR, code);
        }
    }
}

static void assert_not_encoded(SfDescriptor *d)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(sf_descriptor_encode(d, &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA);
    sf_descriptor_free(d);
}

static void test_not_encoded(void)
{
    const SfRun touching[] = { { 0, SF_PAGE_SIZE }, { SF_PAGE_SIZE, SF_PAGE_SIZE } };
    SfDescriptor *d = descriptor_new(1, 0, 10);
    GArray *runs = g_array_new(FALSE, FALSE, sizeof(SfRun));

    g_array_append_vals(runs, touching, 2);
    sf_descriptor_add_block(d, "touching", GIB, runs);
    assert_not_encoded(d);

    d = descriptor_new(1, 0, 10);
    g_clear_pointer(&d->cpu, g_free);
    assert_not_encoded(d);

    d = descriptor_new(SF_DESCRIPTOR_MAX_BLOCKS + 1, 0, 10);
    assert_not_encoded(d);

    d = descriptor_new(0, SF_DESCRIPTOR_MAX_DISKS + 1, 10);
    assert_not_encoded(d);

    d = descriptor_new(0, 0, 10);
    g_clear_pointer(&d->device_state, g_bytes_unref);
    assert_not_encoded(d);
}

/* ---- Page maps ---- */

static void test_page_map(void)
{
    const SfRun picture[] = { { 2 * SF_PAGE_SIZE, 3 * SF_PAGE_SIZE }, { 7 * SF_PAGE_SIZE, SF_PAGE_SIZE } };
    const guint8 packed[] = { 0x02, 0x03, 0x02, 0x01 };
    g_autoptr(GArray) runs = g_array_new(FALSE, FALSE, sizeof(SfRun));

    g_array_append_vals(runs, picture, 2);
    g_autoptr(GByteArray) bytes = sf_page_map_pack(runs);
    g_assert_cmpmem(bytes->data, bytes->len, packed, sizeof(packed));

    const struct {
        guint8 bytes[12];
        gsize length;
    } bad[] = {
        { { 0x00 }, 1 },                   /* half a run */
        { { 0x80, 0x00, 0x01 }, 3 },       /* needless byte */
        { { 0x00, 0x80 }, 2 },             /* cut */
        { { 0x00, 0x00 }, 2 },             /* empty run */
        { { 0x00, 0x01, 0x00, 0x01 }, 4 }, /* no gap */
        { { 0x00, 0x0b }, 2 },             /* longer than the block */
        { { 0x0a, 0x01 }, 2 },             /* behind it */
        { { 0x0b, 0x01 }, 2 },
        { { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0x01 }, 11 },
        { { 0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f }, 10 },
    };
    for (guint i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_assert_null(sf_page_map_unpack(bad[i].bytes, bad[i].length, 10 * SF_PAGE_SIZE, 100, NULL));
    }
    g_assert_null(sf_page_map_unpack(packed, sizeof(packed), 10 * SF_PAGE_SIZE, 1, NULL)); /* too many runs */

    for (guint round = 0; round < ROUNDS; round++) {
        guint64 length = (guint64)g_test_rand_int_range(1, 1 << 20) * SF_PAGE_SIZE;
        g_autoptr(GArray) some = random_runs(length, 10000);
        g_autoptr(GByteArray) map = sf_page_map_pack(some);
        g_autoptr(GError) error = NULL;
        g_assert_true(sf_page_map_check(some, length, &error));
        g_autoptr(GArray) back = sf_page_map_unpack(map->data, map->len, length, some->len, &error);
        g_assert_no_error(error);
        g_assert_cmpmem(some->data, some->len * sizeof(SfRun), back->data, back->len * sizeof(SfRun));
    }
}

/* ---- As people see it ---- */

static void test_text(void)
{
    g_autoptr(SfDescriptor) d = descriptor_new(1, 1, 100);
    g_autofree char *text = sf_descriptor_to_text(d);
    g_autoptr(JsonNode) node = sf_descriptor_to_json(d);
    JsonObject *json = json_node_get_object(node);

    g_assert_nonnull(strstr(text, "VM descriptor s-4f31c2, version 1\n"));
    g_assert_nonnull(strstr(text, "pc-q35-10.0, tcg, QEMU 10.0.13"));
    g_assert_nonnull(strstr(text, "2026-11-22T"));
    g_assert_cmpint(json_object_get_int_member(json, "memory"), ==, GIB);
    g_assert_cmpuint(json_array_get_length(json_object_get_array_member(json, "blocks")), ==, 1);
}

/* A guest of 1 GiB with as many runs as an idle Debian has, and device state as large and as compressible as a real
 * one. */
static void test_size(void)
{
    g_autoptr(SfDescriptor) d = descriptor_new(0, 1, 1);
    g_autofree guint8 *state = g_malloc0(171 << 10);
    GArray *runs = g_array_new(FALSE, FALSE, sizeof(SfRun));

    for (guint64 page = 0; page < 250000; page += g_test_rand_int_range(2, 80)) {
        SfRun run = { .offset = page * SF_PAGE_SIZE, .length = g_test_rand_int_range(1, 40) * SF_PAGE_SIZE };
        g_array_append_val(runs, run);
        page += run.length / SF_PAGE_SIZE;
    }
    sf_descriptor_add_block(d, "pc.ram", GIB, runs);
    for (guint i = 0; i < 30000; i++) {
        state[g_test_rand_int_range(0, 171 << 10)] = g_test_rand_int();
    }
    g_bytes_unref(d->device_state);
    d->device_state = g_bytes_new(state, 171 << 10);
    g_autoptr(GBytes) bytes = sf_descriptor_encode(d, NULL);
    g_test_message("%u runs, %zu bytes of state: %zu bytes", runs->len, g_bytes_get_size(d->device_state),
                   g_bytes_get_size(bytes));
    g_assert_cmpuint(g_bytes_get_size(bytes), <=, SIZE_TARGET);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/descriptor/page-map", test_page_map);
    g_test_add_func("/descriptor/round-trip", test_round_trip);
    g_test_add_func("/descriptor/truncations", test_truncations);
    g_test_add_func("/descriptor/corruptions", test_corruptions);
    g_test_add_func("/descriptor/foreign", test_foreign);
    g_test_add_func("/descriptor/not-encoded", test_not_encoded);
    g_test_add_func("/descriptor/text", test_text);
    g_test_add_func("/descriptor/size", test_size);
    return g_test_run();
}
