/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The command sf: libsf's calls for shell scripts.
 *
 *     eval "$(sf clone -n 8)" || exit
 *     if [ "$SF_ID" -gt 0 ]; then
 *         work --part "$SF_ID" --of "$SF_COUNT" | sf exit 0 --result -
 *     fi
 *     sf join --results parts/
 *
 * `sf clone` prints assignments because a command cannot change its shell's variables. The shell that waits for it
 * exists in every clone, and reads there what that clone's sf printed. What goes wrong prints `false`, so that the eval
 * fails too.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sf.h"

#define TICKET_VARIABLE  "SF_TICKET"
#define GRANTED_VARIABLE "SF_GRANTED"
#define MS_PER_S         1000
#define READ_SIZE        65536

struct command {
    const char *name;
    const char *arguments;
    const char *help;
    int (*run)(int argc, char **argv);
};

static const struct command *command;   /* the one that runs, for messages */

/* ---- messages ---- */

int trouble(int status, const char *format, ...)
{
    va_list arguments;

    fprintf(stderr, "sf %s: ", command->name);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    return status;
}

int call_failed(void)
{
    return trouble(EXIT_TROUBLE, "%s", sf_error());
}

int bad_usage(void)
{
    return trouble(EXIT_USAGE, "usage: sf %s %s", command->name, command->arguments);
}

/* ---- arguments ---- */

bool parse_number(const char *text, int base, unsigned long long max, unsigned long long *number)
{
    char *end;

    errno = 0;
    *number = strtoull(text, &end, base);
    return errno == 0 && end != text && *end == '\0' && text[strspn(text, " \t\n-+")] == text[0] && *number <= max;
}

static bool parse_status(const char *text, int *status)
{
    unsigned long long number;
    bool ok = parse_number(text, 10, UCHAR_MAX, &number);

    *status = (int)number;
    return ok;
}

/* Seconds, "2" or "0.5", as milliseconds. */
static bool parse_seconds(const char *text, int *ms)
{
    char *end;
    double seconds = strtod(text, &end);
    bool ok = end != text && *end == '\0' && seconds >= 0 && seconds <= INT_MAX / MS_PER_S;

    *ms = ok ? (int)(seconds * MS_PER_S) : 0;
    return ok;
}

/* The ticket of the command line, else of the environment. */
static sf_ticket *open_ticket(const char *text)
{
    unsigned long long id;
    sf_ticket *ticket;

    if (!text) {
        text = getenv(TICKET_VARIABLE);
    }
    if (!text || text[0] == '\0') {
        trouble(EXIT_USAGE, "no ticket: name one, or set " TICKET_VARIABLE " (`sf clone` and `sf ticket` print it)");
        return NULL;
    }
    if (!parse_number(text, 16, UINT64_MAX, &id) || id == 0) {
        trouble(EXIT_USAGE, "%s: not a ticket", text);
        return NULL;
    }
    ticket = sf_ticket_open(id);
    if (!ticket) {
        call_failed();
    }
    return ticket;
}

/* ---- files ---- */

char *read_all(int fd, size_t *length)
{
    size_t capacity = READ_SIZE;
    char *data = malloc(capacity), *larger;
    ssize_t got = data ? 1 : -1;

    *length = 0;
    while (got > 0) {
        if (*length == capacity) {
            capacity *= 2;
            larger = realloc(data, capacity);
            if (!larger) {
                got = -1;
                break;
            }
            data = larger;
        }
        do {
            got = read(fd, data + *length, capacity - *length);
        } while (got < 0 && errno == EINTR);
        *length += got > 0 ? (size_t)got : 0;
        if (*length > SF_MAX_RESULT) {
            errno = EFBIG;
            got = -1;
        }
    }
    if (got < 0) {
        free(data);
        data = NULL;
    }
    return data;
}

/* All of a file ("-": standard input). */
static char *read_file(const char *path, size_t *length)
{
    bool standard = strcmp(path, "-") == 0;
    int fd = standard ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    char *data = fd < 0 ? NULL : read_all(fd, length);

    if (!data) {
        trouble(EXIT_TROUBLE, "%s: %s", path, strerror(errno));
    }
    if (fd >= 0 && !standard) {
        close(fd);
    }
    return data;
}

bool write_all(int fd, const char *data, size_t length)
{
    while (length > 0) {
        ssize_t put = write(fd, data, length);

        if (put < 0 && errno != EINTR) {
            return false;
        }
        data += put > 0 ? put : 0;
        length -= put > 0 ? (size_t)put : 0;
    }
    return true;
}

static bool save_result(sf_ticket *ticket, unsigned id, const char *directory)
{
    char path[PATH_MAX];
    size_t length;
    char *data = sf_result_get(ticket, id, &length);
    bool ok;
    int fd;

    if (!data) {
        call_failed();
        return false;
    }
    snprintf(path, sizeof(path), "%s/%u", directory, id);
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    ok = fd >= 0 && write_all(fd, data, length);
    if (fd >= 0) {
        ok = close(fd) == 0 && ok;
    }
    if (!ok) {
        trouble(EXIT_TROUBLE, "%s: %s", path, strerror(errno));
    }
    free(data);
    return ok;
}

/* ---- the table of clones ---- */

static void print_json_text(const char *text)
{
    putchar('"');
    for (; *text != '\0'; text++) {
        if (*text == '"' || *text == '\\') {
            putchar('\\');
        }
        putchar(*text); /* libsf lets no control characters through */
    }
    putchar('"');
}

static void print_results(const struct sf_result *results, int n, bool json)
{
    if (json) {
        printf("[");
        for (int i = 0; i < n; i++) {
            printf("%s\n  {\"id\": %u, \"state\": \"%s\", \"status\": ", i > 0 ? "," : "", results[i].id,
                   sf_state_name(results[i].state));
            if (results[i].state == SF_EXITED) {
                printf("%d", results[i].status);
            } else {
                printf("null");
            }
            printf(", \"result_length\": %" PRIu64 ", \"text\": ", results[i].result_length);
            print_json_text(results[i].text);
            printf("}");
        }
        printf("\n]\n");
        return;
    }
    printf("%4s  %-8s  %6s  %10s  %s\n", "ID", "STATE", "STATUS", "RESULT", "REASON");
    for (int i = 0; i < n; i++) {
        char status[16] = "-";

        if (results[i].state == SF_EXITED) {
            snprintf(status, sizeof(status), "%d", results[i].status);
        }
        printf("%4u  %-8s  %6s  %10" PRIu64 "%s%s\n", results[i].id, sf_state_name(results[i].state), status,
               results[i].result_length, results[i].text[0] ? "  " : "", results[i].text);
    }
}

/* ---- commands ---- */

static void print_assignments(uint64_t ticket, unsigned granted)
{
    printf(TICKET_VARIABLE "=%016" PRIx64 "; " GRANTED_VARIABLE "=%u; ", ticket, granted);
    puts("export " TICKET_VARIABLE " " GRANTED_VARIABLE);
}

/* What a call gave, for eval; takes it. NULL: the call failed. */
static int print_ticket(sf_ticket *ticket)
{
    if (!ticket) {
        puts("false");
        return call_failed();
    }
    print_assignments(sf_ticket_id(ticket), sf_ticket_granted(ticket));
    sf_ticket_free(ticket);
    return 0;
}

static int run_ticket(int argc, char **argv)
{
    unsigned long long count;

    if (argc != 2 || !parse_number(argv[1], 10, UINT_MAX, &count)) {
        puts("false");
        return bad_usage();
    }
    return print_ticket(sf_request_ticket((unsigned)count, 0));
}

static int clone_with(sf_ticket *ticket)
{
    const char *told = getenv(GRANTED_VARIABLE);
    unsigned long long before = 0;
    unsigned granted;
    int id = sf_clone(ticket);

    if (id < 0) {
        return call_failed();
    }
    /* Of a ticket that `sf ticket` got, sf_clone() says only how many clones could be placed; ids go further. */
    granted = sf_ticket_granted(ticket);
    if (told && parse_number(told, 10, SF_MAX_CLONES, &before) && before > granted) {
        granted = (unsigned)before;
    }
    printf("SF_ID=%d; SF_COUNT=%u; export SF_ID SF_COUNT\n", id, granted);
    print_assignments(sf_ticket_id(ticket), granted);
    return 0;
}

static int run_clone(int argc, char **argv)
{
    static const struct option options[] = { { "count", required_argument, NULL, 'n' }, { NULL, 0, NULL, 0 } };
    unsigned long long count = 0;
    sf_ticket *ticket = NULL;
    int option, status;

    while ((option = getopt_long(argc, argv, "n:", options, NULL)) != -1) {
        if (option != 'n' || !parse_number(optarg, 10, UINT_MAX, &count) || count == 0) {
            puts("false");
            return bad_usage();
        }
    }
    if (argc - optind > (count > 0 ? 0 : 1)) {
        puts("false");
        return bad_usage();
    }
    if (count > 0 || argv[optind]) {
        unsetenv(GRANTED_VARIABLE); /* it is that of the ticket in the environment */
    }
    if (count > 0) {
        ticket = sf_request_ticket((unsigned)count, 0);
        status = ticket ? 0 : call_failed();
    } else {
        ticket = open_ticket(argv[optind]);
        status = ticket ? 0 : EXIT_USAGE;
    }
    if (status == 0) {
        status = clone_with(ticket);
    }
    if (status != 0) {
        puts("false");
    }
    sf_ticket_free(ticket);
    return status;
}

static int run_checkpoint(int argc, char **argv)
{
    int id = argc == 2 ? sf_checkpoint_parent(argv[1]) : -1;

    if (id < 0) {
        puts("false");
        return argc == 2 ? call_failed() : bad_usage();
    }
    printf("SF_ID=%d; SF_COUNT=%d; export SF_ID SF_COUNT\n", id, id > 0 ? sf_count() : 0);
    return 0;
}

static int run_create(int argc, char **argv)
{
    unsigned long long count;

    if (argc != 3 || !parse_number(argv[2], 10, UINT_MAX, &count)) {
        puts("false");
        return bad_usage();
    }
    return print_ticket(sf_create_clones(argv[1], (unsigned)count));
}

static int run_forget(int argc, char **argv)
{
    if (argc != 2) {
        return bad_usage();
    }
    return sf_checkpoint_forget(argv[1]) < 0 ? call_failed() : 0;
}

static int run_exit(int argc, char **argv)
{
    static const struct option options[] = { { "result", required_argument, NULL, 'r' }, { NULL, 0, NULL, 0 } };
    const char *result = NULL;
    int option, status = 0;
    size_t length;
    char *data;

    while ((option = getopt_long(argc, argv, "r:", options, NULL)) != -1) {
        if (option != 'r') {
            return bad_usage();
        }
        result = optarg;
    }
    if (argc - optind > 1 || (argc > optind && !parse_status(argv[optind], &status))) {
        return bad_usage();
    }
    if (result) {
        data = read_file(result, &length);
        if (!data) {
            return EXIT_TROUBLE;
        }
        if (sf_sync(data, length) < 0) {
            free(data);
            return call_failed();
        }
    }
    sf_exit(status);
}

static int run_sync(int argc, char **argv)
{
    size_t length;
    char *data;
    int status;

    if (argc != 2) {
        return bad_usage();
    }
    data = read_file(argv[1], &length);
    if (!data) {
        return EXIT_TROUBLE;
    }
    status = sf_sync(data, length) < 0 ? call_failed() : 0;
    free(data);
    return status;
}

static bool prepare_directory(const char *directory)
{
    if (mkdir(directory, 0777) < 0 && errno != EEXIST) {
        trouble(EXIT_TROUBLE, "%s: %s", directory, strerror(errno));
        return false;
    }
    return true;
}

static int wait_and_show(sf_ticket *ticket, int timeout_ms, const char *directory, bool json, bool quiet)
{
    static struct sf_result results[SF_MAX_CLONES];
    int n = sf_join_timed(ticket, results, SF_MAX_CLONES, timeout_ms), status = 0;

    if (n < 0) {
        return call_failed();
    }
    if (n == 0) {
        status = EXIT_RUNNING;
        for (; n < (int)SF_MAX_CLONES && results[n].id != 0; n++) {
        }
    }
    for (int i = 0; i < n; i++) {
        if (status == 0 && (results[i].state != SF_EXITED || results[i].status != 0)) {
            status = EXIT_CLONES;
        }
        if (directory && results[i].state >= SF_EXITED && results[i].result_length > 0 &&
            !save_result(ticket, results[i].id, directory)) {
            return EXIT_TROUBLE;
        }
    }
    if (!quiet) {
        print_results(results, n, json);
    }
    return status;
}

static int run_join(int argc, char **argv)
{
    enum { RESULTS = 'r', JSON = 'j', QUIET = 'q', TIMEOUT = 't', RELEASE = 'R' };
    static const struct option options[] = {
        { "results", required_argument, NULL, RESULTS }, { "json", no_argument, NULL, JSON },
        { "quiet", no_argument, NULL, QUIET },           { "timeout", required_argument, NULL, TIMEOUT },
        { "release", no_argument, NULL, RELEASE },       { NULL, 0, NULL, 0 },
    };
    bool json = false, quiet = false, release = false;
    const char *directory = NULL;
    int option, status, timeout_ms = -1;
    sf_ticket *ticket;

    while ((option = getopt_long(argc, argv, "r:jqt:", options, NULL)) != -1) {
        switch (option) {
        case RESULTS:
            directory = optarg;
            break;
        case JSON:
            json = true;
            break;
        case QUIET:
            quiet = true;
            break;
        case RELEASE:
            release = true;
            break;
        case TIMEOUT:
            if (!parse_seconds(optarg, &timeout_ms)) {
                return bad_usage();
            }
            break;
        default:
            return bad_usage();
        }
    }
    if (argc - optind > 1) {
        return bad_usage();
    }
    ticket = open_ticket(argv[optind]);
    if (!ticket) {
        return EXIT_USAGE;
    }
    if (directory && !prepare_directory(directory)) {
        sf_ticket_free(ticket);
        return EXIT_TROUBLE;
    }
    status = wait_and_show(ticket, timeout_ms, directory, json, quiet);
    if (release && (status == 0 || status == EXIT_CLONES) && sf_release(ticket) < 0) {
        status = call_failed();
    }
    sf_ticket_free(ticket);
    return status;
}

static int run_result(int argc, char **argv)
{
    unsigned long long id;
    sf_ticket *ticket;
    size_t length;
    char *data;
    int status = 0;

    if (argc < 2 || argc > 3 || !parse_number(argv[argc - 1], 10, SF_MAX_CLONES, &id)) {
        return bad_usage();
    }
    ticket = open_ticket(argc == 3 ? argv[1] : NULL);
    if (!ticket) {
        return EXIT_USAGE;
    }
    data = sf_result_get(ticket, (unsigned)id, &length);
    if (!data) {
        status = call_failed();
    } else if (!write_all(STDOUT_FILENO, data, length)) {
        status = trouble(EXIT_TROUBLE, "standard output: %s", strerror(errno));
    }
    free(data);
    sf_ticket_free(ticket);
    return status;
}

static int tell(int argc, char **argv, int (*call)(sf_ticket *))
{
    sf_ticket *ticket;
    int status;

    if (argc > 2) {
        return bad_usage();
    }
    ticket = open_ticket(argv[1]);
    if (!ticket) {
        return EXIT_USAGE;
    }
    status = call(ticket) < 0 ? call_failed() : 0;
    sf_ticket_free(ticket);
    return status;
}

static int run_kill(int argc, char **argv)
{
    return tell(argc, argv, sf_kill);
}

static int run_release(int argc, char **argv)
{
    return tell(argc, argv, sf_release);
}

static int print_number(int argc, int number)
{
    if (argc != 1) {
        return bad_usage();
    }
    if (number < 0) {
        return call_failed();
    }
    printf("%d\n", number);
    return 0;
}

static int run_id(int argc, char **argv)
{
    return print_number(argc, sf_id());
}

static int run_count(int argc, char **argv)
{
    return print_number(argc, sf_count());
}

static int run_address(int argc, char **argv)
{
    char address[SF_ADDRESS_LENGTH];
    unsigned long long id = 0;
    bool parent = argc == 2 && strcmp(argv[1], "parent") == 0;

    if (argc > 2 || (argc == 2 && !parent && !parse_number(argv[1], 10, SF_MAX_CLONES, &id))) {
        return bad_usage();
    }
    if (sf_address(argc < 2 ? SF_SELF : (int)id, address, sizeof(address)) < 0) {
        return call_failed();
    }
    puts(address);
    return 0;
}

static int run_status(int argc, char **argv)
{
    static const struct option options[] = { { "json", no_argument, NULL, 'j' }, { NULL, 0, NULL, 0 } };
    const char *environment = getenv(TICKET_VARIABLE);
    bool json = false;
    sf_ticket *ticket;
    int option, id, count, status = 0;

    while ((option = getopt_long(argc, argv, "j", options, NULL)) != -1) {
        if (option != 'j') {
            return bad_usage();
        }
        json = true;
    }
    id = sf_id();
    count = id < 0 ? -1 : sf_count();
    if (argc - optind > 1) {
        return bad_usage();
    }
    if (count < 0) {
        return call_failed();
    }
    if (json) {
        printf("{\"id\": %d, \"count\": %d, \"clones\": ", id, count);
    } else if (id > 0) {
        printf("This VM is clone %d of %d.\n", id, count);
    } else {
        printf("This VM is no clone.\n");
    }
    /* In a clone the environment's ticket is the parent's. */
    if (argc > optind || (id == 0 && environment && environment[0] != '\0')) {
        ticket = open_ticket(argv[optind]);
        status = ticket ? wait_and_show(ticket, 0, NULL, json, false) : EXIT_USAGE;
        sf_ticket_free(ticket);
    } else if (json) {
        printf("[]\n");
    }
    if (json) {
        printf("}\n");
    }
    return status == EXIT_RUNNING || status == EXIT_CLONES ? 0 : status;
}

static int run_help(int argc, char **argv);

static const struct command commands[] = {
    { "ticket", "COUNT", "ask for the right to fork into COUNT clones; prints assignments for eval", run_ticket },
    { "clone", "[-n COUNT | TICKET]", "fork this VM; prints assignments for eval: SF_ID is 0 in the parent",
      run_clone },
    { "checkpoint", "NAME", "save this VM for later clones; prints assignments for eval: SF_ID is 0 in the parent",
      run_checkpoint },
    { "create", "NAME COUNT", "make COUNT clones of a checkpoint; prints assignments for eval", run_create },
    { "forget", "NAME", "remove a checkpoint", run_forget },
    { "exit", "[STATUS] [--result FILE|-]", "in a clone: hand over the result, end the clone", run_exit },
    { "sync", "FILE|-", "in a clone: hand over the result so far, go on", run_sync },
    { "join", "[TICKET] [--results DIR] [--timeout SECONDS] [--json] [--quiet] [--release]",
      "wait for all clones; save their results as DIR/ID", run_join },
    { "result", "[TICKET] ID", "write the result of clone ID to standard output", run_result },
    { "kill", "[TICKET]", "end all clones", run_kill },
    { "release", "[TICKET]", "let the host forget the ticket and its results", run_release },
    { "mapreduce", "--map COMMAND [--reduce COMMAND] [-n COUNT] FILE...",
      "run COMMAND for each FILE in clones, one for each CPU; reduce what they print", run_mapreduce },
    { "id", "", "print this VM's id: 0 if it is no clone", run_id },
    { "count", "", "print how many clones were made with this one", run_count },
    { "address", "[ID | parent]", "print this VM's address in its cluster, or that of another member", run_address },
    { "status", "[TICKET] [--json]", "say what this VM is and what its clones do", run_status },
    { "help", "", "print this", run_help },
};

#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

static void print_help(FILE *out)
{
    fputs("usage: sf COMMAND [ARGUMENTS]\nFork this virtual machine from a shell script. See sf(1).\n\n", out);
    for (size_t i = 0; i < COMMANDS; i++) {
        fprintf(out, "  sf %s %s\n        %s\n", commands[i].name, commands[i].arguments, commands[i].help);
    }
    fputs("\nWithout TICKET the variable " TICKET_VARIABLE " names it.\n\n"
          "  eval \"$(sf clone -n 8)\" || exit\n"
          "  [ \"$SF_ID\" -eq 0 ] || exec sf exit 0 --result <(work --part \"$SF_ID\" --of \"$SF_COUNT\")\n"
          "  sf join --results parts/\n",
          out);
}

static int run_help(int argc, char **argv)
{
    print_help(stdout);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_help(stdout);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("sf %s\n", sf_version());
        return 0;
    }
    for (size_t i = 0; i < COMMANDS; i++) {
        if (strcmp(argv[1], commands[i].name) != 0) {
            continue;
        }
        command = &commands[i];
        if (argc > 2 && strcmp(argv[2], "--help") == 0) {
            printf("usage: sf %s %s\n%s\n", command->name, command->arguments, command->help);
            return 0;
        }
        opterr = 0;
        return command->run(argc - 1, argv + 1);
    }
    fprintf(stderr, "sf: %s: no such command; `sf --help` lists them\n", argv[1]);
    return EXIT_USAGE;
}
