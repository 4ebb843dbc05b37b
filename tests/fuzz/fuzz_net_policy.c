/* SPDX-License-Identifier: GPL-2.0-or-later */
/* An outside rule: what is taken is within its bounds, and what nft is told of it cannot leave its line. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "sfvmm/net/policy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autofree char *text = g_strndup((const char *)data, size);
    g_autoptr(GError) error = NULL;
    g_autofree char *nft = NULL;
    SfNetRule rule;

    if (!sf_net_rule_parse(&rule, text, &error)) {
        if (!error) {
            abort();
        }
        return 0;
    }
    nft = sf_net_rule_to_nft(&rule);
    if (rule.prefix > 32 || rule.n_ports > SF_NET_PORTS_MAX ||
        strspn(nft, "abcdefghijklmnopqrstuvwxyz0123456789./,-{} ") != strlen(nft)) {
        abort();
    }
    return 0;
}
