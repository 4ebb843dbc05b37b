/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sf-mpiexec: an MPI job of MPICH whose ranks run in fresh clones of this VM.
 *
 * MPICH's mpiexec.hydra starts one hydra_pmi_proxy at each host, which starts the ranks there and is connected to mpiexec by
 * TCP. With "-launcher manual" it does not start them: it prints the command line of each, and waits for their connections.
 * That is all that a fork needs.
 *
 *     parent                                            clone i
 *     mpiexec -launcher manual   prints what proxies
 *        |                       are started by
 *     sf_clone() ------------------------------------>  its copy of mpiexec is ended; it starts proxy i - 1
 *     mpiexec  <------ TCP, the cluster's network ---   hydra_pmi_proxy --- ranks
 *     ends, and so do the proxies                       sf_exit()
 *
 * The command lines are in memory before the fork, so nothing has to be told to anybody; ranks find each other as always, by
 * what mpiexec hands around. Standard output of mpiexec goes through here, because its first lines are for this program.
 *
 * Ranks have sf-mpich.so preloaded, without which a job may hang in its end (mpich.c).
 *
 * One thread. A signal that would end this program ends mpiexec and the clones first.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "snowflock.h"

#define EXIT_USAGE   2
#define EXIT_TROUBLE 3
#define SIGNALLED    128            /* + signal: exit status, as of a shell */
#define LAUNCH       "HYDRA_LAUNCH: "
#define LAUNCH_END   "HYDRA_LAUNCH_END\n"
#define LOOK_MS      500            /* between two looks at the clones */
#define END_MS       10000          /* from the end of mpiexec to that of the clones, before they are ended */
#define HOST_LENGTH  16             /* "sf-1024:1024," */
#define PIECE        65536

struct job {
    unsigned ranks, per_clone, clones;
    char **arguments;               /* for mpiexec: options and program, NULL at the end */
    int arguments_count;
    char *proxies[SF_MAX_CLONES];   /* command line of each clone's proxy */
    pid_t mpiexec;
    int output;                     /* of mpiexec */
    sf_ticket *ticket;
};

static volatile sig_atomic_t ended_by;      /* a signal */

static void note_signal(int number)
{
    ended_by = number;
}

static int trouble(const char *format, ...) __attribute__((format(printf, 1, 2)));

static int trouble(const char *format, ...)
{
    va_list arguments;

    fputs("sf-mpiexec: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    return EXIT_TROUBLE;
}

/* ---- mpiexec ---- */

/* "sf-1:2,sf-2:2,..." : clones by the names that they will have, and how many ranks each takes. For free(). */
static char *host_list(const struct job *job)
{
    char *list = malloc(job->clones * (size_t)HOST_LENGTH), *at = list;

    for (unsigned i = 1; list && i <= job->clones; i++) {
        at += sprintf(at, "%ssf-%u:%u", i > 1 ? "," : "", i, job->per_clone);
    }
    return list;
}

/* What ranks have preloaded: ours, and what they would have without. For free(). */
static char *preloads(void)
{
    const char *others = getenv("LD_PRELOAD");
    char *list;

    return asprintf(&list, "%s%s%s", SF_MPICH, others ? ":" : "", others ? others : "") >= 0 ? list : NULL;
}

/* Becomes mpiexec, which ends with this program. */
static void run_mpiexec(const struct job *job, const char *address, int output)
{
    char ranks[16], *hosts = host_list(job), *preload = preloads();
    const char *first[] = { "mpiexec.hydra", "-launcher", "manual", "-localhost", address, "-hosts", hosts, "-n", ranks,
                            "-genv", "LD_PRELOAD", preload };
    size_t count = sizeof(first) / sizeof(first[0]);
    const char **arguments = calloc(count + (size_t)job->arguments_count + 1, sizeof(*arguments));

    snprintf(ranks, sizeof(ranks), "%u", job->ranks);
    if (hosts && preload && arguments && dup2(output, STDOUT_FILENO) >= 0) {
        memcpy(arguments, first, sizeof(first));
        memcpy(arguments + count, job->arguments, (size_t)job->arguments_count * sizeof(*arguments));
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        /* All proxies by mpiexec itself: none of them by another, which could not. */
        setenv("HYDRA_BRANCH_COUNT", "0", 1);
        execvp(first[0], (char **)arguments);
    }
    fprintf(stderr, "sf-mpiexec: %s: %s\n", first[0], strerror(errno));
    _exit(EXIT_TROUBLE);
}

static int start_mpiexec(struct job *job, const char *address)
{
    int ends[2];

    if (pipe2(ends, O_CLOEXEC) < 0 || (job->mpiexec = fork()) < 0) {
        return trouble("mpiexec cannot be started: %s", strerror(errno));
    }
    if (job->mpiexec == 0) {
        run_mpiexec(job, address, ends[1]);
    }
    close(ends[1]);
    job->output = ends[0];
    return 0;
}

/* One line of mpiexec, with its newline, for free(); read byte by byte, so that what follows is left. NULL: it has ended. */
static char *read_line(int fd)
{
    size_t length = 0, capacity = PIECE;
    char *line = malloc(capacity);

    while (line && length + 1 < capacity && read(fd, line + length, 1) == 1) {
        length++;
        if (line[length - 1] == '\n') {
            line[length] = '\0';
            return line;
        }
    }
    free(line);
    return NULL;
}

/* The command lines of all proxies. What else it prints before is passed on. */
static int read_proxies(struct job *job)
{
    unsigned count = 0;
    char *line;

    while ((line = read_line(job->output)) && strcmp(line, LAUNCH_END) != 0) {
        if (strncmp(line, LAUNCH, strlen(LAUNCH)) == 0 && count < job->clones) {
            job->proxies[count++] = strdup(line + strlen(LAUNCH));
        } else {
            fputs(line, stdout);
        }
        free(line);
    }
    if (!line) {
        return trouble("mpiexec has not said how proxies are started: it must be that of MPICH (mpiexec.hydra)");
    }
    free(line);
    if (count < job->clones) {
        trouble("%u ranks need only %u clones", job->ranks, count);
        return EXIT_USAGE;
    }
    return 0;
}

/* At once: proxies and ranks end with their clones. Asked to, it may wait for proxies that never come. */
static void stop_mpiexec(pid_t mpiexec)
{
    kill(mpiexec, SIGKILL);
    while (waitpid(mpiexec, NULL, 0) < 0 && errno == EINTR) {
    }
}

static int status_of(int status)
{
    return WIFSIGNALED(status) ? SIGNALLED + WTERMSIG(status) : WEXITSTATUS(status);
}

/* ---- in a clone ---- */

/* Runs the proxy, and its ranks, until they have ended. Does not return. */
static void work(const struct job *job, int id)
{
    int status = 0;
    pid_t proxy;

    stop_mpiexec(job->mpiexec);         /* the parent's goes on */
    close(job->output);
    if ((unsigned)id > job->clones) {
        sf_exit(0);                     /* more were granted than ranks need */
    }
    proxy = fork();
    if (proxy == 0) {
        execl("/bin/sh", "sh", "-c", job->proxies[id - 1], (char *)NULL);
        _exit(EXIT_TROUBLE);
    }
    while (proxy > 0 && waitpid(proxy, &status, 0) < 0 && errno == EINTR) {
    }
    sf_exit(proxy > 0 ? status_of(status) : EXIT_TROUBLE);
}

/* ---- in the parent ---- */

/* False, and it has said so: a clone has gone without its proxy's end. */
static bool clones_live(const struct job *job)
{
    static struct sf_result results[SF_MAX_CLONES];
    int all = sf_join_timed(job->ticket, results, SF_MAX_CLONES, 0);

    if (all < 0) {
        trouble("%s", sf_error());
        return false;
    }
    for (unsigned i = 0; i < job->clones && results[i].id > 0; i++) {
        if (results[i].state > SF_EXITED) {
            trouble("clone %u: %s%s%s", results[i].id, sf_state_name(results[i].state), results[i].text[0] ? ": " : "",
                    results[i].text);
            return false;
        }
    }
    return true;
}

/* Passes on what mpiexec prints until it closes its output. Whether all went well so far. */
static bool relay(const struct job *job)
{
    static char piece[PIECE];
    struct pollfd input = { .fd = job->output, .events = POLLIN };

    while (!ended_by) {
        int ready = poll(&input, 1, LOOK_MS);

        if (ready < 0 && errno != EINTR) {
            trouble("poll: %s", strerror(errno));
            return false;
        }
        if (ready > 0) {
            ssize_t got = read(job->output, piece, sizeof(piece));

            if (got <= 0) {
                return true;
            }
            fwrite(piece, 1, (size_t)got, stdout);
            fflush(stdout);
        } else if (ready == 0 && !clones_live(job)) {
            return false;
        }
    }
    return false;
}

static int watch(struct job *job)
{
    bool well = relay(job);
    int status = 0;

    while (well && waitpid(job->mpiexec, &status, 0) < 0 && errno == EINTR) {
        well = !ended_by;
    }
    if (!well) {
        stop_mpiexec(job->mpiexec);
    }
    close(job->output);
    /* Proxies end with mpiexec, clones with their proxies; or else. */
    if (!well || sf_join_timed(job->ticket, NULL, 0, END_MS) <= 0) {
        sf_kill(job->ticket);
    }
    return ended_by ? SIGNALLED + ended_by : well ? status_of(status) : EXIT_TROUBLE;
}

static void catch_signals(void)
{
    static const int numbers[] = { SIGINT, SIGTERM, SIGHUP };
    struct sigaction action = { .sa_handler = note_signal };

    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        sigaction(numbers[i], &action, NULL);
    }
}

static int run(struct job *job, const char *address)
{
    int status = start_mpiexec(job, address), id;

    if (status == 0) {
        status = read_proxies(job);
    }
    if (status != 0) {
        if (job->mpiexec > 0) {
            stop_mpiexec(job->mpiexec);
        }
        return status;
    }
    catch_signals();
    fflush(stdout);
    id = sf_clone(job->ticket);
    if (id > 0) {
        work(job, id);
    }
    if (id < 0) {
        stop_mpiexec(job->mpiexec);
        return trouble("%s", sf_error());
    }
    return watch(job);
}

/* ---- command line ---- */

static int usage(void)
{
    fputs("usage: sf-mpiexec [-n RANKS] [-ppn RANKS-OF-A-CLONE] [OPTIONS OF mpiexec] PROGRAM [ARGUMENTS]\n", stderr);
    return EXIT_USAGE;
}

static bool parse_count(const char *text, unsigned *count)
{
    char *end;
    long number = text ? strtol(text, &end, 10) : 0;

    *count = (unsigned)number;
    return text && *end == '\0' && number >= 1 && number <= (long)SF_MAX_CLONES;
}

static bool parse(struct job *job, int argc, char **argv)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    int i = 1;

    job->ranks = 1;
    job->per_clone = cpus < 1 ? 1 : (unsigned)cpus;
    for (; i < argc; i += 2) {
        if (strcmp(argv[i], "-n") == 0 || strcmp(argv[i], "-np") == 0) {
            if (!parse_count(argv[i + 1], &job->ranks)) {
                return false;
            }
        } else if (strcmp(argv[i], "-ppn") == 0) {
            if (!parse_count(argv[i + 1], &job->per_clone)) {
                return false;
            }
        } else {
            break;
        }
    }
    job->arguments = argv + i;
    job->arguments_count = argc - i;
    return i < argc;
}

int main(int argc, char **argv)
{
    char address[SF_ADDRESS_LENGTH];
    struct job job = { .output = -1 };
    unsigned granted;
    int status;

    if (argc > 1 && strcmp(argv[1], "--version") == 0) {
        printf("sf-mpiexec %s\n", sf_version());
        return 0;
    }
    if (!parse(&job, argc, argv)) {
        return usage();
    }
    if (sf_address(SF_SELF, address, sizeof(address)) < 0) {
        return trouble("ranks need a network between clones (sfctl run --network cluster): %s", sf_error());
    }
    job.clones = (job.ranks + job.per_clone - 1) / job.per_clone;
    job.ticket = sf_request_ticket(job.clones, 0);
    if (!job.ticket) {
        return trouble("%s", sf_error());
    }
    granted = sf_ticket_granted(job.ticket);
    if (granted < job.clones) {
        job.per_clone = (job.ranks + granted - 1) / granted;
        job.clones = (job.ranks + job.per_clone - 1) / job.per_clone;
    }
    status = run(&job, address);
    sf_release(job.ticket);
    sf_ticket_free(job.ticket);
    return status;
}
