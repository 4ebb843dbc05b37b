/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A VM's place in its cluster's network: in a clone its own MAC and addresses instead of its parent's, in a parent its
 * address if nothing else in the guest gives it one, in both the names of all in /etc/hosts.
 */
#ifndef SF_AGENT_NETWORK_H
#define SF_AGENT_NETWORK_H

#include <net/if.h>
#include <stdbool.h>

#include "guest-agent/inventory.h"
#include "guest-agent/names.h"
#include "libsf/wire/message.h"

struct network {
    struct sf_gp_network value;           /* what the host said last; prefix 0: it said nothing */
    bool fresh;                           /* came since the last IDENTITY */
    char interface[IF_NAMESIZE];          /* of a clone: which has the address; if none has, the NIC */
    bool link_due;                        /* a clone's programs wait for LINK */
    unsigned setup_tries;                 /* left, to set the NIC up, which nobody else does */
    const char *hosts;                    /* path of the file of names */
    struct names names;                   /* what that says */
    struct netlink netlink, diag;         /* of routes and of connections; fd -1: not open yet */
    uint64_t prepared;                    /* the ticket whose clones find the following done; 0: none */
    struct inventory inventory;           /* of the VM that is or was forked */
    unsigned managers;                    /* of the network, to be told in a clone: a set (managers.h) */
    bool with_ssh;                        /* the cluster gets a key for ssh */
    char parent_host[SF_GP_NAME_LEN + 1]; /* host name of the parent, which a clone has at first; empty: too long */
};

void network_init(struct network *network, const char *hosts, bool with_ssh);

/* NETWORK has come. In a parent what its clones need is prepared, names are written, and the NIC is set up soon
 * (network_retry()). */
void network_told(struct network *network, const struct sf_gp_network *value);

/* TRUE: call network_retry() within a second; the NIC may not be there yet. */
bool network_wants_retry(const struct network *network);
void network_retry(struct network *network);

/* The NIC of the cluster is there, whatever member's MAC it has; TRUE also if this VM is in none, as far as is known.
 */
bool network_has_nic(struct network *network);

/*
 * In a clone, while it has no link: ends TCP connections of its parent, sets MAC and addresses, keeps routes, writes
 * names. False with *error: then this VM must not get a link.
 */
bool network_become(struct network *network, struct sf_gp_error *error);

/* A clone's network as variables for its hooks: SF_INTERFACE, SF_ADDRESS and others, NAME=value. */
#define NETWORK_VARIABLES    5
#define NETWORK_VARIABLE_LEN 48
struct network_environment {
    char text[NETWORK_VARIABLES][NETWORK_VARIABLE_LEN];
};
void network_describe(const struct network *network, struct network_environment *environment);

#endif
