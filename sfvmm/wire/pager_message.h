/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What sfvmmd and sf-pager say to each other: over pager.sock, an AF_UNIX SOCK_SEQPACKET socket on which sf-pager
 * accepts (a new connection takes the place of the old one: a restarted sfvmmd). One packet is one JSON object;
 * descriptors travel beside it with SCM_RIGHTS.
 *
 *     sfvmmd -> sf-pager     {"id": 7, "do": "attach", "vm": "web-3", "blocks": [...]}        + userfaultfd
 *     sf-pager -> sfvmmd     {"id": 7, "ok": true, ...}  or  {"id": 7, "error": "text"}       + descriptors
 *                            {"event": "lost", "reason": "text"}                              never asked for
 *
 * | do          | members                                   | descriptors                          | answer |
 * |-------------|-------------------------------------------|--------------------------------------|--------|
 * | serve       | security                                  | listener, then see security          | |
 * | snapshot    | snapshot, state_length, blocks [{id, length, cache, n_present, layers [n_extents]}]
 * |             |                     | state, per block: base, if cache present, per layer delta, extents | |
 * | source      | uri, security, user (psk), connections    | see security                         | |
 * | attach      | vm, pid, blocks [{id, address, length}]   | userfaultfd                          | |
 * | detach      | vm                                        |                                      | |
 * | allow       | names                                     |                                      | |
 * | prefetch    | working_set, neighbours, complete (bool)  |                                      | |
 * | working-set | n                                         | memfd of n sf_pager_run              | |
 * | multicast   | group, origin (bool), port, payload, receivers, min_rate, max_rate, push (bool)
 * |             |                                           | socket, memfd with keys              | |
 * | blob        | digest, length                            | memfd of length bytes                | |
 * | recorded    |                                           |                             | n + memfd of n sf_pager_run |
 * | stats       |                                           |                             | SfPagerStats, pages that came unasked |
 * | recall      | index                                     |                             | message, last + its descriptors |
 *
 * security: "x509" with a directory descriptor (ca-cert.pem and so on, open(O_PATH)), "psk" with a descriptor of the
 * directory that has keys.psk, "plain" with none.
 *
 * multicast: as origin it sends to group and port (keys: the master), else it receives from there (keys: struct
 * mc_receiver_keys). The socket is one of pager/udp_group.h.
 *
 * blob: the origin sends what the memfd holds to its group, once; another host gathers it there into the memfd, and
 * tells with {"event": "blob", "blob": the first 16 digits of the digest, "whole": bool} what became of it. digest:
 * SHA-256, 64 hexadecimal digits; nobody but who asked compares it with the content. A new process knows nothing of it.
 *
 * recall: the sf-pager keeps every message that makes it what it is (not detached ones), with its descriptors, and
 * gives them back in order: all that a restarted sfvmmd needs to take it over, and to start a new one in its place
 * later.
 *
 * Both sides check all that they receive. No state, any thread.
 */
#ifndef SF_PAGER_MESSAGE_H
#define SF_PAGER_MESSAGE_H

#include <gio/gio.h>
#include <json-glib/json-glib.h>
#include "sfvmm/wire/qemu_channel.h"

#define SF_PAGER_MAX_MESSAGE     65536u
#define SF_PAGER_MAX_FDS         128u
#define SF_PAGER_MAX_NAMES       256u  /* of peers that may read */
#define SF_PAGER_MAX_TEXT        1024u /* of one text, bytes */
#define SF_PAGER_MAX_CONNECTIONS 16u   /* to one source */
#define SF_PAGER_MAX_RUNS        (1u << 20)
#define SF_PAGER_MAX_BLOB        (4u << 20) /* bytes */
#define SF_PAGER_KEYS_FILE       "keys.psk"

/* A run of pages of a working set, in the order of use. In the host's byte order: it never leaves the host so. */
struct sf_pager_run {
    uint32_t block; /* index */
    uint32_t pages; /* > 0 */
    uint64_t offset; /* bytes, page-aligned */
};

typedef enum {
    SF_PAGER_DO_SERVE,
    SF_PAGER_DO_SNAPSHOT,
    SF_PAGER_DO_SOURCE,
    SF_PAGER_DO_ATTACH,
    SF_PAGER_DO_DETACH,
    SF_PAGER_DO_ALLOW,
    SF_PAGER_DO_PREFETCH,
    SF_PAGER_DO_WORKING_SET,
    SF_PAGER_DO_MULTICAST,
    SF_PAGER_DO_BLOB,
    SF_PAGER_DO_RECORDED,
    SF_PAGER_DO_STATS,
    SF_PAGER_DO_RECALL,
    SF_PAGER_N_DO
} SfPagerDo;

typedef enum { SF_PAGER_PLAIN, SF_PAGER_X509, SF_PAGER_PSK, SF_PAGER_N_SECURITY } SfPagerSecurity;

/* One packet as received. Descriptors are its own until stolen. */
typedef struct {
    JsonObject *object;
    guint n_fds;
    int fds[SF_PAGER_MAX_FDS]; /* O_CLOEXEC */
} SfPagerPacket;

void sf_pager_packet_free(SfPagerPacket *packet);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfPagerPacket, sf_pager_packet_free)

/* G_IO_ERROR: WOULD_BLOCK, CONNECTION_CLOSED, INVALID_DATA (drop the connection). */
SfPagerPacket *sf_pager_receive(int socket, GError **error);
/* Whole or not at all; no SIGPIPE. fds stay the caller's. */
gboolean sf_pager_send(int socket, JsonObject *object, const int *fds, guint n_fds, GError **error);

typedef struct {
    char id[SF_QC_NAME_LEN];
    guint64 length; /* bytes */
    guint64 address; /* attach: where it lies in QEMU */
    gboolean is_cache;
    guint32 n_present, n_layers;
    guint32 n_extents[SF_QC_MAX_LAYERS];
} SfPagerBlock;

/* Of "multicast", beside the group's address, which is the text. */
typedef struct {
    gboolean origin;
    guint64 port, payload; /* bytes of a datagram */
    guint64 receivers;     /* that are expected */
    guint64 min_rate, max_rate; /* origin: bytes a second; 0: the default */
    gboolean push;              /* origin: pages that nobody has asked for */
} SfPagerMulticast;

/* A request, checked: texts within bounds, numbers sensible, as many descriptors as it announces. */
typedef struct {
    gint64 id; /* > 0 */
    SfPagerDo what;
    SfPagerSecurity security;
    char *text; /* snapshot, uri, vm, group, digest; NULL */
    char *user; /* psk; NULL */
    GStrv names;
    guint64 number; /* state_length, connections, n, index, pid, length */
    gboolean working_set, neighbours, complete;
    SfPagerMulticast multicast;
    guint n_blocks;
    SfPagerBlock *blocks;
} SfPagerRequest;

void sf_pager_request_free(SfPagerRequest *request);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfPagerRequest, sf_pager_request_free)

/* NULL + INVALID_DATA that says what is wrong. */
SfPagerRequest *sf_pager_request_parse(JsonObject *object, guint n_fds, GError **error);

/* The object of a request; sf_pager_request_parse() of it gives the same again. Caller owns it. */
JsonObject *sf_pager_request_format(const SfPagerRequest *request);

/* What a blob is called in datagrams: the first 8 bytes of its digest. FALSE: that is no digest. */
gboolean sf_pager_blob_id(const char *digest, guint64 *id);

/* How many descriptors go with it. */
guint sf_pager_request_n_fds(const SfPagerRequest *request);

#endif
