/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is to be told apart is loss that sending slower would cure, and loss that is there at any rate.
 *
 *     loss of a round   = what three quarters of the receivers that reported lose at most   (the rest has troubles of
 * its own) floor             = least loss of the last rounds, at most FLOOR_MAX                   (the line's own loss)
 *     congestion        = loss - floor
 *
 * A queue that overflows drops what is above its capacity: with rate R and capacity C, congestion is 1 - C/R. So on
 * congestion the rate becomes R * (1 - congestion), which is C, less a margin. Without congestion it rises: by half a
 * round until the first congestion, by a few per cent afterwards; but only while it is what limits the sending.
 *
 * After a decrease one round is not looked at, since its reports are about datagrams sent before. The next one tells
 * whether it helped: if as much is lost as before, it was not congestion; then that loss is the floor, and the rate
 * what it was. Else the rate does not rise for some rounds.
 */
#include "sfvmm/pager/mc_rate.h"

#include <string.h>

#define NS_PER_S       1000000000ll
#define PPM            1000000u
#define BURST_NS       4000000ll   /* of the rate: short enough for a switch port's or tbf's queue */
#define BURST_MIN      6000        /* bytes: a page that does not shrink, in datagrams */
#define ROUND_MIN_NS   150000000ll /* reports come every 200 ms at the most frequent */
#define ROUND_MAX_NS   600000000ll
#define SAMPLES_ENOUGH 16u
#define CONGESTION_MIN 20000u  /* 2 %: less is what the last increase has found out */
#define FLOOR_MAX      100000u /* 10 %: a line that loses more is for unicast */
#define CUT_MAX        500000u /* no more than half at once: a round may be unlucky */
#define MARGIN_PCT     97u     /* of the capacity found */
#define RISE_PCT       3u
#define HOLD_ROUNDS    5u
#define SKIPPED_ROUNDS 2u  /* a report may cover 300 ms, a round takes 150 */
#define DOUBT_ROUNDS   40u /* some 8 s */

void mc_rate_init(struct mc_rate *rate, uint64_t min, uint64_t max, uint64_t start, int64_t now)
{
    *rate = (struct mc_rate){ .min = min, .max = max, .rate = start, .at = now, .round_began = now };
    rate->slow_start = true;
    rate->n_floors = MC_RATE_FLOORS; /* none is known: zeros */
    rate->tokens = mc_rate_burst(rate);
}

int64_t mc_rate_burst(const struct mc_rate *rate)
{
    int64_t burst = (int64_t)((double)rate->rate * BURST_NS / NS_PER_S);

    return burst < BURST_MIN ? BURST_MIN : burst;
}

void mc_rate_refill(struct mc_rate *rate, int64_t now)
{
    int64_t burst = mc_rate_burst(rate), bytes;

    if (now <= rate->at) {
        return;
    }
    bytes = (int64_t)((double)(now - rate->at) * (double)rate->rate / NS_PER_S);
    if (bytes > 0) { /* else the time goes on to count */
        rate->tokens += bytes;
        rate->at = now;
    }
    if (rate->tokens > burst) {
        rate->tokens = burst;
    }
}

void mc_rate_charge(struct mc_rate *rate, uint64_t bytes)
{
    rate->tokens -= (int64_t)bytes;
    rate->round_bytes += bytes;
}

int64_t mc_rate_when(const struct mc_rate *rate, int64_t tokens)
{
    if (tokens <= rate->tokens) {
        return rate->at;
    }
    return rate->at + 1 + (int64_t)((double)(tokens - rate->tokens) * NS_PER_S / (double)rate->rate);
}

bool mc_rate_is_due(const struct mc_rate *rate, unsigned reported, unsigned receivers, int64_t now)
{
    int64_t lasted = now - rate->round_began;
    unsigned enough = (receivers < SAMPLES_ENOUGH ? receivers : SAMPLES_ENOUGH) * 3 / 4;

    return reported > 0 && lasted >= ROUND_MIN_NS && (reported >= enough || lasted >= ROUND_MAX_NS);
}

void mc_rate_sample(struct mc_rate *rate, uint32_t loss)
{
    if (rate->n_samples < MC_RATE_SAMPLES) {
        rate->samples[rate->n_samples++] = loss;
    }
}

/* What three quarters of the samples are not above; of two the better, of one that one. Sorts them. */
static uint32_t common_loss(struct mc_rate *rate)
{
    uint32_t *samples = rate->samples;

    for (unsigned i = 1; i < rate->n_samples; i++) {
        uint32_t value = samples[i];
        unsigned j = i;
        for (; j > 0 && samples[j - 1] > value; j--) {
            samples[j] = samples[j - 1];
        }
        samples[j] = value;
    }
    return samples[(rate->n_samples - 1) * 3 / 4];
}

static uint32_t note_floor(struct mc_rate *rate, uint32_t loss)
{
    uint32_t floor = FLOOR_MAX;

    rate->floors[rate->n_floors++ % MC_RATE_FLOORS] = loss;
    for (unsigned i = 0; i < MC_RATE_FLOORS; i++) {
        if (rate->floors[i] < floor) {
            floor = rate->floors[i];
        }
    }
    return floor;
}

static void set_rate(struct mc_rate *rate, double value)
{
    rate->rate = value < (double)rate->min ? rate->min : value > (double)rate->max ? rate->max : (uint64_t)value;
}

static void cut(struct mc_rate *rate, uint32_t congestion)
{
    rate->doubt = 0;
    rate->rate_before = rate->rate;
    rate->loss_before = rate->loss;
    rate->slow_before = rate->slow_start;
    rate->slow_start = false;
    rate->hold = HOLD_ROUNDS;
    set_rate(rate, (double)rate->rate * (PPM - (congestion < CUT_MAX ? congestion : CUT_MAX)) / PPM * MARGIN_PCT / 100);
}

/* The first round that shows what the decrease did. true: nothing, and it is taken back. */
static bool take_back(struct mc_rate *rate)
{
    if (rate->loss > FLOOR_MAX || rate->loss < rate->loss_before / 4 * 3) {
        return false;
    }
    for (unsigned i = 0; i < MC_RATE_FLOORS; i++) {
        rate->floors[i] = rate->loss;
    }
    rate->rate = rate->rate_before;
    rate->slow_start = rate->slow_before;
    rate->hold = 0;
    return true;
}

void mc_rate_decide(struct mc_rate *rate, int64_t now)
{
    int64_t lasted = now - rate->round_began;
    bool limits = (double)rate->round_bytes > (double)rate->rate * (double)lasted / NS_PER_S / 2;
    uint32_t floor;

    if (rate->n_samples == 0) { /* nobody whose word counts */
        return;
    }
    rate->loss = common_loss(rate);
    floor = note_floor(rate, rate->loss);
    if (rate->hold > HOLD_ROUNDS - SKIPPED_ROUNDS) {
        rate->hold--;
    } else if (rate->hold == HOLD_ROUNDS - SKIPPED_ROUNDS && take_back(rate)) {
        /* goes on as before */
    } else if (floor >= CONGESTION_MIN && ++rate->doubt >= DOUBT_ROUNDS) {
        cut(rate, floor);
    } else if (rate->loss > floor && rate->loss - floor >= CONGESTION_MIN) {
        cut(rate, rate->loss - floor);
    } else if (rate->hold > 0) {
        rate->hold--;
    } else if (limits) {
        set_rate(rate, (double)rate->rate * (rate->slow_start ? 150 : 100 + RISE_PCT) / 100);
    }
    rate->n_samples = 0;
    rate->round_bytes = 0;
    rate->round_began = now;
}

void mc_rate_choked(struct mc_rate *rate)
{
    if (rate->hold < HOLD_ROUNDS) {
        cut(rate, PPM / 4);
    }
}
