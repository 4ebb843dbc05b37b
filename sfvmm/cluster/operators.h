/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfOperators: the way into this host's control protocol for operators elsewhere. TLS 1.3 with certificates on both
 * sides; who has one of an operator, and stands in the configuration, gets a connection of the control protocol. What
 * is said over it is not looked at here.
 *
 * Main thread only; nothing blocks.
 */
#ifndef SF_OPERATORS_H
#define SF_OPERATORS_H

#include <gio/gio.h>

typedef struct SfOperators SfOperators;

typedef struct {
    const char *name;      /* of this host; must be that of its certificates */
    const char *listen;    /* as control-listen= of sfvmmd.conf */
    const char *directory; /* the host's certificates, as for SfPeers */
    GHashTable
        *users; /* who is let in: the operator's name -> the uid (GUINT_TO_POINTER) that he counts as. Borrowed */
} SfOperatorsOptions;

/* An operator is in: fd is a stream socket that carries what he sends and is sent. Takes fd. */
typedef void (*SfOperatorsAccept)(int fd, guint32 user, gpointer owner);

/* Checks the certificates and takes the port; nobody is let in before sf_operators_start(). NULL + error. */
SfOperators *sf_operators_new(const SfOperatorsOptions *options, GError **error);
void sf_operators_start(SfOperators *operators, SfOperatorsAccept accept, gpointer owner);
void sf_operators_free(SfOperators *operators); /* all connections end at once */

guint sf_operators_port(const SfOperators *operators);

#endif
