/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/control/qemu_version.h"

#include <string.h>

#define HOST_KEY "sf-qemu-version"
#define MARK     "version " /* "QEMU emulator version 10.0.13 (Debian ...)" */

const char *sf_host_qemu_version(SfHost *host, GError **error)
{
    const char *argv[] = { sf_host_config(host)->launcher.qemu, "--version", NULL };
    const char *known = g_object_get_data(G_OBJECT(host), HOST_KEY), *start;
    g_autofree char *text = NULL;
    char *version;

    if (known) {
        return known;
    }
    if (!g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_DEFAULT, NULL, NULL, &text, NULL, NULL, error)) {
        return NULL;
    }
    start = strstr(text, MARK);
    start = start ? start + strlen(MARK) : "unknown";
    version = g_strndup(start, strcspn(start, " (\n"));
    g_object_set_data_full(G_OBJECT(host), HOST_KEY, version, g_free);
    return version;
}
