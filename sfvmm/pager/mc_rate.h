/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mc_rate: how fast the origin sends: a token bucket, and its rate adapted to the loss that receivers report. Private
 * to mc_sender. Times in ns, rates in bytes a second, loss in ppm.
 */
#ifndef SF_PAGER_MC_RATE_H
#define SF_PAGER_MC_RATE_H

#include <stdbool.h>
#include <stdint.h>

#define MC_RATE_SAMPLES 64u /* reports of one round; more are left out: they would say the same */
#define MC_RATE_FLOORS  16u

struct mc_rate {
    uint64_t min, max, rate;
    int64_t tokens; /* bytes that may be sent now; negative: a debt */
    int64_t at;     /* when tokens was right */
    /* a round: from one decision to the next */
    int64_t round_began;
    uint64_t round_bytes;
    unsigned n_samples;
    uint32_t samples[MC_RATE_SAMPLES];
    /* over rounds */
    bool slow_start;
    uint64_t rate_before; /* the last decrease */
    bool slow_before;
    uint32_t loss_before;
    unsigned hold;  /* rounds in which nothing is changed, then none in which it rises */
    unsigned doubt; /* rounds since the floor was put to the test */
    unsigned n_floors;
    uint32_t floors[MC_RATE_FLOORS]; /* loss of the last rounds: the least of them is not of our making */
    uint32_t loss;                   /* of the last round: what most receivers lose at most */
};

void mc_rate_init(struct mc_rate *rate, uint64_t min, uint64_t max, uint64_t start, int64_t now);

/* Bytes that may go out in one burst. */
int64_t mc_rate_burst(const struct mc_rate *rate);

/* Brings tokens up to date. */
void mc_rate_refill(struct mc_rate *rate, int64_t now);
void mc_rate_charge(struct mc_rate *rate, uint64_t bytes);
/* When there will be `tokens`. */
int64_t mc_rate_when(const struct mc_rate *rate, int64_t tokens);

/* Whether the round may end: enough of `receivers` have `reported`, or some and it has lasted long enough. */
bool mc_rate_is_due(const struct mc_rate *rate, unsigned reported, unsigned receivers, int64_t now);

/* A receiver has lost this share of what was sent to it in this round. One sample each. */
void mc_rate_sample(struct mc_rate *rate, uint32_t loss);

/* Ends the round. */
void mc_rate_decide(struct mc_rate *rate, int64_t now);

/* This host could not send what was due. */
void mc_rate_choked(struct mc_rate *rate);

#endif
