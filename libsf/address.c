/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Addresses in the cluster's network.
 */
#include <errno.h>
#include <stdio.h>

#include "libsf/call.h"
#include "snowflock.h"

static int addresses(struct sf_gp_network *network)
{
    uint8_t reply[SF_GP_ERROR_LENGTH];
    ssize_t length = sf_ask(SF_GP_ADDRESSES, NULL, 0, reply, sizeof(reply));

    if (length < 0) {
        /* An agent that does not know the question takes it for a malformed packet. */
        return errno == EPROTO ? sf_failed(ENOSYS, "sf-agent is older than this library and knows no addresses") : -1;
    }
    return sf_gp_network_parse(network, reply, (size_t)length) ? 0 : sf_malformed(SF_GP_ADDRESSES);
}

static int put_address(uint32_t address, char *buffer, size_t size)
{
    int length = snprintf(buffer, size, "%u.%u.%u.%u", address >> 24, address >> 16 & 0xff, address >> 8 & 0xff,
                          address & 0xff);

    return (size_t)length < size ? 0 : sf_failed(ERANGE, "an address does not fit into %zu bytes", size);
}

int sf_address(int id, char *buffer, size_t size)
{
    struct sf_gp_network network;

    if (addresses(&network) < 0) {
        return -1;
    }
    if (id == SF_SELF || id == 0) {
        return put_address(id == 0 ? network.parent : network.address, buffer, size);
    }
    if (id < 0 || (uint32_t)id > network.count) {
        return sf_failed(EINVAL, "no clone of the newest fork has id %d", id);
    }
    return put_address(network.first + (uint32_t)id - 1, buffer, size);
}

int sf_parent_address(char *buffer, size_t size)
{
    return sf_address(0, buffer, size);
}
