/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * loop: the event loop of one thread of sf-pager: epoll, orders from other threads, a turn after each batch of events.
 *
 * loop_post() may be called from any thread; all else belongs to the loop's own.
 */
#ifndef SF_PAGER_LOOP_H
#define SF_PAGER_LOOP_H

#include <stdbool.h>
#include <stdint.h>

struct loop;

/*
 * What stands behind a polled descriptor: part of an object that lives at least until the end of the turn in which it
 * is removed.
 */
struct loop_target {
    void (*handle)(struct loop_target *target, uint32_t events); /* EPOLLIN and so on */
};

/*
 * name: of the thread, at most 15 bytes. turn: called after each batch of events, orders and whenever `turn`'s own
 * wish is over; now: loop_now(). It returns how many ms it wants to be called again at the latest, -1: no wish.
 */
struct loop *loop_new(const char *name, int (*turn)(void *owner, int64_t now), void *owner);
void loop_free(struct loop *loop); /* stopped, or never started */

bool loop_start(struct loop *loop); /* false and errno */
void loop_stop(struct loop *loop);  /* orders posted before are carried out first; waits for the thread */

/* Has order(data) called in the loop's thread, in the order of posting; before loop_start() too. */
void loop_post(struct loop *loop, void (*order)(void *data), void *data);

/* Adds fd or changes what it is polled for. A descriptor that is closed is removed by that. */
void loop_poll(struct loop *loop, int fd, uint32_t events, struct loop_target *target);
void loop_forget(struct loop *loop, int fd);

int64_t loop_now(void); /* CLOCK_MONOTONIC, ns */

#define LOOP_NS_PER_MS 1000000ll

#endif
