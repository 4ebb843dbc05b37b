/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The agent protocol: what a guest program, sf-agent and sfvmmd say to each other.
 *
 *    program --libsf--> sf-agent ----virtio-serial port----> sfvmmd
 *            SEQPACKET           COBS frames
 *
 * The same message goes both ways on both legs; sf-agent multiplexes: it gives each program's request an id of its
 * own towards the host and puts the program's id back into the reply.
 *
 *    0         1      2      4         8        12
 *    +---------+------+------+---------+--------+----------------- - -
 *    | version | type | zero | request | length | payload (length bytes)
 *    +---------+------+------+---------+--------+----------------- - -
 *
 * On the unix socket one packet is one message. On the serial port a message and its CRC-32 (of header and payload,
 * little-endian, behind the payload) are one COBS frame that ends in a zero byte. A zero byte never stands within a
 * frame, so a reader is in step again at the next zero, whatever it lost: this matters because a clone starts in the
 * middle of whatever bytes its parent was exchanging, and because sfvmmd may be restarted at any time. Empty frames
 * are ignored; a broken frame is dropped and counted.
 *
 * All integers are little-endian. `request` is chosen by the asking side, non-zero, and stands in the reply; a reply
 * has type | REPLY, or is an ERROR. After each (re)connection the host speaks first: a zero byte and HELLO with a new
 * nonce; the agent answers with a zero byte and HELLO|REPLY with the same nonce, then sends again all requests that are
 * not answered, with their old ids. The host therefore treats a request that it has seen (same VM, same id) as the same
 * request. A HELLO with the nonce of the last one is answered and changes nothing, so the host may repeat it until the
 * guest has booted. (An agent that is started anew begins its ids at a random number.)
 *
 * A clone: the host sends the zero byte, HELLO and IDENTITY, best in one write (the agent then sends nothing in vain).
 * What else than the replies to these two comes from a clone before IDENTITY is answered was written by its parent, or
 * is a request that IDENTITY ends: the host drops it. IDENTITY may be repeated; the agent acts on it once.
 *
 * A guest that boots anew in a clone has its parent's identity. So an agent that starts and knows of none says WHO when
 * it has been greeted; to a clone that runs the host then sends NETWORK and IDENTITY, and LINK when that is answered.
 *
 * A VM with a cluster network gets NETWORK: whenever its agent has connected, a parent also before its CLONE is answered,
 * a clone right before IDENTITY, which then makes the addresses the VM's own too. Programs of that clone are told only
 * after LINK, which follows the answer to IDENTITY. Where IDENTITY is answered and NETWORK was not, the agent is an old
 * one; its clone has no link.
 *
 * A ticket is of use to the VM that it was granted to only. Errors that libsf's manual promises, errno in brackets:
 * unknown or released ticket, or that of another VM, a clone's parent for instance [ECHILD]; it was forked before
 * [EALREADY]; not forked yet, in JOIN and FETCH, or no such clone [EINVAL]; SYNC or EXIT by a VM that is no clone
 * [EPERM]; SYNC that does not go on where the last piece ended, offset 0 excepted [EINVAL]; no room for a result
 * [ENOSPC]; nothing to be granted now, or by a quota [EAGAIN]; more than SF_GP_MAX_CLONES, or unknown flags [EINVAL];
 * a checkpoint of that name exists [EEXIST], or none does [ENOENT], clones of it live [EBUSY], the VM has too many
 * [EDQUOT], or is a clone [EOPNOTSUPP]; the fork failed, the parent goes on [EAGAIN, or what fits better]; this VM cannot
 * be forked [EOPNOTSUPP, in Linux the same as ENOTSUP]; unknown request [ENOSYS]; else [EIO].
 */
#ifndef SF_GUEST_PROTOCOL_H
#define SF_GUEST_PROTOCOL_H

#include <stdint.h>

#define SF_GP_VERSION        1
#define SF_GP_HEADER_LENGTH  12
#define SF_GP_MAX_CHUNK      32768u            /* bytes of result data in one message */
#define SF_GP_MAX_PAYLOAD    (SF_GP_MAX_CHUNK + 64)
#define SF_GP_MAX_RESULT     (64u << 20)       /* bytes that a clone may hand back */
#define SF_GP_MAX_CLONES     1024u             /* of one ticket; a request for more is refused, not cut */
#define SF_GP_MAX_QUEUE      65535u            /* seconds */
#define SF_GP_TEXT_LEN       256               /* NUL-padded UTF-8 */
#define SF_GP_NAME_LEN       64
#define SF_GP_SEED_LEN       64
#define SF_GP_PORT           "org.snowflock.agent.0"   /* name of the virtio-serial port */
#define SF_GP_SOCKET         "/run/snowflock/agent.sock"

struct sf_gp_header {
    uint8_t version;
    uint8_t type;
    uint16_t zero;
    uint32_t request;
    uint32_t length;
};

/* Host -> guest. */
#define SF_GP_HELLO          1   /* sf_gp_hello -> sf_gp_hello */
#define SF_GP_IDENTITY       2   /* sf_gp_identity -> empty, or ERROR: the clone could not be made unique */

#define SF_GP_NETWORK        3   /* sf_gp_network -> empty, or ERROR; an agent that does not know it does not answer */
#define SF_GP_LINK           4   /* empty -> empty: the clone is on its network now */

/* Guest -> host. */
#define SF_GP_TICKET         16  /* sf_gp_ticket -> sf_gp_granted */
#define SF_GP_CLONE          17  /* sf_gp_clone -> sf_gp_cloned (host: to the parent only; agent: to clones) */
#define SF_GP_SYNC           18  /* sf_gp_sync + data -> empty: a piece of the result, which replaces the last */
#define SF_GP_EXIT           19  /* sf_gp_exit -> empty; then the clone's VM is ended */
#define SF_GP_JOIN           20  /* sf_gp_join -> n * sf_gp_member, a window of the member table */
#define SF_GP_FETCH          21  /* sf_gp_fetch -> data; short only where the result ends; no result: empty */
#define SF_GP_KILL           22  /* sf_gp_kill -> empty: ends all clones of the ticket */
#define SF_GP_RELEASE        23  /* sf_gp_kill -> empty: ticket and results are forgotten, clones still alive killed */
#define SF_GP_CHECKPOINT     24  /* sf_gp_checkpoint -> sf_gp_cloned, as CLONE: in the VM when it is saved, and in each
                                    clone that is ever made from it */
#define SF_GP_CREATE         25  /* sf_gp_create -> sf_gp_granted: a ticket that has forked, of clones of a checkpoint */
#define SF_GP_FORGET         26  /* sf_gp_checkpoint -> empty: the checkpoint is removed */
#define SF_GP_WHO            27  /* empty, not answered: this agent has just started, and was told of no IDENTITY */

/* Program -> agent only. */
#define SF_GP_SELF           32  /* empty -> sf_gp_self */
#define SF_GP_ADDRESSES      33  /* empty -> sf_gp_network: the last one that the host sent */

#define SF_GP_REPLY          0x80
#define SF_GP_ERROR          0xff

struct sf_gp_error {
    uint32_t error;                   /* Linux errno, > 0 */
    char text[SF_GP_TEXT_LEN];
};

struct sf_gp_hello {
    uint32_t version;
    uint32_t zero;
    uint64_t nonce;                   /* of the connection */
};

struct sf_gp_identity {
    uint64_t ticket;
    uint32_t id;                      /* 1.. */
    uint32_t count;                   /* clones of the ticket, the parent not counted */
    uint32_t clone_request;           /* the CLONE request that this answers in the clone; 0: cloned from outside */
    uint32_t zero;
    uint64_t realtime;                /* ns since the epoch, not 0 */
    uint8_t seed[SF_GP_SEED_LEN];     /* for the kernel's RNG; different for every clone */
    char hostname[SF_GP_NAME_LEN];
    char parent[SF_GP_NAME_LEN];      /* the parent's hostname-safe VM name */
};

/*
 * IPv4 addresses as numbers, 10.77.0.1 is 0x0a4d0001. The MAC of a member of a cluster is 02:5f and the four bytes of its
 * address, so it stands in no message (sf_gp_mac_of_address()).
 */
struct sf_gp_network {
    uint64_t ticket;                  /* of the newest fork that this VM was in; 0: of none */
    uint32_t id;                      /* of this VM in it; 0: its parent */
    uint32_t count;                   /* clones of it */
    uint32_t address;                 /* of this VM */
    uint32_t parent;                  /* of the parent; a clone's NIC has that address until IDENTITY */
    uint32_t first;                   /* of clone 1; clone i has first + i - 1. 0 without clones */
    uint32_t gateway;                 /* 0: nothing outside can be reached */
    uint32_t prefix;                  /* of the subnet, 1..30 */
    uint32_t zero;
    char name[SF_GP_NAME_LEN];        /* of the parent's VM; clones are called NAME-i */
};

struct sf_gp_ticket {
    uint32_t count;                   /* wanted, 1..SF_GP_MAX_CLONES */
    uint32_t queue;                   /* seconds that it may wait for room, up to SF_GP_MAX_QUEUE; 0: not at all */
};

struct sf_gp_granted {
    uint64_t ticket;                  /* a capability: random, not guessable */
    uint32_t granted;                 /* 1..count */
    uint32_t zero;
};

struct sf_gp_clone {
    uint64_t ticket;
};

struct sf_gp_cloned {
    uint32_t id;                      /* 0 in the parent */
    uint32_t count;                   /* clones made: granted, or less when some failed */
};

struct sf_gp_sync {
    uint64_t offset;
    uint64_t total;                   /* <= SF_GP_MAX_RESULT; the piece that reaches it makes the result whole;
                                         offset 0 begins anew; an empty result is one piece without data */
};

struct sf_gp_exit {
    int32_t status;                   /* 0..255 by convention, any value allowed */
    uint32_t zero;
};

#define SF_GP_JOIN_NOHANG    1u       /* answer at once with the present states */

struct sf_gp_join {
    uint64_t ticket;
    uint32_t flags;
    uint32_t first;                   /* id of the first member wanted in the answer, 1.. */
};

#define SF_GP_STATE_STARTING 0
#define SF_GP_STATE_RUNNING  1
#define SF_GP_STATE_EXITED   2        /* status is valid, the result, if any, is whole */
#define SF_GP_STATE_FAILED   3        /* never ran, or could not be made unique: text says why */
#define SF_GP_STATE_LOST     4        /* died without sf_exit: text says why */
#define SF_GP_STATE_KILLED   5        /* by sf_kill, or by an operator */

#define SF_GP_MEMBERS_PER_REPLY 64

struct sf_gp_member {
    uint32_t id;
    uint32_t state;
    int32_t status;
    uint32_t count;                   /* members of the whole table */
    uint64_t result_length;           /* of the last whole result */
    char text[SF_GP_TEXT_LEN];
};

struct sf_gp_fetch {
    uint64_t ticket;
    uint32_t id;
    uint32_t length;                  /* wanted, <= SF_GP_MAX_CHUNK */
    uint64_t offset;
};

struct sf_gp_kill {
    uint64_t ticket;
};

#define SF_GP_CHECKPOINT_MAX 32       /* characters of a checkpoint's name: a-z, 0-9 and '-' */

struct sf_gp_checkpoint {
    char name[SF_GP_NAME_LEN];        /* chosen by the guest, its own: other VMs have others */
};

struct sf_gp_create {
    uint32_t count;                   /* wanted, 1..SF_GP_MAX_CLONES */
    uint32_t flags;                   /* 0 */
    char name[SF_GP_NAME_LEN];
};

struct sf_gp_self {
    uint64_t ticket;                  /* 0 in a VM that is no clone */
    uint32_t id;                      /* 0 in a VM that is no clone */
    uint32_t count;
};

#endif
