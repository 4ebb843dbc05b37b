/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Frames of the serial port: one message of guest_protocol.h and its CRC-32, COBS-encoded, ended by a zero byte.
 *
 * COBS (consistent overhead byte stuffing) cuts the bytes behind each zero (and after 254 bytes without one) and
 * writes the length of each cut plus one in front of it instead of the zero, so that no zero is left:
 *
 *     message, CRC     11 22 00 33 | 44 55 66 77
 *     frame            03 11 22  06 33 44 55 66 77  00
 *
 * Nothing here allocates. A decoder belongs to one thread.
 */
#ifndef SF_WIRE_FRAME_H
#define SF_WIRE_FRAME_H

#include "libsf/wire/message.h"

#define SF_FRAME_CRC_LENGTH     4
#define SF_FRAME_MAX_DECODED    (SF_GP_MAX_MESSAGE + SF_FRAME_CRC_LENGTH)
#define SF_FRAME_COBS_RUN       254
/* One code byte more for each full run, the first code byte, the zero at the end. */
#define SF_FRAME_MAX_ENCODED    (SF_FRAME_MAX_DECODED + SF_FRAME_MAX_DECODED / SF_FRAME_COBS_RUN + 2)

/*
 * Writes header (version, zero and length are filled in from payload_length), payload and CRC as one frame, its zero
 * byte included, into buf. SF_FRAME_MAX_ENCODED bytes always suffice.
 * Returns the frame's length; 0 when buf is too small or payload_length is above SF_GP_MAX_PAYLOAD.
 */
size_t sf_frame_encode(uint8_t *buf, size_t capacity, uint8_t type, uint32_t request, const void *payload,
                       size_t payload_length);

/* CRC-32 of IEEE 802.3 (that of zlib); crc is 0 for the first piece, then the last value. */
uint32_t sf_frame_crc32(uint32_t crc, const void *data, size_t length);

struct sf_frame_decoder {
    uint64_t frames;           /* good ones so far */
    uint64_t broken;           /* dropped: too long, bad COBS, bad CRC, bad header; empty ones are not counted */
    size_t length;             /* bytes decoded of the present frame */
    uint8_t left;              /* bytes left of the present run */
    bool zero_due;             /* the run that ends next stands for a zero, unless the frame ends there */
    bool bad;                  /* the present frame is broken: skip to the next zero byte */
    bool any;                  /* the present frame has at least one byte */
    uint8_t decoded[SF_FRAME_MAX_DECODED];
};

/* Ready for the first byte of a stream. The counters start at 0. */
void sf_frame_decoder_init(struct sf_frame_decoder *decoder);

/*
 * Takes bytes from *data, moving *data and *length on, until a good message is whole or no bytes are left. On true,
 * header and payload (header->length bytes in the decoder, valid up to the next call) are the message; call again
 * for the rest of the data. On false all data is taken; a frame that has not ended is kept.
 */
bool sf_frame_decoder_next(struct sf_frame_decoder *decoder, const uint8_t **data, size_t *length,
                           struct sf_gp_header *header, const uint8_t **payload);

#endif
