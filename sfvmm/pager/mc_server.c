/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *      socket --> open (key of that receiver) --> mc_sender_take()
 *                                                      |
 *      socket <-- seal <-- mc_sender_fill() <----------+-- pages: page_store, pread, LZ4
 *
 * mc_sender decides what is sent and when; here it gets a clock, pages and a socket. A batch that the socket does not
 * take whole waits for the link (EPOLLOUT), and nothing is filled meanwhile: a slow link so slows us down by itself,
 * without loss.
 *
 * Receivers are known by their number, which tells the key of their requests; keys are derived when a number is first
 * heard of. Numbers are bounded, so that strangers can't make us derive for ever.
 *
 * A page that is absent here (this host is itself a page cache) is fetched, and skipped until it has come: who asked
 * asks again.
 *
 * The thread owns all but `stats`.
 */
#include "sfvmm/pager/mc_server.h"

#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>
#include "sfvmm/pager/loop.h"
#include "sfvmm/pager/udp_batch.h"

#define RECEIVERS_MAX     1024u /* numbers of receivers that are listened to */
#define BATCHES_PER_TURN  8u    /* then requests have their turn */
#define RECEIVES_PER_TURN 4u

struct mc_server {
    struct loop *loop;
    struct loop_target target;
    struct page_store *store;
    struct mc_server_options options;
    struct mc_receiver_keys keys; /* of receiver 1: tag and data secret are those of all */
    struct udp_in *in;
    struct udp_out *out;
    struct mc_sender *sender; /* NULL: the snapshot is not there yet */
    struct mc_sealer *sealer;
    struct mc_opener *openers[RECEIVERS_MAX + 1]; /* by number; NULL: not heard of */
    struct sf_pager_run *runs;                    /* of the working set, until there is a sender */
    unsigned n_runs;
    struct mc_server_blob { /* until there is a sender; bytes NULL: none */
        uint8_t *bytes;
        uint32_t total;
        uint64_t id;
    } blob;
    bool polls_out;
    size_t sent; /* bytes of the batch */
    struct mc_batch *batch;
    uint64_t forged, replayed;

    pthread_mutex_t lock; /* of what follows */
    struct mc_server_stats stats;
};

/* ---- pages ---- */

static void fetched(void *data, int error)
{
}

static unsigned read_page(void *owner, unsigned block, uint32_t page, uint8_t body[SF_PAGE_SIZE], unsigned *total)
{
    struct mc_server *server = owner;
    uint8_t bytes[SF_PAGE_SIZE];
    uint64_t offset = (uint64_t)page * SF_PAGE_SIZE, length, fd_offset;
    int fd;

    switch (page_store_look(server->store, block, offset, SF_PAGE_SIZE, &length, &fd, &fd_offset)) {
    case PAGE_ZERO:
        return MC_KIND_ZERO;
    case PAGE_DATA:
        return pread(fd, bytes, sizeof(bytes), fd_offset) == sizeof(bytes) ? mc_page_pack(bytes, body, total)
                                                                           : MC_KIND_PAD;
    default:
        page_store_fetch(server->store, block, offset, SF_PAGE_SIZE, fetched, NULL);
        return MC_KIND_PAD;
    }
}

/* ---- requests ---- */

static struct mc_opener *opener_of(struct mc_server *server, unsigned receiver)
{
    struct mc_receiver_keys keys;

    if (!server->openers[receiver] && mc_keys_derive(server->options.master, receiver, &keys)) {
        server->openers[receiver] = mc_opener_new(MC_REQUEST, receiver, keys.tag, keys.request);
        mc_keys_wipe(&keys);
    }
    return server->openers[receiver];
}

static void on_datagram(void *owner, uint8_t *bytes, size_t length)
{
    struct mc_server *server = owner;
    struct mc_header header;
    struct mc_opener *opener;
    const uint8_t *content;
    size_t content_length;

    if (!mc_header_decode(bytes, length, &header) || header.type != MC_REQUEST || header.tag != server->keys.tag ||
        header.sender == 0 || header.sender > RECEIVERS_MAX || !(opener = opener_of(server, header.sender))) {
        server->forged++;
        return;
    }
    switch (mc_opener_open(opener, bytes, length, &header, &content, &content_length)) {
    case MC_OPENED:
        mc_sender_take(server->sender, header.sender, content, content_length, loop_now());
        break;
    case MC_REPLAYED:
        server->replayed++;
        break;
    default:
        server->forged++;
    }
}

static void on_socket(struct loop_target *target, uint32_t events)
{
    struct mc_server *server = (struct mc_server *)((char *)target - offsetof(struct mc_server, target));

    for (unsigned i = 0; (events & (EPOLLIN | EPOLLERR)) && i < RECEIVES_PER_TURN; i++) {
        if (udp_in_receive(server->in, on_datagram, server) == 0) {
            break;
        }
    }
}

/* ---- sending ---- */

static void poll_out(struct mc_server *server, bool out)
{
    if (server->polls_out != out) {
        server->polls_out = out;
        loop_poll(server->loop, server->options.fd, out ? EPOLLIN | EPOLLOUT : EPOLLIN, &server->target);
    }
}

/* What is left of the batch. false: the socket takes no more now. */
static bool send_batch(struct mc_server *server)
{
    struct mc_batch *batch = server->batch;

    server->sent +=
        udp_out_send(server->out, batch->bytes + server->sent, batch->length - server->sent, batch->payload);
    poll_out(server, server->sent < batch->length);
    return server->sent == batch->length;
}

static void copy_stats(struct mc_server *server)
{
    struct mc_server_stats stats = { .forged = server->forged,
                                     .replayed = server->replayed,
                                     .overflows = udp_in_stats(server->in)->overflows,
                                     .dropped = udp_out_stats(server->out)->dropped,
                                     .offload = udp_out_stats(server->out)->offload };

    mc_sender_stats(server->sender, &stats.sender);
    pthread_mutex_lock(&server->lock);
    server->stats = stats;
    pthread_mutex_unlock(&server->lock);
}

static int turn(void *owner, int64_t now)
{
    struct mc_server *server = owner;
    int64_t next = now;
    bool open = server->sender && send_batch(server);

    if (!server->sender) {
        return -1;
    }
    for (unsigned i = 0; open && i < BATCHES_PER_TURN; i++) {
        next = mc_sender_next(server->sender, now);
        if (next > now || mc_sender_fill(server->sender, server->batch, now) == 0) {
            break;
        }
        if (!mc_sealer_seal_batch(server->sealer, server->batch)) { /* no sequence may be used twice: it is lost */
            server->batch->length = 0;
            mc_sender_not_sent(server->sender, now);
        }
        server->sent = 0;
        open = send_batch(server);
        now = loop_now();
        next = now;
    }
    copy_stats(server);
    return !open || next == INT64_MAX ? -1
           : next <= now              ? 0
                                      : (int)((next - now + LOOP_NS_PER_MS - 1) / LOOP_NS_PER_MS);
}

/* ---- orders ---- */

struct order {
    struct mc_server *server;
    struct sf_pager_run *runs;
    unsigned n;
    struct mc_server_blob blob;
};

static struct order *order_new(struct mc_server *server)
{
    struct order *order = calloc(1, sizeof(*order));

    if (!order) {
        abort();
    }
    order->server = server;
    return order;
}

static void hand_blob_on(struct mc_server *server)
{
    if (server->sender && server->blob.bytes) {
        mc_sender_set_blob(server->sender, server->blob.bytes, server->blob.total, server->blob.id);
        server->blob.bytes = NULL;
    }
}

static void order_set(void *data)
{
    struct order *order = data;
    struct mc_server *server = order->server;
    const struct mc_server_options *options = &server->options;
    uint64_t incarnation = mc_new_incarnation();
    struct mc_sender_config config = { .payload = options->payload,
                                       .min_rate = options->min_rate,
                                       .max_rate = options->max_rate,
                                       .expected = options->receivers,
                                       .max_receivers = RECEIVERS_MAX,
                                       .push = options->push,
                                       .read = read_page,
                                       .owner = server };

    config.shape.n_blocks = page_store_n_blocks(server->store);
    for (unsigned i = 0; i < config.shape.n_blocks; i++) {
        config.shape.pages[i] = page_store_block(server->store, i)->length / SF_PAGE_SIZE;
    }
    server->sender = mc_sender_new(&config, loop_now());
    server->sealer = mc_sealer_new(MC_DATA, 0, server->keys.tag, server->keys.data, incarnation);
    if (!server->sender || !server->sealer) {
        abort(); /* no memory; sfvmmd starts us anew */
    }
    mc_sender_set_incarnation(server->sender, incarnation);
    mc_sender_set_working_set(server->sender, server->runs, server->n_runs);
    hand_blob_on(server);
    server->target.handle = on_socket;
    loop_poll(server->loop, options->fd, EPOLLIN, &server->target);
    free(order);
}

static void order_runs(void *data)
{
    struct order *order = data;
    struct mc_server *server = order->server;

    free(server->runs);
    server->runs = order->runs;
    server->n_runs = order->n;
    if (server->sender) {
        mc_sender_set_working_set(server->sender, server->runs, server->n_runs);
    }
    free(order);
}

static void order_blob(void *data)
{
    struct order *order = data;
    struct mc_server *server = order->server;

    free(server->blob.bytes);
    server->blob = order->blob;
    hand_blob_on(server);
    free(order);
}

/* ---- from the control thread ---- */

struct mc_server *mc_server_new(struct page_store *store, const struct mc_server_options *options)
{
    struct mc_server *server = calloc(1, sizeof(*server));

    if (!server) {
        close(options->fd);
        return NULL;
    }
    server->store = store;
    server->options = *options;
    pthread_mutex_init(&server->lock, NULL);
    server->loop = loop_new("mc-server", turn, server);
    server->batch = calloc(1, sizeof(*server->batch));
    server->in = udp_in_new(options->fd, options->payload, false);
    server->out = udp_out_new(options->fd, (const struct sockaddr *)&options->group, options->group_length);
    if (!server->loop || !server->batch || !server->in || !server->out) {
        mc_server_free(server);
        errno = ENOMEM;
        return NULL;
    }
    if (!mc_keys_derive(options->master, 1, &server->keys)) {
        mc_server_free(server);
        errno = EINVAL;
        return NULL;
    }
    return server;
}

bool mc_server_start(struct mc_server *server)
{
    return loop_start(server->loop);
}

void mc_server_free(struct mc_server *server)
{
    if (!server) {
        return;
    }
    if (server->loop) {
        loop_stop(server->loop);
    }
    for (unsigned i = 0; i <= RECEIVERS_MAX; i++) {
        mc_opener_free(server->openers[i]);
    }
    mc_sealer_free(server->sealer);
    mc_sender_free(server->sender);
    udp_in_free(server->in);
    udp_out_free(server->out);
    loop_free(server->loop);
    close(server->options.fd);
    mc_keys_wipe(&server->keys);
    explicit_bzero(server->options.master, sizeof(server->options.master));
    pthread_mutex_destroy(&server->lock);
    free(server->runs);
    free(server->blob.bytes);
    free(server->batch);
    free(server);
}

void mc_server_store_is_set(struct mc_server *server)
{
    loop_post(server->loop, order_set, order_new(server));
}

void mc_server_set_working_set(struct mc_server *server, const struct sf_pager_run *runs, unsigned n)
{
    struct order *order = order_new(server);

    order->runs = malloc((n ? n : 1) * sizeof(*runs));
    if (!order->runs) {
        abort();
    }
    memcpy(order->runs, runs, n * sizeof(*runs));
    order->n = n;
    loop_post(server->loop, order_runs, order);
}

void mc_server_set_blob(struct mc_server *server, uint8_t *bytes, uint32_t total, uint64_t id)
{
    struct order *order = order_new(server);

    order->blob = (struct mc_server_blob){ bytes, total, id };
    loop_post(server->loop, order_blob, order);
}

void mc_server_get_stats(struct mc_server *server, struct mc_server_stats *stats)
{
    pthread_mutex_lock(&server->lock);
    *stats = server->stats;
    pthread_mutex_unlock(&server->lock);
}
