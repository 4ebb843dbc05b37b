/* SPDX-License-Identifier: GPL-2.0-or-later */
/* SHA-256 by GnuTLS, which uses the CPU's instructions for it. No state but the object; one thread at a time. */
#ifndef SF_SHA256_H
#define SF_SHA256_H

#include <gio/gio.h>

typedef struct SfSha256 SfSha256;

SfSha256 *sf_sha256_new(void);
void sf_sha256_update(SfSha256 *sum, const void *data, gsize length);
void sf_sha256_zeros(SfSha256 *sum, guint64 length); /* as many zero bytes */
char *sf_sha256_finish(SfSha256 *sum);               /* frees it; lower-case hexadecimal, caller frees */
void sf_sha256_free(SfSha256 *sum);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfSha256, sf_sha256_free)

/* Of bytes in memory. Caller frees. */
char *sf_sha256_of_bytes(GBytes *bytes);

/* Of a whole file; holes are not read. *size: bytes, may be NULL. Caller frees. */
char *sf_sha256_of_file(const char *path, guint64 *size, GError **error);

/* Of the first `length` bytes of an open file, whose offset moves. Caller frees. */
char *sf_sha256_of_fd(int fd, guint64 length, GError **error);

#endif
