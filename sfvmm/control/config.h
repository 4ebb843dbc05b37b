/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfDaemonConfig: what sfvmmd.conf and the command line say. docs/man/sfvmmd.conf.5 describes every key.
 */
#ifndef SF_DAEMON_CONFIG_H
#define SF_DAEMON_CONFIG_H

#include "sfvmm/cluster/resource_manager.h"
#include "sfvmm/cluster/slurm.h"
#include "sfvmm/pager/multicast_group.h"
#include "sfvmm/pager/pager.h"
#include "sfvmm/vm/launcher.h"

typedef enum { SF_MANAGER_LOCAL, SF_MANAGER_STATIC, SF_MANAGER_SLURM } SfResourceManagerName;

typedef struct {
    char *socket; /* control socket, path */
    char *group;  /* that may use it, or NULL: the owner alone */
    SfLauncherOptions launcher;
    SfLimits limits;
    guint vms;  /* VMs started, at most */
    guint pool; /* shells kept ready for a VM that does not say */
    guint pool_max;
    guint identify_seconds; /* for a clone to become unique */
    guint ticket_seconds;   /* an unused ticket lives */
    guint settle_ms;        /* after the last clone, before memory and disks are made one again */
    char *state_directory;  /* what outlives a reboot */
    char *pager;            /* path of sf-pager */
    uid_t pager_uid;        /* that sf-pager and sf-switch run as; own uid when not root */
    gid_t pager_gid;
    struct {
        gboolean bridge;    /* a cluster's network is the kernel's, else sf-switch's */
        char *switch_program;
        guint clusters;     /* networks at a time, at most */
        guint rate;         /* of each member in each direction, KiB/s; 0: no limit */
        guint port;         /* UDP, of networks that span hosts */
        guint32 links;      /* for the cables between clusters and this host: IPv4, host byte order */
        guint links_prefix;
    } network;
    struct {
        char *name;          /* of this host among others */
        char *listen;        /* for other hosts, or NULL: none can connect */
        char *control_listen;  /* for operators elsewhere, or NULL: none can connect */
        GHashTable *operators; /* of them, name -> uid that they count as (GUINT_TO_POINTER) */
        char *pki_directory; /* of this host, with host/ and pages/ in it; NULL: there are no other hosts */
        SfResourceManagerName manager;
        SfSlurmOptions slurm; /* its texts are owned */
        SfPolicy policy;
        guint page_port_first, page_port_last; /* for page sources; 0: any port */
        SfPagerSecurity pages; /* how pages and disks travel: X509, or PLAIN when asked for */
        char *pages_directory; /* certificates for it, or NULL */
        gboolean complete;     /* clones on other hosts fetch all of their memory, whether they need it or not */
        guint avoid;           /* SF_AVOID_*: of tickets that do not say */
        guint away_seconds;    /* a host that is not heard of for so long is given up */
        SfMulticastConfig multicast;
    } cluster;
} SfDaemonConfig;

/*
 * Defaults, then the file (its absence is an error only if `required`), and RUNDIR from run_directory unless NULL. An
 * unknown group or key is an error that names it.
 */
SfDaemonConfig *sf_daemon_config_load(const char *file, gboolean required, const char *run_directory, GError **error);
void sf_daemon_config_free(SfDaemonConfig *config);

/* For an sf-pager of that snapshot which serves nobody. Borrows of both. */
SfPagerOptions sf_daemon_config_pager(const SfDaemonConfig *config, const char *snapshot);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfDaemonConfig, sf_daemon_config_free)

#endif
