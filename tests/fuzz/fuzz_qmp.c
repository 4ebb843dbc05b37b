/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a QEMU may say on its monitor: lines, then QMP messages. A message that is accepted must be complete for its
 * kind.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "sfvmm/vm/qmp.h"
#include "tests/fuzz/json_lines.h"

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

static void use(JsonObject *object)
{
    g_autoptr(GError) error = NULL;
    SfQmpMessage message;

    if (sf_qmp_message_parse(object, &message, &error)) {
        check(&message);
    } else if (!error) {
        abort();
    }
    sf_qmp_message_clear(&message);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_json_lines(data, size, use);
    return 0;
}
