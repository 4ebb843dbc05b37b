/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The server's side of one TLS connection over memory buffers: ciphertext goes in and comes out as bytes, whoever moves
 * them. Belongs to the thread that made it; credentials may be shared by threads once they are made.
 */
#ifndef SF_TLS_SESSION_H
#define SF_TLS_SESSION_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tls_credentials;
struct tls_session;

/*
 * Certificates: directory holds ca-cert.pem, server-cert.pem and server-key.pem; ca-crl.pem is used if it is there. A
 * client must show a certificate that this CA signed, valid now, for use by clients, with this organizational unit
 * (unit; NULL: any). Everything is read here, nothing later. NULL + error names the file.
 */
struct tls_credentials *tls_credentials_new_x509(const char *directory, const char *unit, GError **error);

/* Keys: a file of lines USER:HEXKEY, as psktool(1) writes it. */
struct tls_credentials *tls_credentials_new_psk(const char *file, GError **error);
void tls_credentials_free(struct tls_credentials *credentials); /* after its sessions */

/* NULL: no memory. */
struct tls_session *tls_session_new(const struct tls_credentials *credentials);
void tls_session_free(struct tls_session *session);

/* Ciphertext that came. At most tls_session_space() bytes. */
size_t tls_session_space(const struct tls_session *session);
void tls_session_input(struct tls_session *session, const uint8_t *bytes, size_t n);

/* One step of the handshake: 1 done, 0 needs more input, -1 failed (tls_session_problem()). The peer is checked. */
int tls_session_handshake(struct tls_session *session);

/* The client: CN of its certificate, or the user of its key. Valid after the handshake. */
const char *tls_session_peer(const struct tls_session *session);

/* Plaintext: the number of bytes, 0 nothing there yet, -1 the connection is over (an orderly end, or a problem). */
int tls_session_read(struct tls_session *session, uint8_t *bytes, size_t n);
/* Is there ciphertext or plaintext that read() has not taken? */
bool tls_session_pending(const struct tls_session *session);

/* Encrypts all of it. false: it can't be, the connection is over. */
bool tls_session_write(struct tls_session *session, const uint8_t *bytes, size_t n);
void tls_session_bye(struct tls_session *session); /* close_notify */

/* Ciphertext to send; tls_session_sent() forgets its first n bytes. */
const uint8_t *tls_session_output(const struct tls_session *session, size_t *n);
void tls_session_sent(struct tls_session *session, size_t n);

/* Why it failed: names the peer's mistake in one line. */
const char *tls_session_problem(const struct tls_session *session);

#endif
