/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Keys are HKDF-Expand(SHA-256) of a secret that is random already; the labels below are part of the protocol.
 *
 * Opening, cheapest check first: header, tag and sender, incarnation, replay window, then the AEAD. Nothing is
 * remembered of a datagram before its authentication has been verified: neither can a forged sequence move the window,
 * nor a forged incarnation shut out the real one. A new incarnation costs a key derivation per datagram until one of
 * them is genuine; that is all that a forger gains.
 *
 * Replay window: a ring of bits, one for each of the last MC_REPLAY_WINDOW sequences up to the highest.
 *
 *       highest - 4095                     highest
 *            |<--- a bit each: seen? --------->|
 *      refused                                  new: the window moves up
 */
#include "sfvmm/pager/mc_seal.h"

#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "sfvmm/wire/big_endian.h"

#define LABEL_TAG     "snowflock multicast 1 tag"
#define LABEL_DATA    "snowflock multicast 1 data"
#define LABEL_REQUEST "snowflock multicast 1 request" /* + receiver, 2 bytes */
#define LABEL_KEY     "snowflock multicast 1 key"     /* + incarnation, 8 bytes */
#define LABEL_MAX     48u
#define NONCE_LENGTH  12u /* 2 bytes zero, sender, sequence */
#define WORD_BITS     64u

struct replay_window {
    uint64_t highest;
    uint64_t seen[MC_REPLAY_WINDOW / WORD_BITS];
};

struct mc_sealer {
    struct mc_header header; /* of the last datagram */
    gnutls_aead_cipher_hd_t cipher;
};

struct mc_opener {
    struct mc_header header; /* type, sender, tag; incarnation: the one whose key is at hand, 0: none */
    uint8_t secret[MC_KEY_LENGTH];
    gnutls_aead_cipher_hd_t cipher;
    struct replay_window window;
};

/* ---- keys ---- */

static bool expand(const uint8_t secret[MC_KEY_LENGTH], const char *label, const uint8_t *suffix, size_t n,
                   uint8_t *output, size_t length)
{
    uint8_t info[LABEL_MAX];
    size_t label_length = strlen(label);
    gnutls_datum_t key = { (unsigned char *)secret, MC_KEY_LENGTH };
    gnutls_datum_t info_datum = { info, (unsigned)(label_length + n) };

    memcpy(info, label, label_length);
    if (n > 0) {
        memcpy(info + label_length, suffix, n);
    }
    return gnutls_hkdf_expand(GNUTLS_MAC_SHA256, &key, &info_datum, output, length) == 0;
}

bool mc_keys_derive(const uint8_t master[MC_KEY_LENGTH], uint16_t receiver, struct mc_receiver_keys *keys)
{
    uint8_t tag[sizeof(uint64_t)], id[sizeof(uint16_t)];

    sf_be_put16(id, receiver);
    keys->receiver = receiver;
    if (!expand(master, LABEL_TAG, NULL, 0, tag, sizeof(tag)) ||
        !expand(master, LABEL_DATA, NULL, 0, keys->data, MC_KEY_LENGTH) ||
        !expand(master, LABEL_REQUEST, id, sizeof(id), keys->request, MC_KEY_LENGTH)) {
        mc_keys_wipe(keys);
        return false;
    }
    keys->tag = sf_be_get64(tag);
    return true;
}

void mc_keys_wipe(struct mc_receiver_keys *keys)
{
    explicit_bzero(keys, sizeof(*keys));
}

uint64_t mc_new_incarnation(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* NULL: GnuTLS failed. */
static gnutls_aead_cipher_hd_t new_cipher(const uint8_t secret[MC_KEY_LENGTH], uint64_t incarnation)
{
    uint8_t key[MC_KEY_LENGTH], suffix[sizeof(incarnation)];
    gnutls_datum_t datum = { key, sizeof(key) };
    gnutls_aead_cipher_hd_t cipher;

    sf_be_put64(suffix, incarnation);
    if (!expand(secret, LABEL_KEY, suffix, sizeof(suffix), key, sizeof(key)) ||
        gnutls_aead_cipher_init(&cipher, GNUTLS_CIPHER_AES_256_GCM, &datum) != 0) {
        cipher = NULL;
    }
    explicit_bzero(key, sizeof(key));
    return cipher;
}

static void make_nonce(uint8_t nonce[NONCE_LENGTH], uint16_t sender, uint64_t sequence)
{
    sf_be_put16(nonce, 0);
    sf_be_put16(nonce + 2, sender);
    sf_be_put64(nonce + 4, sequence);
}

/* ---- sealing ---- */

struct mc_sealer *mc_sealer_new(uint8_t type, uint16_t sender, uint64_t tag, const uint8_t secret[MC_KEY_LENGTH],
                                uint64_t incarnation)
{
    gnutls_aead_cipher_hd_t cipher = new_cipher(secret, incarnation);
    struct mc_sealer *sealer;

    if (cipher == NULL) {
        return NULL;
    }
    sealer = calloc(1, sizeof(*sealer));
    if (sealer == NULL) {
        abort();
    }
    sealer->header = (struct mc_header){ type, sender, tag, incarnation, 0 };
    sealer->cipher = cipher;
    return sealer;
}

void mc_sealer_free(struct mc_sealer *sealer)
{
    if (sealer != NULL) {
        gnutls_aead_cipher_deinit(sealer->cipher);
        free(sealer);
    }
}

size_t mc_sealer_seal(struct mc_sealer *sealer, uint64_t sequence, uint8_t *bytes, size_t n)
{
    uint8_t nonce[NONCE_LENGTH];
    size_t tag_length = MC_TAG_LENGTH;
    giovec_t auth = { bytes, MC_HEADER_LENGTH }, text = { bytes + MC_HEADER_LENGTH, n };

    if (sequence <= sealer->header.sequence) {
        return 0; /* a nonce is never used twice */
    }
    sealer->header.sequence = sequence;
    mc_header_encode(bytes, &sealer->header);
    make_nonce(nonce, sealer->header.sender, sequence);
    if (gnutls_aead_cipher_encryptv2(sealer->cipher, nonce, sizeof(nonce), &auth, 1, &text, 1,
                                     bytes + MC_HEADER_LENGTH + n, &tag_length) != 0) {
        return 0;
    }
    return n + MC_OVERHEAD;
}

bool mc_sealer_seal_batch(struct mc_sealer *sealer, struct mc_batch *batch)
{
    for (unsigned i = 0; i < batch->n_datagrams; i++) {
        size_t length;
        uint8_t *datagram = mc_batch_datagram(batch, i, &length);
        if (mc_sealer_seal(sealer, batch->first_sequence + i, datagram, length - MC_OVERHEAD) == 0) {
            return false;
        }
    }
    return true;
}

/* ---- replay window ---- */

static bool window_has(const struct replay_window *window, uint64_t sequence)
{
    unsigned bit = (unsigned)(sequence % MC_REPLAY_WINDOW);

    if (sequence > window->highest) {
        return false;
    }
    return window->highest - sequence >= MC_REPLAY_WINDOW ||
           (window->seen[bit / WORD_BITS] >> bit % WORD_BITS & 1) != 0;
}

static void window_note(struct replay_window *window, uint64_t sequence)
{
    unsigned bit = (unsigned)(sequence % MC_REPLAY_WINDOW);

    if (sequence > window->highest) {
        if (sequence - window->highest >= MC_REPLAY_WINDOW) {
            memset(window->seen, 0, sizeof(window->seen));
        } else {
            for (uint64_t i = window->highest + 1; i < sequence; i++) {
                unsigned skipped = (unsigned)(i % MC_REPLAY_WINDOW);
                window->seen[skipped / WORD_BITS] &= ~(UINT64_C(1) << skipped % WORD_BITS);
            }
        }
        window->highest = sequence;
    }
    window->seen[bit / WORD_BITS] |= UINT64_C(1) << bit % WORD_BITS;
}

/* ---- opening ---- */

struct mc_opener *mc_opener_new(uint8_t type, uint16_t sender, uint64_t tag, const uint8_t secret[MC_KEY_LENGTH])
{
    struct mc_opener *opener = calloc(1, sizeof(*opener));

    if (opener == NULL) {
        abort();
    }
    opener->header = (struct mc_header){ .type = type, .sender = sender, .tag = tag };
    memcpy(opener->secret, secret, MC_KEY_LENGTH);
    return opener;
}

void mc_opener_free(struct mc_opener *opener)
{
    if (opener == NULL) {
        return;
    }
    if (opener->cipher != NULL) {
        gnutls_aead_cipher_deinit(opener->cipher);
    }
    explicit_bzero(opener->secret, sizeof(opener->secret));
    free(opener);
}

static bool decrypt(gnutls_aead_cipher_hd_t cipher, const struct mc_header *header, uint8_t *bytes, size_t n)
{
    uint8_t nonce[NONCE_LENGTH];
    giovec_t auth = { bytes, MC_HEADER_LENGTH }, text = { bytes + MC_HEADER_LENGTH, n - MC_OVERHEAD };

    make_nonce(nonce, header->sender, header->sequence);
    return gnutls_aead_cipher_decryptv2(cipher, nonce, sizeof(nonce), &auth, 1, &text, 1, bytes + n - MC_TAG_LENGTH,
                                        MC_TAG_LENGTH) == 0;
}

/* A datagram of a later incarnation: its key takes the place of the old one if it opens the datagram. */
static bool adopt(struct mc_opener *opener, const struct mc_header *header, uint8_t *bytes, size_t n)
{
    gnutls_aead_cipher_hd_t cipher = new_cipher(opener->secret, header->incarnation);

    if (cipher == NULL) {
        return false;
    }
    if (!decrypt(cipher, header, bytes, n)) {
        gnutls_aead_cipher_deinit(cipher);
        return false;
    }
    if (opener->cipher != NULL) {
        gnutls_aead_cipher_deinit(opener->cipher);
    }
    opener->cipher = cipher;
    opener->header.incarnation = header->incarnation;
    opener->window = (struct replay_window){ 0 };
    return true;
}

enum mc_opened mc_opener_open(struct mc_opener *opener, uint8_t *bytes, size_t n, struct mc_header *header,
                              const uint8_t **content, size_t *length)
{
    const struct mc_header *want = &opener->header;

    if (!mc_header_decode(bytes, n, header) || header->type != want->type || header->sender != want->sender ||
        header->tag != want->tag) {
        return MC_FOREIGN;
    }
    if (header->incarnation < want->incarnation ||
        (header->incarnation == want->incarnation && window_has(&opener->window, header->sequence))) {
        return MC_REPLAYED;
    }
    if (!(header->incarnation == want->incarnation && opener->cipher != NULL ? decrypt(opener->cipher, header, bytes, n)
                                                                             : adopt(opener, header, bytes, n))) {
        return MC_FORGED;
    }
    window_note(&opener->window, header->sequence);
    *content = bytes + MC_HEADER_LENGTH;
    *length = n - MC_OVERHEAD;
    return MC_OPENED;
}
