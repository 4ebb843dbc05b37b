/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sf mapreduce: one command for each file, in workers of this VM's clones; one command for all that they print.
 *
 *    FILE 1, FILE 2 --> worker 1: CMD < FILE 1, CMD < FILE 2 --+
 *    FILE 3, FILE 4 --> worker 2: CMD < FILE 3, CMD < FILE 4 --+--> in the order of the files --> CMD of --reduce
 *
 * The ticket is hierarchical: one worker for each CPU. A worker stops at the first command that fails, and says which file it
 * was by its status: 1 + the number of the file among its own; what it printed is not used then.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sf.h"

#define FILE_VARIABLE "SF_FILE"     /* names the file to the map command */

struct job {
    const char *map, *reduce;       /* reduce NULL: just the output */
    char **files;
    unsigned files_count;
    unsigned workers;
};

/* Files first..next-1 are those of a worker. */
static unsigned first_file(const struct job *job, unsigned worker)
{
    return (unsigned)((unsigned long long)job->files_count * (worker - 1) / job->workers);
}

/* Starts `sh -c command` with these as its standard input and output; -1: as they are. -1 if it cannot be. */
static pid_t start(const char *command, const char *file, int in, int out)
{
    pid_t pid = fork();

    if (pid != 0) {
        return pid;
    }
    if ((in >= 0 && dup2(in, STDIN_FILENO) < 0) || (out >= 0 && dup2(out, STDOUT_FILENO) < 0)) {
        _exit(EXIT_TROUBLE);
    }
    if (file) {
        setenv(FILE_VARIABLE, file, 1);
    }
    execl("/bin/sh", "sh", "-c", command, (char *)NULL);
    _exit(EXIT_TROUBLE);
}

static bool ended_well(pid_t pid)
{
    int status;

    while (waitpid(pid, &status, 0) < 0) {
        if (errno != EINTR) {
            return false;
        }
    }
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* The map command's output for one file is added to what is in the file `out`. */
static bool map_file(const struct job *job, const char *name, int out)
{
    int in = open(name, O_RDONLY | O_CLOEXEC);
    pid_t pid = in < 0 ? -1 : start(job->map, name, in, out);

    if (in >= 0) {
        close(in);
    }
    return pid > 0 && ended_well(pid);
}

/* In a worker. Does not return. */
static void work(const struct job *job, unsigned id)
{
    unsigned first = first_file(job, id), next = first_file(job, id + 1);
    FILE *out = tmpfile();
    size_t length = 0;
    char *data;

    for (unsigned i = first; i < next; i++) {
        if (!out || !map_file(job, job->files[i], fileno(out))) {
            sf_exit((int)(i - first + 1));
        }
    }
    data = out && lseek(fileno(out), 0, SEEK_SET) == 0 ? read_all(fileno(out), &length) : NULL;
    if (data) {
        sf_exit_with(0, data, length);
    }
    sf_exit(-1); /* more than a result may be */
}

/* Says what went wrong in a worker. */
static void complain(const struct job *job, const struct sf_result *result)
{
    unsigned first = first_file(job, result->id), files = first_file(job, result->id + 1) - first;

    if (result->state != SF_EXITED) {
        trouble(EXIT_CLONES, "%s and %u more: worker %u: %s%s%s", job->files[first], files - 1, result->id,
                sf_state_name(result->state), result->text[0] ? ": " : "", result->text);
    } else if (result->status > 0 && (unsigned)result->status <= files) {
        trouble(EXIT_CLONES, "%s: the map command failed, or the file cannot be read",
                job->files[first + (unsigned)result->status - 1]);
    } else {
        trouble(EXIT_CLONES, "%s and %u more: their output is more than a worker can hand over", job->files[first],
                files - 1);
    }
}

/* Writes the results, in the order of the files. */
static int pour(sf_ticket *ticket, const struct job *job, int out)
{
    for (unsigned id = 1; id <= job->workers; id++) {
        size_t length;
        char *data = sf_result_get(ticket, id, &length);
        bool ok = data && write_all(out, data, length);

        if (!ok && (!data || errno != EPIPE)) {
            free(data);
            return data ? trouble(EXIT_TROUBLE, "output: %s", strerror(errno)) : call_failed();
        }
        free(data);
        if (!ok) {
            break; /* a reduce command may have enough, as head(1) */
        }
    }
    return 0;
}

static int reduce(sf_ticket *ticket, const struct job *job)
{
    int ends[2], status;
    pid_t pid;

    if (!job->reduce) {
        return pour(ticket, job, STDOUT_FILENO);
    }
    if (pipe2(ends, O_CLOEXEC) < 0 || (pid = start(job->reduce, NULL, ends[0], -1)) < 0) {
        return trouble(EXIT_TROUBLE, "%s: %s", job->reduce, strerror(errno));
    }
    close(ends[0]);
    signal(SIGPIPE, SIG_IGN);
    status = pour(ticket, job, ends[1]);
    close(ends[1]);
    if (!ended_well(pid) && status == 0) {
        status = trouble(EXIT_CLONES, "the reduce command failed");
    }
    return status;
}

static int collect(sf_ticket *ticket, const struct job *job)
{
    static struct sf_result results[SF_MAX_CLONES];
    int status = 0;

    if (sf_join(ticket, results, job->workers) < 0) {
        return call_failed();
    }
    for (unsigned i = 0; i < job->workers; i++) {
        if (results[i].state != SF_EXITED || results[i].status != 0) {
            complain(job, &results[i]);
            status = EXIT_CLONES;
        }
    }
    return status != 0 ? status : reduce(ticket, job);
}

static int run(struct job *job)
{
    unsigned wanted = job->workers < job->files_count ? job->workers : job->files_count;
    sf_ticket *ticket = sf_request_ticket(wanted, SF_HIERARCHICAL);
    int id, status;

    if (!ticket) {
        return call_failed();
    }
    job->workers = sf_ticket_granted(ticket);
    fflush(stdout);
    id = sf_clone(ticket);
    if (id > 0) {
        work(job, (unsigned)id);
    }
    status = id < 0 ? call_failed() : collect(ticket, job);
    if (sf_release(ticket) < 0 && status == 0) {
        status = call_failed();
    }
    sf_ticket_free(ticket);
    return status;
}

int run_mapreduce(int argc, char **argv)
{
    enum { MAP = 'm', REDUCE = 'r', COUNT = 'n' };
    static const struct option options[] = {
        { "map", required_argument, NULL, MAP },     { "reduce", required_argument, NULL, REDUCE },
        { "count", required_argument, NULL, COUNT }, { NULL, 0, NULL, 0 },
    };
    struct job job = { .workers = SF_MAX_CLONES };
    unsigned long long count;
    int option;

    while ((option = getopt_long(argc, argv, "+m:r:n:", options, NULL)) != -1) {
        switch (option) {
        case MAP:
            job.map = optarg;
            break;
        case REDUCE:
            job.reduce = optarg;
            break;
        case COUNT:
            if (!parse_number(optarg, 10, SF_MAX_CLONES, &count) || count == 0) {
                return bad_usage();
            }
            job.workers = (unsigned)count;
            break;
        default:
            return bad_usage();
        }
    }
    if (!job.map || optind == argc) {
        return bad_usage();
    }
    job.files = argv + optind;
    job.files_count = (unsigned)(argc - optind);
    return run(&job);
}
