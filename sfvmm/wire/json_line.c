/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *     push ---> [ buffer: ....consumed|line\n|line\n|part of a li ] ---> next
 *
 * next() cuts a line off, checks it with a small recursive-descent scanner of our own and only then hands it to
 * json-glib: json-glib's parser recurses without bound, takes comments, assignments and single quotes, wraps large
 * integers and ends texts at a NUL. The scanner builds nothing, and counts values: what json-glib makes of each takes
 * some hundred bytes, so that a long line of "0,0,0" would otherwise cost fifty times its length.
 */
#include "sfvmm/wire/json_line.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#define NUMBER_LENGTH_MAX 64u /* characters of one number; longer ones have no exact value here anyway */

/* ---- The scanner ---- */

typedef struct {
    const char *start, *p, *end; /* *end is NUL */
    const char *wrong;           /* what stands at p instead of JSON; NULL: nothing wrong so far */
    guint depth, values;
} Scanner;

static gboolean scan_value(Scanner *s);

static gboolean wrong(Scanner *s, const char *what)
{
    s->wrong = what;
    return FALSE;
}

static void skip_space(Scanner *s)
{
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\t' || *s->p == '\r' || *s->p == '\n')) {
        s->p++;
    }
}

static gboolean accept(Scanner *s, char c)
{
    if (s->p < s->end && *s->p == c) {
        s->p++;
        return TRUE;
    }
    return FALSE;
}

/* The four digits of \uXXXX; -1 when they are none. */
static int scan_hex4(Scanner *s)
{
    int value = 0;

    for (int i = 0; i < 4; i++, s->p++) {
        if (s->p >= s->end || !g_ascii_isxdigit(*s->p)) {
            return -1;
        }
        value = value * 16 + g_ascii_xdigit_value(*s->p);
    }
    return value;
}

static gboolean scan_unicode_escape(Scanner *s)
{
    int unit = scan_hex4(s);

    if (unit <= 0) {
        return wrong(s, unit < 0 ? "bad \\u escape" : "NUL in a text");
    }
    if (unit >= 0xdc00 && unit <= 0xdfff) {
        return wrong(s, "half of a surrogate pair");
    }
    if (unit >= 0xd800 && unit <= 0xdbff) {
        if (!accept(s, '\\') || !accept(s, 'u')) {
            return wrong(s, "half of a surrogate pair");
        }
        unit = scan_hex4(s);
        if (unit < 0xdc00 || unit > 0xdfff) {
            return wrong(s, "half of a surrogate pair");
        }
    }
    return TRUE;
}

static gboolean scan_string(Scanner *s)
{
    if (!accept(s, '"')) {
        return wrong(s, "no text where one must stand");
    }
    while (s->p < s->end) {
        unsigned char c = *s->p++;
        if (c == '"') {
            return TRUE;
        }
        if (c < 0x20) {
            return wrong(s, "control character in a text");
        }
        if (c != '\\') {
            continue;
        }
        c = s->p < s->end ? *s->p++ : '\0';
        if (c == 'u') {
            if (!scan_unicode_escape(s)) {
                return FALSE;
            }
        } else if (c == '\0' || !strchr("\"\\/bfnrt", c)) {
            return wrong(s, "unknown escape in a text");
        }
    }
    return wrong(s, "text without end");
}

static guint scan_digits(Scanner *s)
{
    const char *first = s->p;

    while (s->p < s->end && g_ascii_isdigit(*s->p)) {
        s->p++;
    }
    return s->p - first;
}

static gboolean scan_number(Scanner *s)
{
    const char *first = s->p;
    gboolean integer = TRUE;

    accept(s, '-');
    if (!accept(s, '0') && scan_digits(s) == 0) {
        return wrong(s, "neither value nor end");
    }
    if (accept(s, '.')) {
        integer = FALSE;
        if (scan_digits(s) == 0) {
            return wrong(s, "number without digits after its point");
        }
    }
    if (accept(s, 'e') || accept(s, 'E')) {
        integer = FALSE;
        if (!accept(s, '-')) {
            accept(s, '+');
        }
        if (scan_digits(s) == 0) {
            return wrong(s, "number without digits in its exponent");
        }
    }
    if ((gsize)(s->p - first) > NUMBER_LENGTH_MAX) {
        return wrong(s, "number of too many digits");
    }
    errno = 0;
    if (integer) {
        (void)g_ascii_strtoll(first, NULL, 10);
    }
    if ((integer && errno == ERANGE) || (!integer && !isfinite(g_ascii_strtod(first, NULL)))) {
        return wrong(s, "number out of range");
    }
    return TRUE;
}

static gboolean scan_word(Scanner *s, const char *word)
{
    gsize length = strlen(word);

    if ((gsize)(s->end - s->p) < length || memcmp(s->p, word, length) != 0) {
        return wrong(s, "neither value nor end");
    }
    s->p += length;
    return TRUE;
}

/* Behind the opening bracket, up to and with the closing one. */
static gboolean scan_members(Scanner *s, gboolean object)
{
    char closing = object ? '}' : ']';

    skip_space(s);
    if (accept(s, closing)) {
        return TRUE;
    }
    do {
        skip_space(s);
        if (object) {
            if (!scan_string(s)) {
                return FALSE;
            }
            skip_space(s);
            if (!accept(s, ':')) {
                return wrong(s, "no colon behind a member's name");
            }
        }
        if (!scan_value(s)) {
            return FALSE;
        }
        skip_space(s);
    } while (accept(s, ','));
    return accept(s, closing) || wrong(s, object ? "object without end" : "array without end");
}

static gboolean scan_value(Scanner *s)
{
    skip_space(s);
    if (s->p >= s->end) {
        return wrong(s, "no value where one must stand");
    }
    if (++s->values > SF_JSON_VALUES_MAX) {
        return wrong(s, "more values than are taken");
    }
    switch (*s->p) {
    case '{':
    case '[':
        if (++s->depth > SF_JSON_DEPTH_MAX) {
            return wrong(s, "nested too deeply");
        }
        if (!scan_members(s, *s->p++ == '{')) {
            return FALSE;
        }
        s->depth--;
        return TRUE;
    case '"':
        return scan_string(s);
    case 't':
        return scan_word(s, "true");
    case 'f':
        return scan_word(s, "false");
    case 'n':
        return scan_word(s, "null");
    default:
        return scan_number(s);
    }
}

/* text[length] is NUL. */
static gboolean scan_object(const char *text, gsize length, GError **error)
{
    Scanner s = { .start = text, .p = text, .end = text + length };

    if (!g_utf8_validate_len(text, length, &s.p)) {
        wrong(&s, memchr(text, '\0', length) ? "NUL byte" : "not UTF-8");
    } else {
        s.p = text;
        skip_space(&s);
        if (s.p >= s.end || *s.p != '{') {
            wrong(&s, "not an object");
        } else if (scan_value(&s)) {
            skip_space(&s);
            if (s.p < s.end) {
                wrong(&s, "something behind the object");
            }
        }
    }
    if (s.wrong) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "not a line of JSON: %s at byte %zu", s.wrong,
                    (gsize)(s.p - s.start));
        return FALSE;
    }
    return TRUE;
}

/* text[length] is NUL. */
static JsonObject *parse_terminated(const char *text, gsize length, GError **error)
{
    g_autoptr(JsonParser) parser = json_parser_new();
    g_autoptr(GError) inner = NULL;

    if (!scan_object(text, length, error)) {
        return NULL;
    }
    if (!json_parser_load_from_data(parser, text, length, &inner) ||
        !JSON_NODE_HOLDS_OBJECT(json_parser_get_root(parser))) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "not a line of JSON: %s",
                    inner ? inner->message : "not an object");
        return NULL;
    }
    return json_node_dup_object(json_parser_get_root(parser));
}

JsonObject *sf_json_line_parse(const char *text, gsize length, GError **error)
{
    if (length > SF_JSON_LINE_MAX) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_MESSAGE_TOO_LARGE, "JSON of %zu bytes; at most %u are read", length,
                    SF_JSON_LINE_MAX);
        return NULL;
    }
    g_autofree char *copy = g_malloc(length + 1);
    if (length) {
        memcpy(copy, text, length);
    }
    copy[length] = '\0';
    return parse_terminated(copy, length, error);
}

/* ---- The reader ---- */

struct SfJsonLineReader {
    GByteArray *buffer;
    gsize consumed; /* bytes of the buffer that are done */
    gsize searched; /* bytes behind consumed that are known to have no newline */
    gsize max;      /* bytes of a line */
    gboolean too_long;
};

SfJsonLineReader *sf_json_line_reader_new(void)
{
    SfJsonLineReader *reader = g_new0(SfJsonLineReader, 1);

    reader->buffer = g_byte_array_new();
    reader->max = SF_JSON_LINE_MAX;
    return reader;
}

void sf_json_line_reader_set_max(SfJsonLineReader *reader, gsize max)
{
    reader->max = max;
}

void sf_json_line_reader_free(SfJsonLineReader *reader)
{
    if (reader) {
        g_byte_array_unref(reader->buffer);
        g_free(reader);
    }
}

void sf_json_line_reader_push(SfJsonLineReader *reader, const void *bytes, gsize length)
{
    if (reader->consumed) {
        g_byte_array_remove_range(reader->buffer, 0, reader->consumed);
        reader->consumed = 0;
    }
    if (length && !reader->too_long) {
        g_byte_array_append(reader->buffer, bytes, length);
    }
}

gsize sf_json_line_reader_pending(const SfJsonLineReader *reader)
{
    return reader->buffer->len - reader->consumed;
}

static gboolean is_blank(const char *text, gsize length)
{
    return strspn(text, " \t\r") == length;
}

gboolean sf_json_line_reader_next(SfJsonLineReader *reader, JsonObject **object, GError **error)
{
    *object = NULL;
    if (reader->buffer->len == 0 && !reader->too_long) {
        return TRUE; /* the buffer may not even be there yet */
    }
    while (!reader->too_long) {
        char *line = (char *)reader->buffer->data + reader->consumed;
        gsize pending = sf_json_line_reader_pending(reader);
        char *newline =
            pending > reader->searched ? memchr(line + reader->searched, '\n', pending - reader->searched) : NULL;
        gsize length = newline ? (gsize)(newline - line) : pending;

        if (length > reader->max) {
            reader->too_long = TRUE;
            g_byte_array_set_size(reader->buffer, 0);
            reader->consumed = 0;
            break;
        }
        if (!newline) {
            reader->searched = pending;
            return TRUE;
        }
        reader->consumed += length + 1;
        reader->searched = 0;
        *newline = '\0';
        if (!is_blank(line, length)) {
            *object = parse_terminated(line, length, error);
            return *object != NULL;
        }
    }
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_MESSAGE_TOO_LARGE, "a line of more than %zu bytes", reader->max);
    return FALSE;
}

/*
 * json-glib (1.6 and 1.10) marks whatever it prints of a double without a point with ".0": 2e22 becomes "2e+22.0", which
 * is no number of JSON. Takes these marks out, in place. Outside of texts an 'e' before a sign is in a number only.
 */
static void mend_exponents(char *text)
{
    char *to = text;
    gboolean in_text = FALSE;

    for (const char *from = text; *from;) {
        char c = *to++ = *from++;

        if (in_text && c == '\\') {
            *to++ = *from++;
        } else if (c == '"') {
            in_text = !in_text;
        } else if (!in_text && c == 'e' && (*from == '+' || *from == '-')) {
            do {
                *to++ = *from++;
            } while (g_ascii_isdigit(*from));
            from += g_str_has_prefix(from, ".0") ? 2 : 0;
        }
    }
    *to = '\0';
}

char *sf_json_line_format(JsonObject *object, gsize *length)
{
    g_autoptr(JsonNode) root = json_node_new(JSON_NODE_OBJECT);
    g_autofree char *text = NULL;

    json_node_set_object(root, object);
    text = json_to_string(root, FALSE);
    mend_exponents(text);
    char *line = g_strconcat(text, "\n", NULL);
    if (length) {
        *length = strlen(line);
    }
    return line;
}
