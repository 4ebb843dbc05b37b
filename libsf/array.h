/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a clone hands over of an array, and how it is taken in; the rest of array.c is public.
 */
#ifndef SF_ARRAY_H
#define SF_ARRAY_H

#include <stdbool.h>
#include <stddef.h>

#include "snowflock.h"

/* The filled slots, in memory for free(). NULL: there is none for *length bytes. */
unsigned char *sf_array_pack(const sf_array *array, size_t *length);

/* Takes them in. False, and the array may have some of them: it is no such thing. */
bool sf_array_unpack(sf_array *array, const unsigned char *data, size_t length);

#endif
