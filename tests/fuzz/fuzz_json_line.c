/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * JSON lines. What comes out must go in again and come out the same. An object that is a request of the control protocol
 * is given on to the decoder of a VM's configuration. (Disk chains are left out: giving one back removes the files that it names.)
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "sfvmm/vm/vm_config.h"
#include "tests/fuzz/json_lines.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void round_trip(JsonObject *object)
{
    gsize length;
    g_autofree char *line = sf_json_line_format(object, &length);
    g_autoptr(JsonObject) again = length <= SF_JSON_LINE_MAX ? sf_json_line_parse(line, length, NULL) : NULL;
    g_autofree char *second = again ? sf_json_line_format(again, NULL) : NULL;

    if (length <= SF_JSON_LINE_MAX && (!second || strcmp(line, second) != 0)) {
        abort();
    }
}

static void use(JsonObject *object)
{
    g_autoptr(SfVmConfig) config = NULL;
    g_autoptr(GError) error = NULL;
    JsonNode *params = json_object_get_member(object, "params");

    round_trip(object);
    object = params && JSON_NODE_HOLDS_OBJECT(params) ? json_node_get_object(params) : object;
    config = sf_vm_config_from_json(object, &error);
    if ((config == NULL) != (error != NULL)) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_json_lines(data, size, use);
    return 0;
}
