/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A domain's XML: what is read, what it lacks, what a shell's has of its own. */
#include <string.h>

#include "libsf/wire/guest_protocol.h"
#include "sfvmm/vm/domain_network.h"
#include "sfvmm/vm/domain_portable.h"
#include "sfvmm/vm/domain_xml.h"
#include "sfvmm/vm/vm_config.h"

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
    g_assert_false(sf_domain_lacks_forkable(lacks));
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

static void test_memory(void)
{
    static const struct {
        const char *inside;
        gboolean lacks, forkable;
    } cases[] = {
        { FORKABLE, FALSE, TRUE },
        { "", TRUE, TRUE },
        { "<memoryBacking><nosharepages/></memoryBacking>", TRUE, TRUE },
        { "<memoryBacking><source type='anonymous'/></memoryBacking>", TRUE, TRUE },
        { "<memoryBacking><hugepages/></memoryBacking>", TRUE, FALSE },
        { "<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>", TRUE, FALSE },
        { "<memoryBacking><source type='memfd'/><access mode='private'/></memoryBacking>", TRUE, FALSE },
    };

    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(SfDomainXml) domain = parse(cases[i].inside, DEVICES);
        g_autoptr(GPtrArray) lacks = sf_domain_xml_lacks(domain, QEMU);
        g_assert_cmpint(lacks->len > 0, ==, cases[i].lacks);
        g_assert_cmpint(sf_domain_lacks_forkable(lacks), ==, cases[i].forkable);
    }
}

static void test_fix(void)
{
    g_autofree char *text = domain_text("", "<emulator>/usr/bin/kvm</emulator>");
    g_autofree char *fixed = sf_domain_xml_fix(text, QEMU, NULL, NULL);
    g_autofree char *again = sf_domain_xml_fix(fixed, QEMU, NULL, NULL);
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
    static const char *const there[] = { "/overlay/1",       "<emulator>/other/qemu</emulator>",
                                         "/dev/sdx",         "<title>web-shell-1</title>",
                                         "autoport=\"yes\"", "<on_reboot>destroy</on_reboot>",
                                         "state=\"down\"",   SF_DOMAIN_METADATA_URI };
    const SfDomainLineage lineage = { .role = "shell", .owner = "/run/<a>&'b'", .vm = "web-shell-1" };
    g_autoptr(GPtrArray) overlays = g_ptr_array_new();
    g_autofree char *template = domain_text(FORKABLE, DEVICES);
    g_autofree char *uuid = g_uuid_string_random();
    const SfDomainShell here = { template, "sf-web-1", uuid, &lineage, "/other/qemu", overlays, 0 };
    g_autofree char *text = NULL;
    g_autofree char *metadata = sf_domain_lineage_format(&lineage);
    g_autofree char *owner = sf_domain_lineage_owner(metadata);
    g_autoptr(SfDomainXml) shell = NULL;
    g_autoptr(GError) error = NULL;

    g_assert_cmpstr(owner, ==, lineage.owner);
    g_assert_null(sf_domain_xml_shell(&here, &error)); /* too few */
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA);
    g_ptr_array_add(overlays, (char *)"/overlay/1");
    text = sf_domain_xml_shell(&here, NULL);
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

#define PORTABLE                                                                                                       \
    "<emulator>" QEMU "</emulator>"                                                                                    \
    "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/srv/top.qcow2'/>"                \
    "<backingStore type='file'><format type='raw'/><source file='/srv/base.img'/><backingStore/></backingStore>"       \
    "<target dev='vda'/><alias name='virtio-disk0'/></disk>"                                                           \
    "<disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>"                                           \
    "<interface type='user'><mac address='52:54:00:00:00:02'/></interface>"                                            \
    "<serial type='file'><source path='/var/log/web'/></serial>"                                                       \
    "<channel type='unix'><source mode='bind' path='/run/agent'/><target type='virtio' name='" SF_GP_PORT "'/>"        \
    "</channel><rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>"                               \
    "<graphics type='vnc' port='5901' autoport='no' listen='0.0.0.0'><listen type='address' address='0.0.0.0'/>"       \
    "</graphics>"

/* Two hosts' XML of one machine have one portable form, in which nothing is of either; a peer takes that alone. */
static void test_portable(void)
{
    static const char *const gone[] = {
        QEMU, "/srv", "/var", "/run", "/boot", "5901", "0.0.0.0", "urn:other", "00:02"
    };
    g_autofree char *text = domain_text(FORKABLE, PORTABLE);
    g_autoptr(GError) error = NULL;
    g_autofree char *form = sf_domain_portable(text, 0, &error);
    g_autofree char *again = form ? sf_domain_portable(form, 0, &error) : NULL;
    g_autoptr(GString) elsewhere = g_string_new(text);
    g_autofree char *same = NULL;

    g_assert_no_error(error);
    g_assert_cmpstr(form, ==, again);
    for (guint i = 0; i < G_N_ELEMENTS(gone); i++) {
        g_assert_null(strstr(form, gone[i]));
    }
    g_string_replace(elsewhere, QEMU, "/usr/bin/other", 0);
    g_string_replace(elsewhere, "/srv/", "/images/", 0);
    same = sf_domain_portable(elsewhere->str, 0, NULL);
    g_assert_cmpstr(form, ==, same);
    g_assert_true(sf_domain_portable_check(form, 0, 512u << 20, 2, 1, "kvm", &error));
    g_assert_no_error(error);
    g_assert_false(sf_domain_portable_check(text, 0, 512u << 20, 2, 1, "kvm", NULL)); /* not in the form */
    g_assert_false(sf_domain_portable_check(form, 0, 256u << 20, 2, 1, "kvm", NULL)); /* more than its place is for */
    g_assert_false(sf_domain_portable_check(form, 0, 512u << 20, 1, 1, "kvm", NULL));
    g_assert_false(sf_domain_portable_check(form, 0, 512u << 20, 2, 2, "kvm", NULL));
    g_assert_false(sf_domain_portable_check(form, 0, 512u << 20, 2, 1, "tcg", NULL));
}

/* What another host can't have, or must not do for a peer. */
static void test_not_portable(void)
{
    static const char *const inside[] = {
        "<cputune/>",
        "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:arg value='x'/>"
        "</qemu:commandline>",
        "<numatune/>",
        "<sysinfo type='fwcfg'/>",
        "<features><acpi table='/etc/passwd'/></features>",
        "<on_crash>coredump-destroy</on_crash>",
        "<cpu><model>/etc/passwd</model></cpu>",
    };
    static const char *const devices[] = {
        "<interface type='bridge'><source bridge='br0'/></interface>",
        "<interface type='ethernet'><mac address='02:5f:0a:4d:00:01'/></interface>",
        "<interface type='user'><backend type='passt' logFile='/tmp/x'/></interface>",
        "<interface type='user'><script path='/tmp/x'/></interface>",
        "<serial type='tcp'><source mode='connect' host='10.0.0.1' service='1'/></serial>",
        "<serial type='pty'><log file='relative'/><source mode='x'/></serial>",
        "<channel type='spicevmc'><target type='virtio' name='x'/></channel>",
        "<rng model='virtio'><backend model='random'>/dev/sda</backend></rng>",
        "<rng model='virtio'><backend model='egd' type='tcp'/></rng>",
        "<input type='evdev'><source dev='/dev/input/event1'/></input>",
        "<redirdev bus='usb' type='tcp'/>",
        "<smartcard mode='host'/>",
        "<memory model='nvdimm'><source><path>/dev/dax</path></source></memory>",
        "<video><model type='virtio'><acceleration accel3d='yes' rendernode='/dev/dri/card0'/></model></video>",
        "<audio id='1' type='oss'/>",
        "<graphics type='egl-headless'/>",
        "<disk type='file'><driver type='raw'/><source file='/i'/><target dev='vdx'/><readonly/></disk>",
        "<disk type='file'><driver type='raw'/><source file='/i'/><target dev='vdx'/><auth username='x'/></disk>",
        "<hostdev/>",
        "<unheard-of/>",
    };

    for (guint i = 0; i < G_N_ELEMENTS(inside) + G_N_ELEMENTS(devices); i++) {
        guint device = i - (guint)G_N_ELEMENTS(inside);
        g_autofree char *more_inside = g_strconcat(FORKABLE, i < G_N_ELEMENTS(inside) ? inside[i] : "", NULL);
        g_autofree char *more = g_strconcat(PORTABLE, i < G_N_ELEMENTS(inside) ? "" : devices[device], NULL);
        g_autofree char *text = domain_text(more_inside, more);
        g_autofree char *form = NULL;
        g_autoptr(GError) error = NULL;

        g_test_message("%s", i < G_N_ELEMENTS(inside) ? inside[i] : devices[device]);
        form = sf_domain_portable(text, 0, &error);
        g_assert_null(form);
        g_assert_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED);
    }
}

#define ADDRESS 0x0a4d0001u /* the default, 10.77.0.1 */
#define MAC     "02:5f:0a:4d:00:01"

static JsonObject *network_of(const char *address, const char *rule)
{
    g_autoptr(JsonObject) network = json_object_new();
    JsonArray *outside = json_array_new();

    json_object_set_string_member(network, "network", "cluster");
    json_object_set_string_member(network, "address", address);
    json_array_add_string_element(outside, rule);
    json_object_set_array_member(network, "outside", outside);
    return sf_vm_config_network_check(network, NULL, NULL);
}

/* A domain that is to be in a cluster gets the words and the NIC; what it says is read again as it was said. */
static void test_network(void)
{
    g_autoptr(JsonObject) network = network_of("10.77.0.1/16", "192.0.2.0/24 tcp 80,443");
    g_autoptr(JsonObject) other = network_of("10.77.0.9/24", "192.0.2.7 icmp");
    g_autofree char *text = domain_text(FORKABLE, DEVICES);
    g_autofree char *fixed = sf_domain_xml_fix(text, QEMU, network, NULL);
    g_autofree char *again = sf_domain_xml_fix(fixed, QEMU, NULL, NULL);
    g_autofree char *element = sf_domain_network_format(network);
    g_autofree char *target = NULL, *alias = NULL, *said = NULL;
    g_autoptr(SfDomainXml) before = sf_domain_xml_parse_in(text, network, NULL);
    g_autoptr(SfDomainXml) domain = sf_domain_xml_parse(fixed, NULL);
    g_autoptr(SfDomainXml) moved = sf_domain_xml_parse_in(fixed, other, NULL);
    g_autoptr(GPtrArray) lacks = sf_domain_xml_lacks(before, QEMU);
    g_autoptr(GPtrArray) none = sf_domain_xml_lacks(domain, QEMU);

    g_assert_cmpuint(lacks->len, ==, 2);
    g_assert_false(sf_domain_lacks_forkable(lacks));
    g_assert_cmpuint(none->len, ==, 0);
    g_assert_cmpstr(fixed, ==, again);
    g_assert_cmpuint(domain->address, ==, ADDRESS);
    said = sf_domain_network_format(domain->network);
    g_assert_cmpstr(said, ==, element);
    g_assert_true(moved->network_unsaid && moved->nic_fault);
    g_assert_false(sf_domain_nic_names(fixed, ADDRESS, &target, &alias, NULL)); /* it does not run */
}

static void test_network_bad(void)
{
    static const char *const said[] = { "address='10.77.0.0/16'", "address='host'", "address='10.77.0.1/31'" };
    static const char *const nics[] = {
        "",
        "<model type='e1000'/><driver name='qemu'/><mtu size='1450'/>",
        "<model type='virtio'/><mtu size='1450'/>",
        "<model type='virtio'/><driver name='vhost'/><mtu size='1450'/>",
        "<model type='virtio'/><driver name='qemu'/>",
        "<model type='virtio'/><driver name='qemu'/><mtu size='1450'/><script path='/tmp/x'/>",
        "<model type='virtio'/><driver name='qemu'/><mtu size='1450'/><filterref filter='clean-traffic'/>",
        "<model type='virtio'/><driver name='qemu'/><mtu size='1450'/><target dev='tap0' managed='no'/>",
    };

    for (guint i = 0; i < G_N_ELEMENTS(said) + G_N_ELEMENTS(nics); i++) {
        gboolean of_nic = i >= G_N_ELEMENTS(said);
        g_autofree char *metadata = g_strdup_printf(
            FORKABLE "<metadata><network xmlns='" SF_DOMAIN_NETWORK_URI "' %s/></metadata>", of_nic ? "" : said[i]);
        g_autofree char *devices =
            g_strdup_printf(DEVICES "<interface type='ethernet'><mac address='" MAC "'/>%s</interface>",
                            of_nic ? nics[i - G_N_ELEMENTS(said)] : "");
        g_autoptr(SfDomainXml) domain = parse(metadata, devices);

        g_assert_true(of_nic ? domain->nic_fault != NULL : domain->unsupported != NULL);
    }
}

#define NIC                                                                                                            \
    "<interface type='ethernet'><mac address='" MAC "'/><target dev='vnet7'/><model type='virtio'/>"                   \
    "<driver name='qemu'/><mtu size='1450'/><alias name='net1'/></interface>"

/* The NIC keeps its MAC and has a link, in a shell and in the form for other hosts; that is taken in its cluster alone.
 */
static void test_network_shell(void)
{
    const SfDomainLineage lineage = { .role = "shell", .owner = "/run", .vm = "web-shell-1" };
    g_autoptr(GPtrArray) overlays = g_ptr_array_new();
    g_autofree char *template = domain_text(FORKABLE, PORTABLE NIC);
    const SfDomainShell shell = { template, "sf-web-1", UUID, &lineage, QEMU, overlays, ADDRESS };
    g_autofree char *text = NULL, *form = NULL, *target = NULL, *alias = NULL;

    g_ptr_array_add(overlays, (char *)"/overlay/1");
    g_assert_true(sf_domain_nic_names(template, ADDRESS, &target, &alias, NULL));
    g_assert_cmpstr(target, ==, "vnet7");
    g_assert_cmpstr(alias, ==, "net1");
    text = sf_domain_xml_shell(&shell, NULL);
    g_assert_nonnull(strstr(text, MAC));
    g_assert_null(strstr(text, "vnet7"));
    g_assert_null(strstr(text, "state=\"down\""));
    form = sf_domain_portable(template, ADDRESS, NULL);
    g_assert_nonnull(strstr(form, MAC));
    g_assert_null(strstr(form, "vnet7"));
    g_assert_true(sf_domain_portable_check(form, ADDRESS, 512u << 20, 2, 1, "kvm", NULL));
    g_assert_false(sf_domain_portable_check(form, ADDRESS + 1, 512u << 20, 2, 1, "kvm", NULL));
    g_assert_false(sf_domain_portable_check(form, 0, 512u << 20, 2, 1, "kvm", NULL));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/domain_xml/read", test_read);
    g_test_add_func("/domain_xml/bad", test_bad);
    g_test_add_func("/domain_xml/lacks", test_lacks);
    g_test_add_func("/domain_xml/memory", test_memory);
    g_test_add_func("/domain_xml/fix", test_fix);
    g_test_add_func("/domain_xml/shell", test_shell);
    g_test_add_func("/domain_xml/portable", test_portable);
    g_test_add_func("/domain_xml/network", test_network);
    g_test_add_func("/domain_xml/network_bad", test_network_bad);
    g_test_add_func("/domain_xml/network_shell", test_network_shell);
    g_test_add_func("/domain_xml/not_portable", test_not_portable);
    return g_test_run();
}
