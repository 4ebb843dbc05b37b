/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Aligns the 10,000 lambda-phage read pairs of Debian's bowtie2-examples in clones of this VM.
 *
 *     parent   prepare, warm up, ticket for 8 | sf_clone | sf_join ............... merge, redo what failed
 *     clone 1                                 |   pairs    0-1249 | sf_exit_with(SAM lines)
 *     clone 2                                 |   pairs 1250-2499 | sf_exit_with(SAM lines)     ...
 *
 * The index, the reads and bowtie2 itself are in the page cache when the VM forks, so every clone has them without
 * loading anything. bowtie2 seeds its random numbers by a read's name and bases, so slices of the input give the same
 * alignments as the whole. With --plain the same is done without a fork.
 *
 *     cc -o sf-bowtie2 sf-bowtie2.c $(pkg-config --cflags --libs libsf)
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <snowflock.h>

#define EXAMPLES        "/usr/share/doc/bowtie2/examples"
#define WORK_DIR        "/var/tmp/sf-bowtie2"
#define GENOME          "lambda_virus"
#define DEFAULT_CLONES  8
#define LINES_PER_READ  4       /* FASTQ */
#define RECORDS_OF_PAIR 2       /* SAM */
#define PROGRESS_STEPS  4
#define JOIN_STEP_MS    1000
#define READ_SIZE       65536
#define FNV_START       14695981039346656037u
#define FNV_PRIME       1099511628211u

struct job {
    unsigned clones;
    bool plain;
    const char *examples, *work, *output;
    unsigned pairs;
    char index[PATH_MAX], reads_1[PATH_MAX], reads_2[PATH_MAX];
};

struct text {
    char *data;
    size_t length, capacity;
};

/* ---- small things ---- */

static double seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

__attribute__((format(printf, 1, 2), noreturn)) static void die(const char *format, ...)
{
    va_list arguments;

    fputs("sf-bowtie2: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    putchar('\n');
    fflush(stdout); /* before a fork above all: what is in the buffer would be printed by every clone */
}

static void text_add(struct text *text, const char *data, size_t length)
{
    if (text->length + length > text->capacity) {
        text->capacity = 2 * (text->length + length);
        text->data = realloc(text->data, text->capacity);
        if (!text->data) {
            die("no memory for %zu bytes of alignments", text->capacity);
        }
    }
    memcpy(text->data + text->length, data, length);
    text->length += length;
}

static unsigned count_lines(const char *data, size_t length)
{
    unsigned lines = 0;

    for (const char *at = data; (at = memchr(at, '\n', length - (size_t)(at - data))); at++) {
        lines++;
    }
    return lines;
}

/* ---- bowtie2 ---- */

typedef void progress(unsigned lines, unsigned all, unsigned id);

/*
 * Runs a program and takes in what it prints. After each quarter of `all` lines `step` is told.
 * False when it cannot be started or fails; it has then said why on standard error.
 */
static bool capture(const char *const argv[], struct text *out, progress *step, unsigned all, unsigned id)
{
    char buffer[READ_SIZE];
    unsigned lines = 0, told = 0;
    int pipe_fd[2], status;
    ssize_t got;
    pid_t pid;

    fflush(stdout);
    if (pipe(pipe_fd) < 0 || (pid = fork()) < 0) {
        die("%s: %s", argv[0], strerror(errno));
    }
    if (pid == 0) {
        dup2(pipe_fd[1], STDOUT_FILENO);
        close(pipe_fd[0]);
        close(pipe_fd[1]);
        execvp(argv[0], (char *const *)argv);
        fprintf(stderr, "sf-bowtie2: %s: %s\n", argv[0], strerror(errno));
        _exit(127);
    }
    close(pipe_fd[1]);
    while ((got = read(pipe_fd[0], buffer, sizeof(buffer))) > 0 || (got < 0 && errno == EINTR)) {
        if (got < 0) {
            continue;
        }
        text_add(out, buffer, (size_t)got);
        lines += count_lines(buffer, (size_t)got);
        if (step && all > 0 && lines * PROGRESS_STEPS / all > told) {
            told = lines * PROGRESS_STEPS / all;
            step(lines, all, id);
        }
    }
    close(pipe_fd[0]);
    return waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void print_progress(unsigned lines, unsigned all, unsigned id)
{
    say("clone %u: %u of %u pairs aligned", id, lines / RECORDS_OF_PAIR, all / RECORDS_OF_PAIR);
}

/* Pairs first..first+count-1. id: whose progress is printed; 0: nobody's. */
static bool align(const struct job *job, unsigned first, unsigned count, bool headers, unsigned id, struct text *out)
{
    char skip[16], upto[16];
    const char *argv[] = { "bowtie2", "--quiet", "-p", "1", "-x", job->index, "-1", job->reads_1, "-2", job->reads_2,
                           "-s", skip, "-u", upto, headers ? NULL : "--no-hd", NULL };

    snprintf(skip, sizeof(skip), "%u", first);
    snprintf(upto, sizeof(upto), "%u", count); /* counted behind the skipped ones; 0 would be all */
    return count == 0 || capture(argv, out, id > 0 ? print_progress : NULL, count * RECORDS_OF_PAIR, id);
}

static void slice_of(const struct job *job, unsigned id, unsigned count, unsigned *first, unsigned *pairs)
{
    *first = (unsigned)((uint64_t)job->pairs * (id - 1) / count);
    *pairs = (unsigned)((uint64_t)job->pairs * id / count) - *first;
}

/* ---- preparation ---- */

static void run(const char *const argv[])
{
    struct text out = { 0 };

    if (!capture(argv, &out, NULL, 0, 0)) {
        die("%s failed", argv[0]);
    }
    free(out.data);
}

/* Index and reads, unpacked into the work folder unless they are there. The package has most of them gzipped. */
static void prepare(struct job *job)
{
    static const char unpack[] =
        "set -e; mkdir -p \"$2\"; for f in \"$1\"/index/" GENOME ".*bt2* \"$1\"/reads/reads_[12].fq*; do "
        "out=\"$2/$(basename \"$f\" .gz)\"; [ ! -s \"$out\" ] || continue; "
        "case $f in *.gz) zcat \"$f\" ;; *) cat \"$f\" ;; esac > \"$out.new\"; mv \"$out.new\" \"$out\"; done";
    const char *argv[] = { "sh", "-c", unpack, "sh", job->examples, job->work, NULL };
    const char *count[] = { "cat", job->reads_1, NULL };
    struct text reads = { 0 };

    snprintf(job->index, sizeof(job->index), "%s/" GENOME, job->work);
    snprintf(job->reads_1, sizeof(job->reads_1), "%s/reads_1.fq", job->work);
    snprintf(job->reads_2, sizeof(job->reads_2), "%s/reads_2.fq", job->work);
    run(argv);
    if (!capture(count, &reads, NULL, 0, 0)) {
        die("%s: cannot be read: is bowtie2-examples installed?", job->reads_1);
    }
    job->pairs = count_lines(reads.data, reads.length) / LINES_PER_READ;
    free(reads.data);
    if (job->pairs == 0) {
        die("%s: no reads in it: is bowtie2-examples installed?", job->reads_1);
    }
}

/* Aligns one pair: bowtie2 is in memory then, and its header lines are the whole result's. */
static struct text warm_up(const struct job *job)
{
    struct text one = { 0 };
    size_t at = 0;

    if (!align(job, 0, 1, true, 0, &one)) {
        die("bowtie2 failed: is the package bowtie2 installed?");
    }
    while (at < one.length && one.data[at] == '@') {
        const char *end = memchr(one.data + at, '\n', one.length - at);

        at = end ? (size_t)(end - one.data) + 1 : one.length;
    }
    one.length = at;
    return one;
}

/* ---- the result ---- */

/* A number that does not depend on the order of the lines: the sum of their hashes. Header lines do not count. */
static uint64_t digest_of(const struct text *sam, unsigned *records)
{
    uint64_t sum = 0;

    *records = 0;
    for (size_t at = 0; at < sam->length;) {
        const char *line = sam->data + at, *end = memchr(line, '\n', sam->length - at);
        size_t length = end ? (size_t)(end - line) : sam->length - at;
        uint64_t hash = FNV_START;

        at += length + 1;
        if (line[0] == '@') {
            continue;
        }
        for (size_t i = 0; i < length; i++) {
            hash = (hash ^ (uint8_t)line[i]) * FNV_PRIME;
        }
        sum += hash;
        ++*records;
    }
    return sum;
}

static void finish(const struct job *job, const struct text *sam, double start)
{
    FILE *file = strcmp(job->output, "-") == 0 ? stdout : fopen(job->output, "w");
    unsigned records;
    uint64_t digest = digest_of(sam, &records);

    if (!file || fwrite(sam->data, 1, sam->length, file) != sam->length ||
        (file == stdout ? fflush(file) : fclose(file)) != 0) {
        die("%s: %s", job->output, strerror(errno));
    }
    fprintf(stderr, "%s: %u records, digest %016" PRIx64 ", %.2f s, in %s\n", job->plain ? "plain" : "forked", records,
            digest, seconds() - start, job->output);
    if (records != job->pairs * RECORDS_OF_PAIR) {
        die("%u records of %u pairs: %u were to be expected", records, job->pairs, job->pairs * RECORDS_OF_PAIR);
    }
}

/* ---- clone and parent ---- */

__attribute__((noreturn)) static void clone_main(const struct job *job, unsigned id, unsigned count)
{
    struct text sam = { 0 };
    unsigned first, pairs;

    slice_of(job, id, count, &first, &pairs);
    say("clone %u: pairs %u to %u", id, first + 1, first + pairs);
    if (!align(job, first, pairs, false, id, &sam)) {
        sf_exit(1);
    }
    sf_exit_with(0, sam.data, sam.length);
    fprintf(stderr, "sf-bowtie2: clone %u: %s\n", id, sf_error()); /* the parent does this slice itself */
    sf_exit(1);
}

/* Waits, and says when a clone has ended. */
static void join(sf_ticket *ticket, struct sf_result *results, unsigned count, double start)
{
    bool *told = calloc(count, sizeof(*told));
    int ended;

    if (!told) {
        die("no memory");
    }
    do {
        ended = sf_join_timed(ticket, results, count, JOIN_STEP_MS);
        if (ended < 0 && errno != EINTR) {
            die("%s", sf_error());
        }
        for (unsigned i = 0; i < count && ended >= 0; i++) {
            if (results[i].state >= SF_EXITED && !told[i]) {
                told[i] = true;
                say("%6.2f s  clone %u %s%s%s, %" PRIu64 " bytes", seconds() - start, i + 1,
                    sf_state_name(results[i].state), results[i].text[0] ? ": " : "", results[i].text,
                    results[i].result_length);
            }
        }
    } while (ended <= 0);
    free(told);
}

/* The clone's lines, if it gave all of them. */
static bool take_result(const struct job *job, sf_ticket *ticket, const struct sf_result *result, unsigned pairs,
                        struct text *sam)
{
    size_t length;
    char *data;
    bool whole;

    if (result->state != SF_EXITED || result->status != 0) {
        return false;
    }
    data = pairs > 0 ? sf_result_get(ticket, result->id, &length) : NULL;
    if (!data) {
        return pairs == 0;
    }
    whole = count_lines(data, length) == pairs * RECORDS_OF_PAIR;
    if (whole) {
        text_add(sam, data, length);
    }
    free(data);
    return whole;
}

static void parent_main(const struct job *job, sf_ticket *ticket, unsigned count, struct text *sam, double start)
{
    struct sf_result *results = calloc(count, sizeof(*results));
    unsigned first, pairs;

    if (!results) {
        die("no memory");
    }
    join(ticket, results, count, start);
    for (unsigned i = 0; i < count; i++) {
        slice_of(job, i + 1, count, &first, &pairs);
        if (take_result(job, ticket, &results[i], pairs, sam)) {
            continue;
        }
        say("clone %u %s, status %d%s%s: its slice is done here", i + 1, sf_state_name(results[i].state),
            results[i].status, results[i].text[0] ? ", " : "", results[i].text);
        if (!align(job, first, pairs, false, 0, sam)) {
            die("bowtie2 failed here too");
        }
    }
    sf_release(ticket);
    free(results);
}

static void forked(const struct job *job, struct text *sam, double start)
{
    sf_ticket *ticket = sf_request_ticket(job->clones, 0);
    unsigned count = sf_ticket_granted(ticket);
    double called;
    int id;

    if (!ticket) {
        die("%s", sf_error());
    }
    say("%6.2f s  %u clones asked for, %u granted", seconds() - start, job->clones, count);
    called = seconds();
    id = sf_clone(ticket);
    if (id < 0) {
        die("%s", sf_error());
    }
    if (id > 0) {
        clone_main(job, (unsigned)id, count);
    }
    say("%6.2f s  forked: sf_clone() returned here after %.0f ms", seconds() - start, (seconds() - called) * 1000);
    parent_main(job, ticket, count, sam, start);
    sf_ticket_free(ticket);
}

static void usage(FILE *out)
{
    fputs("usage: sf-bowtie2 [-n CLONES] [--plain] [-o FILE] [--examples DIR] [--work DIR]\n"
          "Aligns the lambda-phage read pairs of bowtie2-examples in CLONES (8) clones of this VM; --plain: in none.\n"
          "Writes SAM to FILE (forked.sam or plain.sam; -: standard output).\n",
          out);
}

int main(int argc, char **argv)
{
    enum { PLAIN = 1, EXAMPLES_DIR, WORK, HELP };
    static const struct option options[] = { { "clones", required_argument, NULL, 'n' },
                                             { "plain", no_argument, NULL, PLAIN },
                                             { "output", required_argument, NULL, 'o' },
                                             { "examples", required_argument, NULL, EXAMPLES_DIR },
                                             { "work", required_argument, NULL, WORK },
                                             { "help", no_argument, NULL, HELP },
                                             { NULL, 0, NULL, 0 } };
    struct job job = { .clones = DEFAULT_CLONES, .examples = EXAMPLES, .work = WORK_DIR };
    struct text sam;
    double start;
    int option;

    while ((option = getopt_long(argc, argv, "n:o:", options, NULL)) != -1) {
        switch (option) {
        case 'n':
            job.clones = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 'o':
            job.output = optarg;
            break;
        case PLAIN:
            job.plain = true;
            break;
        case EXAMPLES_DIR:
            job.examples = optarg;
            break;
        case WORK:
            job.work = optarg;
            break;
        case HELP:
            usage(stdout);
            return 0;
        default:
            usage(stderr);
            return 2;
        }
    }
    if (optind < argc || job.clones == 0) {
        usage(stderr);
        return 2;
    }
    if (!job.output) {
        job.output = job.plain ? "plain.sam" : "forked.sam";
    }
    prepare(&job);
    sam = warm_up(&job);
    start = seconds();
    if (!job.plain) {
        forked(&job, &sam, start);
    } else if (!align(&job, 0, job.pairs, false, 0, &sam)) {
        die("bowtie2 failed");
    }
    finish(&job, &sam, start);
    free(sam.data);
    return 0;
}
