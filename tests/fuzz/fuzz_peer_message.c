/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a peer sends: lines, taken apart as messages. A message that was taken
 * goes through the formatter and must come out the same; tickets and places that it may carry go through their decoder.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "sfvmm/cluster/peer_message.h"
#include "sfvmm/cluster/ticket.h"
#include "tests/fuzz/json_lines.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void same_text(const char *a, const char *b)
{
    if (g_strcmp0(a, b) != 0) {
        abort();
    }
}

static void use(JsonObject *object)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) again = NULL;
    g_autoptr(SfTicket) ticket = NULL;
    SfPeerMessage message, second;

    if (!sf_peer_message_parse(object, &message, &error)) {
        if (!error) {
            abort();
        }
        return;
    }
    again = sf_peer_message_format(&message);
    if (!sf_peer_message_parse(again, &second, NULL) || second.kind != message.kind || second.id != message.id ||
        second.protocol != message.protocol) {
        abort();
    }
    same_text(message.word, second.word);
    same_text(message.text, second.text);
    same_text(message.name, second.name);
    same_text(message.version, second.version);
    same_text(message.instance, second.instance);
    ticket = message.body ? sf_ticket_from_json(message.body, NULL) : NULL;
    if (ticket) {
        guint sum = 0;
        for (guint i = 0; i < ticket->places->len; i++) {
            sum += ((const SfPlace *)g_ptr_array_index(ticket->places, i))->count;
        }
        if (sum != ticket->granted) {
            abort();
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_json_lines(data, size, use);
    return 0;
}
