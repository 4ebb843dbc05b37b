/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * A request becomes a job; jobs of a connection that can go on stand in a queue. One turn takes the first, does one
 * slice of it (64 KiB), and puts it at the end again: a 4 KiB read behind one of 32 MiB waits for a slice, not for all.
 *
 *     request --> ready queue --> a slice --> out          structured reply: a chunk for each run of data or zeros
 *                     ^  ^           |
 *                     |  +-- more ---+                     simple reply: header, then all data without a gap
 *                     +---- fetch landed <-- absent pages
 *
 * Data is read with pread(): the page cache of a memfd has it at once, 0.8 us for a page. io_uring would not be better
 * here: tmpfs knows no non-blocking read, so the kernel hands such a read to a worker thread (measured: 53 us). Nor a
 * mapping: its page faults cost as much as the copy, and a hole that is read through a mapping is filled.
 *
 * Pages that turn out to be all zero leave as a hole chunk of 32 bytes; guests have many.
 *
 * Absent pages (this host is a page cache itself) are fetched through the store; meanwhile other jobs go on. A job
 * may hold one fetch, which outlives job and session: `landed` finds NULL then.
 */
#include "sfvmm/pager/nbd_session_private.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define READ_MAX (UINT32_C(32) << 20) /* what clients send at most; said in the block size info */
/* A look at up to this much is quick; at more, page_store searches for the end of the data. */
#define LOOK_MAX        (UINT32_C(1) << 20)
#define EXTENTS_MAX     2048u  /* in one reply; the client asks on from there */
#define LOOKS_MAX       16384u /* steps of the search for extents for one request */
#define CACHE_LOOKS_MAX 256u   /* the same for one slice of CACHE */
#define ALLOCATION_ID   1u     /* of base:allocation */
#define DATA_HEADER     (NBD_CHUNK_LENGTH + 8)
#define HOLE_CHUNK      (NBD_CHUNK_LENGTH + 12)
#define ERROR_TEXT_MAX  80u

struct nbd_fetch {
    struct nbd_service *service;
    struct nbd_session *session; /* NULL: has gone */
    struct nbd_job *job;
    int error;
    struct nbd_fetch *next;
};

/* ---- Queues ---- */

static void append(struct nbd_job_list *list, struct nbd_job *job)
{
    job->next = NULL;
    if (list->last) {
        list->last->next = job;
    } else {
        list->first = job;
    }
    list->last = job;
}

static void prepend(struct nbd_job_list *list, struct nbd_job *job)
{
    job->next = list->first;
    list->first = job;
    if (!list->last) {
        list->last = job;
    }
}

static struct nbd_job *take_first(struct nbd_job_list *list)
{
    struct nbd_job *job = list->first;

    if (job) {
        list->first = job->next;
        if (!list->first) {
            list->last = NULL;
        }
    }
    return job;
}

void nbd_jobs_init(struct nbd_session *session)
{
    session->jobs = g_new0(struct nbd_job, NBD_MAX_JOBS);
    for (unsigned i = 0; i < NBD_MAX_JOBS; i++) {
        append(&session->free, &session->jobs[i]);
    }
}

void nbd_jobs_drop(struct nbd_session *session)
{
    for (unsigned i = 0; session->jobs && i < NBD_MAX_JOBS; i++) {
        if (session->jobs[i].fetch) {
            session->jobs[i].fetch->session = NULL;
        }
    }
    g_clear_pointer(&session->jobs, g_free);
}

bool nbd_job_is_free(const struct nbd_session *session)
{
    return session->free.first != NULL;
}

/* ---- Replies ---- */

static uint8_t *put_chunk(uint8_t *p, const struct nbd_request *request, uint16_t type, bool done, uint32_t length)
{
    sf_be_put32(p, NBD_CHUNK_MAGIC);
    sf_be_put16(p + 4, done ? NBD_CHUNK_FLAG_DONE : 0);
    sf_be_put16(p + 6, type);
    sf_be_put64(p + 8, request->cookie);
    sf_be_put32(p + 16, length);
    return p + NBD_CHUNK_LENGTH;
}

static void put_simple(struct nbd_session *session, const struct nbd_request *request, uint32_t error)
{
    uint8_t *p = nbd_session_reserve(session, NBD_SIMPLE_REPLY_LENGTH);

    sf_be_put32(p, NBD_SIMPLE_REPLY_MAGIC);
    sf_be_put32(p + 4, error);
    sf_be_put64(p + 8, request->cookie);
}

/* The end of a request: error 0, or NBD_E* with a text for people. */
static void reply(struct nbd_session *session, const struct nbd_request *request, uint32_t error, const char *text)
{
    if (!session->structured) {
        put_simple(session, request, error);
    } else if (error == 0) {
        put_chunk(nbd_session_reserve(session, NBD_CHUNK_LENGTH), request, NBD_CHUNK_NONE, true, 0);
    } else {
        uint16_t length = (uint16_t)MIN(strlen(text), ERROR_TEXT_MAX);
        uint8_t *p = nbd_session_reserve(session, NBD_CHUNK_LENGTH + 6u + length);
        p = put_chunk(p, request, NBD_CHUNK_ERROR, true, 6u + length);
        sf_be_put32(p, error);
        sf_be_put16(p + 4, length);
        memcpy(p + 6, text, length);
    }
}

static enum nbd_job_step job_fails(struct nbd_session *session, struct nbd_job *job, const char *text)
{
    if (job->begun) {
        nbd_session_end(session, "%s, in the middle of a simple reply", text);
    } else {
        reply(session, &job->request, job->error == ENOMEM ? NBD_ENOMEM : NBD_EIO, text);
    }
    return NBD_JOB_DONE;
}

/* ---- Absent pages ---- */

/* In the memtap thread. */
static void fetch_done(void *data, int error)
{
    struct nbd_fetch *fetch = data;

    fetch->error = error;
    fetch->service->landed(fetch->service->owner, fetch);
}

struct nbd_fetch **nbd_fetch_link(struct nbd_fetch *fetch)
{
    return &fetch->next;
}

struct nbd_session *nbd_fetch_land(struct nbd_fetch *fetch)
{
    struct nbd_session *session = fetch->session;

    if (session) {
        fetch->job->fetch = NULL;
        fetch->job->error = fetch->error;
        append(&session->ready, fetch->job);
    }
    g_free(fetch);
    return session;
}

/* The pages from offset up to end, as many as one fetch may have. */
static enum nbd_job_step fetch(struct nbd_session *session, struct nbd_job *job, uint64_t offset)
{
    uint64_t start = offset & ~(uint64_t)(SF_PAGE_SIZE - 1);
    uint64_t end = (job->end + SF_PAGE_SIZE - 1) & ~(uint64_t)(SF_PAGE_SIZE - 1);
    struct nbd_fetch *fetch = g_new0(struct nbd_fetch, 1);

    fetch->service = session->service;
    fetch->session = session;
    fetch->job = job;
    job->fetch = fetch;
    page_store_fetch(session->service->store, session->export.block, start, MIN(end - start, PAGE_STORE_FETCH_MAX),
                     fetch_done, fetch);
    return NBD_JOB_WAITS;
}

/* Is any page of the job absent? *offset: the first. */
static bool find_absent(const struct nbd_session *session, const struct nbd_job *job, uint64_t *offset)
{
    uint64_t length, where;
    int fd;

    for (*offset = job->at; *offset < job->end; *offset += length) {
        if (nbd_export_look(&session->export, *offset, MIN(job->end - *offset, LOOK_MAX), &length, &fd, &where) ==
            PAGE_ABSENT) {
            return true;
        }
    }
    return false;
}

/* ---- READ ---- */

static bool read_all(int fd, uint8_t *bytes, size_t n, uint64_t offset)
{
    while (n > 0) {
        ssize_t got = pread(fd, bytes, n, (off_t)offset);
        if (got <= 0) {
            if (got < 0 && errno == EINTR) {
                continue;
            }
            return false;
        }
        bytes += got;
        offset += (uint64_t)got;
        n -= (size_t)got;
    }
    return true;
}

static bool is_zero(const uint8_t *bytes, size_t n)
{
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, n - 1) == 0;
}

/* How many of the n bytes at bytes, which begin at offset, go on as they begin: pages of zeros or not. */
static size_t same_run(const uint8_t *bytes, size_t n, uint64_t offset, bool *zero)
{
    size_t run = 0;

    while (run < n) {
        size_t piece = MIN(n - run, SF_PAGE_SIZE - ((offset + run) & (SF_PAGE_SIZE - 1)));
        bool piece_zero = is_zero(bytes + run, piece);
        if (run > 0 && piece_zero != *zero) {
            break;
        }
        *zero = piece_zero;
        run += piece;
    }
    return run;
}

static void put_hole(struct nbd_session *session, struct nbd_job *job, uint64_t length)
{
    uint8_t *p = nbd_session_reserve(session, HOLE_CHUNK);

    p = put_chunk(p, &job->request, NBD_CHUNK_OFFSET_HOLE, job->at + length == job->end, 12);
    sf_be_put64(p, job->at);
    sf_be_put32(p + 8, (uint32_t)length);
    job->at += length;
}

/*
 * length bytes of data as chunks. They are read to where they would stand if no page of them were zero; when some are,
 * what follows is moved down behind the hole's chunk, which is shorter than the page.
 */
static bool put_data(struct nbd_session *session, struct nbd_job *job, int fd, uint64_t where, size_t length)
{
    uint8_t *bytes = session->out + session->out_end + DATA_HEADER;

    if (!read_all(fd, bytes, length, where)) {
        return false;
    }
    while (length > 0) {
        bool zero = false;
        size_t run = same_run(bytes, length, job->at, &zero);
        if (zero) {
            put_hole(session, job, run);
        } else {
            uint8_t *p = session->out + session->out_end;
            if (bytes != p + DATA_HEADER) {
                memmove(p + DATA_HEADER, bytes, run);
            }
            p = nbd_session_reserve(session, DATA_HEADER + run);
            p = put_chunk(p, &job->request, NBD_CHUNK_OFFSET_DATA, job->at + run == job->end, (uint32_t)(8 + run));
            sf_be_put64(p, job->at);
            job->at += run;
        }
        bytes += run;
        length -= run;
    }
    return true;
}

static enum nbd_job_step read_structured(struct nbd_session *session, struct nbd_job *job)
{
    uint64_t stop = MIN(job->end, job->at + NBD_SLICE), length, where;
    int fd;

    while (job->at < stop) {
        switch (nbd_export_look(&session->export, job->at, MIN(job->end - job->at, LOOK_MAX), &length, &fd, &where)) {
        case PAGE_ABSENT:
            return fetch(session, job, job->at);
        case PAGE_ZERO:
            put_hole(session, job, length);
            break;
        case PAGE_DATA:
            length = MIN(length, stop - job->at);
            session->served += length;
            if (!put_data(session, job, fd, where, length)) {
                return job_fails(session, job, "memory of the snapshot can't be read");
            }
        }
    }
    return job->at == job->end ? NBD_JOB_DONE : NBD_JOB_SLICE;
}

/* One chunk, whatever it is made of: of zeros and data of several layers. */
static enum nbd_job_step read_whole(struct nbd_session *session, struct nbd_job *job, uint64_t stop)
{
    uint64_t length, where;
    int fd;

    while (job->at < stop) {
        enum page_state state = nbd_export_look(&session->export, job->at, stop - job->at, &length, &fd, &where);
        uint8_t *p = nbd_session_reserve(session, length);
        if (state == PAGE_ZERO) {
            memset(p, 0, length);
        } else if (state == PAGE_ABSENT || !read_all(fd, p, length, where)) {
            nbd_session_end(session, "memory of the snapshot can't be read, in the middle of a reply");
            return NBD_JOB_DONE;
        }
        session->served += length;
        job->at += length;
    }
    return job->at == job->end ? NBD_JOB_DONE : NBD_JOB_SLICE;
}

/* DF: the whole in one chunk; it fits one slice (checked when the request came). */
static enum nbd_job_step read_unsplit(struct nbd_session *session, struct nbd_job *job)
{
    uint32_t length = (uint32_t)(job->end - job->at);
    uint64_t absent;

    if (find_absent(session, job, &absent)) {
        return fetch(session, job, absent);
    }
    uint8_t *p = nbd_session_reserve(session, DATA_HEADER);
    sf_be_put64(put_chunk(p, &job->request, NBD_CHUNK_OFFSET_DATA, true, 8 + length), job->at);
    return read_whole(session, job, job->end);
}

/* All pages are there before the header goes: after it, only data may follow. */
static enum nbd_job_step read_simple(struct nbd_session *session, struct nbd_job *job)
{
    uint64_t absent;

    if (!job->begun) {
        if (find_absent(session, job, &absent)) {
            return fetch(session, job, absent);
        }
        put_simple(session, &job->request, 0);
        job->begun = true;
    }
    return read_whole(session, job, MIN(job->end, job->at + NBD_SLICE));
}

/* ---- BLOCK_STATUS, CACHE ---- */

/* A short look does not search for holes in what it calls data. */
static void search_hole(int fd, uint64_t where, uint64_t *length)
{
    off_t hole = *length <= LOOK_MAX ? lseek(fd, (off_t)where, SEEK_HOLE) : 0;

    if (hole > 0 && (uint64_t)hole > where) {
        *length = MIN(*length, (uint64_t)hole - where);
    }
}

static enum nbd_job_step block_status(struct nbd_session *session, struct nbd_job *job)
{
    unsigned max = job->request.flags & NBD_CMD_FLAG_REQ_ONE ? 1 : EXTENTS_MAX, n = 0;
    uint8_t *start = nbd_session_reserve(session, NBD_CHUNK_LENGTH + 4), *last = NULL;
    uint32_t flags = 0, last_flags = 0;
    uint64_t length, where;
    int fd;

    sf_be_put32(start + NBD_CHUNK_LENGTH, ALLOCATION_ID);
    for (unsigned looks = 0; job->at < job->end && looks < LOOKS_MAX; looks++) {
        enum page_state state = nbd_export_look(&session->export, job->at, job->end - job->at, &length, &fd, &where);
        if (state == PAGE_DATA) {
            search_hole(fd, where, &length);
        }
        flags = state == PAGE_ZERO ? NBD_STATE_HOLE | NBD_STATE_ZERO : 0;
        if (last && flags == last_flags) {
            sf_be_put32(last, sf_be_get32(last) + (uint32_t)length);
        } else if (n == max) {
            break;
        } else {
            last = nbd_session_reserve(session, 8);
            last_flags = flags;
            sf_be_put32(last, (uint32_t)length);
            sf_be_put32(last + 4, flags);
            n++;
        }
        job->at += length;
    }
    put_chunk(start, &job->request, NBD_CHUNK_BLOCK_STATUS, true, 4 + 8 * n);
    return NBD_JOB_DONE;
}

static enum nbd_job_step cache(struct nbd_session *session, struct nbd_job *job)
{
    uint64_t length, where;
    int fd;

    for (unsigned looks = 0; job->at < job->end; looks++) {
        if (looks == CACHE_LOOKS_MAX) {
            return NBD_JOB_SLICE;
        }
        if (nbd_export_look(&session->export, job->at, MIN(job->end - job->at, LOOK_MAX), &length, &fd, &where) ==
            PAGE_ABSENT) {
            return fetch(session, job, job->at);
        }
        job->at += length;
    }
    reply(session, &job->request, 0, NULL);
    return NBD_JOB_DONE;
}

/* ---- Jobs ---- */

static enum nbd_job_step step(struct nbd_session *session, struct nbd_job *job)
{
    if (job->error) {
        return job_fails(session, job, "a page of the snapshot can't be had from its source");
    }
    switch (job->request.type) {
    case NBD_CMD_READ:
        if (!session->structured) {
            return read_simple(session, job);
        }
        return job->request.flags & NBD_CMD_FLAG_DF ? read_unsplit(session, job) : read_structured(session, job);
    case NBD_CMD_BLOCK_STATUS:
        return block_status(session, job);
    default:
        return cache(session, job);
    }
}

bool nbd_job_run(struct nbd_session *session)
{
    struct nbd_job *job = take_first(&session->ready);

    if (!job) {
        return false;
    }
    switch (step(session, job)) {
    case NBD_JOB_SLICE:
        if (job->begun) {
            prepend(&session->ready, job);
        } else {
            append(&session->ready, job);
        }
        break;
    case NBD_JOB_WAITS:
        break;
    case NBD_JOB_DONE:
        append(&session->free, job);
    }
    return true;
}

/* What is wrong with a request for a range; 0: nothing. */
static uint32_t check(const struct nbd_session *session, const struct nbd_request *request, const char **text)
{
    bool is_read = request->type == NBD_CMD_READ, is_status = request->type == NBD_CMD_BLOCK_STATUS;
    uint16_t known = is_read && session->structured ? NBD_CMD_FLAG_DF : is_status ? NBD_CMD_FLAG_REQ_ONE : 0;

    *text = "the request is not one that was negotiated";
    if ((request->flags & ~known) || (is_status && !session->allocation)) {
        return NBD_EINVAL;
    }
    *text = "the range is empty or not within the export";
    if (request->length == 0 || request->offset > session->export.size ||
        request->length > session->export.size - request->offset) {
        return NBD_EINVAL;
    }
    *text = "the read is too large";
    if (is_read && request->length > READ_MAX) {
        return NBD_EINVAL;
    }
    return (request->flags & NBD_CMD_FLAG_DF) && request->length > NBD_SLICE ? NBD_EOVERFLOW : 0;
}

static void start(struct nbd_session *session, const struct nbd_request *request)
{
    const char *text;
    uint32_t error = check(session, request, &text);

    if (error) {
        reply(session, request, error, text);
        return;
    }
    struct nbd_job *job = take_first(&session->free);
    *job = (struct nbd_job){ .request = *request, .at = request->offset, .end = request->offset + request->length };
    append(&session->ready, job);
}

void nbd_job_take(struct nbd_session *session, const struct nbd_request *request)
{
    switch (request->type) {
    case NBD_CMD_READ:
    case NBD_CMD_BLOCK_STATUS:
    case NBD_CMD_CACHE:
        start(session, request);
        break;
    case NBD_CMD_DISC:
        nbd_session_end(session, "%s", "");
        break;
    case NBD_CMD_WRITE:
        if (request->length > NBD_SKIP_MAX) {
            nbd_session_end(session, "it wants to write %u bytes", request->length);
            break;
        }
        session->skip = request->length;
        reply(session, request, NBD_EPERM, "a snapshot is read-only");
        break;
    case NBD_CMD_TRIM:
    case NBD_CMD_WRITE_ZEROES:
    case NBD_CMD_RESIZE:
        reply(session, request, NBD_EPERM, "a snapshot is read-only");
        break;
    default:
        reply(session, request, NBD_EINVAL, "unknown request");
    }
}
