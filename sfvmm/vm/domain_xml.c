/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * A shell must have the guest's hardware exactly as its parent has it, so its XML is the parent's, as libvirt itself
 * would send it to another host, with PCI addresses and all. What is changed is what two domains of one host can't
 * share:
 *
 *     name, uuid, genid          new
 *     kernel, initrd             gone: they are in the guest's RAM, and would cost each shell 15 MB
 *     on_reboot                  destroy: a clone without kernel can't boot
 *     disk sources               an overlay for each writable disk, which the load puts over the frozen images
 *     interfaces                 a MAC of its own in the host's view, link down (the guest still has its parent's MAC)
 *                                but for "user" networks, which nobody else is on; the one in a cluster keeps its
 *                                MAC, by which the guest's agent knows it, and has its link held down by vm_nic.c
 *     sockets, logs, NVRAM, VNC  paths and ports gone: libvirt chooses new ones
 *     security labels            gone: libvirt makes new ones
 *     memory                     a shared memfd, as the parent's is at the latest when it has been forked
 *     emulator                   this host's
 *     metadata                   ours alone
 */
#include "sfvmm/vm/domain_xml.h"

#include <string.h>

#include "libsf/wire/guest_protocol.h"
#include "sfvmm/vm/domain_network.h"
#include "sfvmm/vm/vm_config.h"
#include "sfvmm/vm/xml.h"

#define KIB             1024u
#define VCPUS_MAX       4096u
#define DISKS_MAX       32u
#define LAYERS_MAX      64u
#define MAC_OUI         "52:54:00" /* QEMU's own, as libvirt has it */
#define LINEAGE_ELEMENT "vm"
#define ALIAS_OF_USER   "ua-" /* an alias that libvirt keeps */

G_GNUC_PRINTF(2, 3)
static gboolean fail(GError **error, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error_literal(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, text);
    return FALSE;
}

static xmlDoc *read_domain(const char *text, GError **error)
{
    return sf_xml_read(text, "domain", SF_DOMAIN_XML_MAX, error);
}

/* ---- reading ---- */

static void image_free(gpointer data)
{
    SfDomainImage *image = data;

    g_free(image->path);
    g_free(image->format);
    g_free(image);
}

static void disk_free(gpointer data)
{
    SfDomainDisk *disk = data;

    g_free(disk->target);
    g_free(disk->alias);
    g_free(disk->path);
    g_free(disk->format);
    g_ptr_array_unref(disk->backing);
    g_free(disk);
}

void sf_domain_xml_free(SfDomainXml *domain)
{
    if (domain) {
        g_free(domain->name);
        g_free(domain->uuid);
        g_free(domain->type);
        g_free(domain->emulator);
        g_free(domain->agent_path);
        g_free(domain->agent_alias);
        g_free(domain->unsupported);
        g_clear_pointer(&domain->network, json_object_unref);
        g_free(domain->nic_fault);
        g_strfreev(domain->unlinked);
        g_ptr_array_unref(domain->disks);
        g_free(domain);
    }
}

static gboolean read_memory(SfDomainXml *domain, xmlDoc *doc, GError **error)
{
    static const struct {
        const char *name;
        guint64 bytes;
    } units[] = {
        { "b", 1 }, { "bytes", 1 }, { "KiB", KIB }, { "MiB", KIB * KIB }, { "GiB", (guint64)KIB * KIB * KIB }
    };
    g_autofree char *text = sf_xml_text_at(doc, NULL, "/domain/memory");
    g_autofree char *unit = sf_xml_text_at(doc, NULL, "/domain/memory/@unit");
    guint64 number;

    if (!text || !g_ascii_string_to_unsigned(text, 10, 1, G_MAXINT64 >> 30, &number, NULL)) {
        return fail(error, "domain XML: no number in <memory>");
    }
    for (guint i = 0; i < G_N_ELEMENTS(units); i++) {
        if (strcmp(unit ? unit : "KiB", units[i].name) == 0) {
            domain->memory = number * units[i].bytes;
            return TRUE;
        }
    }
    return fail(error, "domain XML: <memory> in \"%s\"", unit);
}

static gboolean read_vcpus(SfDomainXml *domain, xmlDoc *doc, GError **error)
{
    g_autofree char *text = sf_xml_text_at(doc, NULL, "/domain/vcpu");
    guint64 number = 1;

    if (text && !g_ascii_string_to_unsigned(text, 10, 1, VCPUS_MAX, &number, NULL)) {
        return fail(error, "domain XML: no number in <vcpu>");
    }
    domain->vcpus = (guint)number;
    return TRUE;
}

G_GNUC_PRINTF(2, 3)
static void unsupported(SfDomainXml *domain, const char *format, ...)
{
    va_list args;

    if (!domain->unsupported) {
        va_start(args, format);
        domain->unsupported = g_strdup_vprintf(format, args);
        va_end(args);
    }
}

static gboolean format_is_known(const char *format)
{
    return strcmp(format, "raw") == 0 || strcmp(format, "qcow2") == 0;
}

/* Nested <backingStore>s; an empty one ends the chain. */
static void read_backing(SfDomainXml *domain, SfDomainDisk *disk, xmlDoc *doc, xmlNode *node)
{
    xmlNode *store = sf_xml_first(doc, node, "backingStore[source]");

    for (guint i = 0; store && i < LAYERS_MAX; i++) {
        g_autofree char *path = sf_xml_text_at(doc, store, "source/@file | source/@dev");
        g_autofree char *format = sf_xml_text_at(doc, store, "format/@type");
        SfDomainImage *image;
        if (!path || !format || !format_is_known(format)) {
            unsupported(domain, "disk %s: it stands on an image that is no raw or qcow2 file", disk->target);
            return;
        }
        image = g_new0(SfDomainImage, 1);
        image->path = g_steal_pointer(&path);
        image->format = g_steal_pointer(&format);
        g_ptr_array_add(disk->backing, image);
        store = sf_xml_first(doc, store, "backingStore[source]");
    }
}

/* A drive that is empty needs no layers. */
static void read_disk(SfDomainXml *domain, xmlDoc *doc, xmlNode *node)
{
    SfDomainDisk *disk = g_new0(SfDomainDisk, 1);

    disk->backing = g_ptr_array_new_with_free_func(image_free);
    disk->target = sf_xml_text_at(doc, node, "target/@dev");
    disk->alias = sf_xml_text_at(doc, node, "alias/@name");
    disk->path = sf_xml_text_at(doc, node, "source/@file | source/@dev");
    disk->format = sf_xml_text_at(doc, node, "driver/@type");
    disk->readonly = sf_xml_exists(doc, node, "readonly");
    disk->unmap = sf_xml_exists(doc, node, "driver[@discard='unmap']");
    if (!disk->target) {
        unsupported(domain, "a disk without target");
        disk_free(disk);
        return;
    }
    if (!sf_xml_exists(doc, node, "source")) {
        disk_free(disk);
        return;
    }
    if (!disk->format) {
        disk->format = g_strdup("raw");
    }
    if (!disk->path || !format_is_known(disk->format) || sf_xml_exists(doc, node, ".//encryption")) {
        unsupported(domain, "disk %s: only raw and qcow2 files and block devices can be forked", disk->target);
    } else if (sf_xml_exists(doc, node, "shareable") && !disk->readonly) {
        unsupported(domain, "disk %s: it is shareable; clones would see each other's writes", disk->target);
    } else {
        read_backing(domain, disk, doc, node);
    }
    g_ptr_array_add(domain->disks, disk);
}

static void read_devices(SfDomainXml *domain, xmlDoc *doc)
{
    static const struct {
        const char *path, *text;
    } obstacles[] = {
        { "/domain/devices/hostdev", "a device of the host can't be in several VMs: remove <hostdev>" },
        { "/domain/devices/filesystem", "a shared folder is a process outside of the VM: remove <filesystem>" },
        { "/domain/devices/tpm", "a TPM is a process outside of the VM: remove <tpm>" },
        { "/domain/devices/shmem", "memory that is shared with others can't be forked: remove <shmem>" },
        { "/domain/devices/interface[@type='vhostuser' or @type='hostdev' or @type='vdpa']",
          "its network device works outside of QEMU: use type network, bridge or user" },
        { "/domain/maxMemory", "memory that can be plugged in is not forked yet: remove <maxMemory>" },
    };
    g_autoptr(xmlXPathObject) disks = sf_xml_select(doc, NULL, "/domain/devices/disk");

    for (guint i = 0; i < G_N_ELEMENTS(obstacles); i++) {
        if (sf_xml_exists(doc, NULL, obstacles[i].path)) {
            unsupported(domain, "%s", obstacles[i].text);
        }
    }
    if (sf_xml_count(disks) > DISKS_MAX) {
        unsupported(domain, "it has more than %u disks", DISKS_MAX);
    }
    for (guint i = 0; i < MIN(sf_xml_count(disks), DISKS_MAX); i++) {
        read_disk(domain, doc, sf_xml_nth(disks, i));
    }
}

static gboolean is_said(JsonObject *said_or_null, JsonObject *wanted)
{
    g_autofree char *said = said_or_null ? sf_domain_network_format(said_or_null) : NULL;
    g_autofree char *text = sf_domain_network_format(wanted);

    return g_strcmp0(said, text) == 0;
}

static void read_network(SfDomainXml *domain, xmlDoc *doc, JsonObject *wanted_or_null)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) said = sf_domain_network_read(doc, &domain->address, &error);

    if (wanted_or_null) {
        domain->network = sf_vm_config_network_check(wanted_or_null, &domain->address, NULL);
        domain->network_unsaid = !is_said(said, domain->network);
    } else if (error) {
        unsupported(domain, "its network in <metadata> can't be: %s", error->message);
    } else {
        domain->network = g_steal_pointer(&said);
    }
    domain->nic_fault = domain->network ? sf_domain_nic_fault(doc, domain->address) : NULL;
}

static char **read_unlinked(xmlDoc *doc)
{
    g_autoptr(xmlXPathObject) aliases =
        sf_xml_select(doc, NULL, "/domain/devices/interface[link/@state='down']/alias/@name");
    g_autoptr(GStrvBuilder) builder = g_strv_builder_new();

    for (guint i = 0; i < sf_xml_count(aliases); i++) {
        g_autofree char *alias = sf_xml_text_at(doc, sf_xml_nth(aliases, i), ".");
        g_strv_builder_add(builder, alias);
    }
    return g_strv_builder_end(builder);
}

#define AGENT_CHANNEL                                                                                                  \
    "/domain/devices/channel[@type='unix' and target/@type='virtio' and target/@name='" SF_GP_PORT "']"

SfDomainXml *sf_domain_xml_parse(const char *text, GError **error)
{
    return sf_domain_xml_parse_in(text, NULL, error);
}

SfDomainXml *sf_domain_xml_parse_in(const char *text, JsonObject *network_or_null, GError **error)
{
    g_autoptr(xmlDoc) doc = read_domain(text, error);
    g_autoptr(SfDomainXml) domain = NULL;

    if (!doc) {
        return NULL;
    }
    domain = g_new0(SfDomainXml, 1);
    domain->disks = g_ptr_array_new_with_free_func(disk_free);
    domain->name = sf_xml_text_at(doc, NULL, "/domain/name");
    domain->uuid = sf_xml_text_at(doc, NULL, "/domain/uuid");
    domain->type = sf_xml_text_at(doc, NULL, "/domain/@type");
    domain->emulator = sf_xml_text_at(doc, NULL, "/domain/devices/emulator");
    domain->acpi = sf_xml_exists(doc, NULL, "/domain/features/acpi");
    domain->memfd = sf_xml_exists(doc, NULL, "/domain/memoryBacking/source[@type='memfd']");
    domain->shared = sf_xml_exists(doc, NULL, "/domain/memoryBacking/access[@mode='shared']");
    domain->anonymous = !sf_xml_exists(doc, NULL, "/domain/memoryBacking/source[@type!='anonymous']");
    domain->hugepages = sf_xml_exists(doc, NULL, "/domain/memoryBacking/hugepages");
    domain->agent_port = sf_xml_exists(doc, NULL, AGENT_CHANNEL);
    domain->agent_path = sf_xml_text_at(doc, NULL, AGENT_CHANNEL "/source/@path");
    domain->agent_alias = sf_xml_text_at(doc, NULL, AGENT_CHANNEL "/alias/@name");
    if (!domain->name || !domain->uuid || !g_uuid_string_is_valid(domain->uuid) || !domain->type) {
        fail(error, "domain XML: no name, uuid or type");
        return NULL;
    }
    if (!read_memory(domain, doc, error) || !read_vcpus(domain, doc, error)) {
        return NULL;
    }
    read_devices(domain, doc);
    domain->unlinked = read_unlinked(doc);
    read_network(domain, doc, network_or_null);
    return g_steal_pointer(&domain);
}

/* ---- what a domain lacks ---- */

static void lack_free(gpointer data)
{
    SfDomainLack *lack = data;

    g_free(lack->what);
    g_free(lack->xml);
    g_free(lack);
}

/* Takes both. */
static SfDomainLack *add_lack(GPtrArray *lacks, char *what, char *xml)
{
    SfDomainLack *lack = g_new0(SfDomainLack, 1);

    lack->what = what;
    lack->xml = xml;
    lack->needed = TRUE;
    g_ptr_array_add(lacks, lack);
    return lack;
}

static void add_lack_of_memfd(GPtrArray *lacks, const SfDomainXml *domain)
{
    SfDomainLack *lack =
        add_lack(lacks,
                 g_strdup(domain->anonymous ? "its memory is no memfd: its first fork copies what the guest uses of it"
                                            : "its memory is no shared memfd"),
                 g_strdup("in <domain>: <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"));

    lack->needed = !domain->anonymous;
}

static void add_lacks_of_network(GPtrArray *lacks, const SfDomainXml *domain)
{
    if (domain->network_unsaid) {
        g_autofree char *element = sf_domain_network_format(domain->network);
        add_lack(lacks, g_strdup("its metadata does not say that it is in this network"),
                 g_strdup_printf("in <metadata>: %s", element));
    }
    if (domain->nic_fault) {
        g_autofree char *nic = sf_domain_nic_format(domain->address);
        add_lack(lacks, g_strdup_printf("its interface in the cluster's network %s", domain->nic_fault),
                 g_strdup_printf("in <devices>, instead of another with this MAC: %s", nic));
    }
}

gboolean sf_domain_lacks_forkable(const GPtrArray *lacks)
{
    for (guint i = 0; i < lacks->len; i++) {
        if (((const SfDomainLack *)g_ptr_array_index(lacks, i))->needed) {
            return FALSE;
        }
    }
    return TRUE;
}

GPtrArray *sf_domain_xml_lacks(const SfDomainXml *domain, const char *qemu)
{
    GPtrArray *lacks = g_ptr_array_new_with_free_func(lack_free);

    if (g_strcmp0(domain->emulator, qemu) != 0) {
        g_autofree char *escaped = g_markup_escape_text(qemu, -1);
        add_lack(lacks,
                 g_strdup_printf("its emulator is %s, not the patched QEMU",
                                 domain->emulator ? domain->emulator : "libvirt's default"),
                 g_strdup_printf("in <devices>: <emulator>%s</emulator>", escaped));
    }
    if (domain->hugepages) {
        add_lack(lacks, g_strdup("its memory is in huge pages: remove <hugepages> from <memoryBacking>"), NULL);
    }
    if (!domain->memfd || !domain->shared) {
        add_lack_of_memfd(lacks, domain);
    }
    if (!domain->agent_port) {
        add_lack(
            lacks, g_strdup("the port of the guest's agent is missing"),
            g_strdup("in <devices>: <channel type='unix'><target type='virtio' name='" SF_GP_PORT "'/></channel>"));
    }
    add_lacks_of_network(lacks, domain);
    if (domain->unsupported) {
        add_lack(lacks, g_strdup(domain->unsupported), NULL);
    }
    return lacks;
}

static void set_memory(xmlNode *domain)
{
    xmlNode *backing = sf_xml_child(domain, "memoryBacking");

    xmlSetProp(sf_xml_child(backing, "source"), X("type"), X("memfd"));
    xmlSetProp(sf_xml_child(backing, "access"), X("mode"), X("shared"));
}

char *sf_domain_xml_fix(const char *text, const char *qemu, JsonObject *network_or_null, GError **error)
{
    g_autoptr(xmlDoc) doc = read_domain(text, error);
    g_autoptr(JsonObject) network = NULL;
    g_autofree char *fault = NULL;
    xmlNode *domain, *devices;
    guint32 address;

    if (!doc) {
        return NULL;
    }
    if (network_or_null) {
        sf_domain_network_write(doc, network_or_null);
    }
    network = sf_domain_network_read(doc, &address, NULL);
    fault = network ? sf_domain_nic_fault(doc, address) : NULL;
    if (fault) {
        sf_domain_nic_write(doc, address);
    }
    domain = xmlDocGetRootElement(doc);
    devices = sf_xml_child(domain, "devices");
    sf_xml_set_child_text(devices, "emulator", qemu);
    set_memory(domain);
    if (!sf_xml_exists(doc, NULL, AGENT_CHANNEL)) {
        xmlNode *channel = xmlNewChild(devices, NULL, X("channel"), NULL);
        xmlNode *target = xmlNewChild(channel, NULL, X("target"), NULL);
        xmlSetProp(channel, X("type"), X("unix"));
        xmlSetProp(target, X("type"), X("virtio"));
        xmlSetProp(target, X("name"), X(SF_GP_PORT));
    }
    return sf_xml_to_text(doc);
}

/* ---- lineage ---- */

static void append_attribute(GString *text, const char *name, const char *value)
{
    if (value) {
        g_autofree char *escaped = g_markup_escape_text(value, -1);
        g_string_append_printf(text, " %s='%s'", name, escaped);
    }
}

char *sf_domain_lineage_format(const SfDomainLineage *lineage)
{
    GString *text = g_string_new("<" LINEAGE_ELEMENT);

    append_attribute(text, "role", lineage->role);
    append_attribute(text, "owner", lineage->owner);
    append_attribute(text, "name", lineage->vm);
    append_attribute(text, "parent", lineage->parent);
    append_attribute(text, "ticket", lineage->ticket);
    append_attribute(text, "snapshot", lineage->snapshot);
    if (lineage->id > 0) {
        g_string_append_printf(text, " id='%u'", lineage->id);
    }
    g_string_append(text, "/>");
    return g_string_free(text, FALSE);
}

char *sf_domain_lineage_owner(const char *text)
{
    g_autoptr(xmlDoc) doc = sf_xml_read(text, LINEAGE_ELEMENT, SF_DOMAIN_XML_MAX, NULL);

    return doc ? sf_xml_text_at(doc, NULL, "/*/@owner") : NULL;
}

/* ---- a shell ---- */

static void set_metadata(xmlDoc *doc, const SfDomainLineage *lineage)
{
    g_autofree char *text = sf_domain_lineage_format(lineage);
    g_autoptr(xmlDoc) element = sf_xml_read(text, LINEAGE_ELEMENT, SF_DOMAIN_XML_MAX, NULL);
    xmlNode *metadata, *copy;

    sf_xml_remove_all(doc, NULL, "/domain/metadata");
    if (element) {
        metadata = xmlNewChild(xmlDocGetRootElement(doc), NULL, X("metadata"), NULL);
        copy = xmlAddChild(metadata, xmlDocCopyNode(xmlDocGetRootElement(element), doc, 1));
        xmlSetNs(copy, xmlNewNs(copy, X(SF_DOMAIN_METADATA_URI), X(SF_DOMAIN_METADATA_KEY)));
    }
}

static gboolean set_disks(xmlDoc *doc, const GPtrArray *overlays, GError **error)
{
    g_autoptr(xmlXPathObject) disks = sf_xml_select(doc, NULL, "/domain/devices/disk[source and not(readonly)]");

    if (sf_xml_count(disks) != overlays->len) {
        return fail(error, "domain XML: it has %u writable disks, and %u overlays are given", sf_xml_count(disks),
                    overlays->len);
    }
    for (guint i = 0; i < overlays->len; i++) {
        xmlNode *disk = sf_xml_nth(disks, i);
        xmlNode *source;
        sf_xml_remove_all(doc, disk, "source");
        sf_xml_remove_all(doc, disk, "backingStore");
        sf_xml_remove_all(doc, disk, "mirror");
        xmlSetProp(disk, X("type"), X("file"));
        source = xmlNewChild(disk, NULL, X("source"), NULL);
        xmlSetProp(source, X("file"), X(g_ptr_array_index(overlays, i)));
        xmlNewChild(disk, NULL, X("backingStore"), NULL); /* none: the load gives it one, and libvirt need not look */
        xmlSetProp(sf_xml_child(disk, "driver"), X("type"), X("qcow2"));
    }
    return TRUE;
}

static void set_interface(xmlDoc *doc, xmlNode *interface)
{
    guint32 random = g_random_int();
    g_autofree char *mac =
        g_strdup_printf(MAC_OUI ":%02x:%02x:%02x", random & 0xff, random >> 8 & 0xff, random >> 16 & 0xff);

    xmlSetProp(sf_xml_child(interface, "mac"), X("address"), X(mac));
    if (!sf_xml_exists(doc, interface, "self::*[@type='user']")) {
        xmlSetProp(sf_xml_child(interface, "link"), X("state"), X("down"));
    }
    sf_xml_remove_all(doc, interface, "target[not(@managed)]");
}

static void set_interfaces(xmlDoc *doc, guint32 address)
{
    g_autoptr(xmlXPathObject) interfaces = sf_xml_select(doc, NULL, "/domain/devices/interface");
    xmlNode *nic = sf_domain_nic_find(doc, address);

    for (guint i = 0; i < sf_xml_count(interfaces); i++) {
        if (sf_xml_nth(interfaces, i) != nic) {
            set_interface(doc, sf_xml_nth(interfaces, i));
        }
    }
    if (nic) {
        sf_xml_remove_all(doc, nic, "target");
    }
}

/* What libvirt chooses for each domain anew. */
static void remove_own(xmlDoc *doc)
{
    static const char *const paths[] = {
        "/domain/@id",
        "/domain/genid/text()",
        "/domain/title",
        "/domain/description",
        "/domain/os/kernel",
        "/domain/os/initrd",
        "/domain/os/cmdline",
        "/domain/os/nvram/text()",
        "/domain/seclabel",
        "/domain/devices//seclabel",
        "/domain/devices/*[self::channel or self::console or self::serial or self::parallel]/source[@path]",
        "/domain/devices/*[self::channel or self::console or self::serial or self::parallel]/log",
        "/domain/devices/console/@tty",
        "/domain/devices/graphics/@socket",
        "/domain/devices/graphics/listen[@type='socket']/@socket",
        "/domain/devices/graphics/@port",
        "/domain/devices/graphics/@websocket",
        "/domain/devices/graphics/@tlsPort",
        "/domain/devices/*/alias[not(starts-with(@name, '" ALIAS_OF_USER "'))]",
    };

    for (guint i = 0; i < G_N_ELEMENTS(paths); i++) {
        sf_xml_remove_all(doc, NULL, paths[i]);
    }
}

/* A character device that had a path has one that libvirt chooses: a socket for a channel, a terminal for a console. */
static void set_characters(xmlDoc *doc)
{
    g_autoptr(xmlXPathObject) devices =
        sf_xml_select(doc, NULL,
                      "/domain/devices/*[(self::console or self::serial or self::parallel) and "
                      "(@type='unix' or @type='file' or @type='pipe' or @type='dev')]");
    g_autoptr(xmlXPathObject) graphics =
        sf_xml_select(doc, NULL, "/domain/devices/graphics[@type='vnc' or @type='spice']");

    for (guint i = 0; i < sf_xml_count(devices); i++) {
        xmlSetProp(sf_xml_nth(devices, i), X("type"), X("pty"));
    }
    for (guint i = 0; i < sf_xml_count(graphics); i++) {
        xmlSetProp(sf_xml_nth(graphics, i), X("autoport"), X("yes"));
    }
}

char *sf_domain_xml_shell(const SfDomainShell *shell, GError **error)
{
    g_autoptr(xmlDoc) doc = read_domain(shell->template_text, error);
    xmlNode *domain;

    if (!doc) {
        return NULL;
    }
    domain = xmlDocGetRootElement(doc);
    remove_own(doc);
    sf_xml_set_child_text(domain, "name", shell->name);
    sf_xml_set_child_text(domain, "uuid", shell->uuid);
    sf_xml_set_child_text(domain, "title", shell->lineage->vm);
    sf_xml_set_child_text(domain, "on_reboot", "destroy");
    sf_xml_set_child_text(sf_xml_child(domain, "devices"), "emulator", shell->emulator);
    set_metadata(doc, shell->lineage);
    set_memory(domain);
    set_interfaces(doc, shell->address);
    set_characters(doc);
    return set_disks(doc, shell->overlays, error) ? sf_xml_to_text(doc) : NULL;
}
