/* SPDX-License-Identifier: GPL-2.0-or-later */
/* libxml2 in GLib's manner. Texts are read without network, entities or DTD. Any thread. */
#ifndef SF_XML_H
#define SF_XML_H

#include <glib.h>
#include <libxml/tree.h>
#include <libxml/xpath.h>

G_DEFINE_AUTOPTR_CLEANUP_FUNC(xmlDoc, xmlFreeDoc)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(xmlXPathContext, xmlXPathFreeContext)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(xmlXPathObject, xmlXPathFreeObject)

#define X(text) ((const xmlChar *)(text))

/* The document of at most so many bytes, whose root element has this name; NULL + error. Caller owns. */
xmlDoc *sf_xml_read(const char *text, const char *root_name, gsize max, GError **error);
char *sf_xml_to_text(xmlDoc *doc); /* caller owns */

/* The nodes that a path selects, from a node or from the root. Caller owns. */
xmlXPathObject *sf_xml_select(xmlDoc *doc, xmlNode *node_or_null, const char *path);
guint sf_xml_count(const xmlXPathObject *nodes);
xmlNode *sf_xml_nth(const xmlXPathObject *nodes, guint i);

/* The first of them, or NULL; its content, whether element or attribute, caller owns. */
xmlNode *sf_xml_first(xmlDoc *doc, xmlNode *node_or_null, const char *path);
char *sf_xml_text_at(xmlDoc *doc, xmlNode *node_or_null, const char *path);
gboolean sf_xml_exists(xmlDoc *doc, xmlNode *node_or_null, const char *path);

void sf_xml_remove(xmlNode *node);
void sf_xml_remove_all(xmlDoc *doc, xmlNode *node_or_null, const char *path); /* none of them within another */
xmlNode *sf_xml_child(xmlNode *parent, const char *name);                     /* is made when it is not there */
void sf_xml_set_child_text(xmlNode *parent, const char *name, const char *text);

#endif
