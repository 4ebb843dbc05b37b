/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *                    +---------------- the server's thread ----------------+
 *     clients <----> | ring: accept, recv, poll for output                 |
 *                    |    |                                                |
 *                    |    v           urgent: serving        (all, a slice each)
 *                    | connection --> <                                    | <-- eventfd: fetches that landed, names,
 *                    |                 slow: negotiating     (one a turn)  |     the snapshot is there, stop
 *                    +-----------------------------------------------------+
 *
 * One thread does everything for a request: no hand-over. A request that came with a recv completion is answered with
 * one send() before the ring is entered again: two system calls for a page. The ring brings completions of all
 * connections with one call; replies that a full socket does not take wait for a poll of it.
 *
 * Fairness: in one turn each connection that has requests gets one slice (64 KiB), and at most one connection that
 * still negotiates gets one step, which may be the cryptography of a handshake (some 100 us). So a flood of strangers
 * costs the others one handshake a turn, and a bulk reader one slice.
 *
 * Bounds: connections in all and for one name; when they are used up the one that has been unknown for longest makes
 * place, so strangers can't keep known hosts out. The rest is the session's (nbd_session.c).
 *
 * Threads: `shared` is for all, under its lock. All else belongs to the server's thread while it runs, to the control
 * thread before and after.
 */
#include "sfvmm/pager/nbd_server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <gio/gio.h>
#include <liburing.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "sfvmm/pager/nbd_session.h"
#include "sfvmm/pager/tls_session.h"

#define RING_ENTRIES       256
#define RECEIVE_SIZE       4096 /* requests are 28 bytes; large input is not what this is for */
#define KEEPALIVE_IDLE     30   /* s; a host that has gone without a word is noticed after a minute or so */
#define KEEPALIVE_INTERVAL 10
#define KEEPALIVE_COUNT    3
#define LOG_PER_SECOND     5 /* lines about clients' mistakes */
#define ADDRESS_LEN        64

#define DEFAULT_CONNECTIONS 256
#define DEFAULT_PER_PEER    64
#define DEFAULT_HELLO       20
#define DEFAULT_MESSAGE     30
#define DEFAULT_OUTPUT      60
#define DEFAULT_PENDING     900

/* What a completion is of: the low bits of user_data, beside the connection. */
#define EVENT_RECEIVE  UINT64_C(0)
#define EVENT_WRITABLE UINT64_C(1)
#define EVENT_SERVER   UINT64_C(2) /* then the rest is one of: */
#define EVENT_MASK     UINT64_C(3)
#define SERVER_ACCEPT  (UINT64_C(0) << 2 | EVENT_SERVER)
#define SERVER_WAKE    (UINT64_C(1) << 2 | EVENT_SERVER)
#define SERVER_TICK    (UINT64_C(2) << 2 | EVENT_SERVER)

struct connection {
    struct connection *next, *previous; /* of the list that it is in */
    struct connection *next_ready;      /* of the queue that it is in */
    bool queued;
    int fd;
    bool receiving, polling, closing; /* operations in the ring; it is freed when none is left */
    bool counted;                     /* as one of its peer's */
    uint64_t served;                  /* of the session, as added to the total */
    struct nbd_session *session;
    char address[ADDRESS_LEN];
    uint8_t received[RECEIVE_SIZE];
};

struct list {
    struct connection *first, *last;
};

struct queue {
    struct connection *first, *last;
};

struct nbd_server {
    struct page_store *store;
    struct nbd_service service;
    struct nbd_server_limits limits;
    struct tls_credentials *credentials;
    char *snapshot;
    int listen_fd, wake_fd;
    struct io_uring ring;
    bool has_ring, ring_disabled, accepting, ticking;
    pthread_t thread;
    bool started;

    struct list open, dying; /* oldest first; closed ones of which the ring holds an operation */
    unsigned n_connections;
    struct queue urgent, slow;
    GHashTable *allowed; /* names */
    uint64_t woken;      /* what the eventfd is read to */
    struct __kernel_timespec second;
    uint64_t log_second;
    unsigned log_lines;

    struct {
        pthread_mutex_t lock;
        bool stop, content, has_names;
        GHashTable *names; /* to become `allowed` */
        struct nbd_fetch *landed;
    } shared;
    atomic_uint_fast64_t served, refused;
    atomic_uint connections;
};

/* ---- Small things ---- */

static uint64_t seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec;
}

G_GNUC_PRINTF(3, 4)
static void complain(struct nbd_server *server, const struct connection *connection, const char *format, ...)
{
    va_list args;

    atomic_fetch_add(&server->refused, 1);
    if (server->log_second != server->service.now) {
        server->log_second = server->service.now;
        server->log_lines = 0;
    }
    if (server->log_lines++ >= LOG_PER_SECOND) {
        return;
    }
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    const char *peer = connection->session ? nbd_session_peer(connection->session) : "";
    g_message("page server: client %s%s%s: %s", connection->address, *peer ? ", " : "", peer, text);
}

static void wake(struct nbd_server *server)
{
    uint64_t one = 1;

    /* It can only fail when the counter is full, and then the thread is awake. */
    if (write(server->wake_fd, &one, sizeof(one)) < 0) {
        return;
    }
}

static struct io_uring_sqe *new_operation(struct nbd_server *server)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&server->ring);

    if (!sqe) { /* full: hand over what is there */
        io_uring_submit(&server->ring);
        sqe = io_uring_get_sqe(&server->ring);
        g_assert(sqe);
    }
    return sqe;
}

/* After io_uring_prep_*, which clear user_data in some versions of liburing. */
static void mark(struct io_uring_sqe *sqe, uint64_t data)
{
    sqe->user_data = data;
}

static void enqueue(struct nbd_server *server, struct connection *connection)
{
    struct queue *queue = nbd_session_is_serving(connection->session) ? &server->urgent : &server->slow;

    if (connection->queued || connection->closing) {
        return;
    }
    connection->queued = true;
    connection->next_ready = NULL;
    if (queue->last) {
        queue->last->next_ready = connection;
    } else {
        queue->first = connection;
    }
    queue->last = connection;
}

static struct connection *dequeue(struct queue *queue)
{
    struct connection *connection = queue->first;

    if (connection) {
        queue->first = connection->next_ready;
        if (!queue->first) {
            queue->last = NULL;
        }
        connection->queued = false;
    }
    return connection;
}

/* ---- Connections ---- */

static void link_last(struct list *list, struct connection *connection)
{
    connection->next = NULL;
    connection->previous = list->last;
    *(list->last ? &list->last->next : &list->first) = connection;
    list->last = connection;
}

static void unlink_from(struct list *list, struct connection *connection)
{
    *(connection->previous ? &connection->previous->next : &list->first) = connection->next;
    *(connection->next ? &connection->next->previous : &list->last) = connection->previous;
}

/* The last part of closing, when the ring holds nothing of it any more and no queue does. */
static void free_if_idle(struct nbd_server *server, struct connection *connection)
{
    if (connection->closing && !connection->receiving && !connection->polling && !connection->queued) {
        unlink_from(&server->dying, connection);
        close(connection->fd);
        g_free(connection);
    }
}

/* The session goes at once; what the ring still holds ends by the shutdown. Not freed before the caller's turn ends. */
static void close_connection(struct nbd_server *server, struct connection *connection)
{
    if (connection->closing) {
        return;
    }
    connection->closing = true;
    unlink_from(&server->open, connection);
    link_last(&server->dying, connection);
    server->n_connections--;
    atomic_fetch_sub(&server->connections, 1);
    nbd_session_free(g_steal_pointer(&connection->session));
    shutdown(connection->fd, SHUT_RDWR);
}

static void arm_receive(struct nbd_server *server, struct connection *connection)
{
    if (connection->receiving || connection->closing ||
        nbd_session_space(connection->session) < sizeof(connection->received)) {
        return;
    }
    struct io_uring_sqe *sqe = new_operation(server);
    io_uring_prep_recv(sqe, connection->fd, connection->received, sizeof(connection->received), 0);
    sqe->ioprio |= IORING_RECVSEND_POLL_FIRST;
    mark(sqe, (uintptr_t)connection | EVENT_RECEIVE);
    connection->receiving = true;
}

static void arm_writable(struct nbd_server *server, struct connection *connection)
{
    if (!connection->polling && !connection->closing) {
        struct io_uring_sqe *sqe = new_operation(server);
        io_uring_prep_poll_add(sqe, connection->fd, POLLOUT);
        mark(sqe, (uintptr_t)connection | EVENT_WRITABLE);
        connection->polling = true;
    }
}

/* Sends what there is. false: not all of it, or not at all (then it is closed). */
static bool flush(struct nbd_server *server, struct connection *connection)
{
    const uint8_t *bytes;
    size_t n;

    while (bytes = nbd_session_output(connection->session, &n), n > 0) {
        ssize_t sent = send(connection->fd, bytes, n, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) {
            arm_writable(server, connection);
            return false;
        }
        if (sent < 0 && errno != EINTR) {
            close_connection(server, connection);
            return false;
        }
        nbd_session_sent(connection->session, (size_t)MAX(sent, 0));
    }
    return true;
}

static bool has_too_many(const struct nbd_server *server, const struct connection *connection)
{
    const char *peer = nbd_session_peer(connection->session);
    unsigned n = 0;

    for (const struct connection *other = server->open.first; *peer && other; other = other->next) {
        n += strcmp(nbd_session_peer(other->session), peer) == 0;
    }
    return n > server->limits.connections_per_peer;
}

static void account(struct nbd_server *server, struct connection *connection)
{
    uint64_t served = nbd_session_served(connection->session);

    atomic_fetch_add(&server->served, served - connection->served);
    connection->served = served;
}

/* One turn of a connection: work, send, and work on if that was all quick. */
static void drive(struct nbd_server *server, struct connection *connection)
{
    enum nbd_turn turn;
    size_t n;

    do {
        turn = nbd_session_run(connection->session);
        account(server, connection);
        nbd_session_output(connection->session, &n);
        if (!flush(server, connection)) {
            if (!connection->closing) {
                arm_receive(server, connection);
            }
            return;
        }
    } while (turn == NBD_TURN_IDLE && n > 0);
    if (!connection->counted && nbd_session_is_known(connection->session)) {
        connection->counted = true;
        if (has_too_many(server, connection)) {
            complain(server, connection, "more than %u connections", server->limits.connections_per_peer);
            close_connection(server, connection);
            return;
        }
    }
    if (turn == NBD_TURN_OVER) {
        if (*nbd_session_problem(connection->session)) {
            complain(server, connection, "%s", nbd_session_problem(connection->session));
        }
        close_connection(server, connection);
        return;
    }
    if (turn == NBD_TURN_MORE) {
        enqueue(server, connection);
    }
    arm_receive(server, connection);
}

/* ---- Accept ---- */

static void name_address(struct connection *connection)
{
    struct sockaddr_storage address;
    socklen_t length = sizeof(address);
    char text[INET6_ADDRSTRLEN];

    g_strlcpy(connection->address, "of this host", sizeof(connection->address));
    if (getpeername(connection->fd, (struct sockaddr *)&address, &length) < 0) {
        return;
    }
    if (address.ss_family == AF_INET) {
        const struct sockaddr_in *in = (const void *)&address;
        inet_ntop(AF_INET, &in->sin_addr, text, sizeof(text));
        g_snprintf(connection->address, sizeof(connection->address), "%s:%u", text, ntohs(in->sin_port));
    } else if (address.ss_family == AF_INET6) {
        const struct sockaddr_in6 *in = (const void *)&address;
        inet_ntop(AF_INET6, &in->sin6_addr, text, sizeof(text));
        g_snprintf(connection->address, sizeof(connection->address), "[%s]:%u", text, ntohs(in->sin6_port));
    }
}

/* Each fails on a unix socket, which needs none of it. */
static void tune(int fd)
{
    const struct {
        int level, name, value;
    } settings[] = {
        { IPPROTO_TCP, TCP_NODELAY, 1 },
        { SOL_SOCKET, SO_KEEPALIVE, 1 },
        { IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE },
        { IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL },
        { IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_COUNT },
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(settings); i++) {
        if (setsockopt(fd, settings[i].level, settings[i].name, &settings[i].value, sizeof(int)) < 0) {
            return;
        }
    }
}

/* Makes place for one more: the one that has been unknown for longest goes. */
static bool make_place(struct nbd_server *server)
{
    if (server->n_connections < server->limits.connections) {
        return true;
    }
    for (struct connection *connection = server->open.first; connection; connection = connection->next) {
        if (!nbd_session_is_known(connection->session)) {
            complain(server, connection, "closed for another: %u connections are open", server->n_connections);
            close_connection(server, connection);
            free_if_idle(server, connection);
            return true;
        }
    }
    return false;
}

static void welcome(struct nbd_server *server, int fd)
{
    if (!make_place(server)) {
        close(fd);
        atomic_fetch_add(&server->refused, 1);
        return;
    }
    struct connection *connection = g_new0(struct connection, 1);
    connection->fd = fd;
    connection->session = nbd_session_new(&server->service);
    nbd_session_set_data(connection->session, connection);
    link_last(&server->open, connection);
    server->n_connections++;
    atomic_fetch_add(&server->connections, 1);
    name_address(connection);
    tune(fd);
    enqueue(server, connection);
}

static void arm_accept(struct nbd_server *server)
{
    if (!server->accepting) {
        struct io_uring_sqe *sqe = new_operation(server);
        io_uring_prep_multishot_accept(sqe, server->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        mark(sqe, SERVER_ACCEPT);
        server->accepting = true;
    }
}

static void arm_wake(struct nbd_server *server)
{
    struct io_uring_sqe *sqe = new_operation(server);

    io_uring_prep_read(sqe, server->wake_fd, &server->woken, sizeof(server->woken), 0);
    mark(sqe, SERVER_WAKE);
}

/* Once a second while there is a client, or something to try again. */
static void arm_tick(struct nbd_server *server)
{
    if (!server->ticking && (server->open.first || !server->accepting)) {
        struct io_uring_sqe *sqe = new_operation(server);
        server->second = (struct __kernel_timespec){ .tv_sec = 1 };
        io_uring_prep_timeout(sqe, &server->second, 0, 0);
        mark(sqe, SERVER_TICK);
        server->ticking = true;
    }
}

/* ---- Events ---- */

static void tick(struct nbd_server *server)
{
    struct connection *next;

    server->ticking = false;
    arm_accept(server); /* again, if it had failed: too many open files */
    for (struct connection *connection = server->open.first; connection; connection = next) {
        next = connection->next;
        if (!nbd_session_tick(connection->session)) {
            complain(server, connection, "%s", nbd_session_problem(connection->session));
            close_connection(server, connection);
            free_if_idle(server, connection);
        } else if (nbd_session_is_held(connection->session)) {
            enqueue(server, connection);
        }
    }
}

static bool is_allowed(void *owner, const char *peer)
{
    const struct nbd_server *server = owner;

    return server->allowed && g_hash_table_contains(server->allowed, peer);
}

/* Names that are allowed have changed: who is known under another name goes. */
static void recheck(struct nbd_server *server)
{
    struct connection *next;

    for (struct connection *connection = server->open.first; connection; connection = next) {
        next = connection->next;
        if (nbd_session_is_serving(connection->session) && server->credentials &&
            !is_allowed(server, nbd_session_peer(connection->session))) {
            complain(server, connection, "it is not allowed to read this snapshot any more");
            close_connection(server, connection);
            free_if_idle(server, connection);
        }
    }
}

/* What other threads had to say. false: stop. */
static bool take_orders(struct nbd_server *server)
{
    pthread_mutex_lock(&server->shared.lock);
    struct nbd_fetch *landed = g_steal_pointer(&server->shared.landed);
    GHashTable *names = g_steal_pointer(&server->shared.names);
    bool content = server->shared.content, stop = server->shared.stop;
    server->shared.content = false;
    pthread_mutex_unlock(&server->shared.lock);

    if (names) {
        g_clear_pointer(&server->allowed, g_hash_table_unref);
        server->allowed = names;
        recheck(server);
    }
    while (landed) {
        struct nbd_fetch *next = *nbd_fetch_link(landed);
        struct nbd_session *session = nbd_fetch_land(landed);
        if (session) {
            enqueue(server, nbd_session_data(session));
        }
        landed = next;
    }
    for (struct connection *connection = server->open.first; content && connection; connection = connection->next) {
        if (nbd_session_is_held(connection->session)) {
            enqueue(server, connection);
        }
    }
    return !stop;
}

static void received(struct nbd_server *server, struct connection *connection, int result)
{
    connection->receiving = false;
    if (connection->closing) {
        return;
    }
    if (result > 0) {
        nbd_session_input(connection->session, connection->received, (size_t)result);
        enqueue(server, connection);
    } else if (result == -EINTR || result == -EAGAIN) {
        arm_receive(server, connection);
    } else {
        close_connection(server, connection); /* it hung up */
    }
}

static bool handle(struct nbd_server *server, const struct io_uring_cqe *cqe)
{
    struct connection *connection = (void *)(uintptr_t)(cqe->user_data & ~EVENT_MASK);

    switch (cqe->user_data) {
    case SERVER_ACCEPT:
        server->accepting = cqe->flags & IORING_CQE_F_MORE;
        if (cqe->res >= 0) {
            welcome(server, cqe->res);
            arm_accept(server);
        } /* else a tick tries again */
        return true;
    case SERVER_WAKE:
        arm_wake(server);
        return take_orders(server);
    case SERVER_TICK:
        tick(server);
        return true;
    }
    if ((cqe->user_data & EVENT_MASK) == EVENT_RECEIVE) {
        received(server, connection, cqe->res);
    } else {
        connection->polling = false;
        if (!connection->closing) {
            enqueue(server, connection);
        }
    }
    free_if_idle(server, connection);
    return true;
}

/* One turn of a queue's connection; it may be gone by the time its turn comes. */
static void take_turn(struct nbd_server *server, struct connection *connection)
{
    if (connection && !connection->closing) {
        drive(server, connection);
    }
    if (connection) {
        free_if_idle(server, connection);
    }
}

static void take_turns(struct nbd_server *server)
{
    struct queue now = server->urgent;

    server->urgent = (struct queue){ NULL, NULL };
    while (now.first) {
        take_turn(server, dequeue(&now));
    }
    take_turn(server, dequeue(&server->slow));
}

/* Enters the ring, and handles what it brings. false: stop, or the ring has failed. */
static bool turn(struct nbd_server *server)
{
    bool busy = server->urgent.first || server->slow.first, running = true;
    struct io_uring_cqe *cqe;
    unsigned head, n = 0;
    int code = busy ? io_uring_submit_and_get_events(&server->ring) : io_uring_submit_and_wait(&server->ring, 1);

    if (code < 0 && code != -EINTR && code != -EBUSY && code != -EAGAIN) {
        g_warning("page server of %s: its ring has failed: %s", server->snapshot, g_strerror(-code));
        return false;
    }
    server->service.now = seconds();
    io_uring_for_each_cqe(&server->ring, head, cqe)
    {
        running = handle(server, cqe) && running;
        n++;
    }
    io_uring_cq_advance(&server->ring, n);
    return running;
}

/* Closes all, and waits until the ring lets go of their memory. */
static void close_all(struct nbd_server *server)
{
    while (server->open.first) {
        close_connection(server, server->open.first);
    }
    while (server->urgent.first || server->slow.first) {
        struct connection *connection = dequeue(server->urgent.first ? &server->urgent : &server->slow);
        free_if_idle(server, connection);
    }
    for (struct connection *connection = server->dying.first, *next; connection; connection = next) {
        next = connection->next;
        free_if_idle(server, connection);
    }
    while (server->dying.first) {
        turn(server);
        while (server->open.first) { /* came meanwhile */
            close_connection(server, server->open.first);
        }
        take_turns(server);
    }
}

static void *serve(void *data)
{
    struct nbd_server *server = data;

    pthread_setname_np(pthread_self(), "page-server");
    if (server->ring_disabled) {
        /* io_uring_enable_rings() is declared by liburing 2.3, but not exported. */
        syscall(SYS_io_uring_register, server->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
    }
    arm_accept(server);
    arm_wake(server);
    do {
        take_turns(server);
        arm_tick(server);
    } while (turn(server));
    close_all(server);
    return NULL;
}

/* ---- Other threads ---- */

static void landed(void *owner, struct nbd_fetch *fetch)
{
    struct nbd_server *server = owner;

    pthread_mutex_lock(&server->shared.lock);
    *nbd_fetch_link(fetch) = server->shared.landed;
    server->shared.landed = fetch;
    pthread_mutex_unlock(&server->shared.lock);
    wake(server);
}

static void content_is_there(void *data)
{
    struct nbd_server *server = data;

    pthread_mutex_lock(&server->shared.lock);
    server->shared.content = true;
    pthread_mutex_unlock(&server->shared.lock);
    wake(server);
}

void nbd_server_allow(struct nbd_server *server, const char *const *names, unsigned n)
{
    GHashTable *table = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);

    for (unsigned i = 0; i < n; i++) {
        g_hash_table_add(table, g_strdup(names[i]));
    }
    pthread_mutex_lock(&server->shared.lock);
    g_clear_pointer(&server->shared.names, g_hash_table_unref);
    server->shared.names = table;
    pthread_mutex_unlock(&server->shared.lock);
    wake(server);
}

void nbd_server_get_stats(const struct nbd_server *server, struct nbd_server_stats *stats)
{
    stats->served_bytes = atomic_load(&server->served);
    stats->connections = atomic_load(&server->connections);
    stats->refused = atomic_load(&server->refused);
}

/* ---- Life ---- */

/* Plain text may only travel where nobody else listens. */
static bool is_local(int fd)
{
    struct sockaddr_storage address;
    socklen_t length = sizeof(address);

    if (getsockname(fd, (struct sockaddr *)&address, &length) < 0) {
        return false;
    }
    if (address.ss_family == AF_INET) {
        return (ntohl(((const struct sockaddr_in *)(const void *)&address)->sin_addr.s_addr) >> 24) == IN_LOOPBACKNET;
    }
    if (address.ss_family == AF_INET6) {
        return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)&address)->sin6_addr);
    }
    return address.ss_family == AF_UNIX;
}

static bool set_up_security(struct nbd_server *server, const struct nbd_server_options *options, GError **error)
{
    if (options->tls_directory) {
        server->credentials = tls_credentials_new_x509(options->tls_directory, options->tls_unit, error);
        return server->credentials != NULL;
    }
    if (options->psk_file) {
        server->credentials = tls_credentials_new_psk(options->psk_file, error);
        return server->credentials != NULL;
    }
    if (!is_local(server->listen_fd)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_PERMISSION_DENIED,
                    "page server of %s: without TLS it listens on unix sockets and loopback addresses only",
                    server->snapshot);
        return false;
    }
    return true;
}

/*
 * The ring is made here, before the process confines itself, and enabled by the thread that uses it. Kernels before 6.1
 * do not know what is asked for; then a plain one does.
 */
static bool set_up_ring(struct nbd_server *server, GError **error)
{
    struct io_uring_params wanted = {
        .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_R_DISABLED,
    };
    int code = io_uring_queue_init_params(RING_ENTRIES, &server->ring, &wanted);

    server->ring_disabled = code >= 0;
    if (code == -EINVAL) {
        code = io_uring_queue_init(RING_ENTRIES, &server->ring, 0);
    }
    server->has_ring = code >= 0;
    if (code < 0) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(-code),
                    "page server of %s: io_uring can't be used: %s; see sysctl kernel.io_uring_disabled, and the limit "
                    "of locked memory",
                    server->snapshot, g_strerror(-code));
    }
    return code >= 0;
}

#define OR_DEFAULT(value, other) ((value) ? (value) : (other))

static void set_limits(struct nbd_server *server, const struct nbd_server_limits *limits)
{
    server->limits = (struct nbd_server_limits){
        .connections = OR_DEFAULT(limits->connections, DEFAULT_CONNECTIONS),
        .connections_per_peer = OR_DEFAULT(limits->connections_per_peer, DEFAULT_PER_PEER),
    };
    server->service.bounds = (struct nbd_bounds){
        .hello = OR_DEFAULT(limits->hello, DEFAULT_HELLO),
        .message = OR_DEFAULT(limits->message, DEFAULT_MESSAGE),
        .output = OR_DEFAULT(limits->output, DEFAULT_OUTPUT),
        .pending = OR_DEFAULT(limits->pending, DEFAULT_PENDING),
    };
}

struct nbd_server *nbd_server_new(struct page_store *store, const struct nbd_server_options *options, GError **error)
{
    struct nbd_server *server = g_new0(struct nbd_server, 1);

    server->store = store;
    server->snapshot = g_strdup(options->snapshot);
    server->listen_fd = options->listen_fd;
    server->wake_fd = eventfd(0, EFD_CLOEXEC);
    pthread_mutex_init(&server->shared.lock, NULL);
    set_limits(server, &options->limits);
    if (server->wake_fd < 0) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "page server of %s: %s", server->snapshot,
                    g_strerror(errno));
    }
    if (server->wake_fd < 0 || !set_up_security(server, options, error) || !set_up_ring(server, error)) {
        nbd_server_free(server);
        return NULL;
    }
    server->service.store = store;
    server->service.snapshot = server->snapshot;
    server->service.credentials = server->credentials;
    server->service.now = seconds();
    server->service.allowed = is_allowed;
    server->service.landed = landed;
    server->service.owner = server;
    page_store_when_set(store, content_is_there, server);
    return server;
}

bool nbd_server_start(struct nbd_server *server, GError **error)
{
    int code = pthread_create(&server->thread, NULL, serve, server);

    if (code != 0) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(code), "page server of %s: no thread: %s",
                    server->snapshot, g_strerror(code));
    }
    server->started = code == 0;
    return server->started;
}

void nbd_server_stop(struct nbd_server *server)
{
    if (server->started) {
        pthread_mutex_lock(&server->shared.lock);
        server->shared.stop = true;
        pthread_mutex_unlock(&server->shared.lock);
        wake(server);
        pthread_join(server->thread, NULL);
        server->started = false;
    }
}

void nbd_server_free(struct nbd_server *server)
{
    if (!server) {
        return;
    }
    nbd_server_stop(server);
    if (server->has_ring) {
        io_uring_queue_exit(&server->ring);
    }
    while (server->shared.landed) {
        struct nbd_fetch *fetch = server->shared.landed;
        server->shared.landed = *nbd_fetch_link(fetch);
        nbd_fetch_land(fetch);
    }
    if (server->listen_fd >= 0) {
        close(server->listen_fd);
    }
    if (server->wake_fd >= 0) {
        close(server->wake_fd);
    }
    g_clear_pointer(&server->allowed, g_hash_table_unref);
    g_clear_pointer(&server->shared.names, g_hash_table_unref);
    tls_credentials_free(server->credentials);
    pthread_mutex_destroy(&server->shared.lock);
    g_free(server->snapshot);
    g_free(server);
}
