/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/cli/units.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NS_PER_US   1000.0
#define NS_PER_MS   1e6
#define NS_PER_S    1e9
#define MS_PER_S    1000u
#define S_PER_MIN   60u
#define S_PER_H     3600u
#define S_PER_D     86400u
#define DIGITS_MAX  18          /* of a mantissa: what a 64-bit integer holds for sure */

/*
 * Splits "12.5xyz" into its digits (as an integer), how many of them stand after the point, and the rest.
 * Strict: no sign, no blank, no exponent; a point has digits on both sides.
 */
static gboolean split_number(const char *text, guint64 *mantissa, guint *decimals, const char **rest)
{
    const char *p = text;
    guint digits = 0;

    *mantissa = 0;
    *decimals = 0;
    for (gboolean after_point = FALSE;; p++) {
        if (g_ascii_isdigit(*p)) {
            if (++digits > DIGITS_MAX) {
                return FALSE;
            }
            *mantissa = *mantissa * 10 + (guint64)(*p - '0');
            *decimals += after_point;
        } else if (*p == '.' && !after_point && digits > 0 && g_ascii_isdigit(p[1])) {
            after_point = TRUE;
        } else {
            break;
        }
    }
    *rest = p;
    return digits > 0;
}

static gboolean bad_value(GError **error, const char *what, const char *text, const char *why)
{
    g_set_error(error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE, "%s: \"%s\" %s", what, text, why);
    return FALSE;
}

gboolean sf_units_parse_size(const char *what, const char *text, guint64 *bytes, GError **error)
{
    static const char letters[] = "KMGTP";
    guint64 mantissa;
    guint decimals, shift = 0;
    const char *unit;

    if (!split_number(text, &mantissa, &decimals, &unit)) {
        return bad_value(error, what, text, "is not a size; write one like 512M or 1.5G");
    }
    const char *letter = *unit ? strchr(letters, g_ascii_toupper(*unit)) : NULL;
    if (letter) {
        shift = 10 * (guint)(letter - letters + 1);
        unit++;
        if (g_ascii_strcasecmp(unit, "iB") == 0 || g_ascii_strcasecmp(unit, "B") == 0) {
            unit = "";
        }
    } else if (g_ascii_strcasecmp(unit, "B") == 0) {
        unit = "";
    }
    if (*unit) {
        return bad_value(error, what, text, "has an unknown unit; units are K, M, G and T, all binary: 1G = 1024M");
    }
    unsigned __int128 value = (unsigned __int128)mantissa << shift;
    for (; decimals > 0; decimals--) {
        if (value % 10 != 0 && shift == 0) {
            return bad_value(error, what, text, "is not a whole number of bytes");
        }
        value /= 10;
    }
    if (value > G_MAXINT64) {
        return bad_value(error, what, text, "is too large");
    }
    *bytes = (guint64)value;
    return TRUE;
}

gboolean sf_units_parse_duration(const char *what, const char *text, int *ms, GError **error)
{
    static const struct {
        const char *name;
        guint ms;
    } units[] = {
        {"", MS_PER_S}, {"ms", 1}, {"s", MS_PER_S}, {"m", S_PER_MIN * MS_PER_S}, {"min", S_PER_MIN * MS_PER_S},
        {"h", S_PER_H * MS_PER_S},
    };
    guint64 mantissa;
    guint decimals;
    const char *unit;

    if (!split_number(text, &mantissa, &decimals, &unit)) {
        return bad_value(error, what, text, "is not a duration; write one like 500ms, 30s or 2m");
    }
    for (guint i = 0; i < G_N_ELEMENTS(units); i++) {
        if (strcmp(unit, units[i].name) == 0) {
            double value = round((double)mantissa / pow(10, decimals) * units[i].ms);
            if (value > G_MAXINT) {
                return bad_value(error, what, text, "is too long; at most 24 days");
            }
            *ms = (int)value;
            return TRUE;
        }
    }
    return bad_value(error, what, text, "has an unknown unit; units are ms, s, m and h");
}

gboolean sf_units_parse_count(const char *what, const char *text, gint64 min, gint64 max, gint64 *value, GError **error)
{
    g_autofree char *why = NULL;
    char *end = NULL;
    const char *digits = text + (*text == '-');

    errno = 0;
    gint64 n = g_ascii_isdigit(*digits) ? g_ascii_strtoll(text, &end, 10) : 0;
    if (!end || *end) {
        return bad_value(error, what, text, "is not a whole number");
    }
    if (errno == ERANGE || n < min || n > max) {
        why = g_strdup_printf("is not in %" G_GINT64_FORMAT "..%" G_GINT64_FORMAT, min, max);
        return bad_value(error, what, text, why);
    }
    *value = n;
    return TRUE;
}

char *sf_units_format_size(guint64 bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)bytes;
    guint unit = 0;

    if (bytes == 0) {
        return g_strdup("0");
    }
    while (value >= 999.95 && unit + 1 < G_N_ELEMENTS(units)) {   /* so that 1023.9 MiB is not five characters wide */
        value /= 1024;
        unit++;
    }
    gboolean whole = unit == 0 || (value == floor(value) && value < 1000);
    return g_strdup_printf(whole ? "%.0f %s" : value < 10 ? "%.2f %s" : "%.1f %s", value, units[unit]);
}

/* Three digits that count: 3.61, 36.1, 361. */
static char *format_three(double value, const char *unit)
{
    int decimals = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
    return g_strdup_printf("%.*f %s", decimals, value, unit);
}

char *sf_units_format_ns(guint64 ns)
{
    guint64 seconds = ns / G_GUINT64_CONSTANT(1000000000);

    if (ns < 1000) {
        return g_strdup_printf("%" G_GUINT64_FORMAT " ns", ns);
    }
    if (ns < NS_PER_MS - 500) {
        return format_three((double)ns / NS_PER_US, "us");
    }
    if (ns < NS_PER_S - 500000) {
        return format_three((double)ns / NS_PER_MS, "ms");
    }
    if (seconds < S_PER_MIN) {
        return format_three((double)ns / NS_PER_S, "s");
    }
    if (seconds < S_PER_H) {
        return g_strdup_printf("%u min %02u s", (guint)(seconds / S_PER_MIN), (guint)(seconds % S_PER_MIN));
    }
    return sf_units_format_age_ms(seconds * MS_PER_S);
}

char *sf_units_format_age_ms(guint64 ms)
{
    guint64 seconds = ms / MS_PER_S;

    if (seconds < S_PER_MIN) {
        return g_strdup_printf("%u s", (guint)seconds);
    }
    if (seconds < S_PER_H) {
        return g_strdup_printf("%u min", (guint)(seconds / S_PER_MIN));
    }
    if (seconds < S_PER_D) {
        return g_strdup_printf("%u h %02u min", (guint)(seconds / S_PER_H), (guint)(seconds % S_PER_H / S_PER_MIN));
    }
    return g_strdup_printf("%" G_GUINT64_FORMAT " d %u h", seconds / S_PER_D, (guint)(seconds % S_PER_D / S_PER_H));
}
