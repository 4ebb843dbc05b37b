/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The frame decoder of the serial port. An input is raw port bytes in pieces, or (a CRC keeps a fuzzer out) a payload
 * that must come back from its own frame, with rubbish in front of it.
 */
#include <stdlib.h>
#include <string.h>

#include "libsf/wire/frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct sf_frame_decoder decoder;

static void raw(const uint8_t *data, size_t size, size_t piece_max)
{
    struct sf_gp_header header;
    const uint8_t *payload;

    sf_frame_decoder_init(&decoder);
    while (size > 0) {
        size_t piece = size < piece_max ? size : piece_max, left = piece;

        while (sf_frame_decoder_next(&decoder, &data, &left, &header, &payload)) {
            if (header.length > SF_GP_MAX_PAYLOAD) {
                abort();
            }
        }
        size -= piece;
    }
}

static void round_trip(const uint8_t *data, size_t size)
{
    static uint8_t stream[SF_FRAME_MAX_ENCODED];
    const uint8_t *at = stream, *payload;
    struct sf_gp_header header;
    size_t length;

    size = size < SF_GP_MAX_PAYLOAD ? size : SF_GP_MAX_PAYLOAD;
    length = sf_frame_encode(stream, sizeof(stream), 7, 9, data, size);
    if (length == 0 || memchr(stream, 0, length) != stream + length - 1) {
        abort();
    }
    raw(data, size, SIZE_MAX);      /* whatever state that leaves: a zero ends it */
    at = (const uint8_t *)"";
    size_t one = 1;
    sf_frame_decoder_next(&decoder, &at, &one, &header, &payload);
    at = stream;
    if (!sf_frame_decoder_next(&decoder, &at, &length, &header, &payload) || length != 0 || header.type != 7 ||
        header.request != 9 || header.length != size || memcmp(payload, data, size) != 0) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) {
        return 0;
    }
    if (data[0] & 1) {
        raw(data + 1, size - 1, 1 + (data[0] >> 1));
    } else {
        round_trip(data + 1, size - 1);
    }
    return 0;
}
