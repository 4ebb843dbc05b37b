/* SPDX-License-Identifier: GPL-2.0-or-later */
/* An order to sf-switch: what is taken has a device where one is needed, and ends in it. The first byte: descriptors.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "sfvmm/wire/switch_message.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(GError) error = NULL;
    struct sf_switch_order order;

    if (size == 0) {
        return 0;
    }
    if (!sf_switch_order_check(data + 1, size - 1, data[0] & 1, &order, &error)) {
        if (!error) {
            abort();
        }
        return 0;
    }
    if (strnlen(order.device, sizeof(order.device)) == sizeof(order.device) ||
        (order.what == SF_SWITCH_ADMIT && (order.address == 0 || order.device[0] == '\0')) ||
        (order.what == SF_SWITCH_OPEN) != (data[0] & 1)) {
        abort();
    }
    return 0;
}
