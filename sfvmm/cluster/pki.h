/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The cluster's keys: a CA of its own and, for each host, certificates of two kinds, so that the process which serves
 * pages never holds the key that the host's sfvmmd proves itself with. An operator has one of a third kind.
 *
 *     DIR/ca-key.pem         stays where it was made; signs new hosts
 *     DIR/ca-cert.pem
 *     DIR/NAME/host/         OU=host: sfvmmd to sfvmmd      ca-cert.pem
 *     DIR/NAME/pages/        OU=pages: page sources         {server,client}-{cert,key}.pem
 *     DIR/NAME/operator/     OU=operator: who may use the control protocol from elsewhere. The same, but no server's
 *
 * The names of the files are those that QEMU and libnbd expect. Every file has mode 0600 and appears whole or not at
 * all. Any thread; each call stands alone.
 */
#ifndef SF_PKI_H
#define SF_PKI_H

#include <gio/gio.h>

#include "sfvmm/wire/certificate.h"

#define SF_PKI_CA_DAYS   3650u
#define SF_PKI_HOST_DAYS 730u
#define SF_PKI_DAYS_MAX  36500u

typedef struct {
    guint days;     /* of validity, 0: SF_PKI_CA_DAYS or SF_PKI_HOST_DAYS */
    gboolean rsa;   /* RSA 3072 instead of ECDSA P-256 */
    gboolean force; /* replace what is there */
} SfPkiOptions;

/* Default of the directory: /etc/snowflock/pki for root, else below the user's configuration. Caller frees. */
char *sf_pki_default_directory(void);

/* A CA in a directory, which is made (0700) when it is missing. An existing CA is kept unless force says otherwise. */
gboolean sf_pki_make_ca(const char *directory, const SfPkiOptions *options, GError **error);

/*
 * A host's certificates, signed by the CA of the directory, in DIRECTORY/NAME. They are good for the DNS name NAME and
 * for the addresses (IP addresses or DNS names), under which pages of the host are fetched. NULL-terminated; may be
 * NULL.
 */
gboolean sf_pki_make_host(const char *directory, const char *name, const char *const *addresses,
                          const SfPkiOptions *options, GError **error);

/* An operator's certificate, signed by the CA of the directory, in DIRECTORY/NAME/operator. No host may have the name.
 */
gboolean sf_pki_make_operator(const char *directory, const char *name, const SfPkiOptions *options, GError **error);

/* [a-z0-9][a-z0-9.-]{0,39}: what a host or an operator may be called. */
gboolean sf_pki_name_is_valid(const char *name);

#endif
