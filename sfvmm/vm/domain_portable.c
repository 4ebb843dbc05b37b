/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *     origin:   template of its shells --> portable form --> peer
 *     peer:     its portable form is the text itself? --> XML of a shell, with the peer's emulator and overlays
 *
 * The portable form is the XML of a shell (domain_xml.c), so without what two domains of one host can't share, and also
 * without emulator, metadata and MACs, but for the one in a cluster; a disk's image is "/disk".
 *
 * What a domain's XML can say reaches far: files, devices, sockets, networks of the host, options of QEMU. So a list
 * says what a portable one may have, on the two levels where elements decide what a machine is connected with; further
 * down no text may be a path. What is not in the list is not sent, and not taken: its clones stay where the domain is.
 */
#include "sfvmm/vm/domain_portable.h"

#include <string.h>

#include "sfvmm/vm/domain_network.h"
#include "sfvmm/vm/domain_xml.h"
#include "sfvmm/vm/xml.h"

#define IMAGE      "/disk"
#define MAC        "52:54:00:00:00:%02x"
#define INTERFACES 64u /* more are not portable */
#define ENTROPY    "/dev/urandom"
#define DEPTH_MAX  16 /* of elements; libvirt's own XML has some 7 */

/* Children that an element may have, by its path; those of others are not looked at but for paths. */
static const struct {
    const char *path;
    const char *const *children;
} allowed[] = {
    { "/domain", (const char *const[]){ "name", "uuid", "genid", "memory", "currentMemory", "memoryBacking", "vcpu",
                                        "vcpus", "iothreads", "os", "features", "cpu", "clock", "on_poweroff",
                                        "on_reboot", "on_crash", "pm", "devices", NULL } },
    { "/domain/memoryBacking", (const char *const[]){ "source", "access", "discard", NULL } },
    { "/domain/os", (const char *const[]){ "type", "boot", "bios", "bootmenu", NULL } },
    { "/domain/devices",
      (const char *const[]){ "disk", "controller", "serial", "console", "channel", "input", "interface", "graphics",
                             "video", "audio", "watchdog", "memballoon", "rng", "panic", NULL } },
    { "/domain/devices/disk",
      (const char *const[]){ "driver", "source", "target", "backingStore", "alias", "address", "boot", "serial", "wwn",
                             "vendor", "product", "readonly", "iotune", NULL } },
    { "/domain/devices/disk/source", (const char *const[]){ NULL } },
    { "/domain/devices/interface",
      (const char *const[]){ "mac", "model", "driver", "link", "mtu", "alias", "address", "boot", NULL } },
    { "/domain/devices/*[self::serial or self::console or self::channel]",
      (const char *const[]){ "target", "protocol", "alias", "address", NULL } },
    { "/domain/devices/input", (const char *const[]){ "driver", "alias", "address", NULL } },
    { "/domain/devices/graphics", (const char *const[]){ "image", "clipboard", NULL } },
    { "/domain/devices/audio", (const char *const[]){ NULL } },
};

/* What a device must be besides, when it is of that element: none other is selected by its path. */
static const struct {
    const char *path, *text;
} refused[] = {
    { "/domain/devices/disk[source and readonly]", "a read-only disk is not served to other hosts' domains yet" },
    { "/domain/devices/disk[source and not(@type='file')]", "a disk that is no file" },
    { "/domain/devices/interface[not(@type='user' or @type='ethernet')]",
      "an interface of this host's network: only type user and that in a cluster are for others" },
    { "/domain/devices/*[(self::serial or self::console) and not(@type='pty')]", "a console that is no terminal" },
    { "/domain/devices/channel[not(@type='unix')]", "a channel that is no socket" },
    { "/domain/devices/graphics[not(@type='vnc')]", "graphics that are not VNC" },
    { "/domain/devices/audio[not(@type='none')]", "sound of the host" },
    { "/domain/devices/rng[not(backend/@model='random') or not(backend='" ENTROPY "')]",
      "a source of randomness that is not " ENTROPY },
    { "/domain/devices/input[@type='passthrough' or @type='evdev']", "an input device of the host" },
    { "/domain/os[@firmware]", "firmware other than SeaBIOS" },
    { "/domain/on_crash[starts-with(., 'coredump')] | /domain/devices/watchdog[@action='dump']",
      "dumps of its memory" },
    { "//*[namespace-uri()!='']", "options for QEMU itself" },
};

static gboolean not_portable(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);
static gboolean not_portable(GError **error, const char *format, ...)
{
    va_list args;
    g_autofree char *text = NULL;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED, "the domain can't have clones on other hosts: %s", text);
    return FALSE;
}

/* ---- the lists ---- */

static gboolean children_are_allowed(const xmlNode *node, const char *const *names, GError **error)
{
    for (const xmlNode *child = node->children; child; child = child->next) {
        if (child->type == XML_ELEMENT_NODE && !g_strv_contains(names, (const char *)child->name)) {
            return not_portable(error, "<%.64s> in <%.64s>", (const char *)child->name, (const char *)node->name);
        }
    }
    return TRUE;
}

static gboolean is_path(const xmlNode *node)
{
    const char *text = (const char *)node->content;

    while (text && g_ascii_isspace(*text)) {
        text++;
    }
    return text && *text == '/' && strcmp(text, IMAGE) != 0 && strcmp(text, ENTROPY) != 0;
}

/* Texts of elements and attributes; none beside elements, where no two programs agree on what blanks are. */
static gboolean has_no_path(const xmlNode *node, int depth, GError **error)
{
    if (depth > DEPTH_MAX) {
        return not_portable(error, "elements within elements");
    }
    for (const xmlAttr *attribute = node->properties; attribute; attribute = attribute->next) {
        if (attribute->children && is_path(attribute->children)) {
            return not_portable(error, "%.64s of <%.64s> is a path", (const char *)attribute->name,
                                (const char *)node->name);
        }
    }
    for (const xmlNode *child = node->children; child; child = child->next) {
        if (child->type == XML_ELEMENT_NODE) {
            if (!has_no_path(child, depth + 1, error)) {
                return FALSE;
            }
        } else if (child->type != XML_TEXT_NODE || is_path(child) ||
                   (xmlChildElementCount((xmlNode *)node) > 0 && !xmlIsBlankNode(child))) {
            return not_portable(error, "the text of <%.64s>", (const char *)node->name);
        }
    }
    return TRUE;
}

/* Of type ethernet there is the one in the cluster, whose tap the other host puts there, and no other. */
static gboolean nics_are_portable(xmlDoc *doc, guint32 address, GError **error)
{
    g_autoptr(xmlXPathObject) nics = sf_xml_select(doc, NULL, "/domain/devices/interface[@type='ethernet']");
    g_autofree char *fault = address ? sf_domain_nic_fault(doc, address) : NULL;

    if (fault) {
        return not_portable(error, "its interface in the cluster %s", fault);
    }
    return sf_xml_count(nics) == (address ? 1 : 0) ||
           not_portable(error, "it has an interface of type ethernet that is in no cluster");
}

static gboolean is_portable(xmlDoc *doc, guint32 address, GError **error)
{
    if (!nics_are_portable(doc, address, error)) {
        return FALSE;
    }
    for (guint i = 0; i < G_N_ELEMENTS(refused); i++) {
        if (sf_xml_exists(doc, NULL, refused[i].path)) {
            return not_portable(error, "it has %s", refused[i].text);
        }
    }
    for (guint i = 0; i < G_N_ELEMENTS(allowed); i++) {
        g_autoptr(xmlXPathObject) nodes = sf_xml_select(doc, NULL, allowed[i].path);
        for (guint n = 0; n < sf_xml_count(nodes); n++) {
            if (!children_are_allowed(sf_xml_nth(nodes, n), allowed[i].children, error)) {
                return FALSE;
            }
        }
    }
    return has_no_path(xmlDocGetRootElement(doc), 0, error);
}

/* ---- the form ---- */

/* What a shell's XML still has of its host. */
static gboolean strip(xmlDoc *doc, guint32 address, GError **error)
{
    static const char *const paths[] = {
        "/domain/metadata",
        "/domain/title",
        "/domain/resource",
        "/domain/vcpu/@cpuset",
        "/domain/devices/emulator",
        "/domain/devices/graphics/@listen",
        "/domain/devices/graphics/listen",
        "/domain/devices/graphics/@passwd",
        "/domain/devices/interface/target",
    };
    g_autoptr(xmlXPathObject) interfaces = sf_xml_select(doc, NULL, "/domain/devices/interface");
    const xmlNode *nic = sf_domain_nic_find(doc, address);

    for (guint i = 0; i < G_N_ELEMENTS(paths); i++) {
        sf_xml_remove_all(doc, NULL, paths[i]);
    }
    if (sf_xml_count(interfaces) > INTERFACES) {
        return not_portable(error, "it has more than %u interfaces", INTERFACES);
    }
    for (guint i = 0; i < sf_xml_count(interfaces); i++) {
        g_autofree char *mac = g_strdup_printf(MAC, i);
        if (sf_xml_nth(interfaces, i) != nic) {
            xmlSetProp(sf_xml_child(sf_xml_nth(interfaces, i), "mac"), X("address"), X(mac));
        }
    }
    return TRUE;
}

char *sf_domain_portable(const char *template_text, guint32 address, GError **error)
{
    const SfDomainLineage none = { 0 };
    g_autoptr(SfDomainXml) domain = sf_domain_xml_parse(template_text, error);
    g_autoptr(GPtrArray) images = g_ptr_array_new();
    g_autoptr(xmlDoc) doc = NULL;
    g_autofree char *shell = NULL;

    if (!domain) {
        return NULL;
    }
    if (domain->unsupported) {
        not_portable(error, "%s", domain->unsupported);
        return NULL;
    }
    for (guint i = 0; i < domain->disks->len; i++) {
        if (!((SfDomainDisk *)g_ptr_array_index(domain->disks, i))->readonly) {
            g_ptr_array_add(images, (gpointer)IMAGE);
        }
    }
    shell = sf_domain_xml_shell(
        &(SfDomainShell){ template_text, domain->name, domain->uuid, &none, "", images, address }, error);
    doc = shell ? sf_xml_read(shell, "domain", SF_DOMAIN_XML_MAX, error) : NULL;
    if (!doc || !strip(doc, address, error) || !is_portable(doc, address, error)) {
        return NULL;
    }
    return sf_xml_to_text(doc);
}

gboolean sf_domain_portable_check(const char *text, guint32 address, guint64 memory, guint vcpus, guint disks,
                                  const char *accel, GError **error)
{
    g_autofree char *portable = sf_domain_portable(text, address, error);
    g_autoptr(SfDomainXml) domain = portable ? sf_domain_xml_parse(portable, error) : NULL;

    if (!domain) {
        return FALSE;
    }
    if (strcmp(text, portable) != 0) {
        return not_portable(error, "its XML is not in the form for other hosts");
    }
    if (domain->memory != memory || domain->vcpus != vcpus || domain->disks->len != disks ||
        strcmp(domain->type, strcmp(accel, "kvm") == 0 ? "kvm" : "qemu") != 0 || !domain->memfd || !domain->shared ||
        domain->hugepages || !domain->agent_port) {
        return not_portable(error, "its XML is of another machine than the configuration says");
    }
    return TRUE;
}
