/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/store/working_set.h"

#include <string.h>
#include <sys/stat.h>
#include "sfvmm/wire/page_run.h"

#define LINE_MAX_BYTES (SF_SAVED_FILE_MAX + 48u) /* a block's id, two numbers */

static char *path_of(const SfSaved *saved)
{
    return g_build_filename(saved->directory, SF_WORKING_SET_FILE, NULL);
}

static gboolean fits(const SfSaved *saved, guint block, guint64 offset, guint64 length)
{
    guint64 size = block < saved->blocks->len
                       ? ((const SfSavedBlock *)g_ptr_array_index(saved->blocks, block))->file.size
                       : 0;

    return length > 0 && offset % SF_PAGE_SIZE == 0 && length % SF_PAGE_SIZE == 0 && offset < size &&
           length <= size - offset && length / SF_PAGE_SIZE <= G_MAXUINT32;
}

char *sf_working_set_format(const SfSaved *saved, const GArray *runs)
{
    GString *text = g_string_new(NULL);

    for (guint i = 0; i < MIN(runs->len, SF_WORKING_SET_LINES_MAX); i++) {
        const struct sf_pager_run *run = &g_array_index(runs, struct sf_pager_run, i);
        guint64 length = (guint64)run->pages * SF_PAGE_SIZE;
        if (fits(saved, run->block, run->offset, length)) {
            const SfSavedBlock *block = g_ptr_array_index(saved->blocks, run->block);
            g_string_append_printf(text, "%s %" G_GUINT64_FORMAT " %" G_GUINT64_FORMAT "\n", block->id,
                                   (guint64)run->offset, length);
        }
    }
    return g_string_free(text, FALSE);
}

static guint block_index(const SfSaved *saved, const char *id)
{
    guint i = 0;

    while (i < saved->blocks->len && strcmp(((const SfSavedBlock *)g_ptr_array_index(saved->blocks, i))->id, id) != 0) {
        i++;
    }
    return i;
}

static void parse_line(const SfSaved *saved, const char *line, GArray *runs)
{
    g_auto(GStrv) words = g_strsplit(line, " ", 4);
    guint64 offset, length;

    if (g_strv_length(words) == 3 && g_ascii_string_to_unsigned(words[1], 10, 0, G_MAXINT64, &offset, NULL) &&
        g_ascii_string_to_unsigned(words[2], 10, 0, G_MAXINT64, &length, NULL) &&
        fits(saved, block_index(saved, words[0]), offset, length)) {
        struct sf_pager_run run = { .block = block_index(saved, words[0]), .pages = (guint32)(length / SF_PAGE_SIZE),
                                    .offset = offset };
        g_array_append_val(runs, run);
    }
}

GArray *sf_working_set_parse(const SfSaved *saved, const char *text)
{
    GArray *runs = g_array_new(FALSE, FALSE, sizeof(struct sf_pager_run));

    while (*text && runs->len < SF_WORKING_SET_LINES_MAX) {
        gsize length = strcspn(text, "\n");
        if (length < LINE_MAX_BYTES) {
            g_autofree char *line = g_strndup(text, length);
            parse_line(saved, line, runs);
        }
        text += length + (text[length] == '\n');
    }
    return runs;
}

GArray *sf_working_set_read(const SfSaved *saved)
{
    g_autofree char *path = path_of(saved);
    g_autofree char *text = NULL;
    struct stat st;

    if (lstat(path, &st) < 0 || !S_ISREG(st.st_mode) ||
        (guint64)st.st_size > (guint64)SF_WORKING_SET_LINES_MAX * LINE_MAX_BYTES ||
        !g_file_get_contents(path, &text, NULL, NULL)) {
        return NULL;
    }
    return sf_working_set_parse(saved, text);
}

gboolean sf_working_set_write(const SfSaved *saved, const GArray *runs, GError **error)
{
    g_autofree char *path = path_of(saved);
    g_autofree char *text = sf_working_set_format(saved, runs);

    return g_file_set_contents_full(path, text, -1, G_FILE_SET_CONTENTS_CONSISTENT, 0600, error);
}
