/* SPDX-License-Identifier: GPL-2.0-or-later */
/* SfNft: the packet filter of one network namespace, by libnftables. One thread at a time. */
#ifndef SF_NFT_H
#define SF_NFT_H

#include <gio/gio.h>

typedef struct SfNft SfNft;

SfNft *sf_nft_new(int netns, GError **error); /* -1: the caller's namespace */
void sf_nft_free(SfNft *nft);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfNft, sf_nft_free)

/* Commands in the language of nft(8): all of them take effect at once, or none. */
gboolean sf_nft_run(SfNft *nft, const char *commands, GError **error);

/* What a command prints; NULL + error. */
char *sf_nft_query(SfNft *nft, const char *command, GError **error);

#endif
