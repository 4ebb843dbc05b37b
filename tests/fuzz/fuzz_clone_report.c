/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What another host says of a clone: any JSON object. What is taken keeps the bounds that its reader promises. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "sfvmm/fork/remote.h"
#include "sfvmm/wire/json_line.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use(JsonObject *object)
{
    g_autoptr(GError) error = NULL;
    SfCloneReport report;

    if (!sf_clone_report_parse(object, &report, &error)) {
        if (!error) {
            abort();
        }
        return;
    }
    if (report.id < 1 || report.id > SF_GP_MAX_CLONES || report.result_length > SF_GP_MAX_RESULT || report.loaded < 0 ||
        report.exited < 0 || (report.reason && strchr(report.reason, '\033'))) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(SfJsonLineReader) reader = sf_json_line_reader_new();

    sf_json_line_reader_push(reader, (const char *)data, size);
    for (;;) {
        g_autoptr(JsonObject) object = NULL;
        g_autoptr(GError) error = NULL;
        if (!sf_json_line_reader_next(reader, &object, &error)) {
            if (!error || error->code != G_IO_ERROR_INVALID_DATA) {
                return 0;
            }
            continue;
        }
        if (!object) {
            return 0;
        }
        use(object);
    }
}
