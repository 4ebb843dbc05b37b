/* SPDX-License-Identifier: GPL-2.0-or-later */
/* cc -O2 -o sf-primes primes.c $(pkg-config --cflags --libs libsf) */
/*
 * How many primes there are below 1, 2, 3 ... millions. Each slot of an array is a million; the clones fill it together.
 */
#include <snowflock.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#define MILLION 1000000u
#define CLONES  8

static unsigned primes(unsigned from, unsigned below)
{
    unsigned count = 0;

    for (unsigned number = from < 2 ? 2 : from; number < below; number++) {
        bool prime = true;

        for (unsigned factor = 2; prime && factor * factor <= number; factor++) {
            prime = number % factor != 0;
        }
        count += prime;
    }
    return count;
}

int main(int argc, char **argv)
{
    unsigned millions = argc > 1 ? (unsigned)atoi(argv[1]) : CLONES, sum = 0;
    sf_array *counts = sf_array_new(millions, sizeof(unsigned));
    sf_ticket *ticket = counts ? sf_request_ticket(CLONES, 0) : NULL;
    int id = ticket ? sf_clone(ticket) : -1, joined;

    if (id > 0) {
        for (unsigned i = (unsigned)id - 1; i < millions; i += sf_ticket_granted(ticket)) {
            *(unsigned *)sf_array_fill(counts, i) = primes(i * MILLION, (i + 1) * MILLION);
        }
        sf_array_exit(counts, 0);
    }
    joined = id < 0 ? -1 : sf_array_join(counts, ticket, NULL, 0);
    if (joined < 0) {
        fprintf(stderr, "sf-primes: %s\n", sf_error());
    }
    for (unsigned i = 0; joined > 0 && i < millions; i++) {
        sum += *(const unsigned *)sf_array_get(counts, i);
        printf("%u below %u\n", sum, (i + 1) * MILLION);
    }
    if (ticket) {
        sf_release(ticket);
    }
    sf_ticket_free(ticket);
    sf_array_free(counts);
    return joined > 0 ? 0 : 1;
}
