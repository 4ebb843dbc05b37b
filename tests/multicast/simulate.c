/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mc_simulate RECEIVERS [NAME=VALUE...]: one group of that many receivers on a virtual clock, once. Prints one JSON
 * object: the network and the clones that were assumed, and what came out.
 *
 *     pages, job          of the memory; touched by each clone's job, in the same order
 *     think_us            mean time between two touches
 *     link_mbit, max_mbit the origin's link; what the sender may use of it
 *     latency_us, jitter_us, unicast_us
 *     loss_ppm            of datagrams and of requests, each receiver on its own
 *     deaf_ppm            receivers to which no multicast comes
 *     push, complete      idle push; all of the memory is wanted after the job
 *     limit_s             of virtual time
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "virtual_group.h"

#define MBIT        125000u
#define PPM         1000000u
#define QUEUE       1000000u /* bytes before the link: a switch port's buffer */
#define MAX_PENDING 256u     /* of each receiver, as memory for 10,000 of them is finite */
#define MAX_PARTIAL 8u

enum value {
    PAGES,
    JOB,
    THINK,
    LINK,
    MAX_RATE,
    LATENCY,
    JITTER,
    UNICAST,
    LOSS,
    DEAF,
    PUSH,
    COMPLETE,
    LIMIT,
    SEED,
    VALUES
};

static struct {
    const char *name;
    guint64 value;
} values[VALUES] = {
    [PAGES] = { "pages", 4096 },      [JOB] = { "job", 1024 },
    [THINK] = { "think_us", 200 },    [LINK] = { "link_mbit", 1000 },
    [MAX_RATE] = { "max_mbit", 900 }, [LATENCY] = { "latency_us", 200 },
    [JITTER] = { "jitter_us", 100 },  [UNICAST] = { "unicast_us", 1000 },
    [LOSS] = { "loss_ppm", 1000 },    [DEAF] = { "deaf_ppm", 0 },
    [PUSH] = { "push", 1 },           [COMPLETE] = { "complete", 0 },
    [LIMIT] = { "limit_s", 600 },     [SEED] = { "seed", 1 },
};

static struct vg_behaviour behave(unsigned receiver)
{
    guint64 every = values[DEAF].value > 0 ? PPM / values[DEAF].value : 0;

    return (struct vg_behaviour){ .deaf = every > 0 && receiver % every == every - 1 };
}

static int by_time(const void *a, const void *b)
{
    gint64 x = *(const gint64 *)a, y = *(const gint64 *)b;

    return (x > y) - (x < y);
}

static bool read_values(int argc, char **argv)
{
    for (int i = 2; i < argc; i++) {
        char *equals = strchr(argv[i], '=');
        unsigned v = 0;
        if (equals == NULL) {
            return false;
        }
        while (v < VALUES && (strlen(values[v].name) != (size_t)(equals - argv[i]) ||
                              memcmp(values[v].name, argv[i], (size_t)(equals - argv[i])) != 0)) {
            v++;
        }
        if (v == VALUES) {
            return false;
        }
        values[v].value = g_ascii_strtoull(equals + 1, NULL, 10);
    }
    return argc > 1;
}

static void print(const struct vg_config *config, struct vg_result *result)
{
    guint64 asked = 0, starved = 0, fallen = 0;
    gint64 *times = result->job_ns;

    for (unsigned i = 0; i < config->n; i++) {
        starved += times[i] == 0;
        asked += result->receivers[i].requests;
        fallen += result->receivers[i].fallen_back > 0;
    }
    qsort(times, config->n, sizeof(*times), by_time);
    printf("{\"receivers\": %u", config->n);
    for (unsigned v = 0; v < VALUES; v++) {
        printf(", \"%s\": %" G_GUINT64_FORMAT, values[v].name, values[v].value);
    }
    printf(",\n \"finished\": %s, \"starved\": %" G_GUINT64_FORMAT ", \"end_s\": %.4f, \"job_median_s\": %.4f, "
           "\"job_max_s\": %.4f,\n",
           result->complete ? "true" : "false", starved, (double)result->end_ns / VG_S,
           (double)times[config->n / 2] / VG_S, (double)times[config->n - 1] / VG_S);
    printf(" \"bytes\": %" G_GUINT64_FORMAT ", \"datagrams\": %" G_GUINT64_FORMAT
           ", \"pages_again\": %" G_GUINT64_FORMAT ", \"suppressed\": %" G_GUINT64_FORMAT
           ", \"dismissed\": %" G_GUINT64_FORMAT ",\n",
           result->sender.bytes, result->sender.datagrams, result->sender.pages_again, result->sender.suppressed,
           result->sender.dismissed);
    printf(" \"requests\": %" G_GUINT64_FORMAT ", \"request_bytes\": %" G_GUINT64_FORMAT
           ", \"requests_peak_10ms\": %u, \"requests_sent\": %" G_GUINT64_FORMAT ",\n",
           result->requests, result->request_bytes, result->peak_requests, asked);
    printf(" \"unicast_pages\": %" G_GUINT64_FORMAT ", \"receivers_with_unicast\": %" G_GUINT64_FORMAT
           ", \"rate_mbit\": %.0f, \"link_drops\": %" G_GUINT64_FORMAT ", \"datagrams_taken\": %" G_GUINT64_FORMAT
           "}\n",
           result->unicast_pages, fallen, (double)result->sender.rate / MBIT, result->link_drops, result->takes);
}

int main(int argc, char **argv)
{
    struct vg_config config = { 0 };
    struct vg_result result;

    if (!read_values(argc, argv)) {
        fprintf(stderr, "usage: mc_simulate RECEIVERS [NAME=VALUE...]; tests/multicast/simulate.c names them\n");
        return EXIT_FAILURE;
    }
    config.n = (unsigned)g_ascii_strtoull(argv[1], NULL, 10);
    config.pages = (unsigned)values[PAGES].value;
    config.job_pages = (unsigned)values[JOB].value;
    if (config.n == 0 || config.n > MC_RECEIVERS_MAX || config.pages == 0 || config.job_pages > config.pages) {
        fprintf(stderr, "mc_simulate: 1 to %u receivers, job <= pages\n", MC_RECEIVERS_MAX);
        return EXIT_FAILURE;
    }
    config.think_ns = (gint64)values[THINK].value * 1000;
    config.link_rate = values[LINK].value * MBIT;
    config.max_rate = values[MAX_RATE].value * MBIT;
    config.link_queue = QUEUE;
    config.latency_ns = (gint64)values[LATENCY].value * 1000;
    config.jitter_ns = (gint64)values[JITTER].value * 1000;
    config.unicast_ns = (gint64)values[UNICAST].value * 1000;
    config.loss = config.request_loss = (guint32)values[LOSS].value;
    config.push = values[PUSH].value != 0;
    config.want_all = values[COMPLETE].value != 0;
    config.give_up_ns = (gint64)values[LIMIT].value * VG_S;
    config.seed = values[SEED].value;
    config.knows_n = true;
    config.max_pending = MAX_PENDING;
    config.max_partial = MAX_PARTIAL;
    config.behaviour = behave;
    vg_run(&config, &result);
    print(&config, &result);
    vg_result_clear(&result);
    return EXIT_SUCCESS;
}
