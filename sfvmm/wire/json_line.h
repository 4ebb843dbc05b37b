/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * JSON lines: one object a line, as the control socket and the state files have it. The reader takes bytes as they come
 * and gives objects. It is strict: RFC 8259 exactly (json-glib alone takes comments and assignments too), valid UTF-8,
 * no NUL in a text, integers within 64 bits, bounded length, depth and number of values.
 *
 * A wrong line costs only itself (G_IO_ERROR_INVALID_DATA; go on with the next); a line that is too long ends the
 * conversation (G_IO_ERROR_MESSAGE_TOO_LARGE, from then on always). A reader belongs to one thread at a time.
 */
#ifndef SF_JSON_LINE_H
#define SF_JSON_LINE_H

#include <gio/gio.h>
#include <json-glib/json-glib.h>

#define SF_JSON_LINE_MAX   (1u << 20) /* bytes of one line, its newline not counted */
#define SF_JSON_DEPTH_MAX  32u        /* objects and arrays within each other */
#define SF_JSON_VALUES_MAX (1u << 20) /* values of one line, whatever its length */

typedef struct SfJsonLineReader SfJsonLineReader;

SfJsonLineReader *sf_json_line_reader_new(void);
void sf_json_line_reader_free(SfJsonLineReader *reader);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfJsonLineReader, sf_json_line_reader_free)

/* Takes lines of up to `max` bytes instead of SF_JSON_LINE_MAX: for who asks; answers may be longer than requests. */
void sf_json_line_reader_set_max(SfJsonLineReader *reader, gsize max);

/* Adds what was read. Take all objects out with next() before pushing again: one push is not bounded here. */
void sf_json_line_reader_push(SfJsonLineReader *reader, const void *bytes, gsize length);

/* The next object: TRUE and *object (caller owns it), or TRUE and NULL: no whole line yet. Empty lines are skipped. */
gboolean sf_json_line_reader_next(SfJsonLineReader *reader, JsonObject **object, GError **error);

/* Bytes of a line that has not ended yet: at the end of the stream, 0 says that nothing was cut. */
gsize sf_json_line_reader_pending(const SfJsonLineReader *reader);

/* One text that must be exactly one JSON object, by the same rules: a state file. Caller owns the result. */
JsonObject *sf_json_line_parse(const char *text, gsize length, GError **error);

/* The object as one line with its newline, NUL-terminated. *length may be NULL. Caller owns the result. */
char *sf_json_line_format(JsonObject *object, gsize *length);

#endif
