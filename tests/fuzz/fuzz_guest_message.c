/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The messages of the agent protocol, as agent and daemon parse them. What parses must pack to the same bytes again:
 * there is one way to write a message.
 */
#include <stdlib.h>
#include <string.h>

#include "libsf/wire/message.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define TRY(name, NAME)                                                                                      \
    do {                                                                                                     \
        struct sf_gp_##name value;                                                                           \
        uint8_t again[SF_GP_##NAME##_LENGTH];                                                                \
        if (sf_gp_##name##_parse(&value, data, size) &&                                                      \
            (sf_gp_##name##_pack(again, &value) != size || memcmp(again, data, size) != 0)) {                \
            abort();                                                                                         \
        }                                                                                                    \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sf_gp_header header;
    struct sf_gp_sync sync;
    const uint8_t *payload;
    size_t length;

    if (sf_gp_packet_parse(&header, &payload, data, size)) {
        sf_gp_request_valid(header.type, payload, header.length);
        sf_gp_type_name(header.type);
    }
    for (unsigned type = 0; type < 256; type++) {
        sf_gp_request_valid((uint8_t)type, data, size);
    }
    if (sf_gp_sync_parse(&sync, &payload, &length, data, size) &&
        (payload + length != data + size || sync.offset + length > sync.total || sync.total > SF_GP_MAX_RESULT)) {
        abort();
    }
    TRY(error, ERROR);
    TRY(hello, HELLO);
    TRY(identity, IDENTITY);
    TRY(network, NETWORK);
    TRY(ticket, TICKET);
    TRY(granted, GRANTED);
    TRY(clone, CLONE);
    TRY(cloned, CLONED);
    TRY(exit, EXIT);
    TRY(join, JOIN);
    TRY(member, MEMBER);
    TRY(fetch, FETCH);
    TRY(kill, KILL);
    TRY(checkpoint, CHECKPOINT);
    TRY(create, CREATE);
    TRY(self, SELF);
    return 0;
}
