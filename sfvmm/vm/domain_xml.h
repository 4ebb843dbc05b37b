/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfDomainXml: what a libvirt domain's XML says that a fork needs to know, what it lacks to be forkable, and the XML of
 * a shell made from it. Text in, text out; knows no libvirt. Any thread.
 */
#ifndef SF_DOMAIN_XML_H
#define SF_DOMAIN_XML_H

#include <gio/gio.h>
#include <json-glib/json-glib.h>

#define SF_DOMAIN_XML_MAX      (512u << 10) /* bytes */
#define SF_DOMAIN_METADATA_KEY "sf"
#define SF_DOMAIN_METADATA_URI "urn:snowflock:domain:1" /* namespace of our element in <metadata> */
#define SF_DOMAIN_PREFIX       "sf-"                    /* names of the domains that we make */

typedef struct {
    char *target; /* "vda" */
    char *alias;  /* device id of a running domain, or NULL */
    char *path;   /* of the image in use */
    char *format; /* "raw" or "qcow2" */
    gboolean readonly;
    gboolean unmap;     /* discards of the guest reach the image */
    GPtrArray *backing; /* of SfDomainImage: what is below, the next one first */
} SfDomainDisk;

typedef struct {
    char *path, *format;
} SfDomainImage;

typedef struct {
    char *name, *uuid;
    char *type;     /* "qemu" or "kvm" */
    char *emulator; /* or NULL */
    guint64 memory; /* bytes */
    guint vcpus;
    gboolean acpi;
    gboolean memfd, shared; /* its RAM */
    gboolean anonymous;     /* its RAM is memory without a file */
    gboolean hugepages;
    gboolean agent_port;
    char *agent_path;  /* socket of the agent's port, or NULL: of a running domain only */
    char *agent_alias; /* device id of that port, or NULL */
    JsonObject *network;     /* of its cluster (domain_network.h), or NULL */
    gboolean network_unsaid; /* that is to be its network, but <metadata> does not say so */
    guint32 address;         /* in that, or 0 */
    char *nic_fault;         /* why its NIC is not fit for it, or NULL */
    char **unlinked;         /* device ids of interfaces whose link is down: of a running domain only */
    GPtrArray *disks;  /* of SfDomainDisk; a drive without medium is not in it */
    char *unsupported; /* the first thing that no fork can have: what, and what to do; or NULL */
} SfDomainXml;

/* Strict: what is no domain, too long, or lacks name, uuid or memory is an error. Caller owns the result. */
SfDomainXml *sf_domain_xml_parse(const char *text, GError **error);
/* Of one that is to be in this network, whatever its <metadata> says; NULL: in the one that that says. */
SfDomainXml *sf_domain_xml_parse_in(const char *text, JsonObject *network_or_null, GError **error);
void sf_domain_xml_free(SfDomainXml *domain);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfDomainXml, sf_domain_xml_free)

/* Something that a domain lacks. */
typedef struct {
    char *what; /* a sentence for a person */
    char *xml;  /* to be added, or NULL: it can't be mended by adding */
    gboolean needed; /* FALSE: it forks without, at a price */
} SfDomainLack;

/* What it lacks to be forked, or to be forked well. qemu: path of our emulator. Of SfDomainLack; caller owns. */
GPtrArray *sf_domain_xml_lacks(const SfDomainXml *domain, const char *qemu);
/* No lack of them is needed. */
gboolean sf_domain_lacks_forkable(const GPtrArray *lacks);

/* The domain's XML with all of that mended that can be, and in that network. Caller owns. */
char *sf_domain_xml_fix(const char *text, const char *qemu, JsonObject *network_or_null, GError **error);

/* Who a domain of ours is. Members may be NULL or 0. */
typedef struct {
    const char *role;  /* "shell" or "clone" */
    const char *owner; /* run directory of the sfvmmd that made it */
    const char *vm;    /* its name there */
    const char *parent;
    const char *ticket;
    const char *snapshot;
    guint id;
} SfDomainLineage;

/* Our element of <metadata>, without the namespace that libvirt puts in. Caller owns. */
char *sf_domain_lineage_format(const SfDomainLineage *lineage);
/* The owner that such an element names, or NULL. Caller owns. */
char *sf_domain_lineage_owner(const char *text);

/* What a shell is made from. */
typedef struct {
    const char *template_text; /* XMLDesc(MIGRATABLE|SECURE) of the parent */
    const char *name, *uuid;
    const SfDomainLineage *lineage;
    const char *emulator;      /* of this host */
    const GPtrArray *overlays; /* path of the qcow2 image of each writable disk, in the order of the disks */
    guint32 address;           /* of the first VM in its cluster; 0: it is in none */
} SfDomainShell;

/* Its XML: the template with everything else that must be its own. Caller owns. */
char *sf_domain_xml_shell(const SfDomainShell *shell, GError **error);

#endif
