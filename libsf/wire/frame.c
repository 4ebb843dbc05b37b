/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * COBS and CRC-32, both ways, for the bytes of a serial port.
 *
 * The encoder runs over header, payload and CRC as three pieces, so that no copy of the message is made. The decoder
 * works on whatever pieces read() gives: it looks for the zero byte that ends the frame, then copies whole runs. A
 * broken frame costs what is left up to the next zero and nothing else: no state survives a zero byte.
 */
#include "libsf/wire/frame.h"

#include <string.h>

/* ---- CRC-32, eight bytes a step ---- */

#define CRC_POLYNOMIAL 0xedb88320u
#define CRC_SLICES     8

static uint32_t crc_table[CRC_SLICES][256];

/* Made when the program (or the library that holds this) is loaded: no lock is needed later. */
__attribute__((constructor)) static void crc_table_make(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;

        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ (crc & 1 ? CRC_POLYNOMIAL : 0);
        }
        crc_table[0][byte] = crc;
    }
    for (int slice = 1; slice < CRC_SLICES; slice++) {
        for (uint32_t byte = 0; byte < 256; byte++) {
            uint32_t crc = crc_table[slice - 1][byte];

            crc_table[slice][byte] = crc >> 8 ^ crc_table[0][crc & 0xff];
        }
    }
}

uint32_t sf_frame_crc32(uint32_t crc, const void *data, size_t length)
{
    const uint8_t *at = data;

    crc = ~crc;
    for (; length >= CRC_SLICES; length -= CRC_SLICES, at += CRC_SLICES) {
        uint32_t low = crc ^ (at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24);

        crc = crc_table[7][low & 0xff] ^ crc_table[6][low >> 8 & 0xff] ^ crc_table[5][low >> 16 & 0xff] ^
              crc_table[4][low >> 24] ^ crc_table[3][at[4]] ^ crc_table[2][at[5]] ^ crc_table[1][at[6]] ^
              crc_table[0][at[7]];
    }
    for (; length > 0; length--, at++) {
        crc = crc >> 8 ^ crc_table[0][(crc ^ *at) & 0xff];
    }
    return ~crc;
}

/* ---- encoder ---- */

struct encoder {
    uint8_t *code;      /* where the length of the present run goes */
    uint8_t *at;        /* next free byte */
};

static void encoder_put(struct encoder *e, const uint8_t *data, size_t length)
{
    while (length > 0) {
        size_t run = (size_t)(e->at - e->code - 1);
        size_t room = SF_FRAME_COBS_RUN - run;
        size_t span = length < room ? length : room;
        const uint8_t *zero = memchr(data, 0, span);
        size_t copy = zero ? (size_t)(zero - data) : span;

        memcpy(e->at, data, copy);
        e->at += copy;
        run += copy;
        data += copy;
        length -= copy;
        if (zero || run == SF_FRAME_COBS_RUN) {
            *e->code = (uint8_t)(run + 1);
            e->code = e->at++;
        }
        if (zero) {
            data++;
            length--;
        }
    }
}

size_t sf_frame_encode(uint8_t *buf, size_t capacity, uint8_t type, uint32_t request, const void *payload,
                       size_t payload_length)
{
    struct sf_gp_header header = {
        .version = SF_GP_VERSION, .type = type, .request = request, .length = (uint32_t)payload_length
    };
    struct encoder e = { .code = buf, .at = buf + 1 };
    size_t decoded = SF_GP_HEADER_LENGTH + payload_length + SF_FRAME_CRC_LENGTH;
    uint8_t head[SF_GP_HEADER_LENGTH], tail[SF_FRAME_CRC_LENGTH];
    uint32_t crc;

    if (payload_length > SF_GP_MAX_PAYLOAD || capacity < decoded + decoded / SF_FRAME_COBS_RUN + 2) {
        return 0;
    }
    sf_gp_header_pack(head, &header);
    crc = sf_frame_crc32(sf_frame_crc32(0, head, sizeof(head)), payload, payload_length);
    for (size_t i = 0; i < sizeof(tail); i++) {
        tail[i] = (uint8_t)(crc >> (8 * i));
    }
    encoder_put(&e, head, sizeof(head));
    encoder_put(&e, payload, payload_length);
    encoder_put(&e, tail, sizeof(tail));
    *e.code = (uint8_t)(e.at - e.code);
    *e.at++ = 0;
    return (size_t)(e.at - buf);
}

/* ---- decoder ---- */

void sf_frame_decoder_init(struct sf_frame_decoder *decoder)
{
    decoder->frames = 0;
    decoder->broken = 0;
    decoder->length = 0;
    decoder->left = 0;
    decoder->zero_due = false;
    decoder->bad = false;
    decoder->any = false;
}

/* Bytes of one frame, none of them zero. */
static void decoder_put(struct sf_frame_decoder *d, const uint8_t *data, size_t length)
{
    while (length > 0 && !d->bad) {
        if (d->left == 0) {
            if (d->zero_due) {
                if (d->length == sizeof(d->decoded)) {
                    d->bad = true;
                    return;
                }
                d->decoded[d->length++] = 0;
            }
            d->left = (uint8_t)(*data - 1);
            d->zero_due = d->left < SF_FRAME_COBS_RUN;
            data++;
            length--;
        } else {
            size_t copy = length < d->left ? length : d->left;

            if (copy > sizeof(d->decoded) - d->length) {
                d->bad = true;
                return;
            }
            memcpy(d->decoded + d->length, data, copy);
            d->length += copy;
            d->left -= (uint8_t)copy;
            data += copy;
            length -= copy;
        }
    }
}

/* At the zero byte: is what was decoded a message? */
static bool decoder_end(struct sf_frame_decoder *d, struct sf_gp_header *header, const uint8_t **payload)
{
    const uint8_t *tail;
    uint32_t crc;

    if (d->bad || d->left != 0 || d->length < SF_GP_HEADER_LENGTH + SF_FRAME_CRC_LENGTH) {
        return false;
    }
    tail = d->decoded + d->length - SF_FRAME_CRC_LENGTH;
    crc = tail[0] | (uint32_t)tail[1] << 8 | (uint32_t)tail[2] << 16 | (uint32_t)tail[3] << 24;
    return crc == sf_frame_crc32(0, d->decoded, d->length - SF_FRAME_CRC_LENGTH) &&
           sf_gp_packet_parse(header, payload, d->decoded, d->length - SF_FRAME_CRC_LENGTH);
}

bool sf_frame_decoder_next(struct sf_frame_decoder *decoder, const uint8_t **data, size_t *length,
                           struct sf_gp_header *header, const uint8_t **payload)
{
    while (*length > 0) {
        const uint8_t *zero = memchr(*data, 0, *length);
        size_t piece = zero ? (size_t)(zero - *data) : *length;
        bool good, any;

        decoder_put(decoder, *data, piece);
        decoder->any = decoder->any || piece > 0;
        *data += piece;
        *length -= piece;
        if (!zero) {
            return false;
        }
        ++*data;
        --*length;
        any = decoder->any;
        good = any && decoder_end(decoder, header, payload);
        decoder->length = 0;
        decoder->left = 0;
        decoder->zero_due = false;
        decoder->bad = false;
        decoder->any = false;
        if (good) {
            decoder->frames++;
            return true;
        }
        decoder->broken += any;
    }
    return false;
}
