/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfClientTls: a connection to the sfvmmd of another host, as an operator. TLS 1.3 with certificates on both sides. The
 * certificates are those of `sfctl pki operator`: ca-cert.pem, client-cert.pem and client-key.pem, in the first of
 *
 *     $SF_KEYS                          if it is set, no other
 *     ~/.config/snowflock/keys          ($XDG_CONFIG_HOME)
 *     /etc/snowflock/keys
 *
 * there in the folder operator, or right there. Like a client, it belongs to one thread.
 */
#ifndef SF_CLIENT_TLS_H
#define SF_CLIENT_TLS_H

#include <glib.h>
#include <sys/types.h>

#define SF_CLIENT_TLS_PREFIX "tls://" /* "tls://HOST[:PORT]" in the place of a socket's path */
#define SF_CLIENT_KEYS_ENV   "SF_KEYS"

typedef struct SfClientTls SfClientTls;

gboolean sf_client_tls_is_address(const char *socket);

/*
 * Connects and proves who both sides are; takes at most some seconds. *hint: what can be done, when it fails and that
 * is known; the caller frees it. NULL + error, which names the address or the file.
 */
SfClientTls *sf_client_tls_connect(const char *address, char **hint, GError **error);
void sf_client_tls_free(SfClientTls *tls);

int sf_client_tls_fd(const SfClientTls *tls);           /* for poll() */
gboolean sf_client_tls_pending(const SfClientTls *tls); /* there is something to receive, whatever poll() says */

/* As send() and recv() of a non-blocking socket. After EAGAIN the same bytes must be sent again. */
ssize_t sf_client_tls_send(SfClientTls *tls, const char *data, size_t length);
ssize_t sf_client_tls_receive(SfClientTls *tls, char *data, size_t size);

/* What was wrong when one of them failed with EPROTO, for people. */
const char *sf_client_tls_problem(const SfClientTls *tls);
/* The other side has refused us, after it had seen our certificate: for people, or NULL. */
const char *sf_client_tls_refusal(const SfClientTls *tls);
const char *sf_client_tls_name(const SfClientTls *tls); /* of the operator that we are */

#endif
