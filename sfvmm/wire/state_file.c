/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/wire/state_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "sfvmm/wire/json_line.h"

#define STATE_MODE 0600

static gboolean write_all(int fd, const char *data, gsize length)
{
    while (length > 0) {
        ssize_t n = write(fd, data, length);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return FALSE;
        }
        data += n;
        length -= (gsize)n;
    }
    return TRUE;
}

/* No fsync: the state must outlive sfvmmd, not the host, and a fork writes it some hundred times. */
gboolean sf_state_write(const char *path, JsonObject *object, GError **error)
{
    gsize length;
    g_autofree char *text = sf_json_line_format(object, &length);
    g_autofree char *fresh = g_strconcat(path, ".new", NULL);
    int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, STATE_MODE);
    gboolean written = fd >= 0 && write_all(fd, text, length);
    int saved = errno;

    if (fd >= 0) {
        close(fd);
    }
    if (!written || rename(fresh, path) < 0) {
        saved = written ? errno : saved;
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(saved), "state file \"%s\": can't write it: %s", path,
                    g_strerror(saved));
        unlink(fresh);
        return FALSE;
    }
    return TRUE;
}

JsonObject *sf_state_read(const char *path, GError **error)
{
    g_autofree char *text = NULL;
    gsize length;
    JsonObject *object;

    if (!g_file_get_contents(path, &text, &length, error)) {
        return NULL;
    }
    object = sf_json_line_parse(text, length, error);
    if (!object) {
        g_prefix_error(error, "\"%s\": ", path);
    }
    return object;
}

static gint compare_names(gconstpointer a, gconstpointer b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

GStrv sf_state_list(const char *folder)
{
    g_autoptr(GDir) dir = g_dir_open(folder, 0, NULL);
    g_autoptr(GPtrArray) names = g_ptr_array_new();
    const char *name;

    while (dir && (name = g_dir_read_name(dir))) {
        g_ptr_array_add(names, g_strdup(name));
    }
    g_ptr_array_sort(names, compare_names);
    g_ptr_array_add(names, NULL);
    return (GStrv)g_ptr_array_free(g_steal_pointer(&names), FALSE);
}

void sf_state_remove_folder(const char *folder)
{
    g_auto(GStrv) names = sf_state_list(folder);

    for (char **name = names; *name; name++) {
        g_autofree char *path = g_build_filename(folder, *name, NULL);
        if (g_file_test(path, G_FILE_TEST_IS_DIR) && !g_file_test(path, G_FILE_TEST_IS_SYMLINK)) {
            sf_state_remove_folder(path);
        } else if (unlink(path) < 0 && errno != ENOENT) {
            g_warning("\"%s\": can't remove it: %s", path, g_strerror(errno));
        }
    }
    if (rmdir(folder) < 0 && errno != ENOENT) {
        g_warning("\"%s\": can't remove it: %s", folder, g_strerror(errno));
    }
}
