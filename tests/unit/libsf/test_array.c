/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Arrays of libsf: what is filled comes through pack and unpack, and nothing that is malformed is taken in. */
#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "agent_socket.h"
#include "libsf/array.h"

#define SLOTS 100

static sf_array *new_array(void)
{
    sf_array *array = sf_array_new(SLOTS, sizeof(uint32_t));

    CHECK(array && sf_array_length(array) == SLOTS);
    return array;
}

static uint32_t value(const sf_array *array, size_t slot)
{
    return *(const uint32_t *)sf_array_get(array, slot);
}

static void fill(sf_array *array, size_t slot, uint32_t number)
{
    *(uint32_t *)sf_array_fill(array, slot) = number;
}

static void test_limits(void)
{
    sf_array *array = new_array();

    CHECK(!sf_array_new(0, 4) && errno == EINVAL);
    CHECK(!sf_array_new(4, 0) && errno == EINVAL);
    CHECK(!sf_array_new(SIZE_MAX, 2) && errno == ENOMEM);
    CHECK(!sf_array_get(array, SLOTS) && errno == EINVAL && !sf_array_fill(array, SLOTS) && !sf_array_fill(NULL, 0));
    CHECK(sf_array_length(NULL) == 0 && sf_array_exit(NULL, 0) < 0 && sf_array_join(NULL, NULL, NULL, 0) < 0);
    CHECK(sf_array_join(array, NULL, NULL, 1) < 0 && errno == EINVAL);
    sf_array_free(array);
    sf_array_free(NULL);
}

/* Runs at both ends, in the middle, and none. */
static void test_round_trip(void)
{
    static const size_t filled[] = { 0, 1, 2, 50, 98, 99 };
    sf_array *array = new_array(), *other = new_array();
    unsigned char *data;
    size_t length;

    data = sf_array_pack(array, &length);
    CHECK(data && length == 0 && sf_array_unpack(other, data, length));
    free(data);
    fill(other, 2, 7);
    fill(other, 3, 8);
    for (size_t i = 0; i < sizeof(filled) / sizeof(filled[0]); i++) {
        fill(array, filled[i], (uint32_t)(1000 + filled[i]));
    }
    data = sf_array_pack(array, &length);
    CHECK(data && length == 3 * 16 + 6 * sizeof(uint32_t));
    CHECK(sf_array_unpack(other, data, length));
    CHECK(value(other, 0) == 1000 && value(other, 2) == 1002 && value(other, 3) == 8 && value(other, 4) == 0);
    CHECK(value(other, 50) == 1050 && value(other, 99) == 1099);
    for (size_t less = 1; less < sizeof(uint32_t) * 2 + 16; less++) {
        CHECK(!sf_array_unpack(other, data, length - less));
    }
    free(data);
    sf_array_free(array);
    sf_array_free(other);
}

static void test_malformed(void)
{
    static const struct {
        uint64_t first, slots;
    } runs[] = { { 0, 0 }, { SLOTS, 1 }, { SLOTS - 1, 2 }, { UINT64_MAX, 1 }, { 1, UINT64_MAX }, { 0, UINT64_MAX / 4 + 2 } };
    sf_array *array = new_array();

    for (size_t i = 0; i < sizeof(runs) / sizeof(runs[0]); i++) {
        unsigned char data[16 + 2 * sizeof(uint32_t)] = { 0 };

        memcpy(data, &runs[i], sizeof(runs[i]));
        CHECK(!sf_array_unpack(array, data, sizeof(data)));
    }
    sf_array_free(array);
}

int main(void)
{
    test_limits();
    test_round_trip();
    test_malformed();
    return 0;
}
