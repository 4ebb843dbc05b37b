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
 *                                but for "user" networks, which nobody else is on
 *     sockets, logs, NVRAM, VNC  paths and ports gone: libvirt chooses new ones
 *     security labels            gone: libvirt makes new ones
 *     metadata                   ours alone
 *
 * libxml2 reads the text without network, entities or DTD.
 */
#include "sfvmm/vm/domain_xml.h"

#include <libxml/parser.h>
#include <libxml/tree.h>
#include <libxml/xpath.h>
#include <string.h>

#include "libsf/wire/guest_protocol.h"

#define KIB           1024u
#define VCPUS_MAX     4096u
#define DISKS_MAX     32u
#define LAYERS_MAX    64u
#define MAC_OUI       "52:54:00" /* QEMU's own, as libvirt has it */
#define XML_OPTIONS   (XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING | XML_PARSE_NOBLANKS)
#define ALIAS_OF_USER "ua-" /* an alias that libvirt keeps */

G_DEFINE_AUTOPTR_CLEANUP_FUNC(xmlDoc, xmlFreeDoc)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(xmlXPathContext, xmlXPathFreeContext)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(xmlXPathObject, xmlXPathFreeObject)

#define X(text) ((const xmlChar *)(text))

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

/* ---- libxml2 in GLib's manner ---- */

static xmlDoc *read_domain(const char *text, GError **error)
{
    gsize length = strlen(text);
    g_autoptr(xmlDoc) doc = NULL;
    xmlNode *root;

    if (length > SF_DOMAIN_XML_MAX) {
        fail(error, "domain XML: longer than %u bytes", SF_DOMAIN_XML_MAX);
        return NULL;
    }
    doc = xmlReadMemory(text, (int)length, "domain.xml", NULL, XML_OPTIONS);
    root = doc ? xmlDocGetRootElement(doc) : NULL;
    if (!root || !xmlStrEqual(root->name, X("domain")) || xmlGetIntSubset(doc)) {
        fail(error, "domain XML: it is no XML of a domain");
        return NULL;
    }
    return g_steal_pointer(&doc);
}

static char *to_text(xmlDoc *doc)
{
    xmlChar *bytes = NULL;
    int length = 0;
    char *text;

    xmlDocDumpFormatMemory(doc, &bytes, &length, 1);
    text = g_strndup((const char *)bytes, (gsize)MAX(length, 0));
    xmlFree(bytes);
    return text;
}

/* The nodes that a path selects. */
static xmlXPathObject *select_nodes(xmlDoc *doc, xmlNode *node_or_null, const char *path)
{
    g_autoptr(xmlXPathContext) context = xmlXPathNewContext(doc);

    if (node_or_null) {
        context->node = node_or_null;
    }
    return xmlXPathEvalExpression(X(path), context);
}

static guint count(const xmlXPathObject *nodes)
{
    return nodes && nodes->nodesetval ? (guint)nodes->nodesetval->nodeNr : 0;
}

static xmlNode *nth(const xmlXPathObject *nodes, guint i)
{
    return nodes->nodesetval->nodeTab[i];
}

static xmlNode *first(xmlDoc *doc, xmlNode *node, const char *path)
{
    g_autoptr(xmlXPathObject) nodes = select_nodes(doc, node, path);

    return count(nodes) > 0 ? nth(nodes, 0) : NULL;
}

/* Content of the first node (element or attribute), or NULL when there is none. Caller owns. */
static char *text_at(xmlDoc *doc, xmlNode *node, const char *path)
{
    xmlNode *found = first(doc, node, path);
    xmlChar *content = found ? xmlNodeGetContent(found) : NULL;
    char *text = content ? g_strstrip(g_strdup((const char *)content)) : NULL;

    xmlFree(content);
    return text;
}

static gboolean exists(xmlDoc *doc, xmlNode *node, const char *path)
{
    return first(doc, node, path) != NULL;
}

static void remove_node(xmlNode *node)
{
    xmlUnlinkNode(node);
    if (node->type == XML_ATTRIBUTE_NODE) {
        xmlFreeProp((xmlAttr *)node);
    } else {
        xmlFreeNode(node);
    }
}

/* Nodes within each other must not be selected by one path. */
static void remove_all(xmlDoc *doc, xmlNode *node, const char *path)
{
    g_autoptr(xmlXPathObject) nodes = select_nodes(doc, node, path);

    for (guint i = 0; i < count(nodes); i++) {
        remove_node(nth(nodes, i));
        nodes->nodesetval->nodeTab[i] = NULL; /* or libxml2 would look at it again */
    }
}

static xmlNode *child_of(xmlNode *parent, const char *name)
{
    for (xmlNode *child = parent->children; child; child = child->next) {
        if (child->type == XML_ELEMENT_NODE && xmlStrEqual(child->name, X(name))) {
            return child;
        }
    }
    return xmlNewChild(parent, NULL, X(name), NULL);
}

static void set_child_text(xmlNode *parent, const char *name, const char *text)
{
    xmlNode *child = child_of(parent, name);
    xmlChar *escaped = xmlEncodeSpecialChars(parent->doc, X(text));

    xmlNodeSetContent(child, escaped);
    xmlFree(escaped);
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
    g_autofree char *text = text_at(doc, NULL, "/domain/memory");
    g_autofree char *unit = text_at(doc, NULL, "/domain/memory/@unit");
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
    g_autofree char *text = text_at(doc, NULL, "/domain/vcpu");
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
    xmlNode *store = first(doc, node, "backingStore[source]");

    for (guint i = 0; store && i < LAYERS_MAX; i++) {
        g_autofree char *path = text_at(doc, store, "source/@file | source/@dev");
        g_autofree char *format = text_at(doc, store, "format/@type");
        SfDomainImage *image;
        if (!path || !format || !format_is_known(format)) {
            unsupported(domain, "disk %s: it stands on an image that is no raw or qcow2 file", disk->target);
            return;
        }
        image = g_new0(SfDomainImage, 1);
        image->path = g_steal_pointer(&path);
        image->format = g_steal_pointer(&format);
        g_ptr_array_add(disk->backing, image);
        store = first(doc, store, "backingStore[source]");
    }
}

/* A drive that is empty needs no layers. */
static void read_disk(SfDomainXml *domain, xmlDoc *doc, xmlNode *node)
{
    SfDomainDisk *disk = g_new0(SfDomainDisk, 1);

    disk->backing = g_ptr_array_new_with_free_func(image_free);
    disk->target = text_at(doc, node, "target/@dev");
    disk->alias = text_at(doc, node, "alias/@name");
    disk->path = text_at(doc, node, "source/@file | source/@dev");
    disk->format = text_at(doc, node, "driver/@type");
    disk->readonly = exists(doc, node, "readonly");
    disk->unmap = exists(doc, node, "driver[@discard='unmap']");
    if (!disk->target) {
        unsupported(domain, "a disk without target");
        disk_free(disk);
        return;
    }
    if (!exists(doc, node, "source")) {
        disk_free(disk);
        return;
    }
    if (!disk->format) {
        disk->format = g_strdup("raw");
    }
    if (!disk->path || !format_is_known(disk->format) || exists(doc, node, ".//encryption")) {
        unsupported(domain, "disk %s: only raw and qcow2 files and block devices can be forked", disk->target);
    } else if (exists(doc, node, "shareable") && !disk->readonly) {
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
    g_autoptr(xmlXPathObject) disks = select_nodes(doc, NULL, "/domain/devices/disk");

    for (guint i = 0; i < G_N_ELEMENTS(obstacles); i++) {
        if (exists(doc, NULL, obstacles[i].path)) {
            unsupported(domain, "%s", obstacles[i].text);
        }
    }
    if (count(disks) > DISKS_MAX) {
        unsupported(domain, "it has more than %u disks", DISKS_MAX);
    }
    for (guint i = 0; i < MIN(count(disks), DISKS_MAX); i++) {
        read_disk(domain, doc, nth(disks, i));
    }
}

#define AGENT_CHANNEL                                                                                                  \
    "/domain/devices/channel[@type='unix' and target/@type='virtio' and target/@name='" SF_GP_PORT "']"

SfDomainXml *sf_domain_xml_parse(const char *text, GError **error)
{
    g_autoptr(xmlDoc) doc = read_domain(text, error);
    g_autoptr(SfDomainXml) domain = NULL;

    if (!doc) {
        return NULL;
    }
    domain = g_new0(SfDomainXml, 1);
    domain->disks = g_ptr_array_new_with_free_func(disk_free);
    domain->name = text_at(doc, NULL, "/domain/name");
    domain->uuid = text_at(doc, NULL, "/domain/uuid");
    domain->type = text_at(doc, NULL, "/domain/@type");
    domain->emulator = text_at(doc, NULL, "/domain/devices/emulator");
    domain->acpi = exists(doc, NULL, "/domain/features/acpi");
    domain->memfd = exists(doc, NULL, "/domain/memoryBacking/source[@type='memfd']");
    domain->shared = exists(doc, NULL, "/domain/memoryBacking/access[@mode='shared']");
    domain->hugepages = exists(doc, NULL, "/domain/memoryBacking/hugepages");
    domain->agent_port = exists(doc, NULL, AGENT_CHANNEL);
    domain->agent_path = text_at(doc, NULL, AGENT_CHANNEL "/source/@path");
    domain->agent_alias = text_at(doc, NULL, AGENT_CHANNEL "/alias/@name");
    if (!domain->name || !domain->uuid || !g_uuid_string_is_valid(domain->uuid) || !domain->type) {
        fail(error, "domain XML: no name, uuid or type");
        return NULL;
    }
    if (!read_memory(domain, doc, error) || !read_vcpus(domain, doc, error)) {
        return NULL;
    }
    read_devices(domain, doc);
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
static void add_lack(GPtrArray *lacks, char *what, char *xml)
{
    SfDomainLack *lack = g_new0(SfDomainLack, 1);

    lack->what = what;
    lack->xml = xml;
    g_ptr_array_add(lacks, lack);
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
        add_lack(lacks, g_strdup("its memory is no shared memfd"),
                 g_strdup("in <domain>: <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"));
    }
    if (!domain->agent_port) {
        add_lack(
            lacks, g_strdup("the port of the guest's agent is missing"),
            g_strdup("in <devices>: <channel type='unix'><target type='virtio' name='" SF_GP_PORT "'/></channel>"));
    }
    if (domain->unsupported) {
        add_lack(lacks, g_strdup(domain->unsupported), NULL);
    }
    return lacks;
}

char *sf_domain_xml_fix(const char *text, const char *qemu, GError **error)
{
    g_autoptr(xmlDoc) doc = read_domain(text, error);
    xmlNode *domain, *devices, *backing;

    if (!doc) {
        return NULL;
    }
    domain = xmlDocGetRootElement(doc);
    devices = child_of(domain, "devices");
    set_child_text(devices, "emulator", qemu);
    backing = child_of(domain, "memoryBacking");
    xmlSetProp(child_of(backing, "source"), X("type"), X("memfd"));
    xmlSetProp(child_of(backing, "access"), X("mode"), X("shared"));
    if (!exists(doc, NULL, AGENT_CHANNEL)) {
        xmlNode *channel = xmlNewChild(devices, NULL, X("channel"), NULL);
        xmlNode *target = xmlNewChild(channel, NULL, X("target"), NULL);
        xmlSetProp(channel, X("type"), X("unix"));
        xmlSetProp(target, X("type"), X("virtio"));
        xmlSetProp(target, X("name"), X(SF_GP_PORT));
    }
    return to_text(doc);
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
    GString *text = g_string_new("<vm");

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
    gsize length = strlen(text);
    g_autoptr(xmlDoc) doc =
        length <= SF_DOMAIN_XML_MAX ? xmlReadMemory(text, (int)length, "metadata.xml", NULL, XML_OPTIONS) : NULL;

    return doc ? text_at(doc, NULL, "/*/@owner") : NULL;
}

/* ---- a shell ---- */

static void set_metadata(xmlDoc *doc, const SfDomainLineage *lineage)
{
    g_autofree char *text = sf_domain_lineage_format(lineage);
    g_autoptr(xmlDoc) element = xmlReadMemory(text, (int)strlen(text), "metadata.xml", NULL, XML_OPTIONS);
    xmlNode *metadata, *copy;

    remove_all(doc, NULL, "/domain/metadata");
    if (element) {
        metadata = xmlNewChild(xmlDocGetRootElement(doc), NULL, X("metadata"), NULL);
        copy = xmlAddChild(metadata, xmlDocCopyNode(xmlDocGetRootElement(element), doc, 1));
        xmlSetNs(copy, xmlNewNs(copy, X(SF_DOMAIN_METADATA_URI), X(SF_DOMAIN_METADATA_KEY)));
    }
}

static gboolean set_disks(xmlDoc *doc, const GPtrArray *overlays, GError **error)
{
    g_autoptr(xmlXPathObject) disks = select_nodes(doc, NULL, "/domain/devices/disk[source and not(readonly)]");

    if (count(disks) != overlays->len) {
        return fail(error, "domain XML: it has %u writable disks, and %u overlays are given", count(disks),
                    overlays->len);
    }
    for (guint i = 0; i < overlays->len; i++) {
        xmlNode *disk = nth(disks, i);
        xmlNode *source;
        remove_all(doc, disk, "source");
        remove_all(doc, disk, "backingStore");
        remove_all(doc, disk, "mirror");
        xmlSetProp(disk, X("type"), X("file"));
        source = xmlNewChild(disk, NULL, X("source"), NULL);
        xmlSetProp(source, X("file"), X(g_ptr_array_index(overlays, i)));
        xmlNewChild(disk, NULL, X("backingStore"), NULL); /* none: the load gives it one, and libvirt need not look */
        xmlSetProp(child_of(disk, "driver"), X("type"), X("qcow2"));
    }
    return TRUE;
}

static void set_interfaces(xmlDoc *doc)
{
    g_autoptr(xmlXPathObject) interfaces = select_nodes(doc, NULL, "/domain/devices/interface");

    for (guint i = 0; i < count(interfaces); i++) {
        xmlNode *interface = nth(interfaces, i);
        guint32 random = g_random_int();
        g_autofree char *mac =
            g_strdup_printf(MAC_OUI ":%02x:%02x:%02x", random & 0xff, random >> 8 & 0xff, random >> 16 & 0xff);
        xmlSetProp(child_of(interface, "mac"), X("address"), X(mac));
        if (!exists(doc, interface, "self::*[@type='user']")) {
            xmlSetProp(child_of(interface, "link"), X("state"), X("down"));
        }
        remove_all(doc, interface, "target[not(@managed)]");
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
        remove_all(doc, NULL, paths[i]);
    }
}

/* A character device that had a path has one that libvirt chooses: a socket for a channel, a terminal for a console. */
static void set_characters(xmlDoc *doc)
{
    g_autoptr(xmlXPathObject) devices =
        select_nodes(doc, NULL,
                     "/domain/devices/*[(self::console or self::serial or self::parallel) and "
                     "(@type='unix' or @type='file' or @type='pipe' or @type='dev')]");
    g_autoptr(xmlXPathObject) graphics =
        select_nodes(doc, NULL, "/domain/devices/graphics[@type='vnc' or @type='spice']");

    for (guint i = 0; i < count(devices); i++) {
        xmlSetProp(nth(devices, i), X("type"), X("pty"));
    }
    for (guint i = 0; i < count(graphics); i++) {
        xmlSetProp(nth(graphics, i), X("autoport"), X("yes"));
    }
}

char *sf_domain_xml_shell(const char *template_text, const char *name, const char *uuid, const SfDomainLineage *lineage,
                          const GPtrArray *overlays, GError **error)
{
    g_autoptr(xmlDoc) doc = read_domain(template_text, error);
    xmlNode *domain;

    if (!doc) {
        return NULL;
    }
    domain = xmlDocGetRootElement(doc);
    remove_own(doc);
    set_child_text(domain, "name", name);
    set_child_text(domain, "uuid", uuid);
    set_child_text(domain, "title", lineage->vm);
    set_child_text(domain, "on_reboot", "destroy");
    set_metadata(doc, lineage);
    set_interfaces(doc);
    set_characters(doc);
    return set_disks(doc, overlays, error) ? to_text(doc) : NULL;
}
