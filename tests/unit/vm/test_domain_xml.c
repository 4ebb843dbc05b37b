/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A domain's XML: what is read, what it lacks, what a shell's has of its own. */
#include <string.h>

#include "libsf/wire/guest_protocol.h"
#include "sfvmm/vm/domain_xml.h"

#define QEMU "/opt/snowflock/qemu"

#define UUID "b419b6ef-ad36-4ebc-9fd8-71139f65e63d"

/* With %s for what is in <domain>, and in <devices>. */
#define DOMAIN                                                                                                         \
    "<domain type='kvm' id='3'><name>web</name><uuid>" UUID "</uuid><title>old</title>"                                \
    "<metadata><other xmlns='urn:other'/></metadata><memory unit='MiB'>512</memory><vcpu>2</vcpu>"                     \
    "<os><type>hvm</type><kernel>/boot/k</kernel><cmdline>quiet</cmdline></os>%s<on_reboot>restart</on_reboot>"        \
    "<devices>%s</devices></domain>"

#define FORKABLE "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
#define DEVICES                                                                                                        \
    "<emulator>" QEMU "</emulator>"                                                                                    \
    "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/srv/top.qcow2'/>"                \
    "<backingStore type='file'><format type='raw'/><source file='/srv/base.img'/><backingStore/></backingStore>"       \
    "<target dev='vda'/><alias name='virtio-disk0'/></disk>"                                                           \
    "<disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>"                                           \
    "<disk type='block' device='disk'><driver type='raw'/><source dev='/dev/sdx'/><target "                            \
    "dev='vdb'/><readonly/></disk>"                                                                                    \
    "<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/><target "                        \
    "dev='vnet0'/></interface>"                                                                                        \
    "<interface type='user'><mac address='52:54:00:00:00:02'/></interface>"                                            \
    "<serial type='file'><source path='/var/log/web'/></serial>"                                                       \
    "<channel type='unix'><source mode='bind' path='/run/agent'/><target type='virtio' name='" SF_GP_PORT "'/>"        \
    "<alias name='channel0'/></channel>"                                                                               \
    "<graphics type='vnc' port='5901' autoport='no'/>"

static char *domain_text(const char *inside, const char *devices)
{
    return g_strdup_printf(DOMAIN, inside, devices);
}

static SfDomainXml *parse(const char *inside, const char *devices)
{
    g_autofree char *text = domain_text(inside, devices);
    g_autoptr(GError) error = NULL;
    SfDomainXml *domain = sf_domain_xml_parse(text, &error);

    g_assert_no_error(error);
    return domain;
}

static void test_read(void)
{
    g_autoptr(SfDomainXml) domain = parse(FORKABLE, DEVICES);
    g_autoptr(GPtrArray) lacks = sf_domain_xml_lacks(domain, QEMU);
    const SfDomainDisk *disk;
    const SfDomainImage *image;

    g_assert_cmpstr(domain->name, ==, "web");
    g_assert_cmpuint(domain->memory, ==, 512u << 20);
    g_assert_cmpuint(domain->vcpus, ==, 2);
    g_assert_cmpstr(domain->agent_path, ==, "/run/agent");
    g_assert_cmpstr(domain->agent_alias, ==, "channel0");
    g_assert_cmpuint(domain->disks->len, ==, 2); /* the drive without medium is none */
    disk = g_ptr_array_index(domain->disks, 0);
    g_assert_cmpstr(disk->path, ==, "/srv/top.qcow2");
    g_assert_cmpuint(disk->backing->len, ==, 1);
    image = g_ptr_array_index(disk->backing, 0);
    g_assert_cmpstr(image->path, ==, "/srv/base.img");
    g_assert_true(((SfDomainDisk *)g_ptr_array_index(domain->disks, 1))->readonly);
    g_assert_cmpuint(lacks->len, ==, 0);
}

static void test_bad(void)
{
    static const char *const texts[] = {
        "",
        "<",
        "text",
        "<domain/>",
        "<network><name>n</name></network>",
        "<!DOCTYPE d [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><domain type='kvm'><name>&e;</name><uuid>" UUID
        "</uuid><memory>1024</memory></domain>",
        "<domain type='kvm'><name>n</name><uuid>none</uuid><memory>1024</memory></domain>",
        "<domain type='kvm'><name>n</name><uuid>" UUID "</uuid><memory>-1</memory></domain>",
        "<domain type='kvm'><name>n</name><uuid>" UUID "</uuid><memory unit='parsec'>1</memory></domain>",
    };
    g_autofree char *much = g_strnfill(SF_DOMAIN_XML_MAX + 1, ' ');

    for (guint i = 0; i < G_N_ELEMENTS(texts); i++) {
        g_autoptr(GError) error = NULL;
        g_assert_null(sf_domain_xml_parse(texts[i], &error));
        g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA);
    }
    g_assert_null(sf_domain_xml_parse(much, NULL));
}

static void test_lacks(void)
{
    static const char *const never[] = {
        "<hostdev/>",
        "<filesystem/>",
        "<tpm/>",
        "<shmem/>",
        "<interface type='vhostuser'/>",
        "<disk type='network'><driver type='raw'/><source protocol='rbd'/><target dev='vda'/></disk>",
        "<disk type='file'><driver type='qcow2'/><source file='/i'/><target dev='vda'/><shareable/></disk>",
    };
    g_autoptr(SfDomainXml) bare = parse("", "<emulator>/usr/bin/kvm</emulator>");
    g_autoptr(GPtrArray) lacks = sf_domain_xml_lacks(bare, QEMU);

    g_assert_cmpuint(lacks->len, ==, 3);
    for (guint i = 0; i < lacks->len; i++) {
        g_assert_nonnull(((SfDomainLack *)g_ptr_array_index(lacks, i))->xml);
    }
    for (guint i = 0; i < G_N_ELEMENTS(never); i++) {
        g_autofree char *devices = g_strconcat(DEVICES, never[i], NULL);
        g_autoptr(SfDomainXml) domain = parse(FORKABLE, devices);
        g_autoptr(GPtrArray) one = sf_domain_xml_lacks(domain, QEMU);
        g_assert_cmpuint(one->len, ==, 1);
        g_assert_null(((SfDomainLack *)g_ptr_array_index(one, 0))->xml);
    }
}

static void test_fix(void)
{
    g_autofree char *text = domain_text("", "<emulator>/usr/bin/kvm</emulator>");
    g_autofree char *fixed = sf_domain_xml_fix(text, QEMU, NULL);
    g_autofree char *again = sf_domain_xml_fix(fixed, QEMU, NULL);
    g_autoptr(SfDomainXml) domain = sf_domain_xml_parse(fixed, NULL);
    g_autoptr(GPtrArray) lacks = sf_domain_xml_lacks(domain, QEMU);

    g_assert_cmpuint(lacks->len, ==, 0);
    g_assert_cmpstr(fixed, ==, again);
}

static void test_shell(void)
{
    static const char *const gone[] = { "id=\"3\"",       "/boot/k",       "quiet", "/var/log/web", "/run/agent",
                                        "channel0",       "5901",          "vnet0", "00:00:01",     "urn:other",
                                        "/srv/top.qcow2", "/srv/base.img", UUID };
    static const char *const there[] = { "/overlay/1",
                                         "/dev/sdx",
                                         "<title>web-shell-1</title>",
                                         "autoport=\"yes\"",
                                         "<on_reboot>destroy</on_reboot>",
                                         "state=\"down\"",
                                         SF_DOMAIN_METADATA_URI };
    const SfDomainLineage lineage = { .role = "shell", .owner = "/run/<a>&'b'", .vm = "web-shell-1" };
    g_autoptr(GPtrArray) overlays = g_ptr_array_new();
    g_autofree char *template = domain_text(FORKABLE, DEVICES);
    g_autofree char *uuid = g_uuid_string_random();
    g_autofree char *text = NULL;
    g_autofree char *metadata = sf_domain_lineage_format(&lineage);
    g_autofree char *owner = sf_domain_lineage_owner(metadata);
    g_autoptr(SfDomainXml) shell = NULL;
    g_autoptr(GError) error = NULL;

    g_assert_cmpstr(owner, ==, lineage.owner);
    g_assert_null(sf_domain_xml_shell(template, "sf-web-1", uuid, &lineage, overlays, &error)); /* too few */
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA);
    g_ptr_array_add(overlays, (char *)"/overlay/1");
    text = sf_domain_xml_shell(template, "sf-web-1", uuid, &lineage, overlays, NULL);
    for (guint i = 0; i < G_N_ELEMENTS(gone); i++) {
        g_assert_null(strstr(text, gone[i]));
    }
    for (guint i = 0; i < G_N_ELEMENTS(there); i++) {
        g_assert_nonnull(strstr(text, there[i]));
    }
    shell = sf_domain_xml_parse(text, NULL);
    g_assert_cmpstr(shell->uuid, ==, uuid);
    g_assert_cmpstr(((SfDomainDisk *)g_ptr_array_index(shell->disks, 0))->format, ==, "qcow2");
    g_assert_cmpuint(((SfDomainDisk *)g_ptr_array_index(shell->disks, 0))->backing->len, ==, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/domain_xml/read", test_read);
    g_test_add_func("/domain_xml/bad", test_bad);
    g_test_add_func("/domain_xml/lacks", test_lacks);
    g_test_add_func("/domain_xml/fix", test_fix);
    g_test_add_func("/domain_xml/shell", test_shell);
    return g_test_run();
}
