/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The unix sockets at which a program that outlives us is talked to: files in a folder of ours, whose path may be longer
 * than a socket address has room for. And pairs of them, one end of which goes to another thread or program.
 */
#ifndef SF_SOCKET_H
#define SF_SOCKET_H

#include <glib.h>

/*
 * Listens at FOLDER/FILE, mode 0600; a socket of an earlier process of that name goes. type: SOCK_STREAM or
 * SOCK_SEQPACKET, with SOCK_NONBLOCK or not; always close-on-exec. The caller's; -1 + error.
 */
int sf_socket_listen(const char *folder, const char *file, int type, int backlog, GError **error);

/* Connects to it. Does not wait: with SOCK_NONBLOCK a full backlog is an error. */
int sf_socket_connect(const char *folder, const char *file, int type, GError **error);

/* Two that are connected with each other, close-on-exec; both are the caller's. type: as above. FALSE + error: none is. */
gboolean sf_socket_pair(int type, int pair[2], GError **error);

#endif
