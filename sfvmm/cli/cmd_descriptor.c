/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The group "Snapshots": the VM descriptor, from a file or of a VM's latest snapshot. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "sfvmm/cli/cli.h"
#include "sfvmm/cli/units.h"
#include "sfvmm/descriptor/descriptor.h"

/* At most SF_DESCRIPTOR_MAX_SIZE bytes of a file. NULL: could not, and said so. */
static GBytes *read_file(SfCtl *ctl, const char *path)
{
    FILE *file = fopen(path, "re");
    if (!file) {
        sf_ctl_fail(ctl, NULL, "descriptor \"%s\": %s", path, g_strerror(errno));
        return NULL;
    }
    g_autofree guchar *bytes = g_malloc(SF_DESCRIPTOR_MAX_SIZE + 1);
    gsize length = fread(bytes, 1, SF_DESCRIPTOR_MAX_SIZE + 1, file);
    int error_number = ferror(file) ? errno : 0;
    fclose(file);
    if (error_number) {
        sf_ctl_fail(ctl, NULL, "descriptor \"%s\": %s", path, g_strerror(error_number));
        return NULL;
    }
    if (length > SF_DESCRIPTOR_MAX_SIZE) {
        sf_ctl_fail(ctl, "is this a VM descriptor?", "descriptor \"%s\": larger than %u bytes", path,
                    SF_DESCRIPTOR_MAX_SIZE);
        return NULL;
    }
    return g_bytes_new(bytes, length);
}

/* The descriptor of a VM's or ticket's snapshot. *result: the daemon's answer, the caller's. NULL: could not, and said
 * so. */
static GBytes *ask_descriptor(SfCtl *ctl, const char *name, JsonObject **result)
{
    g_autoptr(GError) error = NULL;

    *result = sf_client_call(ctl->client, "descriptor", sf_ctl_params("vm", name), SF_CTL_SOON_MS, &error);
    if (!*result && sf_ctl_error_is(ctl, "no-such-vm") && sf_ctl_looks_like_ticket(name)) {
        g_clear_error(&error);
        g_autofree char *id = sf_ctl_find_ticket(ctl, name, &error);
        *result =
            id ? sf_client_call(ctl->client, "descriptor", sf_ctl_params("ticket", id), SF_CTL_SOON_MS, &error) : NULL;
    }
    if (!*result) {
        sf_ctl_fail_call(ctl, error);
        return NULL;
    }
    const char *data = sf_ctl_string(*result, "data");
    gsize length = 0;
    guchar *bytes = g_base64_decode(data ? data : "", &length);
    return g_bytes_new_take(bytes, length);
}

static int run_show(SfCtl *ctl, const char *what)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) result = NULL;
    gboolean is_file = strchr(what, '/') || g_file_test(what, G_FILE_TEST_IS_REGULAR);
    g_autoptr(GBytes) bytes = is_file ? read_file(ctl, what) : ask_descriptor(ctl, what, &result);

    if (!bytes) {
        return SF_CTL_ERROR;
    }
    g_autoptr(SfDescriptor) descriptor = sf_descriptor_decode(bytes, &error);
    if (!descriptor) {
        return sf_ctl_fail(ctl, "`sfctl descriptor save VM FILE` makes one", "descriptor \"%s\": %s", what,
                           error->message);
    }
    if (ctl->json) {
        g_autoptr(JsonNode) node = sf_descriptor_to_json(descriptor);
        g_autofree char *text = json_to_string(node, FALSE);
        puts(text);
    } else {
        g_autofree char *text = sf_descriptor_to_text(descriptor);
        fputs(text, stdout);
        if (!g_str_has_suffix(text, "\n")) {
            putchar('\n');
        }
    }
    return SF_CTL_OK;
}

static int run_save(SfCtl *ctl, const char *name, const char *file)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) result = NULL;
    g_autoptr(GBytes) bytes = ask_descriptor(ctl, name, &result);

    if (!bytes) {
        return SF_CTL_ERROR;
    }
    gsize length;
    const char *data = g_bytes_get_data(bytes, &length);
    if (!g_file_set_contents(file, data, (gssize)length, &error)) {
        return sf_ctl_fail(ctl, NULL, "%s", error->message);
    }
    if (ctl->json) {
        sf_ctl_print_json(result);
    } else {
        g_autofree char *size = sf_units_format_size(length);
        printf("Descriptor of \"%s\" saved as %s (%s)\n", name, file, size);
    }
    return SF_CTL_OK;
}

static int run_descriptor(SfCtl *ctl, int argc, char **argv)
{
    if (strcmp(argv[0], "show") == 0 && argc == 2) {
        return run_show(ctl, argv[1]);
    }
    if (strcmp(argv[0], "save") == 0 && argc == 3) {
        return run_save(ctl, argv[1], argv[2]);
    }
    return sf_ctl_usage("descriptor", "descriptor: it is either \"show FILE|VM|TICKET\" or \"save VM|TICKET FILE\"");
}

const SfCtlCommand sf_ctl_descriptor_commands[] = {
    { "descriptor", "show FILE|VM|TICKET | save VM|TICKET FILE", "Show or save the descriptor of a snapshot",
      "The VM descriptor says what another host needs to know of a snapshot: machine, RAM with its page map, disks, "
      "device\n"
      "state. Of a VM it is the latest snapshot's. What exists as a file is taken as FILE; ./NAME is never a VM.",
      NULL, 2, 3, run_descriptor, "show,save vm file" },
    { NULL },
};
