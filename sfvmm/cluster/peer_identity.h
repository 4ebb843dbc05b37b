/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfPeerIdentity: this host's certificates (made by pki.h), and the check of another host's. Private to cluster/.
 * Main thread only.
 */
#ifndef SF_PEER_IDENTITY_H
#define SF_PEER_IDENTITY_H

#include <gio/gio.h>
#include <gnutls/gnutls.h>

#include "sfvmm/wire/certificate.h"

typedef struct SfPeerIdentity SfPeerIdentity;

/* NULL + error: a file is missing or damaged, has expired, or is not for host `name`. */
SfPeerIdentity *sf_peer_identity_load(const char *directory, const char *name, GError **error);
void sf_peer_identity_free(SfPeerIdentity *identity);

/* A session on a non-blocking socket, TLS 1.3 only, that demands a certificate of the other side. */
gnutls_session_t sf_peer_identity_session(SfPeerIdentity *identity, gboolean server, int fd, GError **error);

/*
 * After the handshake, which has verified the chain: the name at the other end, whose certificate must be of this kind
 * (SF_CERTIFICATE_HOST, SF_CERTIFICATE_OPERATOR). Caller frees. NULL + error: it is of another, or has no such name.
 */
char *sf_peer_identity_name(gnutls_session_t session, const char *unit, GError **error);

/* What went wrong with the handshake (a negative code of GnuTLS), for people: the reason why a certificate is not
 * taken. */
void sf_peer_identity_set_error(gnutls_session_t session, int code, GError **error);

#endif
