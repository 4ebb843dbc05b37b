/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mc_seal: keys of a snapshot's multicast, sealing and opening datagrams (AES-256-GCM, HKDF-SHA-256; GnuTLS), replay
 * windows.
 *
 *      master, known to the origin alone
 *        +-- tag of the snapshot                       in every header: what is of another snapshot is dropped unopened
 *        +-- data secret                               every receiver gets it, over TLS
 *        +-- request secret of receiver 1, 2, 3 ...    that receiver gets it, over TLS
 *              +-- key of an incarnation               secret + the incarnation in the header
 *
 * The header is authenticated; the nonce is sender and sequence. A process never uses a nonce twice with one key: it
 * counts sequences up, and another process has another incarnation (CLOCK_REALTIME, ns, when it began), so another key.
 * Who opens takes only incarnations that are higher than the last: what was recorded from an earlier process is
 * refused.
 *
 * An object belongs to one thread.
 */
#ifndef SF_PAGER_MC_SEAL_H
#define SF_PAGER_MC_SEAL_H

#include "sfvmm/pager/mc_batch.h"
#include "sfvmm/pager/mc_datagram.h"

#define MC_KEY_LENGTH 32u

/* What one end needs. Wipe with mc_keys_wipe(). */
struct mc_receiver_keys {
    uint16_t receiver; /* 1 .. */
    uint64_t tag;
    uint8_t data[MC_KEY_LENGTH], request[MC_KEY_LENGTH];
};

/* Of one receiver, from the master. In the origin's sf-pager and sfvmmd. false: GnuTLS failed. */
bool mc_keys_derive(const uint8_t master[MC_KEY_LENGTH], uint16_t receiver, struct mc_receiver_keys *keys);
void mc_keys_wipe(struct mc_receiver_keys *keys);

/* Of a process that begins now: higher than that of any before it, unless the clock is set back. */
uint64_t mc_new_incarnation(void);

/* ---- sealing ---- */

struct mc_sealer;

/* secret: keys.data with sender 0, or keys.request with that receiver's id. NULL: GnuTLS failed. */
struct mc_sealer *mc_sealer_new(uint8_t type, uint16_t sender, uint64_t tag, const uint8_t secret[MC_KEY_LENGTH],
                                uint64_t incarnation);
void mc_sealer_free(struct mc_sealer *sealer);

/*
 * bytes: room for the header, n bytes to be encrypted in place, room for the tag. Sequences have to rise: one that is
 * not above the last is refused. Returns the datagram's length, 0 on failure.
 */
size_t mc_sealer_seal(struct mc_sealer *sealer, uint64_t sequence, uint8_t *bytes, size_t n);

/* All datagrams of a finished batch, with its sequences. */
bool mc_sealer_seal_batch(struct mc_sealer *sealer, struct mc_batch *batch);

/* ---- opening ---- */

#define MC_REPLAY_WINDOW 4096u /* datagrams: some 100 batches may overtake each other */

enum mc_opened {
    MC_OPENED,
    MC_FOREIGN,  /* no datagram of this snapshot, type and sender */
    MC_FORGED,   /* key or content do not fit */
    MC_REPLAYED, /* has come before, is older than the window or of an earlier incarnation */
};

struct mc_opener;

/* Opens what `sender` sends with this type. */
struct mc_opener *mc_opener_new(uint8_t type, uint16_t sender, uint64_t tag, const uint8_t secret[MC_KEY_LENGTH]);
void mc_opener_free(struct mc_opener *opener);

/*
 * Decrypts in place a datagram of n bytes. MC_OPENED: header, and content (*length bytes, within bytes). Anything
 * else: nothing has changed but what bytes hold.
 */
enum mc_opened mc_opener_open(struct mc_opener *opener, uint8_t *bytes, size_t n, struct mc_header *header,
                              const uint8_t **content, size_t *length);

#endif
