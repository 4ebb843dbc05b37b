/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Packs and parses the messages of guest_protocol.h.
 *
 * Every sf_gp_X_pack() writes exactly SF_GP_X_LENGTH bytes and returns that number. Texts that do not fit are cut
 * at a character, and what must not reach a terminal (control characters, broken UTF-8) becomes '?', so that a
 * packed message always parses.
 *
 * Every sf_gp_X_parse() takes the whole payload and returns false, leaving *value undefined, when the length is
 * another one, a field is out of its range, reserved bytes are not zero, or a text is not NUL-padded clean UTF-8.
 *
 * No allocation, no state: any thread may call anything.
 */
#ifndef SF_WIRE_MESSAGE_H
#define SF_WIRE_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libsf/wire/guest_protocol.h"

#define SF_GP_MAX_MESSAGE        (SF_GP_HEADER_LENGTH + SF_GP_MAX_PAYLOAD)

/* Bytes on the wire. */
#define SF_GP_ERROR_LENGTH       (4 + SF_GP_TEXT_LEN)
#define SF_GP_HELLO_LENGTH       16
#define SF_GP_IDENTITY_LENGTH    (32 + SF_GP_SEED_LEN + 2 * SF_GP_NAME_LEN)
#define SF_GP_NETWORK_LENGTH     (40 + SF_GP_NAME_LEN)
#define SF_GP_TICKET_LENGTH      8
#define SF_GP_GRANTED_LENGTH     16
#define SF_GP_CLONE_LENGTH       8
#define SF_GP_CLONED_LENGTH      8
#define SF_GP_SYNC_LENGTH        16
#define SF_GP_EXIT_LENGTH        8
#define SF_GP_JOIN_LENGTH        16
#define SF_GP_MEMBER_LENGTH      (24 + SF_GP_TEXT_LEN)
#define SF_GP_FETCH_LENGTH       24
#define SF_GP_KILL_LENGTH        8
#define SF_GP_CHECKPOINT_LENGTH  SF_GP_NAME_LEN
#define SF_GP_CREATE_LENGTH      (8 + SF_GP_NAME_LEN)
#define SF_GP_SELF_LENGTH        16

/* Header. Parse refuses another version, a non-zero reserved field and a payload above SF_GP_MAX_PAYLOAD. */
void sf_gp_header_pack(uint8_t *buf, const struct sf_gp_header *value);
bool sf_gp_header_parse(struct sf_gp_header *value, const uint8_t *buf, size_t length);

/*
 * Checks and splits one packet of the unix socket: header plus exactly header->length bytes.
 * *payload points into packet.
 */
bool sf_gp_packet_parse(struct sf_gp_header *header, const uint8_t **payload, const uint8_t *packet, size_t length);

size_t sf_gp_error_pack(uint8_t *buf, const struct sf_gp_error *value);
bool sf_gp_error_parse(struct sf_gp_error *value, const uint8_t *payload, size_t length);
size_t sf_gp_hello_pack(uint8_t *buf, const struct sf_gp_hello *value);
bool sf_gp_hello_parse(struct sf_gp_hello *value, const uint8_t *payload, size_t length);
/* hostname: letters, digits, '-' and '.', not empty; id 1..count, count <= SF_GP_MAX_CLONES; realtime not 0. */
size_t sf_gp_identity_pack(uint8_t *buf, const struct sf_gp_identity *value);
bool sf_gp_identity_parse(struct sf_gp_identity *value, const uint8_t *payload, size_t length);
/*
 * name: as IDENTITY's hostname; prefix 1..30; with clones ticket and first are not 0, id <= count, and a clone's address
 * is first + id - 1; without, all four are 0.
 */
size_t sf_gp_network_pack(uint8_t *buf, const struct sf_gp_network *value);
bool sf_gp_network_parse(struct sf_gp_network *value, const uint8_t *payload, size_t length);
/* Only the form is checked, not the range of count: an absurd count gets a clear refusal from the host. */
size_t sf_gp_ticket_pack(uint8_t *buf, const struct sf_gp_ticket *value);
bool sf_gp_ticket_parse(struct sf_gp_ticket *value, const uint8_t *payload, size_t length);
size_t sf_gp_granted_pack(uint8_t *buf, const struct sf_gp_granted *value);
bool sf_gp_granted_parse(struct sf_gp_granted *value, const uint8_t *payload, size_t length);
size_t sf_gp_clone_pack(uint8_t *buf, const struct sf_gp_clone *value);
bool sf_gp_clone_parse(struct sf_gp_clone *value, const uint8_t *payload, size_t length);
size_t sf_gp_cloned_pack(uint8_t *buf, const struct sf_gp_cloned *value);
bool sf_gp_cloned_parse(struct sf_gp_cloned *value, const uint8_t *payload, size_t length);
/*
 * Pack writes the fixed part; the caller appends the data. Parse gives the data as a pointer into payload and
 * refuses total > SF_GP_MAX_RESULT, a piece that ends behind total or is longer than SF_GP_MAX_CHUNK, and an
 * empty piece of a result that is not empty.
 */
size_t sf_gp_sync_pack(uint8_t *buf, const struct sf_gp_sync *value);
bool sf_gp_sync_parse(struct sf_gp_sync *value, const uint8_t **data, size_t *data_length, const uint8_t *payload,
                      size_t length);
size_t sf_gp_exit_pack(uint8_t *buf, const struct sf_gp_exit *value);
bool sf_gp_exit_parse(struct sf_gp_exit *value, const uint8_t *payload, size_t length);
size_t sf_gp_join_pack(uint8_t *buf, const struct sf_gp_join *value);
bool sf_gp_join_parse(struct sf_gp_join *value, const uint8_t *payload, size_t length);
/* One entry; a JOIN reply is 1..SF_GP_MEMBERS_PER_REPLY of them, so length is that of the entry. */
size_t sf_gp_member_pack(uint8_t *buf, const struct sf_gp_member *value);
bool sf_gp_member_parse(struct sf_gp_member *value, const uint8_t *entry, size_t length);
size_t sf_gp_fetch_pack(uint8_t *buf, const struct sf_gp_fetch *value);
bool sf_gp_fetch_parse(struct sf_gp_fetch *value, const uint8_t *payload, size_t length);
size_t sf_gp_kill_pack(uint8_t *buf, const struct sf_gp_kill *value);
bool sf_gp_kill_parse(struct sf_gp_kill *value, const uint8_t *payload, size_t length);
/* name: 1..SF_GP_CHECKPOINT_MAX of a-z, 0-9 and '-', a letter or digit first. Only the form of the rest is checked. */
size_t sf_gp_checkpoint_pack(uint8_t *buf, const struct sf_gp_checkpoint *value);
bool sf_gp_checkpoint_parse(struct sf_gp_checkpoint *value, const uint8_t *payload, size_t length);
size_t sf_gp_create_pack(uint8_t *buf, const struct sf_gp_create *value);
bool sf_gp_create_parse(struct sf_gp_create *value, const uint8_t *payload, size_t length);
bool sf_gp_checkpoint_name_valid(const char *name);
size_t sf_gp_self_pack(uint8_t *buf, const struct sf_gp_self *value);
bool sf_gp_self_parse(struct sf_gp_self *value, const uint8_t *payload, size_t length);

/*
 * Is payload a well-formed request of this type from the guest (SF_GP_TICKET..SF_GP_FORGET, SF_GP_SELF)?
 * False for every other type.
 */
bool sf_gp_request_valid(uint8_t type, const uint8_t *payload, size_t length);

/* "CLONE", "ERROR", ...; "?" for an unknown type. REPLY bit ignored. */
const char *sf_gp_type_name(uint8_t type);

/* "running", "exited", ...; "?" for an unknown state. */
const char *sf_gp_state_name(uint32_t state);

#define SF_GP_MAC_LENGTH 6

/* The MAC of the member of a cluster that has this address. */
void sf_gp_mac_of_address(uint8_t mac[SF_GP_MAC_LENGTH], uint32_t address);

/* Formats into a NUL-padded text field of size bytes, cleaned as described on top. */
void sf_gp_text_set(char *text, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
