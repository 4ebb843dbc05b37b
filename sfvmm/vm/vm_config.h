/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfVmConfig: the configuration of a machine, as `vm.run` of the control protocol gives it. Parent, shells and clones
 * of one family share one configuration; what differs between them (name, sockets, disk layers) is not in it.
 */
#ifndef SF_VM_CONFIG_H
#define SF_VM_CONFIG_H

#include <glib.h>
#include <json-glib/json-glib.h>

#define SF_VM_MEMORY_MIN (1ull << 20) /* bytes; a tiny guest needs no more */
#define SF_VM_MEMORY_MAX (1ull << 40)
#define SF_VM_VCPUS_MAX  64u
#define SF_VM_DISKS_MAX  8u

#define SF_VM_CLUSTER_MTU 1450u /* of a NIC in a cluster: the same on every host, VXLAN or not */

typedef struct {
    char *id;     /* "disk0": device id, and stem of the node names */
    char *path;   /* absolute */
    char *format; /* "raw" or "qcow2" */
    gboolean readonly;
    gboolean ephemeral; /* writes go to an overlay that ends with the VM; the file is never written */
    guint64 size;       /* virtual size, bytes; found when the VM is started */
} SfDiskConfig;

typedef struct {
    gatomicrefcount refs;
    guint64 memory; /* bytes */
    guint vcpus;
    char *accel;  /* "kvm" or "tcg"; "auto" is resolved before */
    char *cpu;    /* QEMU -cpu argument */
    char *kernel; /* NULL: boot from disk or tiny image */
    char *initrd;
    char *append;
    char *network;    /* "none", "user" (slirp, restricted) or "cluster" */
    guint32 address;  /* of a cluster's first VM, IPv4 in host byte order, in a subnet of `prefix`; 0 without cluster */
    guint prefix;
    char **outside;   /* what members of the cluster may reach (sfvmm/net/policy.h), not checked here; NULL: nothing */
    GPtrArray *disks; /* of SfDiskConfig */
    char *uri;        /* of the libvirtd that keeps the VM as a domain, or NULL: no libvirt */
    char *domain_xml; /* of that domain: template of its shells */
} SfVmConfig;

/* The VM is a member of a cluster network. */
gboolean sf_vm_config_has_cluster(const SfVmConfig *config);

/* A configuration without anything in it; for a domain, which has more to it than members say. */
SfVmConfig *sf_vm_config_new(void);
SfDiskConfig *sf_vm_config_add_disk(SfVmConfig *config); /* with its id */
SfVmConfig *sf_vm_config_ref(SfVmConfig *config);
void sf_vm_config_unref(SfVmConfig *config);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfVmConfig, sf_vm_config_unref)

/*
 * The members "network", "address" and "outside" alone, checked and complete: of a domain, whose XML has them. *address
 * (or NULL): the first VM's. Caller owns the result.
 */
JsonObject *sf_vm_config_network_check(JsonObject *members, guint32 *address, GError **error);
gboolean sf_vm_config_set_network(SfVmConfig *config, JsonObject *members, GError **error);

/* Strict: unknown members, wrong types and values out of bounds are errors that name the member. Caller owns the
 * result. */
SfVmConfig *sf_vm_config_from_json(JsonObject *object, GError **error);
/* Of a state file that sfvmmd itself has written: may be a domain's, which nobody else may give. */
SfVmConfig *sf_vm_config_restore(JsonObject *object, GError **error);
/* Of a peer, in the form for other hosts: a domain's XML has nothing in it that this host must not do for a peer. */
SfVmConfig *sf_vm_config_from_peer(JsonObject *object, GError **error);
JsonObject *sf_vm_config_to_json(const SfVmConfig *config);

/* VMs of it can be on other hosts. FALSE + error: what of the domain is in the way. */
gboolean sf_vm_config_is_portable(const SfVmConfig *config, GError **error);
/* The form for other hosts: paths that mean something here are not in it. Caller owns. */
JsonObject *sf_vm_config_to_portable_json(const SfVmConfig *config);

/* SHA-256 over everything that device state depends on, hex. Two VMs with equal hashes can load each other's snapshots.
 */
char *sf_vm_config_hash(const SfVmConfig *config, const char *qemu_version);

#endif
