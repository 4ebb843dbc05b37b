/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The configuration of a VM: what is taken, what is refused and in which words, and what its hash depends on. */
#include <gio/gio.h>
#include "sfvmm/vm/vm_config.h"

static SfVmConfig *parse(const char *text, GError **error)
{
    g_autoptr(GError) json_error = NULL;
    g_autoptr(JsonNode) node = json_from_string(text, &json_error);

    g_assert_no_error(json_error);
    return sf_vm_config_from_json(json_node_get_object(node), error);
}

#define WHOLE                                                                                                          \
    "{\"memory\":1073741824,\"vcpus\":4,\"accel\":\"tcg\",\"cpu\":\"max,-avx\",\"kernel\":\"/k\",\"initrd\":\"/i\","   \
    "\"append\":\"quiet a=b\",\"network\":\"user\",\"disks\":[{\"path\":\"/a\",\"format\":\"raw\",\"readonly\":true}," \
    "{\"path\":\"/b c\",\"ephemeral\":true,\"size\":4096,\"id\":\"disk1\"}]}"

static void test_whole(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(SfVmConfig) config = parse(WHOLE, &error);
    g_autoptr(JsonObject) object = NULL;
    g_autoptr(SfVmConfig) again = NULL;
    const SfDiskConfig *disk;

    g_assert_no_error(error);
    object = sf_vm_config_to_json(config);
    again = sf_vm_config_from_json(object, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(again->memory, ==, 1u << 30);
    g_assert_cmpuint(again->vcpus, ==, 4);
    g_assert_cmpstr(again->accel, ==, "tcg");
    g_assert_cmpstr(again->cpu, ==, "max,-avx");
    g_assert_cmpstr(again->kernel, ==, "/k");
    g_assert_cmpstr(again->initrd, ==, "/i");
    g_assert_cmpstr(again->append, ==, "quiet a=b");
    g_assert_cmpstr(again->network, ==, "user");
    g_assert_cmpuint(again->disks->len, ==, 2);
    disk = g_ptr_array_index(again->disks, 1);
    g_assert_cmpstr(disk->id, ==, "disk1");
    g_assert_cmpstr(disk->path, ==, "/b c");
    g_assert_null(disk->format);
    g_assert_true(disk->ephemeral);
    g_assert_false(disk->readonly);
    g_assert_cmpuint(disk->size, ==, 4096);
}

static void test_cluster(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(SfVmConfig) plain = parse("{\"kernel\":\"/k\",\"network\":\"cluster\"}", &error);
    g_autoptr(SfVmConfig) config = parse("{\"kernel\":\"/k\",\"network\":\"cluster\",\"address\":\"192.168.7.9/24\","
                                         "\"outside\":[\"192.0.2.1 tcp 80\",\"192.0.2.2\"]}", &error);
    g_autoptr(JsonObject) object = NULL;
    g_autoptr(SfVmConfig) again = NULL;

    g_assert_no_error(error);
    g_assert_true(sf_vm_config_has_cluster(plain));
    g_assert_cmphex(plain->address, ==, 0x0a4d0001);
    g_assert_null(plain->outside);
    object = sf_vm_config_to_json(config);
    again = sf_vm_config_from_json(object, &error);
    g_assert_no_error(error);
    g_assert_cmphex(again->address, ==, 0xc0a80709);
    g_assert_cmpuint(again->prefix, ==, 24);
    g_assert_cmpuint(g_strv_length(again->outside), ==, 2);
    g_assert_cmpstr(again->outside[0], ==, "192.0.2.1 tcp 80");
}

static void test_defaults(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(SfVmConfig) config = parse("{\"kernel\":\"/k\"}", &error);

    g_assert_no_error(error);
    g_assert_cmpuint(config->vcpus, ==, 1);
    g_assert_cmpstr(config->accel, ==, "auto");
    g_assert_cmpstr(config->network, ==, "none");
    g_assert_cmpuint(config->disks->len, ==, 0);
}

static void test_refused(void)
{
    static const struct {
        const char *text, *words;
    } cases[] = {
        { "{}", "nothing to boot" },
        { "{\"kernel\":\"/k\",\"memroy\":1}", "memroy" },
        { "{\"kernel\":\"/k\",\"memory\":\"1G\"}", "\"memory\" must be an integer" },
        { "{\"kernel\":\"/k\",\"memory\":-1}", "\"memory\" is -1" },
        { "{\"kernel\":\"/k\",\"memory\":1048575}", "must be from" },
        { "{\"kernel\":\"/k\",\"memory\":1048577}", "multiple" },
        { "{\"kernel\":\"/k\",\"memory\":9223372036854775807}", "must be from" },
        { "{\"kernel\":\"/k\",\"vcpus\":0}", "\"vcpus\" is 0" },
        { "{\"kernel\":\"/k\",\"vcpus\":65}", "\"vcpus\" is 65" },
        { "{\"kernel\":\"/k\",\"vcpus\":1.5}", "\"vcpus\" must be an integer" },
        { "{\"kernel\":\"/k\",\"accel\":\"xen\"}", "must be one of: auto, kvm, tcg" },
        { "{\"kernel\":\"/k\",\"network\":\"bridge\"}", "must be one of: none, user, cluster" },
        { "{\"kernel\":\"/k\",\"network\":\"user\",\"address\":\"10.0.0.1/24\"}", "\"address\" needs" },
        { "{\"kernel\":\"/k\",\"outside\":[]}", "\"outside\" needs" },
        { "{\"kernel\":\"/k\",\"network\":\"cluster\",\"address\":\"10.0.0.1/31\"}", "from /8 to /30" },
        { "{\"kernel\":\"/k\",\"network\":\"cluster\",\"address\":\"10.0.0.254/24\"}", "can't be a VM's" },
        { "{\"kernel\":\"/k\",\"network\":\"cluster\",\"outside\":[\"a\\nb\"]}", "control character" },
        { "{\"kernel\":\"/k\",\"cpu\":\"\"}", "\"cpu\"" },
        { "{\"kernel\":\"/k\",\"cpu\":\"-S\"}", "\"cpu\"" },
        { "{\"kernel\":\"k\"}", "\"kernel\" must be an absolute path" },
        { "{\"kernel\":null}", "\"kernel\" must be a string" },
        { "{\"kernel\":\"/k\",\"append\":\"a\\nb\"}", "control character" },
        { "{\"initrd\":\"/i\",\"disks\":[{\"path\":\"/a\"}]}", "\"initrd\" needs a \"kernel\"" },
        { "{\"kernel\":\"/k\",\"disks\":{}}", "\"disks\" must be an array" },
        { "{\"kernel\":\"/k\",\"disks\":[1]}", "must be an object" },
        { "{\"kernel\":\"/k\",\"disks\":[{}]}", "\"disks.path\" is missing" },
        { "{\"kernel\":\"/k\",\"disks\":[{\"path\":\"a\"}]}", "absolute" },
        { "{\"kernel\":\"/k\",\"disks\":[{\"path\":\"/a\",\"format\":\"vmdk\"}]}", "raw, qcow2" },
        { "{\"kernel\":\"/k\",\"disks\":[{\"path\":\"/a\",\"id\":\"disk1\"}]}", "disks.id" },
        { "{\"kernel\":\"/k\",\"disks\":[{\"path\":\"/a\",\"readonly\":1}]}", "true or false" },
        { "{\"kernel\":\"/k\",\"disks\":[{\"path\":\"/a\",\"readonly\":true,\"ephemeral\":true}]}", "at once" },
        { "{\"kernel\":\"/k\",\"disks\":[{\"path\":\"/a\",\"cache\":\"none\"}]}", "disks.cache" },
        { "{\"kernel\":\"/k\",\"disks\":[{\"path\":\"/1\"},{\"path\":\"/2\"},{\"path\":\"/3\"},{\"path\":\"/"
          "4\"},{\"path\":\"/5\"},"
          "{\"path\":\"/6\"},{\"path\":\"/7\"},{\"path\":\"/8\"},{\"path\":\"/9\"}]}",
          "at most 8" },
    };

    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(SfVmConfig) config = parse(cases[i].text, &error);
        g_assert_null(config);
        g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT);
        if (!strstr(error->message, cases[i].words)) {
            g_test_message("%s: \"%s\" lacks \"%s\"", cases[i].text, error->message, cases[i].words);
            g_test_fail();
        }
    }
}

static char *hash_of(const char *text, const char *version)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(SfVmConfig) config = parse(text, &error);

    g_assert_no_error(error);
    return sf_vm_config_hash(config, version);
}

/* What the guest's devices depend on changes it; what is in the guest's RAM by then, and where images lie, does not. */
static void test_hash(void)
{
    static const char *const same[] = {
        "{\"kernel\":\"/other\",\"disks\":[{\"path\":\"/a\",\"size\":4096}]}",
        "{\"kernel\":\"/k\",\"append\":\"x\",\"disks\":[{\"path\":\"/elsewhere\",\"size\":4096}]}",
    };
    static const char *const other[] = {
        "{\"kernel\":\"/k\",\"disks\":[{\"path\":\"/a\",\"size\":8192}]}",
        "{\"kernel\":\"/k\",\"disks\":[{\"path\":\"/a\",\"size\":4096,\"readonly\":true}]}",
        "{\"kernel\":\"/k\",\"disks\":[]}",
        "{\"kernel\":\"/k\",\"vcpus\":2,\"disks\":[{\"path\":\"/a\",\"size\":4096}]}",
        "{\"kernel\":\"/k\",\"memory\":1048576,\"disks\":[{\"path\":\"/a\",\"size\":4096}]}",
        "{\"kernel\":\"/k\",\"cpu\":\"max\",\"disks\":[{\"path\":\"/a\",\"size\":4096}]}",
        "{\"kernel\":\"/k\",\"network\":\"user\",\"disks\":[{\"path\":\"/a\",\"size\":4096}]}",
    };
    const char *base_text = "{\"kernel\":\"/k\",\"disks\":[{\"path\":\"/a\",\"size\":4096}]}";
    g_autofree char *base = hash_of(base_text, "10.0.13");
    g_autofree char *version = hash_of(base_text, "10.0.14");

    g_assert_cmpuint(strlen(base), ==, 64);
    g_assert_cmpstr(base, !=, version);
    for (guint i = 0; i < G_N_ELEMENTS(same); i++) {
        g_autofree char *hash = hash_of(same[i], "10.0.13");
        g_assert_cmpstr(hash, ==, base);
    }
    for (guint i = 0; i < G_N_ELEMENTS(other); i++) {
        g_autofree char *hash = hash_of(other[i], "10.0.13");
        g_assert_cmpstr(hash, !=, base);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/vm_config/whole", test_whole);
    g_test_add_func("/vm_config/cluster", test_cluster);
    g_test_add_func("/vm_config/defaults", test_defaults);
    g_test_add_func("/vm_config/refused", test_refused);
    g_test_add_func("/vm_config/hash", test_hash);
    return g_test_run();
}
