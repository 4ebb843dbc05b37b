/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A context of libnftables opens its netlink socket when it is made, so it is made on a visit to its namespace. */
#include "sfvmm/net/nft.h"

#include <nftables/libnftables.h>
#include <string.h>
#include "sfvmm/net/netns.h"

struct SfNft {
    struct nft_ctx *context;
};

static gboolean make_context(gpointer data, GError **error)
{
    SfNft *nft = data;

    nft->context = nft_ctx_new(NFT_CTX_DEFAULT);
    if (!nft->context) {
        g_set_error_literal(error, G_IO_ERROR, G_IO_ERROR_FAILED, "nftables can't be used in this network namespace");
    }
    return nft->context != NULL;
}

SfNft *sf_nft_new(int netns, GError **error)
{
    g_autoptr(SfNft) nft = g_new0(SfNft, 1);

    return sf_netns_run(netns, make_context, nft, error) ? g_steal_pointer(&nft) : NULL;
}

void sf_nft_free(SfNft *nft)
{
    if (nft) {
        if (nft->context) {
            nft_ctx_free(nft->context);
        }
        g_free(nft);
    }
}

char *sf_nft_query(SfNft *nft, const char *command, GError **error)
{
    g_autofree char *output = NULL, *problem = NULL;
    int code;

    /* A buffer that is written nothing would still hold the text of the last command. */
    nft_ctx_unbuffer_output(nft->context);
    nft_ctx_unbuffer_error(nft->context);
    if (nft_ctx_buffer_output(nft->context) != 0 || nft_ctx_buffer_error(nft->context) != 0) {
        g_set_error_literal(error, G_IO_ERROR, G_IO_ERROR_FAILED, "nftables: no buffer for its output");
        return NULL;
    }
    code = nft_run_cmd_from_buffer(nft->context, command);
    output = g_strdup(nft_ctx_get_output_buffer(nft->context));
    problem = g_strdup(nft_ctx_get_error_buffer(nft->context));
    if (code == 0) {
        return g_steal_pointer(&output);
    }
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "nftables: %s", g_strdelimit(g_strchomp(problem), "\n", ' '));
    return NULL;
}

gboolean sf_nft_run(SfNft *nft, const char *commands, GError **error)
{
    g_autofree char *output = sf_nft_query(nft, commands, error);

    return output != NULL;
}
