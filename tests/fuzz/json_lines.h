/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the fuzz targets behind the JSON line reader share: an input as a peer sends it, in pieces. */
#ifndef SF_FUZZ_JSON_LINES_H
#define SF_FUZZ_JSON_LINES_H

#include <stdint.h>
#include <stdlib.h>

#include "sfvmm/wire/json_line.h"

/* The first byte is the size of the pieces, less 1, in which the rest is pushed; use() gets each object. */
static void fuzz_json_lines(const uint8_t *data, size_t size, void (*use)(JsonObject *object))
{
    g_autoptr(SfJsonLineReader) reader = sf_json_line_reader_new();
    size_t piece = size > 0 ? 1u + data[0] : 1;

    for (size_t at = 1; at < size; at += piece) {
        sf_json_line_reader_push(reader, data + at, MIN(piece, size - at));
        for (;;) {
            g_autoptr(JsonObject) object = NULL;
            g_autoptr(GError) error = NULL;
            if (!sf_json_line_reader_next(reader, &object, &error)) {
                if (!error) {
                    abort();
                }
                if (g_error_matches(error, G_IO_ERROR, G_IO_ERROR_MESSAGE_TOO_LARGE)) {
                    return; /* the conversation has ended */
                }
            } else if (object) {
                use(object);
            } else {
                break;
            }
        }
    }
}

#endif
