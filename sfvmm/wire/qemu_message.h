/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Messages of the sf channel (qemu_channel.h): requests are built here, what QEMU says is checked here before anybody
 * looks into it. QEMU runs untrusted guests and may have been taken over by one: every length, count, text and extent
 * is checked.
 *
 *     sf_qc_request_*()  -->  sf_qc_send()  ==== socket ====>  QEMU
 *     sf_qc_parse_*()    <--  sf_qc_receive()  <============
 *
 * Errors are G_IO_ERROR: WOULD_BLOCK, CONNECTION_CLOSED, INVALID_DATA (the peer breaks the protocol: drop the channel),
 * FAILED (an ERROR reply: its text). No state: any thread may call anything.
 */
#ifndef SF_QEMU_MESSAGE_H
#define SF_QEMU_MESSAGE_H

#include <gio/gio.h>
#include "sfvmm/wire/qemu_channel.h"

#define SF_QC_MAX_EXTENTS (1u << 24)   /* of one delta; QEMU fills gaps to stay far below */
#define SF_QC_MAX_STATE   (64u << 20)  /* bytes of device state and small RAM blocks */
#define SF_QC_MAX_LENGTH  (1ull << 42) /* bytes of one RAM block */

/* A message as received. The descriptors are its own until they are stolen. */
typedef struct {
    struct sf_qc_header header;
    GBytes *payload; /* header.length bytes */
    guint n_fds;
    int fds[SF_QC_MAX_FDS]; /* O_CLOEXEC */
} SfQcMessage;

void sf_qc_message_free(SfQcMessage *message); /* closes what was not stolen; NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfQcMessage, sf_qc_message_free)

/* Moves the descriptors into fds (room for SF_QC_MAX_FDS); the caller owns them. Returns how many. */
guint sf_qc_message_steal_fds(SfQcMessage *message, int *fds);

/*
 * One packet's bytes as a message: magic, zero field, a type that QEMU may send, serial (0 for events only), length.
 * Takes the fds in every case (closes them on error).
 */
SfQcMessage *sf_qc_message_parse(const void *bytes, gsize length, const int *fds, guint n_fds, GError **error);

/*
 * Receives one packet from a SOCK_SEQPACKET socket; whether it waits depends on the socket. No descriptor leaks,
 * whatever the peer sends: they come with O_CLOEXEC and are closed when the message is cut or wrong.
 */
SfQcMessage *sf_qc_receive(int socket, GError **error);

/* Sends one packet with descriptors (still the caller's), whole or not at all. No SIGPIPE. */
gboolean sf_qc_send(int socket, GBytes *packet, const int *fds, guint n_fds, GError **error);

/* Requests: whole packets, header included, ready for sf_qc_send(). serial: not 0. Caller owns the result. */
GBytes *sf_qc_request_hello(guint32 serial);
GBytes *sf_qc_request_check(guint32 serial);
GBytes *sf_qc_request_snapshot(guint32 serial, guint32 flags, const struct sf_qc_disk *disks, guint n_disks);
GBytes *sf_qc_request_load(guint32 serial, GBytes *payload); /* payload: sf_snapshot_load_request() */
GBytes *sf_qc_request_map(guint32 serial, GBytes *payload);  /* payload: as that of LOAD; see qemu_channel.h */
GBytes *sf_qc_request_load_mapped(guint32 serial, guint32 flags, guint64 state_length); /* after MAP; flags: RESUME */
GBytes *sf_qc_request_fold(guint32 serial, guint64 max_bytes);
GBytes *sf_qc_request_thaw(guint32 serial);
GBytes *sf_qc_request_share(guint32 serial, guint64 max_bytes);
GBytes *sf_qc_request_avoided(guint32 serial);

/*
 * Is message the answer to this request? Checks serial and type; an ERROR reply becomes G_IO_ERROR_FAILED with QEMU's
 * text, anything else G_IO_ERROR_INVALID_DATA.
 */
gboolean sf_qc_check_reply(const SfQcMessage *message, guint16 request_type, guint32 serial, GError **error);

/* Payloads. n_fds is checked against what the payload announces. Outputs are whole copies, valid on success only. */
gboolean sf_qc_parse_hello(GBytes *payload, guint n_fds, struct sf_qc_hello_reply *reply,
                           struct sf_qc_block blocks[SF_QC_MAX_BLOCKS], GError **error);
gboolean sf_qc_parse_check(GBytes *payload, guint n_fds, char **text, GError **error); /* "": forkable */
gboolean sf_qc_parse_snapshot(GBytes *payload, guint n_fds, struct sf_qc_snapshot_reply *reply,
                              struct sf_qc_snapshot_block blocks[SF_QC_MAX_BLOCKS], GError **error);
gboolean sf_qc_parse_map(GBytes *payload, guint n_fds, struct sf_qc_map_reply *reply,
                         struct sf_qc_mapped_block blocks[SF_QC_MAX_BLOCKS], GError **error);
gboolean sf_qc_parse_load(GBytes *payload, guint n_fds, struct sf_qc_load_reply *reply, GError **error);
gboolean sf_qc_parse_fold(GBytes *payload, guint n_fds, struct sf_qc_fold_reply *reply, GError **error); /* and others */
gboolean sf_qc_parse_avoided(GBytes *payload, guint n_fds, struct sf_qc_avoided_reply *reply, GError **error);
gboolean sf_qc_parse_error(GBytes *payload, guint n_fds, char **text, GError **error); /* made printable */
gboolean sf_qc_parse_running(GBytes *payload, guint n_fds, struct sf_qc_running *event, GError **error);

/* Are the extents of a delta, or present ones, non-empty, page-aligned, sorted, disjoint and within a block of length bytes? */
gboolean sf_qc_check_extents(const struct sf_qc_extent *extents, guint n, guint64 length, GError **error);

#endif
