/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *     input -> [tls] -> in -> option or request -> reply or job -> out -> [tls] -> output
 *
 *     FLAGS --> OPTIONS --STARTTLS--> HANDSHAKE --> OPTIONS --GO--> REQUESTS --> OVER
 *                  |                                   |
 *                  +-- with TLS wanted: STARTTLS       +-- held: GO names a snapshot that is announced but not
 *                      and ABORT only                      taken yet; the answer waits for it
 *
 * Who may do what: with TLS, nothing is said about any export before the client has proved who it is and its name is
 * allowed. Names may be allowed and taken back at any time, so they are asked at each option; taking one back ends its
 * connections (nbd_server.c).
 *
 * Nothing a client sends makes the session grow: input is read up to 16 KiB, requests up to NBD_MAX_JOBS are under
 * way, and nothing new is begun while output waits for a client that does not read. Bytes that came in clear behind
 * STARTTLS would be taken for the client's own inside TLS; such a client is cut off.
 *
 * All bounds of time are looked at in nbd_session_tick(): the greeting and the handshake as a whole, a message
 * that has begun, output that is not taken. A client that has negotiated may be idle as long as it likes.
 */
#include "sfvmm/pager/nbd_session_private.h"

#include <stdio.h>
#include <string.h>

#define OPTIONS_MAX     1024 /* of one connection; nbdinfo --list asks for each export */
#define PREFERRED_BLOCK 4096
#define LARGEST_BLOCK   (UINT32_C(32) << 20)
#define ALLOCATION_NAME "base:allocation"
#define ALLOCATION_ID   1
#define TEXT_MAX        256

/* ---- Buffers ---- */

uint8_t *nbd_session_reserve(struct nbd_session *session, size_t n)
{
    uint8_t *p = session->out + session->out_end;

    g_assert(n <= NBD_OUT_SIZE - session->out_end);
    session->out_end += n;
    return p;
}

void nbd_session_end(struct nbd_session *session, const char *format, ...)
{
    va_list args;

    if (session->state == NBD_STATE_OVER) {
        return;
    }
    session->state = NBD_STATE_OVER;
    session->held = false;
    va_start(args, format);
    g_vsnprintf(session->problem, sizeof(session->problem), format, args);
    va_end(args);
}

static void drop_input(struct nbd_session *session, size_t n)
{
    session->in_start += n;
    if (session->in_start == session->in_end) {
        session->in_start = session->in_end = 0;
    }
    session->since_input = session->service->now;
}

/* Moves what TLS has into `in`. */
static void decrypt(struct nbd_session *session)
{
    if (session->in_start > 0) {
        memmove(session->in, session->in + session->in_start, session->in_end - session->in_start);
        session->in_end -= session->in_start;
        session->in_start = 0;
    }
    while (session->state != NBD_STATE_OVER && session->in_end < NBD_IN_SIZE && tls_session_pending(session->tls)) {
        int got = tls_session_read(session->tls, session->in + session->in_end, NBD_IN_SIZE - session->in_end);
        if (got < 0) {
            nbd_session_end(session, "%s", tls_session_problem(session->tls));
        }
        if (got <= 0) {
            break;
        }
        session->in_end += (size_t)got;
    }
}

/* ---- Replies to options ---- */

static uint8_t *put_reply(struct nbd_session *session, uint32_t option, uint32_t type, uint32_t length)
{
    uint8_t *p = nbd_session_reserve(session, NBD_OPTION_REPLY_LENGTH + length);

    sf_be_put64(p, NBD_OPTION_REPLY_MAGIC);
    sf_be_put32(p + 8, option);
    sf_be_put32(p + 12, type);
    sf_be_put32(p + 16, length);
    return p + NBD_OPTION_REPLY_LENGTH;
}

static void acknowledge(struct nbd_session *session, uint32_t option)
{
    put_reply(session, option, NBD_REP_ACK, 0);
}

/* An error reply; the text is for people. */
G_GNUC_PRINTF(4, 5)
static void refuse(struct nbd_session *session, uint32_t option, uint32_t type, const char *format, ...)
{
    char text[TEXT_MAX];
    va_list args;

    va_start(args, format);
    g_vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    memcpy(put_reply(session, option, type, (uint32_t)strlen(text)), text, strlen(text));
}

static void greet(struct nbd_session *session)
{
    uint8_t *p = nbd_session_reserve(session, NBD_GREETING_LENGTH);

    sf_be_put64(p, NBD_MAGIC);
    sf_be_put64(p + 8, NBD_OPTION_MAGIC);
    sf_be_put16(p + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
}

/* ---- Who may ---- */

static bool is_allowed(const struct nbd_session *session)
{
    const struct nbd_service *service = session->service;

    return !service->credentials || (session->tls_ready && service->allowed(service->owner, nbd_session_peer(session)));
}

/* Finds what INFO, GO and the meta context options name. false: answered, or held until there is an answer. */
static bool find_export(struct nbd_session *session, uint32_t option, const char *name, uint32_t length,
                        struct nbd_export *export)
{
    const struct nbd_service *service = session->service;

    if (!is_allowed(session)) {
        refuse(session, option, NBD_REP_ERR_POLICY, "%s may not read snapshot %s", nbd_session_peer(session),
               service->snapshot);
        return false;
    }
    if (!page_store_is_set(service->store) && nbd_export_is_of(service->snapshot, name, length)) {
        if (!session->told_held_out) {
            session->held = true;
            return false;
        }
        session->told_held_out = false;
        refuse(session, option, NBD_REP_ERR_SHUTDOWN, "snapshot %s was not taken within %u seconds", service->snapshot,
               service->bounds.pending);
        return false;
    }
    if (!page_store_is_set(service->store) ||
        !nbd_export_find(service->store, service->snapshot, name, length, export)) {
        refuse(session, option, NBD_REP_ERR_UNKNOWN, "no such export; those of snapshot %s are listed",
               service->snapshot);
        return false;
    }
    return true;
}

/* ---- Options ---- */

static void option_list(struct nbd_session *session, const struct nbd_option *option)
{
    const struct nbd_service *service = session->service;
    char name[NBD_EXPORT_NAME_LEN];
    unsigned at = 0;

    if (option->length != 0) {
        refuse(session, option->option, NBD_REP_ERR_INVALID, "LIST takes no data");
        return;
    }
    if (!is_allowed(session)) {
        refuse(session, option->option, NBD_REP_ERR_POLICY, "%s may not list snapshot %s", nbd_session_peer(session),
               service->snapshot);
        return;
    }
    while (page_store_is_set(service->store) && nbd_export_next(service->store, service->snapshot, &at, name)) {
        uint32_t length = (uint32_t)strlen(name);
        uint8_t *p = put_reply(session, option->option, NBD_REP_SERVER, 4 + length);
        sf_be_put32(p, length);
        memcpy(p + 4, name, length);
    }
    acknowledge(session, option->option);
}

static uint16_t transmission_flags(const struct nbd_session *session)
{
    return NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY | NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE |
           (session->structured ? NBD_FLAG_SEND_DF : 0);
}

static void put_text_info(struct nbd_session *session, uint32_t option, uint16_t info, const char *text, size_t length)
{
    uint8_t *p = put_reply(session, option, NBD_REP_INFO, (uint32_t)(2 + length));

    sf_be_put16(p, info);
    memcpy(p + 2, text, length);
}

static void put_infos(struct nbd_session *session, uint32_t option, const struct nbd_info *info,
                      const struct nbd_export *export)
{
    char text[TEXT_MAX];
    uint8_t *p = put_reply(session, option, NBD_REP_INFO, 12);

    sf_be_put16(p, NBD_INFO_EXPORT);
    sf_be_put64(p + 2, export->size);
    sf_be_put16(p + 10, transmission_flags(session));
    p = put_reply(session, option, NBD_REP_INFO, 14);
    sf_be_put16(p, NBD_INFO_BLOCK_SIZE);
    sf_be_put32(p + 2, 1);
    sf_be_put32(p + 6, PREFERRED_BLOCK);
    sf_be_put32(p + 10, LARGEST_BLOCK);
    if (info->wants_name) {
        put_text_info(session, option, NBD_INFO_NAME, info->name, info->name_length);
    }
    if (info->wants_description) {
        nbd_export_describe(export, text, sizeof(text));
        put_text_info(session, option, NBD_INFO_DESCRIPTION, text, strlen(text));
    }
    acknowledge(session, option);
}

static void serve(struct nbd_session *session, const struct nbd_export *export, const char *name, size_t length)
{
    session->export = *export;
    session->state = NBD_STATE_REQUESTS;
    session->known = true;
    /* A choice of contexts holds for the export it was made for. */
    if (strlen(session->allocation_of) != length || memcmp(session->allocation_of, name, length) != 0) {
        session->allocation = false;
    }
    nbd_jobs_init(session);
}

static void option_info(struct nbd_session *session, const struct nbd_option *option)
{
    struct nbd_export export;
    struct nbd_info info;

    if (!nbd_decode_info(option, &info)) {
        refuse(session, option->option, NBD_REP_ERR_INVALID, "the data of the option is malformed");
        return;
    }
    if (!find_export(session, option->option, info.name, info.name_length, &export)) {
        return;
    }
    put_infos(session, option->option, &info, &export);
    if (option->option == NBD_OPT_GO) {
        serve(session, &export, info.name, info.name_length);
    }
}

/* The old way to begin: it has no error reply, so the line is cut. */
static void option_export_name(struct nbd_session *session, const struct nbd_option *option)
{
    struct nbd_export export;
    const char *name = (const char *)option->data;
    size_t zeroes = session->no_zeroes ? 0 : NBD_EXPORT_NAME_ZEROES;

    if (!is_allowed(session) || !page_store_is_set(session->service->store) ||
        !nbd_export_find(session->service->store, session->service->snapshot, name, option->length, &export)) {
        nbd_session_end(session, "it asked for an export that does not exist or is not for it");
        return;
    }
    uint8_t *p = nbd_session_reserve(session, 10 + zeroes);
    sf_be_put64(p, export.size);
    sf_be_put16(p + 8, transmission_flags(session));
    memset(p + 10, 0, zeroes);
    serve(session, &export, name, option->length);
}

static void put_context(struct nbd_session *session, uint32_t option, uint32_t id)
{
    uint8_t *p = put_reply(session, option, NBD_REP_META_CONTEXT, (uint32_t)(4 + strlen(ALLOCATION_NAME)));

    sf_be_put32(p, id);
    memcpy(p + 4, ALLOCATION_NAME, strlen(ALLOCATION_NAME));
}

static bool text_is(const char *text, uint32_t length, const char *what)
{
    return length == strlen(what) && memcmp(text, what, length) == 0;
}

static void option_meta(struct nbd_session *session, const struct nbd_option *option)
{
    bool is_set = option->option == NBD_OPT_SET_META_CONTEXT, found;
    struct nbd_export export;
    struct nbd_meta meta;
    const char *query;
    uint32_t at = 0, length;

    if (!session->structured || !nbd_decode_meta(option, &meta)) {
        refuse(session, option->option, NBD_REP_ERR_INVALID, "%s",
               session->structured ? "the data of the option is malformed" : "structured replies come first");
        return;
    }
    if (!find_export(session, option->option, meta.name, meta.name_length, &export)) {
        return;
    }
    found = !is_set && meta.n_queries == 0;
    while (nbd_meta_next(&meta, &at, &query, &length)) {
        found |= text_is(query, length, ALLOCATION_NAME) || (!is_set && text_is(query, length, "base:"));
    }
    if (is_set) {
        session->allocation = found && meta.name_length < sizeof(session->allocation_of);
        g_strlcpy(session->allocation_of, "", sizeof(session->allocation_of));
        if (session->allocation) {
            memcpy(session->allocation_of, meta.name, meta.name_length);
            session->allocation_of[meta.name_length] = '\0';
        }
    }
    if (found) {
        put_context(session, option->option, is_set ? ALLOCATION_ID : 0);
    }
    acknowledge(session, option->option);
}

static void option_structured(struct nbd_session *session, const struct nbd_option *option)
{
    if (option->length != 0) {
        refuse(session, option->option, NBD_REP_ERR_INVALID, "STRUCTURED_REPLY takes no data");
        return;
    }
    session->structured = true;
    acknowledge(session, option->option);
}

static void option_starttls(struct nbd_session *session, const struct nbd_option *option, size_t consumed)
{
    if (!session->service->credentials || session->tls || option->length != 0) {
        refuse(session, option->option, session->service->credentials ? NBD_REP_ERR_INVALID : NBD_REP_ERR_POLICY,
               session->tls ? "TLS is on" : "this server has no TLS credentials");
        return;
    }
    if (session->in_end - session->in_start != consumed) {
        nbd_session_end(session, "it sent data in clear behind STARTTLS");
        return;
    }
    session->tls = tls_session_new(session->service->credentials);
    if (!session->tls) {
        nbd_session_end(session, "no memory for TLS");
        return;
    }
    acknowledge(session, option->option);
    session->state = NBD_STATE_HANDSHAKE;
    /* Nothing of what was agreed in clear counts. */
    session->structured = session->allocation = false;
}

static void handle_option(struct nbd_session *session, const struct nbd_option *option, size_t consumed)
{
    bool in_clear = session->service->credentials && !session->tls_ready;

    if (in_clear && option->option != NBD_OPT_STARTTLS && option->option != NBD_OPT_ABORT) {
        if (option->option == NBD_OPT_EXPORT_NAME) {
            nbd_session_end(session, "it asked for an export without TLS");
        } else {
            refuse(session, option->option, NBD_REP_ERR_TLS_REQD, "this server speaks TLS only: begin with STARTTLS");
        }
        return;
    }
    session->known |= !in_clear;
    switch (option->option) {
    case NBD_OPT_EXPORT_NAME:
        option_export_name(session, option);
        break;
    case NBD_OPT_ABORT:
        acknowledge(session, option->option);
        nbd_session_end(session, "%s", "");
        break;
    case NBD_OPT_LIST:
        option_list(session, option);
        break;
    case NBD_OPT_STARTTLS:
        option_starttls(session, option, consumed);
        break;
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        option_info(session, option);
        break;
    case NBD_OPT_STRUCTURED_REPLY:
        option_structured(session, option);
        break;
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        option_meta(session, option);
        break;
    default:
        refuse(session, option->option, NBD_REP_ERR_UNSUP, "option %u is not known here", option->option);
    }
}

/* ---- Input ---- */

static bool step_flags(struct nbd_session *session, const uint8_t *bytes, size_t n)
{
    uint32_t flags;
    int consumed = nbd_decode_client_flags(bytes, n, &flags);

    if (consumed == NBD_DECODE_BAD) {
        nbd_session_end(session, "it speaks no fixed newstyle NBD");
        return false;
    }
    if (consumed == NBD_DECODE_MORE) {
        return false;
    }
    session->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
    session->state = NBD_STATE_OPTIONS;
    drop_input(session, (size_t)consumed);
    return true;
}

static bool step_option(struct nbd_session *session, const uint8_t *bytes, size_t n)
{
    struct nbd_option option;
    int consumed = nbd_decode_option(bytes, n, &option);

    if (consumed == NBD_DECODE_MORE) {
        return false;
    }
    if (consumed == NBD_DECODE_BAD || ++session->n_options > OPTIONS_MAX) {
        nbd_session_end(session, consumed == NBD_DECODE_BAD ? "it speaks no NBD" : "it sent too many options");
        return false;
    }
    if (option.data) {
        bool was_held = session->held;
        session->held = false;
        handle_option(session, &option, (size_t)consumed);
        if (session->held) {
            session->since_held = was_held ? session->since_held : session->service->now;
            session->n_options--;
            return false; /* the option stays where it is, to be looked at again */
        }
    } else if (option.length > NBD_SKIP_MAX) {
        nbd_session_end(session, "it sent an option of %u bytes", option.length);
    } else {
        refuse(session, option.option, NBD_REP_ERR_TOO_BIG, "at most %d bytes of data", NBD_OPTION_DATA_MAX);
        session->skip = option.length;
    }
    drop_input(session, (size_t)consumed);
    return true;
}

static bool step_request(struct nbd_session *session, const uint8_t *bytes, size_t n)
{
    struct nbd_request request;
    int consumed = nbd_job_is_free(session) ? nbd_decode_request(bytes, n, &request) : NBD_DECODE_MORE;

    if (consumed == NBD_DECODE_MORE) {
        return false;
    }
    if (consumed == NBD_DECODE_BAD) {
        nbd_session_end(session, "it sent what is no request");
        return false;
    }
    drop_input(session, (size_t)consumed);
    nbd_job_take(session, &request);
    return true;
}

static bool step_handshake(struct nbd_session *session)
{
    int done = session->out_end == 0 ? tls_session_handshake(session->tls) : 0;

    if (done < 0) {
        nbd_session_end(session, "%s", tls_session_problem(session->tls));
    }
    if (done <= 0) {
        return false;
    }
    session->tls_ready = session->known = true;
    session->state = NBD_STATE_OPTIONS;
    return true;
}

/* One message of the client. false: there is none, or it can't be taken now. */
static bool step_input(struct nbd_session *session)
{
    if (session->state == NBD_STATE_HANDSHAKE) {
        return step_handshake(session);
    }
    if (session->tls_ready && session->in_end - session->in_start < NBD_IN_SIZE) {
        decrypt(session);
    }
    const uint8_t *bytes = session->in + session->in_start;
    size_t n = session->in_end - session->in_start;
    if (session->skip > 0 && n > 0) {
        size_t skipped = MIN(session->skip, n);
        session->skip -= (uint32_t)skipped;
        drop_input(session, skipped);
        return true;
    }
    if (n == 0) {
        return false;
    }
    switch (session->state) {
    case NBD_STATE_FLAGS:
        return step_flags(session, bytes, n);
    case NBD_STATE_OPTIONS:
        return step_option(session, bytes, n);
    case NBD_STATE_REQUESTS:
        return step_request(session, bytes, n);
    default:
        return false;
    }
}

size_t nbd_session_space(const struct nbd_session *session)
{
    if (session->state == NBD_STATE_OVER) {
        return 0;
    }
    return session->tls ? tls_session_space(session->tls) : NBD_IN_SIZE - (session->in_end - session->in_start);
}

void nbd_session_input(struct nbd_session *session, const uint8_t *bytes, size_t n)
{
    if (session->in_end == session->in_start) {
        session->since_input = session->service->now;
    }
    if (session->tls) {
        tls_session_input(session->tls, bytes, n);
        return;
    }
    g_assert(n <= nbd_session_space(session));
    if (n > NBD_IN_SIZE - session->in_end) {
        memmove(session->in, session->in + session->in_start, session->in_end - session->in_start);
        session->in_end -= session->in_start;
        session->in_start = 0;
    }
    memcpy(session->in + session->in_end, bytes, n);
    session->in_end += n;
}

/* ---- Turns ---- */

/* What was said goes into TLS records. STARTTLS itself was acknowledged in clear, and is out before the handshake. */
static void encrypt(struct nbd_session *session)
{
    if (session->tls_ready && session->out_end > 0) {
        if (!tls_session_write(session->tls, session->out, session->out_end)) {
            nbd_session_end(session, "%s", tls_session_problem(session->tls));
        }
        session->out_end = 0;
    }
    if (session->tls_ready && session->state == NBD_STATE_OVER && session->problem[0] == '\0') {
        tls_session_bye(session->tls);
    }
}

/* Input first, so that small requests are seen early; but nothing may come between the parts of a simple reply. */
static bool step(struct nbd_session *session)
{
    bool in_reply = session->ready.first && session->ready.first->begun;

    return (!in_reply && step_input(session)) || nbd_job_run(session);
}

enum nbd_turn nbd_session_run(struct nbd_session *session)
{
    size_t waiting;
    bool full;

    nbd_session_output(session, &waiting);
    if (waiting > 0) {
        return session->state == NBD_STATE_OVER ? NBD_TURN_OVER : NBD_TURN_IDLE;
    }
    do {
        full = session->out_end >= NBD_SLICE;
    } while (!full && session->state != NBD_STATE_OVER && step(session));
    encrypt(session);
    session->since_output = session->service->now;
    if (session->state == NBD_STATE_OVER) {
        return NBD_TURN_OVER;
    }
    return full ? NBD_TURN_MORE : NBD_TURN_IDLE;
}

const uint8_t *nbd_session_output(const struct nbd_session *session, size_t *n)
{
    if (session->out_end > 0) {
        *n = session->out_end - session->out_start;
        return session->out + session->out_start;
    }
    *n = 0;
    return session->tls ? tls_session_output(session->tls, n) : NULL;
}

void nbd_session_sent(struct nbd_session *session, size_t n)
{
    session->since_output = session->service->now;
    if (session->out_end == 0) {
        tls_session_sent(session->tls, n);
        return;
    }
    session->out_start += n;
    if (session->out_start == session->out_end) {
        session->out_start = session->out_end = 0;
    }
}

/* ---- Life ---- */

struct nbd_session *nbd_session_new(struct nbd_service *service)
{
    struct nbd_session *session = g_new0(struct nbd_session, 1);

    session->service = service;
    session->in = g_malloc(NBD_IN_SIZE);
    session->out = g_malloc(NBD_OUT_SIZE);
    session->since_start = session->since_input = session->since_output = service->now;
    greet(session);
    return session;
}

void nbd_session_free(struct nbd_session *session)
{
    if (session) {
        nbd_jobs_drop(session);
        tls_session_free(session->tls);
        g_free(session->in);
        g_free(session->out);
        g_free(session);
    }
}

static bool passed(const struct nbd_session *session, uint64_t since, unsigned bound)
{
    return session->service->now - since > bound;
}

bool nbd_session_tick(struct nbd_session *session)
{
    const struct nbd_bounds *bounds = &session->service->bounds;
    bool begun = session->in_end > session->in_start || session->skip > 0;
    size_t waiting;

    nbd_session_output(session, &waiting);
    if (waiting > 0) {
        if (passed(session, session->since_output, bounds->output)) {
            nbd_session_end(session, "it took nothing of its replies for %u seconds", bounds->output);
            return false;
        }
        return true;
    }
    if (session->held) {
        session->told_held_out = passed(session, session->since_held, bounds->pending);
        return true;
    }
    if (!session->known && passed(session, session->since_start, bounds->hello)) {
        nbd_session_end(session, "it did not say who it is within %u seconds", bounds->hello);
        return false;
    }
    bool stalled = begun && (session->state != NBD_STATE_REQUESTS || nbd_job_is_free(session));
    if (stalled && passed(session, session->since_input, bounds->message)) {
        nbd_session_end(session, "it sent half a message, and nothing more for %u seconds", bounds->message);
        return false;
    }
    return true;
}

bool nbd_session_is_known(const struct nbd_session *session)
{
    return session->known;
}

bool nbd_session_is_serving(const struct nbd_session *session)
{
    return session->state == NBD_STATE_REQUESTS;
}

bool nbd_session_is_held(const struct nbd_session *session)
{
    return session->held;
}

const char *nbd_session_peer(const struct nbd_session *session)
{
    return session->tls_ready ? tls_session_peer(session->tls) : "";
}

const char *nbd_session_problem(const struct nbd_session *session)
{
    return session->problem;
}

uint64_t nbd_session_served(const struct nbd_session *session)
{
    return session->served;
}

void nbd_session_set_data(struct nbd_session *session, void *data)
{
    session->data = data;
}

void *nbd_session_data(const struct nbd_session *session)
{
    return session->data;
}
