/* SPDX-License-Identifier: GPL-2.0-or-later */
/* snapshot.json of a saved snapshot: what is taken must come out again as it went in. */
#include <stdint.h>
#include "sfvmm/store/saved.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(SfSaved) saved = sf_saved_parse((const char *)data, size, NULL);

    if (saved) {
        gsize length;
        g_autofree char *text = sf_saved_format(saved, &length);
        g_autoptr(SfSaved) again = sf_saved_parse(text, length, NULL);
        if (!again) {
            g_error("what was read is not read again: %s", text);
        }
    }
    return 0;
}
