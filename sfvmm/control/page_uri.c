/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/control/page_uri.h"

#include <gio/gio.h>
#include <string.h>

#include "sfvmm/cluster/ticket.h"

#define SNAPSHOT_PREFIX "s-"

char *sf_page_uri_ip(const char *ip)
{
    return g_strdup_printf(strchr(ip, ':') ? "[%s]" : "%s", ip);
}

const char *sf_page_uri_scheme(SfPagerSecurity security)
{
    return security == SF_PAGER_X509 ? "nbds" : "nbd";
}

char *sf_page_uri_of_host(const char *ip, guint port, SfPagerSecurity security, const char *snapshot)
{
    g_autofree char *host = sf_page_uri_ip(ip);

    return g_strdup_printf("%s://%s:%u/%s/{block}", sf_page_uri_scheme(security), host, port, snapshot);
}

gboolean sf_page_uri_snapshot_is_valid(const char *snapshot)
{
    guint64 id;

    return g_str_has_prefix(snapshot, SNAPSHOT_PREFIX) &&
           sf_ticket_id_from_text(snapshot + strlen(SNAPSHOT_PREFIX), &id);
}

static gboolean is_loopback(const char *host)
{
    g_autoptr(GInetAddress) address = g_inet_address_new_from_string(host);

    return address ? g_inet_address_get_is_loopback(address) : g_ascii_strcasecmp(host, "localhost") == 0;
}

/* Braces are no characters of a URI: what follows the authority is looked at here, the rest by GLib. */
static char *host_of(const char *uri)
{
    const char *authority = strstr(uri, "://") + strlen("://");
    g_autofree char *start = g_strndup(uri, (gsize)(authority - uri) + strcspn(authority, "/"));
    g_autoptr(GUri) parsed = g_uri_parse(start, G_URI_FLAGS_HAS_PASSWORD, NULL);

    return parsed && !g_uri_get_userinfo(parsed) ? g_strdup(g_uri_get_host(parsed)) : NULL;
}

gboolean sf_page_uri_is_portable(const char *uri, SfPagerSecurity security, const char *peer_ip)
{
    g_autofree char *prefix = g_strconcat(sf_page_uri_scheme(security), "://", NULL);
    g_autofree char *host = NULL;

    if (strlen(uri) > SF_PAGE_URI_MAX || !g_str_has_prefix(uri, prefix) || strpbrk(uri, "?#")) {
        return FALSE;
    }
    for (const char *p = uri; *p; p++) {
        if (!g_ascii_isgraph(*p)) {
            return FALSE;
        }
    }
    host = host_of(uri);
    return host && *host && (!is_loopback(host) || is_loopback(peer_ip));
}
