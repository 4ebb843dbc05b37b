/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Strict decoding of NBD client messages. A reader walks the bytes of one message; each step checks what is left, so a
 * length that lies is found where it is read. What does not end exactly where its content ends is no message.
 */
#include "sfvmm/pager/nbd_decode.h"

#include <string.h>

struct reader {
    const uint8_t *at;
    size_t left;
};

static bool take16(struct reader *reader, uint16_t *value)
{
    if (reader->left < sizeof(*value)) {
        return false;
    }
    *value = sf_be_get16(reader->at);
    reader->at += sizeof(*value);
    reader->left -= sizeof(*value);
    return true;
}

static bool take32(struct reader *reader, uint32_t *value)
{
    if (reader->left < sizeof(*value)) {
        return false;
    }
    *value = sf_be_get32(reader->at);
    reader->at += sizeof(*value);
    reader->left -= sizeof(*value);
    return true;
}

/* A text with its length before it; a NUL in it would end it elsewhere, so there is none. */
static bool take_text(struct reader *reader, const char **text, uint32_t *length)
{
    if (!take32(reader, length) || *length > NBD_NAME_MAX || reader->left < *length ||
        memchr(reader->at, 0, *length) != NULL) {
        return false;
    }
    *text = (const char *)reader->at;
    reader->at += *length;
    reader->left -= *length;
    return true;
}

int nbd_decode_client_flags(const uint8_t *bytes, size_t n, uint32_t *flags)
{
    if (n < NBD_CLIENT_FLAGS_LENGTH) {
        return NBD_DECODE_MORE;
    }
    *flags = sf_be_get32(bytes);
    if (!(*flags & NBD_FLAG_FIXED_NEWSTYLE) || (*flags & ~(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES))) {
        return NBD_DECODE_BAD;
    }
    return NBD_CLIENT_FLAGS_LENGTH;
}

int nbd_decode_option(const uint8_t *bytes, size_t n, struct nbd_option *option)
{
    if (n < NBD_OPTION_HEADER_LENGTH) {
        return NBD_DECODE_MORE;
    }
    if (sf_be_get64(bytes) != NBD_OPTION_MAGIC) {
        return NBD_DECODE_BAD;
    }
    option->option = sf_be_get32(bytes + 8);
    option->length = sf_be_get32(bytes + 12);
    if (option->length > NBD_OPTION_DATA_MAX) {
        option->data = NULL;
        return NBD_OPTION_HEADER_LENGTH;
    }
    if (n - NBD_OPTION_HEADER_LENGTH < option->length) {
        return NBD_DECODE_MORE;
    }
    option->data = bytes + NBD_OPTION_HEADER_LENGTH;
    return (int)(NBD_OPTION_HEADER_LENGTH + option->length);
}

int nbd_decode_request(const uint8_t *bytes, size_t n, struct nbd_request *request)
{
    if (n < NBD_REQUEST_LENGTH) {
        return NBD_DECODE_MORE;
    }
    if (sf_be_get32(bytes) != NBD_REQUEST_MAGIC) {
        return NBD_DECODE_BAD;
    }
    request->flags = sf_be_get16(bytes + 4);
    request->type = sf_be_get16(bytes + 6);
    request->cookie = sf_be_get64(bytes + 8);
    request->offset = sf_be_get64(bytes + 16);
    request->length = sf_be_get32(bytes + 24);
    return NBD_REQUEST_LENGTH;
}

bool nbd_decode_info(const struct nbd_option *option, struct nbd_info *info)
{
    struct reader reader = { option->data, option->length };
    uint16_t n, wanted;

    *info = (struct nbd_info){ .name = NULL };
    if (!take_text(&reader, &info->name, &info->name_length) || !take16(&reader, &n)) {
        return false;
    }
    while (n-- > 0) {
        if (!take16(&reader, &wanted)) {
            return false;
        }
        info->wants_name |= wanted == NBD_INFO_NAME;
        info->wants_description |= wanted == NBD_INFO_DESCRIPTION;
    }
    return reader.left == 0;
}

bool nbd_decode_meta(const struct nbd_option *option, struct nbd_meta *meta)
{
    struct reader reader = { option->data, option->length };
    const char *text;
    uint32_t length;

    *meta = (struct nbd_meta){ .name = NULL };
    if (!take_text(&reader, &meta->name, &meta->name_length) || !take32(&reader, &meta->n_queries)) {
        return false;
    }
    meta->queries = reader.at;
    meta->queries_length = (uint32_t)reader.left;
    for (uint32_t i = 0; i < meta->n_queries; i++) {
        if (!take_text(&reader, &text, &length)) {
            return false;
        }
    }
    return reader.left == 0;
}

bool nbd_meta_next(const struct nbd_meta *meta, uint32_t *at, const char **query, uint32_t *length)
{
    if (*at >= meta->queries_length) {
        return false;
    }
    *length = sf_be_get32(meta->queries + *at);
    *query = (const char *)meta->queries + *at + sizeof(*length);
    *at += sizeof(*length) + *length;
    return true;
}
