/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The parts of sf-agent. One thread owns everything; agent.c has the theory of operation.
 */
#ifndef SF_AGENT_H
#define SF_AGENT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "guest-agent/network.h"
#include "libsf/wire/frame.h"
#include "libsf/wire/message.h"

#define AGENT_MAX_SLOTS        256      /* programs that are connected, and requests whose programs have gone */
#define AGENT_MAX_PER_USER     64       /* connections of one user other than root */
#define AGENT_MAX_HOOKS        64
#define AGENT_HOOK_NAME_LEN    64
#define AGENT_HOOK_PATH_LEN    4096
#define AGENT_ARGUMENT_MAX     72       /* payload bytes of every request but SYNC */
#define AGENT_RETRY_MS         1000     /* how often a port that is missing or has no host is tried again */
#define AGENT_READ_SIZE        16384
#define AGENT_CONTROL_SPACE    1024     /* room behind the largest frame for replies to HELLO, NETWORK, IDENTITY */

_Static_assert(SF_GP_CREATE_LENGTH <= AGENT_ARGUMENT_MAX, "the longest request besides SYNC");
_Static_assert(AGENT_CONTROL_SPACE >= 3 * (SF_GP_HEADER_LENGTH + SF_GP_ERROR_LENGTH + 16), "both replies at once");

/* Steps of becoming a clone that --skip leaves out. */
#define AGENT_SKIP_RNG         1u
#define AGENT_SKIP_CLOCK       2u
#define AGENT_SKIP_HOSTNAME    4u
#define AGENT_SKIP_HOOKS       8u
#define AGENT_SKIP_NETWORK     16u
#define AGENT_SKIP_SSH         32u      /* in a cluster's first VM */
#define AGENT_SKIP_BOOT_ID     64u

struct agent_options {
    const char *port;           /* NULL: find the virtio-serial port by its name */
    const char *socket;
    const char *run_dir;        /* the file `clone` and the lock */
    const char *hooks;
    const char *names;          /* file of the cluster's members */
    const char *group;          /* whose members may use the socket */
    mode_t mode;
    unsigned skip;
    unsigned hook_timeout_ms;
    bool syslog;
    bool verbose;
};

/* ---- port.c: the serial port ---- */

struct port {
    const char *wanted;         /* --port, or NULL */
    int fd;                     /* -1: not open */
    bool virtio;                /* hang-up is told by SIGIO; else the file is opened anew */
    bool connected;             /* somebody is at the host's end, as far as we know */
    bool greeted;               /* HELLO came since the connection */
    bool wipe;                  /* `in` holds a seed */
    int open_error;             /* errno of the last try, so that it is logged once */
    size_t out_at, out_length;
    struct sf_frame_decoder decoder;
    uint8_t in[AGENT_READ_SIZE];
    uint8_t out[SF_FRAME_MAX_ENCODED + AGENT_CONTROL_SPACE];
};

typedef void port_message(void *opaque, const struct sf_gp_header *header, const uint8_t *payload);

void port_init(struct port *port, const char *wanted);
/* Opens the port, or looks whether its host has come back. Cheap when nothing has changed. */
void port_try(struct port *port);
/* Reads what is there and hands on each message. */
void port_read(struct port *port, port_message *message, void *opaque);
/* Puts one frame behind what waits; false: no room now. */
bool port_put(struct port *port, uint8_t type, uint32_t request, const void *payload, size_t length);
/* Writes what waits, as far as the port takes it. */
void port_flush(struct port *port);
/* Forgets what waits and begins with a zero byte: the other end is a new one. */
void port_restart_output(struct port *port);
/* poll() said hang-up. */
void port_hangup(struct port *port);
/* From within a port_message: its bytes held a seed, overwrite them. The payload is gone then. */
void port_wipe_message(struct port *port, size_t payload_length);

/* ---- identity.c: becoming a clone ---- */

enum identity_state {
    IDENTITY_NONE,              /* no clone, or not told yet */
    IDENTITY_HOOKS,             /* a hook runs */
    IDENTITY_DONE,
    IDENTITY_FAILED,            /* the host knows why and ends this VM */
};

struct identity {
    const struct agent_options *options;
    struct network *network;            /* NULL: this VM gets none with its identity */
    enum identity_state state;
    struct sf_gp_identity value;        /* seed wiped */
    struct sf_gp_error error;           /* of IDENTITY_FAILED */
    int rng_fd;
    pid_t hook_pid;
    int hook_nice;                      /* priority of hooks: that of the agent at its start */
    uint64_t hook_deadline_ms;
    bool hook_timed_out;
    unsigned managers;                  /* that are still to be told of the network, before hooks (managers.h) */
    unsigned hooks, next_hook;          /* names in hook_names; the one that comes next */
    int hooks_fd;                       /* the folder; -1: there is none */
    bool hooks_certain;                 /* hook_names is what a folder with hooks_status has */
    struct stat hooks_status;
    char *file;                         /* run_dir/clone, mapped */
    char *boot_id;                      /* mapped; NULL: it stays as it is */
    char hook_names[AGENT_MAX_HOOKS][AGENT_HOOK_NAME_LEN];
    char hook_path[AGENT_HOOK_PATH_LEN]; /* of the last that was started */
};

/* Opens what becoming a clone needs, and reads run_dir/clone: an agent started anew in a clone knows what it is. */
bool identity_init(struct identity *identity, const struct agent_options *options);
/* Makes this VM the clone that *value says, up to the first hook or to the end; see ->state. Wipes value->seed. */
void identity_begin(struct identity *identity, struct sf_gp_identity *value);
/* A child ended (SIGCHLD). */
void identity_child(struct identity *identity);
/* The time has come that identity_timeout_ms() named. */
void identity_expire(struct identity *identity);
/* Milliseconds until identity_expire() must be called; -1: never. */
int identity_timeout_ms(const struct identity *identity);

/* ---- hooks.c: /etc/snowflock/clone.d ---- */

/* Reads the names of the hooks. */
void hooks_init(struct identity *identity);
/* Makes sure that the names are those of now, and begins with the first; false with *error if they cannot be read. */
bool hooks_begin(struct identity *identity, struct sf_gp_error *error);

enum hook_start { HOOK_STARTED, HOOK_NONE, HOOK_FAILED };

/* Starts the next hook, if one is left; *error is set if it cannot be started. */
enum hook_start hooks_start_next(struct identity *identity, struct sf_gp_error *error);

/* ---- slots.c: programs and their requests ---- */

/*
 * A program's connection and its request: one at a time, the next packet stays in the socket until the answer is
 * out. Without a program (fd -1) it is a request that must be seen to its end.
 */
struct slot {
    bool used;
    bool pending;               /* a request waits for the host */
    bool sent;                  /* to the host, in its present connection */
    bool resent;                /* an earlier one may have been acted upon */
    bool foreign;               /* asked by this clone's parent */
    int fd;
    uid_t uid;
    uint8_t type;
    uint32_t program_request;
    uint32_t host_request;
    uint64_t age;               /* order in which requests came */
    size_t length;
    uint8_t argument[AGENT_ARGUMENT_MAX];       /* payload; of SYNC: slots->sync */
};

struct slots {
    struct slot slot[AGENT_MAX_SLOTS];
    unsigned end;               /* behind the last one in use: a clone should not have to touch the rest */
    struct slot *sync_owner;    /* who hands over this VM's result */
    unsigned turn;              /* the slot that is looked at first for sending */
    uint32_t last_request;
    uint64_t last_age;
    bool have_port;             /* false: requests for the host fail at once */
    const struct identity *identity;
    const struct network *network;
    uint8_t sync[SF_GP_SYNC_LENGTH + SF_GP_MAX_CHUNK];
    uint8_t packet[SF_GP_MAX_MESSAGE];
};

void slots_init(struct slots *slots, const struct identity *identity, const struct network *network);
/* May one more program connect? */
bool slots_room(const struct slots *slots);
/* Takes the connection over; refuses it politely when its user has too many. */
void slots_connect(struct slots *slots, int fd, uid_t uid);
/* One packet of this slot's program, or its end, is there. */
void slots_read(struct slots *slots, struct slot *slot);
/* The program hung up. */
void slots_hangup(struct slots *slots, struct slot *slot);
/* A reply or an error from the host. */
void slots_answer(struct slots *slots, const struct sf_gp_header *header, const uint8_t *payload);
/* A new host connection: everything is to be sent again. */
void slots_unsend(struct slots *slots);
/* Next request to send, in turn; NULL: none. *payload is its payload. */
struct slot *slots_next(struct slots *slots, const uint8_t **payload);
/* The requests so far are those of the parent. */
void slots_fork(struct slots *slots);
/* This is the clone: answers the CLONE or CHECKPOINT with this host id, ends the parent's other requests with ECHILD. */
void slots_forked(struct slots *slots, uint32_t clone_request);

/* ---- agent.c ---- */

/* priority: LOG_ERR, LOG_WARNING, LOG_NOTICE, LOG_DEBUG. */
void agent_log(int priority, const char *format, ...) __attribute__((format(printf, 2, 3)));
uint64_t agent_now_ms(void);

#endif
