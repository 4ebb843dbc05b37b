/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/vm/xml.h"

#include <gio/gio.h>
#include <libxml/parser.h>
#include <string.h>

#define OPTIONS (XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING | XML_PARSE_NOBLANKS)

xmlDoc *sf_xml_read(const char *text, const char *root_name, gsize max, GError **error)
{
    gsize length = strlen(text);
    g_autoptr(xmlDoc) doc = NULL;
    xmlNode *root;

    if (length > max) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "XML of a %s: longer than %" G_GSIZE_FORMAT " bytes",
                    root_name, max);
        return NULL;
    }
    doc = xmlReadMemory(text, (int)length, "text.xml", NULL, OPTIONS);
    root = doc ? xmlDocGetRootElement(doc) : NULL;
    if (!root || !xmlStrEqual(root->name, X(root_name)) || xmlGetIntSubset(doc)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "it is no XML of a %s", root_name);
        return NULL;
    }
    return g_steal_pointer(&doc);
}

char *sf_xml_to_text(xmlDoc *doc)
{
    xmlChar *bytes = NULL;
    int length = 0;
    char *text;

    xmlDocDumpFormatMemory(doc, &bytes, &length, 1);
    text = g_strndup((const char *)bytes, (gsize)MAX(length, 0));
    xmlFree(bytes);
    return text;
}

xmlXPathObject *sf_xml_select(xmlDoc *doc, xmlNode *node_or_null, const char *path)
{
    g_autoptr(xmlXPathContext) context = xmlXPathNewContext(doc);

    if (node_or_null) {
        context->node = node_or_null;
    }
    return xmlXPathEvalExpression(X(path), context);
}

guint sf_xml_count(const xmlXPathObject *nodes)
{
    return nodes && nodes->nodesetval ? (guint)nodes->nodesetval->nodeNr : 0;
}

xmlNode *sf_xml_nth(const xmlXPathObject *nodes, guint i)
{
    return nodes->nodesetval->nodeTab[i];
}

xmlNode *sf_xml_first(xmlDoc *doc, xmlNode *node, const char *path)
{
    g_autoptr(xmlXPathObject) nodes = sf_xml_select(doc, node, path);

    return sf_xml_count(nodes) > 0 ? sf_xml_nth(nodes, 0) : NULL;
}

char *sf_xml_text_at(xmlDoc *doc, xmlNode *node, const char *path)
{
    xmlNode *found = sf_xml_first(doc, node, path);
    xmlChar *content = found ? xmlNodeGetContent(found) : NULL;
    char *text = content ? g_strstrip(g_strdup((const char *)content)) : NULL;

    xmlFree(content);
    return text;
}

gboolean sf_xml_exists(xmlDoc *doc, xmlNode *node, const char *path)
{
    return sf_xml_first(doc, node, path) != NULL;
}

void sf_xml_remove(xmlNode *node)
{
    xmlUnlinkNode(node);
    if (node->type == XML_ATTRIBUTE_NODE) {
        xmlFreeProp((xmlAttr *)node);
    } else {
        xmlFreeNode(node);
    }
}

void sf_xml_remove_all(xmlDoc *doc, xmlNode *node, const char *path)
{
    g_autoptr(xmlXPathObject) nodes = sf_xml_select(doc, node, path);

    for (guint i = 0; i < sf_xml_count(nodes); i++) {
        sf_xml_remove(sf_xml_nth(nodes, i));
        nodes->nodesetval->nodeTab[i] = NULL; /* or libxml2 would look at it again */
    }
}

xmlNode *sf_xml_child(xmlNode *parent, const char *name)
{
    for (xmlNode *child = parent->children; child; child = child->next) {
        if (child->type == XML_ELEMENT_NODE && xmlStrEqual(child->name, X(name))) {
            return child;
        }
    }
    return xmlNewChild(parent, NULL, X(name), NULL);
}

void sf_xml_set_child_text(xmlNode *parent, const char *name, const char *text)
{
    xmlNode *child = sf_xml_child(parent, name);
    xmlChar *escaped = xmlEncodeSpecialChars(parent->doc, X(text));

    xmlNodeSetContent(child, escaped);
    xmlFree(escaped);
}
