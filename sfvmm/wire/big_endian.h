/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Big-endian integers at any address: what travels between hosts.
 */
#ifndef SF_BIG_ENDIAN_H
#define SF_BIG_ENDIAN_H

#include <stdint.h>

static inline uint16_t sf_be_get16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

static inline uint32_t sf_be_get32(const uint8_t *p)
{
    return (uint32_t)sf_be_get16(p) << 16 | sf_be_get16(p + 2);
}

static inline uint64_t sf_be_get64(const uint8_t *p)
{
    return (uint64_t)sf_be_get32(p) << 32 | sf_be_get32(p + 4);
}

static inline void sf_be_put16(uint8_t *p, uint16_t value)
{
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

static inline void sf_be_put32(uint8_t *p, uint32_t value)
{
    sf_be_put16(p, (uint16_t)(value >> 16));
    sf_be_put16(p + 2, (uint16_t)value);
}

static inline void sf_be_put64(uint8_t *p, uint64_t value)
{
    sf_be_put32(p, (uint32_t)(value >> 32));
    sf_be_put32(p + 4, (uint32_t)value);
}

#endif
