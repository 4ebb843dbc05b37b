/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a QEMU may say on its monitor: lines, then QMP messages. The first byte of an input is the size of the pieces in
 * which the rest is pushed. A message that is accepted must be complete for its kind.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "sfvmm/vm/qmp.h"
#include "sfvmm/wire/json_line.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const SfQmpMessage *message)
{
    gboolean complete = TRUE;

    switch (message->kind) {
    case SF_QMP_GREETING:
        break;
    case SF_QMP_RETURN:
        complete = message->id > 0 && message->result;
        break;
    case SF_QMP_ERROR:
        complete = message->id > 0 && message->text;
        break;
    case SF_QMP_EVENT:
        complete = message->text != NULL;
        break;
    }
    if (!complete) {
        abort();
    }
}

/* FALSE: the stream has ended. */
static gboolean take_all(SfJsonLineReader *reader)
{
    for (;;) {
        g_autoptr(GError) error = NULL;
        g_autoptr(JsonObject) object = NULL;
        SfQmpMessage message;

        if (!sf_json_line_reader_next(reader, &object, &error)) {
            return FALSE;
        }
        if (!object) {
            return TRUE;
        }
        if (sf_qmp_message_parse(object, &message, &error)) {
            check(&message);
        } else if (!error) {
            abort();
        }
        sf_qmp_message_clear(&message);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(SfJsonLineReader) reader = sf_json_line_reader_new();
    size_t piece = size > 0 ? data[0] + 1u : 1;

    for (size_t i = 1; i < size; i += piece) {
        sf_json_line_reader_push(reader, data + i, MIN(piece, size - i));
        if (!take_all(reader)) {
            break;
        }
    }
    return 0;
}
