/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *      socket --> open --> mc_receiver_take() --> whole page --> staging --> pwritev --> note --> listeners
 *                                 ^                                                                 |
 *      socket <-- seal <-- mc_receiver_poll()                                   memtap, prefetch <--+
 *                                 ^
 *                           mc_client_want()
 *
 * Pages are collected while a turn's datagrams are read, then written: neighbours together, each page whole, before
 * it is noted. Who looks at the store sees a page that is all there or none. Two threads may write the same page,
 * with the same content.
 *
 * Until the snapshot is set its shape is unknown: what comes waits in the socket's buffer. Only while a blob is awaited
 * it is read, and nothing but chunks of it is used; the origin has no reason to send pages before.
 *
 * A listener has an eventfd and a list. It is written to when pages have come and its thread waits for any, and when a
 * wanted page has to be fetched by unicast: then the run stands in the list of each listener, and those whose it is not
 * pass it over.
 *
 * The thread owns all but `stats` and the listeners' lists, which have locks, and `state`, which is atomic.
 */
#include "sfvmm/pager/mc_client.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/uio.h>
#include <unistd.h>
#include "sfvmm/pager/loop.h"
#include "sfvmm/pager/udp_batch.h"

#define STAGING           128u /* pages that are written together */
#define RECEIVES_PER_TURN 8u
#define REQUESTS_PER_TURN 16u
#define LISTENERS_MAX     4u
#define TURN_MAX_MS       1000 /* the clock's bound: an answer of mc_receiver that is far away is asked for again */

struct mc_listener {
    int eventfd;
    atomic_bool waits;
    pthread_mutex_t lock; /* of the list */
    struct mc_fallen *fallen;
    unsigned n_fallen, room;
};

struct staged {
    unsigned block;
    uint32_t page;
    bool asked;
    uint8_t *bytes; /* SF_PAGE_SIZE */
};

struct mc_client {
    struct loop *loop;
    struct loop_target target;
    struct page_store *store;
    struct mc_client_options options;
    struct udp_in *in;
    struct udp_out *out;
    struct mc_receiver *receiver; /* NULL: the snapshot is not there yet */
    struct mc_sealer *sealer;     /* NULL until either of them is there; so is the opener */
    struct mc_opener *opener;
    struct blob {
        struct mc_blob_in *in; /* NULL: none is awaited */
        uint64_t id;
        uint32_t total;
        int fd;
    } blob;
    uint64_t sequence;
    uint8_t *request; /* room for one */
    struct staged staged[STAGING];
    unsigned n_staged;
    uint8_t *pages; /* of the staging */
    bool landed;    /* pages have come since the listeners were told */
    uint64_t forged, replayed, unwritten, blob_bytes;

    atomic_uint state; /* enum mc_state */
    atomic_uint n_listeners;
    struct mc_listener listeners[LISTENERS_MAX];

    pthread_mutex_t lock; /* of what follows */
    struct mc_client_stats stats;
};

/* ---- listeners ---- */

static void tell(struct mc_listener *listener)
{
    uint64_t one = 1;
    ssize_t ignored = write(listener->eventfd, &one, sizeof(one)); /* fails only when it is readable anyway */

    (void)ignored;
}

static void add_fallen(struct mc_listener *listener, const struct mc_fallen *fallen)
{
    pthread_mutex_lock(&listener->lock);
    if (listener->n_fallen == listener->room) {
        listener->room = listener->room ? 2 * listener->room : 64;
        listener->fallen = realloc(listener->fallen, listener->room * sizeof(*listener->fallen));
        if (!listener->fallen) {
            abort();
        }
    }
    listener->fallen[listener->n_fallen++] = *fallen;
    pthread_mutex_unlock(&listener->lock);
    tell(listener);
}

static void fall_back(struct mc_client *client, unsigned block, uint32_t page, unsigned pages)
{
    struct mc_fallen fallen = { block, (uint64_t)page * SF_PAGE_SIZE, (uint64_t)pages * SF_PAGE_SIZE };
    unsigned n = atomic_load(&client->n_listeners);

    for (unsigned i = 0; i < n; i++) {
        add_fallen(&client->listeners[i], &fallen);
    }
}

static void tell_landed(struct mc_client *client)
{
    unsigned n = atomic_load(&client->n_listeners);

    client->landed = false;
    for (unsigned i = 0; i < n; i++) {
        if (atomic_load(&client->listeners[i].waits)) {
            tell(&client->listeners[i]);
        }
    }
    if (page_store_is_complete(client->store)) {
        client->options.complete(client->options.owner);
    }
}

struct mc_listener *mc_client_listen(struct mc_client *client)
{
    unsigned n = atomic_load(&client->n_listeners);
    struct mc_listener *listener = &client->listeners[n];

    if (n == LISTENERS_MAX) {
        return NULL;
    }
    listener->eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (listener->eventfd < 0) {
        return NULL;
    }
    pthread_mutex_init(&listener->lock, NULL);
    atomic_store(&client->n_listeners, n + 1);
    return listener;
}

int mc_listener_fd(const struct mc_listener *listener)
{
    return listener->eventfd;
}

void mc_listener_wait(struct mc_listener *listener, bool waits)
{
    atomic_store(&listener->waits, waits);
}

struct mc_fallen *mc_listener_take(struct mc_listener *listener, unsigned *n)
{
    struct mc_fallen *fallen;
    uint64_t count;
    ssize_t ignored = read(listener->eventfd, &count, sizeof(count));

    (void)ignored;
    pthread_mutex_lock(&listener->lock);
    fallen = listener->fallen;
    *n = listener->n_fallen;
    listener->fallen = NULL;
    listener->n_fallen = listener->room = 0;
    pthread_mutex_unlock(&listener->lock);
    return fallen;
}

/* ---- landing ---- */

static int compare_staged(const void *a, const void *b)
{
    const struct staged *x = a, *y = b;

    return x->block != y->block ? (x->block < y->block ? -1 : 1) : x->page < y->page ? -1 : x->page > y->page;
}

/* n staged pages that follow each other. */
static void write_run(struct mc_client *client, const struct staged *run, unsigned n)
{
    uint64_t offset = (uint64_t)run->page * SF_PAGE_SIZE, length = (uint64_t)n * SF_PAGE_SIZE;
    struct iovec iov[STAGING];

    for (unsigned i = 0; i < n; i++) {
        iov[i] = (struct iovec){ .iov_base = run[i].bytes, .iov_len = SF_PAGE_SIZE };
    }
    if (pwritev(page_store_block(client->store, run->block)->base, iov, n, offset) != (ssize_t)length) {
        client->unwritten += n; /* no memory: by unicast it fails as well, and that tells why */
        fall_back(client, run->block, run->page, n);
        return;
    }
    for (unsigned i = 0; i < n; i++) {
        if (!run[i].asked) {
            page_store_mark_unasked(client->store, run->block, offset + i * SF_PAGE_SIZE, SF_PAGE_SIZE);
        }
    }
    page_store_note(client->store, run->block, offset, length, false);
    client->landed = true;
}

static void write_staged(struct mc_client *client)
{
    unsigned n;

    qsort(client->staged, client->n_staged, sizeof(*client->staged), compare_staged);
    for (unsigned i = 0; i < client->n_staged; i += n) {
        const struct staged *run = &client->staged[i];
        n = 1;
        while (i + n < client->n_staged && run[n].block == run->block && run[n].page == run->page + n) {
            n++;
        }
        write_run(client, run, n);
    }
    client->n_staged = 0;
}

static bool lacks(void *owner, unsigned block, uint32_t page)
{
    struct mc_client *client = owner;

    return page_store_base_state(client->store, block, (uint64_t)page * SF_PAGE_SIZE) == PAGE_ABSENT;
}

static void land_zeros(struct mc_client *client, unsigned block, uint32_t page, unsigned pages, bool asked)
{
    uint64_t offset = (uint64_t)page * SF_PAGE_SIZE, length = (uint64_t)pages * SF_PAGE_SIZE;

    if (!asked) {
        page_store_mark_unasked(client->store, block, offset, length);
    }
    for (unsigned i = 0; i < pages; i++) {
        if (lacks(client, block, page + i)) { /* one that is there already keeps what it is */
            page_store_note(client->store, block, offset + i * SF_PAGE_SIZE, SF_PAGE_SIZE, true);
        }
    }
    client->landed = true;
}

static bool on_page(void *owner, unsigned block, uint32_t page, unsigned pages, const struct mc_body *body, bool asked)
{
    struct mc_client *client = owner;
    struct staged *staged;

    if (body->kind == MC_KIND_ZERO) {
        land_zeros(client, block, page, pages, asked);
        return true;
    }
    if (client->n_staged == STAGING) {
        write_staged(client);
    }
    staged = &client->staged[client->n_staged];
    *staged = (struct staged){ block, page, asked, client->pages + client->n_staged * SF_PAGE_SIZE };
    if (!mc_page_unpack(body->kind, body->bytes, body->total, staged->bytes)) {
        return false;
    }
    client->n_staged++;
    return true;
}

/* ---- what the receiver says ---- */

static void on_fall_back(void *owner, unsigned block, uint32_t page, unsigned pages, enum mc_priority priority)
{
    fall_back(owner, block, page, pages);
}

static void on_changed(void *owner, enum mc_state state, const char *reason)
{
    struct mc_client *client = owner;
    unsigned n = atomic_load(&client->n_listeners);

    if (state != MC_PROBING) { /* a later probe is nothing that others should wait for */
        atomic_store(&client->state, state);
    }
    for (unsigned i = 0; i < n; i++) {
        tell(&client->listeners[i]);
    }
    client->options.changed(state, reason, client->options.owner);
}

static void on_datagram(void *owner, uint8_t *bytes, size_t length)
{
    struct mc_client *client = owner;
    struct mc_header header;
    const uint8_t *content;
    size_t content_length;

    switch (mc_opener_open(client->opener, bytes, length, &header, &content, &content_length)) {
    case MC_OPENED:
        if (client->receiver) {
            mc_receiver_take(client->receiver, header.incarnation, header.sequence, content, content_length,
                             loop_now());
        } else if (client->blob.in) {
            mc_blob_in_take(client->blob.in, header.incarnation, header.sequence, content, content_length, loop_now());
        }
        break;
    case MC_REPLAYED:
        client->replayed++;
        break;
    default:
        client->forged++;
    }
}

static void on_socket(struct loop_target *target, uint32_t events)
{
    struct mc_client *client = (struct mc_client *)((char *)target - offsetof(struct mc_client, target));

    for (unsigned i = 0; i < RECEIVES_PER_TURN; i++) {
        if (udp_in_receive(client->in, on_datagram, client) == 0) {
            break;
        }
    }
}

/* ---- the turn ---- */

/* A request that the socket does not take is lost like any other datagram: it is made again after its bound. */
static void send_request(struct mc_client *client, size_t content)
{
    size_t length = mc_sealer_seal(client->sealer, ++client->sequence, client->request, content);

    if (length) {
        udp_out_send(client->out, client->request, length, length);
    }
}

static void copy_stats(struct mc_client *client)
{
    struct mc_client_stats stats = { .forged = client->forged,
                                     .replayed = client->replayed,
                                     .overflows = udp_in_stats(client->in)->overflows,
                                     .unwritten = client->unwritten,
                                     .blob_bytes = client->blob_bytes };

    if (client->receiver) {
        mc_receiver_stats(client->receiver, &stats.receiver);
    }
    pthread_mutex_lock(&client->lock);
    client->stats = stats;
    pthread_mutex_unlock(&client->lock);
}

static int ms_until(int64_t next, int64_t now)
{
    if (next - now > TURN_MAX_MS * LOOP_NS_PER_MS) {
        return next == INT64_MAX ? -1 : TURN_MAX_MS;
    }
    return next <= now ? 0 : (int)((next - now + LOOP_NS_PER_MS - 1) / LOOP_NS_PER_MS);
}

static void drop_blob(struct mc_client *client)
{
    mc_blob_in_free(client->blob.in);
    client->blob.in = NULL;
    close(client->blob.fd);
}

/* It is told; what comes waits again, for the snapshot. */
static void end_blob(struct mc_client *client)
{
    struct blob *blob = &client->blob;
    bool whole = mc_blob_in_state(blob->in) == MC_BLOB_WHOLE &&
                 pwrite(blob->fd, mc_blob_in_bytes(blob->in), blob->total, 0) == (ssize_t)blob->total;

    if (whole) {
        client->blob_bytes += blob->total;
    }
    drop_blob(client);
    if (!client->receiver) {
        loop_forget(client->loop, client->options.fd);
        copy_stats(client);
    }
    client->options.blob(blob->id, whole, client->options.owner);
}

static int blob_turn(struct mc_client *client, int64_t now)
{
    size_t content = mc_blob_in_poll(client->blob.in, client->request + MC_HEADER_LENGTH, now);

    if (content) {
        send_request(client, content);
    }
    if (mc_blob_in_state(client->blob.in) != MC_BLOB_WAITED_FOR) {
        end_blob(client);
        return -1;
    }
    return ms_until(mc_blob_in_next(client->blob.in), now);
}

static int turn(void *owner, int64_t now)
{
    struct mc_client *client = owner;
    size_t content;

    if (!client->receiver) {
        return client->blob.in ? blob_turn(client, now) : -1;
    }
    write_staged(client);
    if (client->landed) {
        tell_landed(client);
    }
    for (unsigned i = 0; i < REQUESTS_PER_TURN; i++) {
        content = mc_receiver_poll(client->receiver, client->request + MC_HEADER_LENGTH, now);
        if (!content) {
            break;
        }
        send_request(client, content);
    }
    copy_stats(client);
    return ms_until(mc_receiver_next(client->receiver), now);
}

/* ---- orders ---- */

struct order {
    struct mc_client *client;
    unsigned block;
    uint32_t page, pages;
    enum mc_priority priority;
    struct blob blob;
};

static struct order *order_new(struct mc_client *client)
{
    struct order *order = calloc(1, sizeof(*order));

    if (!order) {
        abort();
    }
    order->client = client;
    return order;
}

static void order_want(void *data)
{
    struct order *order = data;
    struct mc_client *client = order->client;

    if (client->receiver) {
        mc_receiver_want(client->receiver, order->block, order->page, order->pages, order->priority, loop_now());
    } else {
        fall_back(client, order->block, order->page, order->pages);
    }
    free(order);
}

static uint64_t random_number(void)
{
    uint64_t number = 0;

    return getrandom(&number, sizeof(number), 0) == sizeof(number) ? number : (uint64_t)loop_now();
}

/* What comes is read from now on. */
static void open_socket(struct mc_client *client)
{
    const struct mc_receiver_keys *keys = &client->options.keys;

    if (!client->sealer) {
        client->sealer = mc_sealer_new(MC_REQUEST, keys->receiver, keys->tag, keys->request, mc_new_incarnation());
        client->opener = mc_opener_new(MC_DATA, 0, keys->tag, keys->data);
    }
    if (!client->sealer || !client->opener) {
        abort(); /* no memory; sfvmmd starts us anew */
    }
    client->target.handle = on_socket;
    loop_poll(client->loop, client->options.fd, EPOLLIN, &client->target);
}

static void order_blob(void *data)
{
    struct order *order = data;
    struct mc_client *client = order->client;

    if (client->blob.in) {
        end_blob(client);
    }
    client->blob = order->blob;
    client->blob.in =
        mc_blob_in_new(order->blob.id, order->blob.total, client->options.payload, random_number(), loop_now());
    if (client->receiver) { /* too late: the group is the receiver's */
        end_blob(client);
    } else {
        open_socket(client);
    }
    free(order);
}

static void order_set(void *data)
{
    struct order *order = data;
    struct mc_client *client = order->client;
    struct mc_receiver_config config = { .id = client->options.keys.receiver,
                                         .expected = client->options.receivers,
                                         .payload = client->options.payload,
                                         .seed = random_number(),
                                         .lacks = lacks,
                                         .page = on_page,
                                         .fall_back = on_fall_back,
                                         .changed = on_changed,
                                         .owner = client };

    free(order);
    if (!page_store_is_cache(client->store)) {
        return;
    }
    config.shape.n_blocks = page_store_n_blocks(client->store);
    for (unsigned i = 0; i < config.shape.n_blocks; i++) {
        config.shape.pages[i] = page_store_block(client->store, i)->length / SF_PAGE_SIZE;
    }
    client->receiver = mc_receiver_new(&config, loop_now());
    if (client->blob.in) {
        end_blob(client);
    }
    open_socket(client);
}

/* ---- from other threads ---- */

struct mc_client *mc_client_new(struct page_store *store, const struct mc_client_options *options)
{
    struct mc_client *client = calloc(1, sizeof(*client));

    if (!client) {
        close(options->fd);
        return NULL;
    }
    client->store = store;
    client->options = *options;
    atomic_init(&client->state, MC_PROBING);
    pthread_mutex_init(&client->lock, NULL);
    client->loop = loop_new("mc-client", turn, client);
    client->in = udp_in_new(options->fd, options->payload, true);
    client->out = udp_out_new(options->fd, NULL, 0);
    client->request = malloc(options->payload + MC_OVERHEAD);
    client->pages = malloc(STAGING * SF_PAGE_SIZE);
    if (!client->loop || !client->in || !client->out || !client->request || !client->pages) {
        mc_client_free(client);
        errno = ENOMEM;
        return NULL;
    }
    return client;
}

bool mc_client_start(struct mc_client *client)
{
    return loop_start(client->loop);
}

static void say_goodbye(struct mc_client *client)
{
    size_t content = client->receiver ? mc_receiver_leave(client->receiver, client->request + MC_HEADER_LENGTH) : 0;

    if (content) {
        send_request(client, content);
    }
}

void mc_client_free(struct mc_client *client)
{
    if (!client) {
        return;
    }
    if (client->loop) {
        loop_stop(client->loop);
    }
    say_goodbye(client);
    if (client->blob.in) {
        drop_blob(client);
    }
    for (unsigned i = 0; i < atomic_load(&client->n_listeners); i++) {
        close(client->listeners[i].eventfd);
        free(client->listeners[i].fallen);
        pthread_mutex_destroy(&client->listeners[i].lock);
    }
    mc_receiver_free(client->receiver);
    mc_sealer_free(client->sealer);
    mc_opener_free(client->opener);
    udp_in_free(client->in);
    udp_out_free(client->out);
    loop_free(client->loop);
    close(client->options.fd);
    mc_keys_wipe(&client->options.keys);
    pthread_mutex_destroy(&client->lock);
    free(client->request);
    free(client->pages);
    free(client);
}

void mc_client_store_is_set(struct mc_client *client)
{
    loop_post(client->loop, order_set, order_new(client));
}

void mc_client_await_blob(struct mc_client *client, int fd, uint32_t total, uint64_t id)
{
    struct order *order = order_new(client);

    order->blob = (struct blob){ .id = id, .total = total, .fd = fd };
    loop_post(client->loop, order_blob, order);
}

enum mc_state mc_client_state(const struct mc_client *client)
{
    return atomic_load(&client->state);
}

void mc_client_want(struct mc_client *client, unsigned block, uint64_t offset, uint64_t length,
                    enum mc_priority priority)
{
    struct order *order = order_new(client);

    order->block = block;
    order->page = offset / SF_PAGE_SIZE;
    order->pages = length / SF_PAGE_SIZE;
    order->priority = priority;
    loop_post(client->loop, order_want, order);
}

void mc_client_get_stats(struct mc_client *client, struct mc_client_stats *stats)
{
    pthread_mutex_lock(&client->lock);
    *stats = client->stats;
    pthread_mutex_unlock(&client->lock);
}
