/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/pager/loop.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define EVENTS_PER_TURN 64

struct order {
    struct order *next;
    void (*function)(void *data);
    void *data;
};

struct loop {
    struct loop_target wake; /* of the eventfd */
    char name[16];
    int (*turn)(void *owner, int64_t now);
    void *owner;
    int epoll, eventfd;
    pthread_t thread;
    bool started, stopping; /* stopping: the loop's thread alone */

    pthread_mutex_t lock; /* of the list */
    struct order *first, **last;
};

int64_t loop_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 * LOOP_NS_PER_MS + now.tv_nsec;
}

static void on_wake(struct loop_target *target, uint32_t events)
{
    struct loop *loop = (struct loop *)target;
    uint64_t count;
    ssize_t ignored = read(loop->eventfd, &count, sizeof(count));

    (void)ignored;
    (void)events;
}

struct loop *loop_new(const char *name, int (*turn)(void *owner, int64_t now), void *owner)
{
    struct loop *loop = calloc(1, sizeof(*loop));

    if (!loop) {
        return NULL;
    }
    strncpy(loop->name, name, sizeof(loop->name) - 1);
    loop->turn = turn;
    loop->owner = owner;
    loop->wake.handle = on_wake;
    loop->epoll = epoll_create1(EPOLL_CLOEXEC);
    loop->eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    loop->last = &loop->first;
    pthread_mutex_init(&loop->lock, NULL);
    if (loop->epoll < 0 || loop->eventfd < 0) {
        loop_free(loop);
        return NULL;
    }
    loop_poll(loop, loop->eventfd, EPOLLIN, &loop->wake);
    return loop;
}

void loop_free(struct loop *loop)
{
    struct order *order;

    if (!loop) {
        return;
    }
    while ((order = loop->first)) {
        loop->first = order->next;
        free(order);
    }
    if (loop->epoll >= 0) {
        close(loop->epoll);
    }
    if (loop->eventfd >= 0) {
        close(loop->eventfd);
    }
    pthread_mutex_destroy(&loop->lock);
    free(loop);
}

static void carry_out_orders(struct loop *loop)
{
    struct order *order, *next;

    pthread_mutex_lock(&loop->lock);
    order = loop->first;
    loop->first = NULL;
    loop->last = &loop->first;
    pthread_mutex_unlock(&loop->lock);
    for (; order; order = next) {
        next = order->next;
        order->function(order->data);
        free(order);
    }
}

static void *run(void *data)
{
    struct loop *loop = data;
    struct epoll_event events[EVENTS_PER_TURN];

    pthread_setname_np(pthread_self(), loop->name);
    carry_out_orders(loop);
    while (!loop->stopping) {
        int n = epoll_wait(loop->epoll, events, EVENTS_PER_TURN, loop->turn(loop->owner, loop_now()));
        for (int i = 0; i < n; i++) {
            struct loop_target *target = events[i].data.ptr;
            target->handle(target, events[i].events);
        }
        carry_out_orders(loop);
    }
    return NULL;
}

bool loop_start(struct loop *loop)
{
    int error = pthread_create(&loop->thread, NULL, run, loop);

    errno = error;
    loop->started = error == 0;
    return loop->started;
}

static void order_stop(void *data)
{
    ((struct loop *)data)->stopping = true;
}

void loop_stop(struct loop *loop)
{
    if (loop->started) {
        loop_post(loop, order_stop, loop);
        pthread_join(loop->thread, NULL);
        loop->started = false;
    }
}

void loop_post(struct loop *loop, void (*function)(void *data), void *data)
{
    struct order *order = malloc(sizeof(*order));
    uint64_t one = 1;

    if (!order) {
        abort();
    }
    *order = (struct order){ .function = function, .data = data };
    pthread_mutex_lock(&loop->lock);
    *loop->last = order;
    loop->last = &order->next;
    pthread_mutex_unlock(&loop->lock);
    ssize_t ignored = write(loop->eventfd, &one, sizeof(one));
    (void)ignored;
}

void loop_poll(struct loop *loop, int fd, uint32_t events, struct loop_target *target)
{
    struct epoll_event event = { .events = events, .data.ptr = target };

    if (epoll_ctl(loop->epoll, EPOLL_CTL_MOD, fd, &event) < 0 && errno == ENOENT) {
        epoll_ctl(loop->epoll, EPOLL_CTL_ADD, fd, &event);
    }
}

void loop_forget(struct loop *loop, int fd)
{
    epoll_ctl(loop->epoll, EPOLL_CTL_DEL, fd, NULL);
}
