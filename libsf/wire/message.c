/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Messages of guest_protocol.h to bytes and back. All access to the wire goes through the two cursors below: the
 * writer never leaves its fixed layout, the reader remembers the first thing that was wrong, so that each message's
 * functions are plain lists of fields in wire order.
 */
#include "libsf/wire/message.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- cursors ---- */

static void put32(uint8_t **at, uint32_t value)
{
    for (int i = 0; i < 4; i++) {
        *(*at)++ = (uint8_t)(value >> (8 * i));
    }
}

static void put64(uint8_t **at, uint64_t value)
{
    put32(at, (uint32_t)value);
    put32(at, (uint32_t)(value >> 32));
}

struct reader {
    const uint8_t *at;
    bool ok;
};

/* A reader over exactly `want` bytes; not ok (and then never dereferenced) when there are more or fewer. */
static struct reader reader_of(const uint8_t *payload, size_t length, size_t want)
{
    return (struct reader){ .at = payload, .ok = length == want };
}

static uint32_t get32(struct reader *r)
{
    uint32_t value;

    if (!r->ok) {
        return 0;
    }
    value = r->at[0] | (uint32_t)r->at[1] << 8 | (uint32_t)r->at[2] << 16 | (uint32_t)r->at[3] << 24;
    r->at += 4;
    return value;
}

static uint64_t get64(struct reader *r)
{
    uint64_t low = get32(r);

    return low | (uint64_t)get32(r) << 32;
}

static void get_zero32(struct reader *r)
{
    if (get32(r) != 0) {
        r->ok = false;
    }
}

/* ---- texts ---- */

/* Length of the valid, printable UTF-8 character at s (at most `left` bytes are there); 0: there is none. */
static size_t character_length(const uint8_t *s, size_t left)
{
    static const uint32_t smallest[] = { 0, 0, 0x80, 0x800, 0x10000 };
    size_t length = s[0] < 0x80 ? 1 : s[0] >> 5 == 6 ? 2 : s[0] >> 4 == 14 ? 3 : s[0] >> 3 == 30 ? 4 : 0;
    uint32_t point;

    if (length == 1) {
        return s[0] >= ' ' && s[0] != 0x7f;
    }
    if (length == 0 || length > left) {
        return 0;
    }
    point = s[0] & (0x7fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((s[i] & 0xc0) != 0x80) {
            return 0;
        }
        point = point << 6 | (s[i] & 0x3f);
    }
    /* Overlong, surrogate, beyond Unicode, or a C1 control. */
    if (point < smallest[length] || point > 0x10ffff || (point >= 0xd800 && point <= 0xdfff) || point < 0xa0) {
        return 0;
    }
    return length;
}

/* Copies at most size - 1 bytes of clean text and pads the field with NUL. */
static void clean_copy(char *field, size_t size, const char *text)
{
    size_t in_length = strnlen(text, size * 2);
    size_t in = 0, out = 0;

    while (in < in_length && out < size - 1) {
        size_t length = character_length((const uint8_t *)text + in, in_length - in);

        if (length == 0) {
            field[out++] = '?';
            in++;
        } else if (out + length <= size - 1) {
            memcpy(field + out, text + in, length);
            out += length;
            in += length;
        } else {
            break;
        }
    }
    memset(field + out, 0, size - out);
}

static void put_text(uint8_t **at, const char *text, size_t size)
{
    char copy[SF_GP_TEXT_LEN + 1];

    memcpy(copy, text, size);
    copy[size] = '\0';
    clean_copy((char *)*at, size, copy);
    *at += size;
}

static void get_text(struct reader *r, char *text, size_t size)
{
    size_t used = 0;

    if (!r->ok) {
        return;
    }
    while (used < size && r->at[used] != 0) {
        size_t length = character_length(r->at + used, size - used);

        if (length == 0) {
            r->ok = false;
            return;
        }
        used += length;
    }
    r->ok = used < size;
    for (size_t i = used; i < size; i++) {
        r->ok = r->ok && r->at[i] == 0;
    }
    memcpy(text, r->at, size);
    r->at += size;
}

void sf_gp_text_set(char *text, size_t size, const char *format, ...)
{
    char buffer[2 * SF_GP_TEXT_LEN];
    va_list arguments;

    va_start(arguments, format);
    if (vsnprintf(buffer, sizeof(buffer), format, arguments) < 0) {
        buffer[0] = '\0';
    }
    va_end(arguments);
    clean_copy(text, size, buffer);
}

static bool is_hostname(const char *name)
{
    if (name[0] == '\0' || name[0] == '-' || name[0] == '.') {
        return false;
    }
    for (; *name != '\0'; name++) {
        bool letter = (*name >= 'a' && *name <= 'z') || (*name >= 'A' && *name <= 'Z');

        if (!letter && !(*name >= '0' && *name <= '9') && *name != '-' && *name != '.') {
            return false;
        }
    }
    return true;
}

/* ---- header ---- */

void sf_gp_header_pack(uint8_t *buf, const struct sf_gp_header *value)
{
    uint8_t *at = buf;

    put32(&at, (uint32_t)value->version | (uint32_t)value->type << 8);
    put32(&at, value->request);
    put32(&at, value->length);
}

bool sf_gp_header_parse(struct sf_gp_header *value, const uint8_t *buf, size_t length)
{
    struct reader r = { .at = buf, .ok = length >= SF_GP_HEADER_LENGTH };
    uint32_t first = get32(&r);

    value->version = (uint8_t)first;
    value->type = (uint8_t)(first >> 8);
    value->zero = (uint16_t)(first >> 16);
    value->request = get32(&r);
    value->length = get32(&r);
    return r.ok && value->version == SF_GP_VERSION && value->zero == 0 && value->length <= SF_GP_MAX_PAYLOAD;
}

bool sf_gp_packet_parse(struct sf_gp_header *header, const uint8_t **payload, const uint8_t *packet, size_t length)
{
    if (!sf_gp_header_parse(header, packet, length) || header->length != length - SF_GP_HEADER_LENGTH) {
        return false;
    }
    *payload = packet + SF_GP_HEADER_LENGTH;
    return true;
}

/* ---- one pair of functions for each message, fields in wire order ---- */

size_t sf_gp_error_pack(uint8_t *buf, const struct sf_gp_error *value)
{
    uint8_t *at = buf;

    put32(&at, value->error);
    put_text(&at, value->text, SF_GP_TEXT_LEN);
    return (size_t)(at - buf);
}

#define ERRNO_MAX 4095 /* the kernel's MAX_ERRNO */

bool sf_gp_error_parse(struct sf_gp_error *value, const uint8_t *payload, size_t length)
{
    struct reader r = reader_of(payload, length, SF_GP_ERROR_LENGTH);

    value->error = get32(&r);
    get_text(&r, value->text, SF_GP_TEXT_LEN);
    return r.ok && value->error >= 1 && value->error <= ERRNO_MAX;
}

size_t sf_gp_hello_pack(uint8_t *buf, const struct sf_gp_hello *value)
{
    uint8_t *at = buf;

    put32(&at, value->version);
    put32(&at, 0);
    put64(&at, value->nonce);
    return (size_t)(at - buf);
}

bool sf_gp_hello_parse(struct sf_gp_hello *value, const uint8_t *payload, size_t length)
{
    struct reader r = reader_of(payload, length, SF_GP_HELLO_LENGTH);

    value->version = get32(&r);
    get_zero32(&r);
    value->zero = 0;
    value->nonce = get64(&r);
    return r.ok;
}

size_t sf_gp_identity_pack(uint8_t *buf, const struct sf_gp_identity *value)
{
    uint8_t *at = buf;

    put64(&at, value->ticket);
    put32(&at, value->id);
    put32(&at, value->count);
    put32(&at, value->clone_request);
    put32(&at, 0);
    put64(&at, value->realtime);
    memcpy(at, value->seed, SF_GP_SEED_LEN);
    at += SF_GP_SEED_LEN;
    put_text(&at, value->hostname, SF_GP_NAME_LEN);
    put_text(&at, value->parent, SF_GP_NAME_LEN);
    return (size_t)(at - buf);
}

bool sf_gp_identity_parse(struct sf_gp_identity *value, const uint8_t *payload, size_t length)
{
    struct reader r = reader_of(payload, length, SF_GP_IDENTITY_LENGTH);

    value->ticket = get64(&r);
    value->id = get32(&r);
    value->count = get32(&r);
    value->clone_request = get32(&r);
    get_zero32(&r);
    value->zero = 0;
    value->realtime = get64(&r);
    if (!r.ok) {
        return false;
    }
    memcpy(value->seed, r.at, SF_GP_SEED_LEN);
    r.at += SF_GP_SEED_LEN;
    get_text(&r, value->hostname, SF_GP_NAME_LEN);
    get_text(&r, value->parent, SF_GP_NAME_LEN);
    return r.ok && value->ticket != 0 && value->id >= 1 && value->id <= value->count &&
           value->count <= SF_GP_MAX_CLONES && value->realtime != 0 && is_hostname(value->hostname) &&
           is_hostname(value->parent);
}

size_t sf_gp_network_pack(uint8_t *buf, const struct sf_gp_network *value)
{
    uint8_t *at = buf;

    put64(&at, value->ticket);
    put32(&at, value->id);
    put32(&at, value->count);
    put32(&at, value->address);
    put32(&at, value->parent);
    put32(&at, value->first);
    put32(&at, value->gateway);
    put32(&at, value->prefix);
    put32(&at, 0);
    put_text(&at, value->name, SF_GP_NAME_LEN);
    return (size_t)(at - buf);
}

#define PREFIX_MAX 30 /* a subnet with two members */

static bool network_is_sound(const struct sf_gp_network *value)
{
    bool forked = value->count > 0;

    return value->prefix >= 1 && value->prefix <= PREFIX_MAX && value->address != 0 && value->parent != 0 &&
           value->id <= value->count && value->count <= SF_GP_MAX_CLONES && forked == (value->ticket != 0) &&
           forked == (value->first != 0) &&
           value->address == (value->id > 0 ? value->first + value->id - 1 : value->parent) && is_hostname(value->name);
}

bool sf_gp_network_parse(struct sf_gp_network *value, const uint8_t *payload, size_t length)
{
    struct reader r = reader_of(payload, length, SF_GP_NETWORK_LENGTH);

    value->ticket = get64(&r);
    value->id = get32(&r);
    value->count = get32(&r);
    value->address = get32(&r);
    value->parent = get32(&r);
    value->first = get32(&r);
    value->gateway = get32(&r);
    value->prefix = get32(&r);
    get_zero32(&r);
    value->zero = 0;
    get_text(&r, value->name, SF_GP_NAME_LEN);
    return r.ok && network_is_sound(value);
}

void sf_gp_mac_of_address(uint8_t mac[SF_GP_MAC_LENGTH], uint32_t address)
{
    mac[0] = 0x02; /* locally administered */
    mac[1] = 0x5f; /* "sf", as far as hexadecimal digits go */
    for (int i = 0; i < 4; i++) {
        mac[2 + i] = (uint8_t)(address >> (24 - 8 * i));
    }
}

size_t sf_gp_ticket_pack(uint8_t *buf, const struct sf_gp_ticket *value)
{
    uint8_t *at = buf;

    put32(&at, value->count);
    put32(&at, value->queue);
    return (size_t)(at - buf);
}

bool sf_gp_ticket_parse(struct sf_gp_ticket *value, const uint8_t *payload, size_t length)
{
    struct reader r = reader_of(payload, length, SF_GP_TICKET_LENGTH);

    value->count = get32(&r);
    value->queue = get32(&r);
    return r.ok;
}

size_t sf_gp_granted_pack(uint8_t *buf, const struct sf_gp_granted *value)
{
    uint8_t *at = buf;

    put64(&at, value->ticket);
    put32(&at, value->granted);
    put32(&at, 0);
    return (size_t)(at - buf);
}

bool sf_gp_granted_parse(struct sf_gp_granted *value, const uint8_t *payload, size_t length)
{
    struct reader r = reader_of(payload, length, SF_GP_GRANTED_LENGTH);

    value->ticket = get64(&r);
    value->granted = get32(&r);
    get_zero32(&r);
    value->zero = 0;
    return r.ok && value->ticket != 0 && value->granted >= 1 && value->granted <= SF_GP_MAX_CLONES;
}

size_t sf_gp_clone_pack(uint8_t *buf, const struct sf_gp_clone *value)
{
    uint8_t *at = buf;

    put64(&at, value->ticket);
    return (size_t)(at - buf);
}

bool sf_gp_clone_parse(struct sf_gp_clone *value, const uint8_t *payload, size_t length)
{
    struct reader r = reader_of(payload, length, SF_GP_CLONE_LENGTH);

    value->ticket = get64(&r);
    return r.ok;
}

size_t sf_gp_cloned_pack(uint8_t *buf, const struct sf_gp_cloned *value)
{
    uint8_t *at = buf;

    put32(&at, value->id);
    put32(&at, value->count);
    return (size_t)(at - buf);
}

bool sf_gp_cloned_parse(struct sf_gp_cloned *value, const uint8_t *payload, size_t length)
{
    struct reader r = reader_of(payload, length, SF_GP_CLONED_LENGTH);

    value->id = get32(&r);
    value->count = get32(&r);
    return r.ok && value->count <= SF_GP_MAX_CLONES && value->id <= SF_GP_MAX_CLONES;
}

size_t sf_gp_sync_pack(uint8_t *buf, const struct sf_gp_sync *value)
{
    uint8_t *at = buf;

    put64(&at, value->offset);
    put64(&at, value->total);
    return (size_t)(at - buf);
}

bool sf_gp_sync_parse(struct sf_gp_sync *value, const uint8_t **data, size_t *data_length, const uint8_t *payload,
                      size_t length)
{
    struct reader r = { .at = payload, .ok = length >= SF_GP_SYNC_LENGTH };

    value->offset = get64(&r);
    value->total = get64(&r);
    if (!r.ok || value->total > SF_GP_MAX_RESULT || value->offset > value->total) {
        return false;
    }
    *data = payload + SF_GP_SYNC_LENGTH;
    *data_length = length - SF_GP_SYNC_LENGTH;
    return *data_length <= SF_GP_MAX_CHUNK && *data_length <= value->total - value->offset &&
           (*data_length > 0 || value->total == 0);
}

size_t sf_gp_exit_pack(uint8_t *buf, const struct sf_gp_exit *value)
{
    uint8_t *at = buf;

    put32(&at, (uint32_t)value->status);
    put32(&at, 0);
    return (size_t)(at - buf);
}

bool sf_gp_exit_parse(struct sf_gp_exit *value, const uint8_t *payload, size_t length)
{
    struct reader r = reader_of(payload, length, SF_GP_EXIT_LENGTH);

    value->status = (int32_t)get32(&r);
    get_zero32(&r);
    value->zero = 0;
    return r.ok;
}

size_t sf_gp_join_pack(uint8_t *buf, const struct sf_gp_join *value)
{
    uint8_t *at = buf;

    put64(&at, value->ticket);
    put32(&at, value->flags);
    put32(&at, value->first);
    return (size_t)(at - buf);
}

bool sf_gp_join_parse(struct sf_gp_join *value, const uint8_t *payload, size_t length)
{
    struct reader r = reader_of(payload, length, SF_GP_JOIN_LENGTH);

    value->ticket = get64(&r);
    value->flags = get32(&r);
    value->first = get32(&r);
    return r.ok && (value->flags & ~SF_GP_JOIN_NOHANG) == 0 && value->first >= 1 && value->first <= SF_GP_MAX_CLONES;
}

size_t sf_gp_member_pack(uint8_t *buf, const struct sf_gp_member *value)
{
    uint8_t *at = buf;

    put32(&at, value->id);
    put32(&at, value->state);
    put32(&at, (uint32_t)value->status);
    put32(&at, value->count);
    put64(&at, value->result_length);
    put_text(&at, value->text, SF_GP_TEXT_LEN);
    return (size_t)(at - buf);
}

bool sf_gp_member_parse(struct sf_gp_member *value, const uint8_t *entry, size_t length)
{
    struct reader r = reader_of(entry, length, SF_GP_MEMBER_LENGTH);

    value->id = get32(&r);
    value->state = get32(&r);
    value->status = (int32_t)get32(&r);
    value->count = get32(&r);
    value->result_length = get64(&r);
    get_text(&r, value->text, SF_GP_TEXT_LEN);
    return r.ok && value->id >= 1 && value->id <= value->count && value->count <= SF_GP_MAX_CLONES &&
           value->state <= SF_GP_STATE_KILLED && value->result_length <= SF_GP_MAX_RESULT;
}

size_t sf_gp_fetch_pack(uint8_t *buf, const struct sf_gp_fetch *value)
{
    uint8_t *at = buf;

    put64(&at, value->ticket);
    put32(&at, value->id);
    put32(&at, value->length);
    put64(&at, value->offset);
    return (size_t)(at - buf);
}

bool sf_gp_fetch_parse(struct sf_gp_fetch *value, const uint8_t *payload, size_t length)
{
    struct reader r = reader_of(payload, length, SF_GP_FETCH_LENGTH);

    value->ticket = get64(&r);
    value->id = get32(&r);
    value->length = get32(&r);
    value->offset = get64(&r);
    return r.ok && value->id >= 1 && value->id <= SF_GP_MAX_CLONES && value->length <= SF_GP_MAX_CHUNK;
}

size_t sf_gp_kill_pack(uint8_t *buf, const struct sf_gp_kill *value)
{
    uint8_t *at = buf;

    put64(&at, value->ticket);
    return (size_t)(at - buf);
}

bool sf_gp_kill_parse(struct sf_gp_kill *value, const uint8_t *payload, size_t length)
{
    struct reader r = reader_of(payload, length, SF_GP_KILL_LENGTH);

    value->ticket = get64(&r);
    return r.ok;
}

bool sf_gp_checkpoint_name_valid(const char *name)
{
    size_t length = strnlen(name, SF_GP_NAME_LEN);

    return length >= 1 && length <= SF_GP_CHECKPOINT_MAX && name[0] != '-' &&
           strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == length;
}

size_t sf_gp_checkpoint_pack(uint8_t *buf, const struct sf_gp_checkpoint *value)
{
    uint8_t *at = buf;

    put_text(&at, value->name, SF_GP_NAME_LEN);
    return (size_t)(at - buf);
}

bool sf_gp_checkpoint_parse(struct sf_gp_checkpoint *value, const uint8_t *payload, size_t length)
{
    struct reader r = reader_of(payload, length, SF_GP_CHECKPOINT_LENGTH);

    get_text(&r, value->name, SF_GP_NAME_LEN);
    return r.ok && sf_gp_checkpoint_name_valid(value->name);
}

size_t sf_gp_create_pack(uint8_t *buf, const struct sf_gp_create *value)
{
    uint8_t *at = buf;

    put32(&at, value->count);
    put32(&at, value->flags);
    put_text(&at, value->name, SF_GP_NAME_LEN);
    return (size_t)(at - buf);
}

bool sf_gp_create_parse(struct sf_gp_create *value, const uint8_t *payload, size_t length)
{
    struct reader r = reader_of(payload, length, SF_GP_CREATE_LENGTH);

    value->count = get32(&r);
    value->flags = get32(&r);
    get_text(&r, value->name, SF_GP_NAME_LEN);
    return r.ok && sf_gp_checkpoint_name_valid(value->name);
}

size_t sf_gp_self_pack(uint8_t *buf, const struct sf_gp_self *value)
{
    uint8_t *at = buf;

    put64(&at, value->ticket);
    put32(&at, value->id);
    put32(&at, value->count);
    return (size_t)(at - buf);
}

bool sf_gp_self_parse(struct sf_gp_self *value, const uint8_t *payload, size_t length)
{
    struct reader r = reader_of(payload, length, SF_GP_SELF_LENGTH);

    value->ticket = get64(&r);
    value->id = get32(&r);
    value->count = get32(&r);
    return r.ok && value->id <= value->count && value->count <= SF_GP_MAX_CLONES;
}

/* ---- what a message is ---- */

bool sf_gp_request_valid(uint8_t type, const uint8_t *payload, size_t length)
{
    union {
        struct sf_gp_ticket ticket;
        struct sf_gp_clone clone;
        struct sf_gp_sync sync;
        struct sf_gp_exit exit;
        struct sf_gp_join join;
        struct sf_gp_fetch fetch;
        struct sf_gp_kill kill;
        struct sf_gp_checkpoint checkpoint;
        struct sf_gp_create create;
    } value;
    const uint8_t *data;
    size_t data_length;

    switch (type) {
    case SF_GP_TICKET:
        return sf_gp_ticket_parse(&value.ticket, payload, length);
    case SF_GP_CLONE:
        return sf_gp_clone_parse(&value.clone, payload, length);
    case SF_GP_SYNC:
        return sf_gp_sync_parse(&value.sync, &data, &data_length, payload, length);
    case SF_GP_EXIT:
        return sf_gp_exit_parse(&value.exit, payload, length);
    case SF_GP_JOIN:
        return sf_gp_join_parse(&value.join, payload, length);
    case SF_GP_FETCH:
        return sf_gp_fetch_parse(&value.fetch, payload, length);
    case SF_GP_KILL:
    case SF_GP_RELEASE:
        return sf_gp_kill_parse(&value.kill, payload, length);
    case SF_GP_CHECKPOINT:
    case SF_GP_FORGET:
        return sf_gp_checkpoint_parse(&value.checkpoint, payload, length);
    case SF_GP_CREATE:
        return sf_gp_create_parse(&value.create, payload, length);
    case SF_GP_SELF:
    case SF_GP_ADDRESSES:
        return length == 0;
    default:
        return false;
    }
}

const char *sf_gp_type_name(uint8_t type)
{
    if (type == SF_GP_ERROR) {
        return "ERROR";
    }
    switch (type & ~SF_GP_REPLY) {
    case SF_GP_HELLO:
        return "HELLO";
    case SF_GP_IDENTITY:
        return "IDENTITY";
    case SF_GP_TICKET:
        return "TICKET";
    case SF_GP_CLONE:
        return "CLONE";
    case SF_GP_SYNC:
        return "SYNC";
    case SF_GP_EXIT:
        return "EXIT";
    case SF_GP_JOIN:
        return "JOIN";
    case SF_GP_FETCH:
        return "FETCH";
    case SF_GP_KILL:
        return "KILL";
    case SF_GP_RELEASE:
        return "RELEASE";
    case SF_GP_CHECKPOINT:
        return "CHECKPOINT";
    case SF_GP_CREATE:
        return "CREATE";
    case SF_GP_FORGET:
        return "FORGET";
    case SF_GP_WHO:
        return "WHO";
    case SF_GP_SELF:
        return "SELF";
    case SF_GP_NETWORK:
        return "NETWORK";
    case SF_GP_LINK:
        return "LINK";
    case SF_GP_ADDRESSES:
        return "ADDRESSES";
    default:
        return "?";
    }
}

const char *sf_gp_state_name(uint32_t state)
{
    static const char *const names[] = {
        [SF_GP_STATE_STARTING] = "starting", [SF_GP_STATE_RUNNING] = "running", [SF_GP_STATE_EXITED] = "exited",
        [SF_GP_STATE_FAILED] = "failed",     [SF_GP_STATE_LOST] = "lost",       [SF_GP_STATE_KILLED] = "killed",
    };

    return state < sizeof(names) / sizeof(names[0]) ? names[state] : "?";
}
