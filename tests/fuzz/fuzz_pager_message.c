/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Orders to sf-pager. The first byte of an input is the number of descriptors; what is taken must be written and read
 * again the same.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "sfvmm/wire/json_line.h"
#include "sfvmm/wire/pager_message.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) object = size > 1 ? sf_json_line_parse((const char *)data + 1, size - 1, NULL) : NULL;
    g_autoptr(SfPagerRequest) request = object ? sf_pager_request_parse(object, data[0], &error) : NULL;

    if (object && (request == NULL) != (error != NULL)) {
        abort();
    }
    if (request) {
        g_autoptr(JsonObject) first = sf_pager_request_format(request);
        g_autoptr(SfPagerRequest) again = sf_pager_request_parse(first, data[0], NULL);
        g_autoptr(JsonObject) second = again ? sf_pager_request_format(again) : NULL;
        g_autofree char *one = sf_json_line_format(first, NULL);
        g_autofree char *two = second ? sf_json_line_format(second, NULL) : NULL;
        if (!two || strcmp(one, two) != 0) {
            abort();
        }
    }
    return 0;
}
