/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *     <metadata>
 *       <network xmlns="urn:snowflock:network:1" address="10.77.0.1/16">
 *         <outside>192.0.2.0/24 tcp 443</outside>
 *       </network>
 *     </metadata>
 *     <interface type="ethernet">
 *       <mac address="02:5f:0a:4d:00:01"/> <model type="virtio"/> <driver name="qemu"/> <mtu size="1450"/>
 *     </interface>
 *
 * For type ethernet libvirt opens a tap of the host and connects it with nothing; domain_nic.c puts it into the
 * cluster. driver qemu, because frames that the kernel's vhost-net moves would get past the link that QEMU holds down
 * while a clone has its parent's identity. What libvirt does to the host's end of a tap (filters, bandwidth, scripts)
 * would not come along, or act on another device of that name, so it is refused.
 *
 * The MAC is the mark: it comes along in every form of the XML, the one for other hosts too, and is in the guest as
 * well.
 */
#include "sfvmm/vm/domain_network.h"

#include "libsf/wire/message.h"
#include "sfvmm/vm/domain_xml.h"
#include "sfvmm/vm/vm_config.h"

#define ELEMENT      "network"
#define ELEMENT_PATH "/domain/metadata/*[local-name()='" ELEMENT "' and namespace-uri()='" SF_DOMAIN_NETWORK_URI "']"
#define MTU          "1450"

G_STATIC_ASSERT(SF_VM_CLUSTER_MTU == 1450);

/* ---- what <metadata> says ---- */

static JsonArray *rules_of(xmlDoc *doc)
{
    g_autoptr(xmlXPathObject) rules = sf_xml_select(doc, NULL, ELEMENT_PATH "/*[local-name()='outside']");
    JsonArray *array = json_array_new();

    for (guint i = 0; i < sf_xml_count(rules); i++) {
        g_autofree char *rule = sf_xml_text_at(doc, sf_xml_nth(rules, i), ".");
        json_array_add_string_element(array, rule);
    }
    return array;
}

JsonObject *sf_domain_network_read(xmlDoc *doc, guint32 *address, GError **error)
{
    g_autoptr(JsonObject) said = NULL;
    g_autofree char *text = sf_xml_text_at(doc, NULL, ELEMENT_PATH "/@address");

    if (!sf_xml_exists(doc, NULL, ELEMENT_PATH)) {
        return NULL;
    }
    said = json_object_new();
    json_object_set_string_member(said, "network", "cluster");
    if (text) {
        json_object_set_string_member(said, "address", text);
    }
    json_object_set_array_member(said, "outside", rules_of(doc));
    return sf_vm_config_network_check(said, address, error);
}

static JsonArray *outside_of(JsonObject *network)
{
    return json_object_has_member(network, "outside") ? json_object_get_array_member(network, "outside") : NULL;
}

static xmlNode *add_element(xmlDoc *doc, xmlNode *parent_or_null, JsonObject *network)
{
    xmlNode *element = xmlNewDocNode(doc, NULL, X(ELEMENT), NULL);
    JsonArray *outside = outside_of(network);
    xmlNs *ns;

    if (parent_or_null) {
        xmlAddChild(parent_or_null, element);
    } else {
        xmlDocSetRootElement(doc, element);
    }
    ns = xmlNewNs(element, X(SF_DOMAIN_NETWORK_URI), NULL);
    xmlSetNs(element, ns);
    xmlSetProp(element, X("address"), X(json_object_get_string_member(network, "address")));
    for (guint i = 0; outside && i < json_array_get_length(outside); i++) {
        xmlNewTextChild(element, ns, X("outside"), X(json_array_get_string_element(outside, i)));
    }
    return element;
}

void sf_domain_network_write(xmlDoc *doc, JsonObject *network)
{
    sf_xml_remove_all(doc, NULL, ELEMENT_PATH);
    add_element(doc, sf_xml_child(xmlDocGetRootElement(doc), "metadata"), network);
}

char *sf_domain_network_format(JsonObject *network)
{
    g_autoptr(xmlDoc) doc = xmlNewDoc(X("1.0"));
    xmlBuffer *buffer = xmlBufferCreate();
    char *text;

    xmlNodeDump(buffer, doc, add_element(doc, NULL, network), 0, 0);
    text = g_strdup((const char *)xmlBufferContent(buffer));
    xmlBufferFree(buffer);
    return text;
}

/* ---- the NIC ---- */

static char *mac_of(guint32 address)
{
    guint8 mac[SF_GP_MAC_LENGTH];

    sf_gp_mac_of_address(mac, address);
    return g_strdup_printf("%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
}

static char *path_of(guint32 address)
{
    g_autofree char *mac = mac_of(address);

    return g_strdup_printf("/domain/devices/interface[@type='ethernet' and mac/@address='%s']", mac);
}

xmlNode *sf_domain_nic_find(xmlDoc *doc, guint32 address)
{
    g_autofree char *path = path_of(address);

    return address ? sf_xml_first(doc, NULL, path) : NULL;
}

gboolean sf_domain_nic_names(const char *text, guint32 address, char **target, char **alias, GError **error)
{
    g_autoptr(xmlDoc) doc = sf_xml_read(text, "domain", SF_DOMAIN_XML_MAX, error);
    xmlNode *nic = doc ? sf_domain_nic_find(doc, address) : NULL;

    if (!doc) {
        return FALSE;
    }
    *target = nic ? sf_xml_text_at(doc, nic, "target/@dev") : NULL;
    *alias = nic ? sf_xml_text_at(doc, nic, "alias/@name") : NULL;
    if (!*target || !*alias) {
        g_set_error_literal(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                            "domain XML: its interface in the cluster has no tap");
        return FALSE;
    }
    return TRUE;
}

char *sf_domain_nic_fault(xmlDoc *doc, guint32 address)
{
    static const struct {
        const char *path, *text;
    } faults[] = {
        { "self::*[not(model/@type='virtio')]", "is not of model virtio" },
        { "self::*[not(driver/@name='qemu')]", "may have its frames moved by the kernel, not by QEMU (driver qemu)" },
        { "self::*[not(mtu/@size='" MTU "')]", "has not the network's MTU, " MTU },
        { "target[@managed='no']", "has a tap that is not libvirt's (target managed='no')" },
        { "script | filterref | bandwidth | virtualport | coalesce | backend",
          "has a script, filter or limit of the host, which would not come along" },
    };
    g_autofree char *path = path_of(address);
    g_autoptr(xmlXPathObject) nics = sf_xml_select(doc, NULL, path);

    if (sf_xml_count(nics) != 1) {
        return g_strdup(sf_xml_count(nics) ? "is there more than once" : "is missing");
    }
    for (guint i = 0; i < G_N_ELEMENTS(faults); i++) {
        if (sf_xml_exists(doc, sf_xml_nth(nics, 0), faults[i].path)) {
            return g_strdup(faults[i].text);
        }
    }
    return NULL;
}

static void add_child(xmlNode *parent, const char *name, const char *attribute, const char *value)
{
    xmlSetProp(xmlNewChild(parent, NULL, X(name), NULL), X(attribute), X(value));
}

char *sf_domain_nic_format(guint32 address)
{
    g_autofree char *mac = mac_of(address);

    return g_strdup_printf("<interface type='ethernet'><mac address='%s'/><model type='virtio'/><driver name='qemu'/>"
                           "<mtu size='" MTU "'/></interface>",
                           mac);
}

void sf_domain_nic_write(xmlDoc *doc, guint32 address)
{
    g_autofree char *mac = mac_of(address);
    g_autofree char *same = g_strdup_printf("/domain/devices/interface[mac/@address='%s']", mac);
    xmlNode *interface;

    sf_xml_remove_all(doc, NULL, same);
    interface = xmlNewChild(sf_xml_child(xmlDocGetRootElement(doc), "devices"), NULL, X("interface"), NULL);
    xmlSetProp(interface, X("type"), X("ethernet"));
    add_child(interface, "mac", "address", mac);
    add_child(interface, "model", "type", "virtio");
    add_child(interface, "driver", "name", "qemu");
    add_child(interface, "mtu", "size", MTU);
}
