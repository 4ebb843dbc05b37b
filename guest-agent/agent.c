/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sf-agent: the guest's end of VM fork.
 *
 *     program --.                       .-- HELLO, replies, IDENTITY
 *     program ---+-- slots.c -- agent.c --- port.c --- virtio-serial --- sfvmmd
 *     program --'                  |
 *                             identity.c, hooks.c, network.c, names.c
 *
 * It does two things. Programs ask over a unix socket, one packet a request; the agent passes requests to the host and
 * answers back, and keeps each until it is answered, so that a restart of sfvmmd is not seen by programs. And when this
 * VM turns out to be a clone (IDENTITY arrives) it makes the VM a thing of its own before any program learns of it:
 *
 *     idle --IDENTITY--> random numbers, clock, hostname, addresses --> hooks, one by one --> file `clone`
 *                               |                                |                  |
 *                               +--- failed: ERROR to the host --+     IDENTITY|REPLY to the host, id to the
 *                                    (which ends this VM);             program that waits in sf_clone(),
 *                                    programs stay blocked             ECHILD to all others that wait
 *
 * With a cluster network, programs of a clone wait for LINK too: the host gives the link only after that reply.
 *
 * One thread, one poll(). The host comes first in each turn, then hooks, then programs. From IDENTITY to the answers
 * nothing sleeps, allocates or asks a name service. Requests that came before IDENTITY are the parent's ("foreign")
 * and never go to the host from here; a program (a hook, say) may ask for SELF at any time.
 */
#include "guest-agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <grp.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#define RUN_DIR          "/run/snowflock"
#define HOOK_DIR         "/etc/snowflock/clone.d"
#define NAMES_FILE       "/etc/hosts"
#define GROUP            "snowflock"
#define SOCKET_MODE      0660
#define HOOK_TIMEOUT_MS  10000
#define BACKLOG          64
#define AGENT_NICE       (-15)
#define ACCEPTS_PER_TURN 8
#define LOG_LINE_MAX     1024
#define WHO_TRIES        60     /* once a second: until the NIC's driver is there */
#define IDLE_MS          500    /* without any event: the fork is over, the log can be written */

/* Exit statuses besides 0. */
#define EXIT_START       1
#define EXIT_USAGE       2

enum { POLL_SIGNAL, POLL_PORT, POLL_LISTEN, POLL_SLOTS, POLL_COUNT = POLL_SLOTS + AGENT_MAX_SLOTS };

struct agent {
    struct agent_options options;
    int signal_fd, listen_fd;
    struct port port;
    struct slots slots;
    struct identity identity;
    struct network network;
    uint32_t network_request;       /* 0: no NETWORK waits for its answer */
    uint32_t link_request;          /* the same of LINK */
    uint32_t identity_request;      /* 0: no IDENTITY waits for its answer */
    uint32_t identity_asked;        /* the last one of this connection of the host; 0: none */
    unsigned who_tries;             /* left, to ask which clone this VM is; 0: asked, or told */
    bool programs_wait;             /* the clone's programs do not know yet */
    bool announce;                  /* nor does the log: a console is slow, so that waits for an idle moment */
    bool hello_due;
    uint32_t hello_request;
    uint64_t nonce;                 /* of the last HELLO; valid once had_hello */
    bool had_hello;
    bool stop;
};

static struct agent agent;

void agent_log(int priority, const char *format, ...)
{
    va_list arguments;

    if (priority == LOG_DEBUG && !agent.options.verbose) {
        return;
    }
    va_start(arguments, format);
    if (agent.options.syslog) {
        vsyslog(priority, format, arguments);
    } else {
        char line[LOG_LINE_MAX];
        int prefix = snprintf(line, sizeof(line), "sf-agent: ");
        int length = vsnprintf(line + prefix, sizeof(line) - (size_t)prefix - 1, format, arguments);

        length = length < 0 ? 0 : length < LOG_LINE_MAX - prefix - 2 ? length : LOG_LINE_MAX - prefix - 2;
        line[prefix + length] = '\n';
        (void)!write(STDERR_FILENO, line, (size_t)(prefix + length + 1)); /* there is nobody else to tell */
    }
    va_end(arguments);
}

uint64_t agent_now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* ---- messages of the host ---- */

static void answer_hello(void)
{
    struct sf_gp_hello hello = { .version = SF_GP_VERSION, .nonce = agent.nonce };
    uint8_t payload[SF_GP_HELLO_LENGTH];

    agent.hello_due = !port_put(&agent.port, SF_GP_HELLO | SF_GP_REPLY, agent.hello_request, payload,
                                sf_gp_hello_pack(payload, &hello));
}

static void on_hello(const struct sf_gp_header *header, const uint8_t *payload)
{
    struct sf_gp_hello hello;

    if (!sf_gp_hello_parse(&hello, payload, header->length)) {
        agent_log(LOG_WARNING, "the host's HELLO is malformed");
        return;
    }
    if (hello.version != SF_GP_VERSION) {
        agent_log(LOG_WARNING, "the host speaks version %u of the protocol, this agent version %u", hello.version,
                  SF_GP_VERSION);
    }
    if (!agent.had_hello || hello.nonce != agent.nonce) {
        agent.identity_asked = 0; /* this host asks again */
    }
    if (!agent.had_hello || hello.nonce != agent.nonce || !agent.port.greeted) {
        port_restart_output(&agent.port);
        slots_unsend(&agent.slots);
        agent.identity_request = agent.identity_asked;
        agent.network_request = agent.link_request = 0; /* a new host says both again */
    }
    if (!agent.had_hello && agent.identity.state == IDENTITY_NONE) {
        agent.who_tries = WHO_TRIES;
    }
    agent.had_hello = true;
    agent.nonce = hello.nonce;
    agent.port.greeted = true;
    agent.hello_request = header->request;
    agent.hello_due = true;
}

static void answer_identity(void)
{
    uint8_t payload[SF_GP_ERROR_LENGTH];
    bool put;

    if (agent.identity.state == IDENTITY_DONE) {
        put = port_put(&agent.port, SF_GP_IDENTITY | SF_GP_REPLY, agent.identity_request, NULL, 0);
    } else {
        put = port_put(&agent.port, SF_GP_ERROR, agent.identity_request, payload,
                       sf_gp_error_pack(payload, &agent.identity.error));
    }
    if (put) {
        agent.identity_request = 0;
    }
}

static void on_identity(const struct sf_gp_header *header, const uint8_t *payload)
{
    struct sf_gp_identity value;
    bool ok = sf_gp_identity_parse(&value, payload, header->length), with_network;

    port_wipe_message(&agent.port, header->length);
    if (!ok) {
        struct sf_gp_error error = { .error = EPROTO };
        uint8_t refusal[SF_GP_ERROR_LENGTH];

        agent_log(LOG_WARNING, "the host's IDENTITY is malformed");
        sf_gp_text_set(error.text, sizeof(error.text), "malformed IDENTITY");
        port_put(&agent.port, SF_GP_ERROR, header->request, refusal, sf_gp_error_pack(refusal, &error));
        return;
    }
    agent.identity_request = agent.identity_asked = header->request;
    agent.who_tries = 0;
    with_network = agent.network.fresh && agent.network.value.ticket == value.ticket &&
                   agent.network.value.id == value.id && !(agent.options.skip & AGENT_SKIP_NETWORK);
    agent.network.fresh = false;
    if (agent.identity.state != IDENTITY_NONE && agent.identity.value.ticket == value.ticket &&
        agent.identity.value.id == value.id) {
        explicit_bzero(value.seed, sizeof(value.seed)); /* said again after a reconnection */
        slots_unsend(&agent.slots); /* a host that asks has dropped what this clone has sent since HELLO */
        return;
    }
    slots_fork(&agent.slots);
    agent.programs_wait = true;
    agent.network.link_due = with_network;
    agent.identity.network = with_network ? &agent.network : NULL;
    identity_begin(&agent.identity, &value);
}

static void on_network(const struct sf_gp_header *header, const uint8_t *payload)
{
    struct sf_gp_network value;

    if (!sf_gp_network_parse(&value, payload, header->length)) {
        agent_log(LOG_WARNING, "the host's NETWORK is malformed"); /* not answered: no link then, the same as unknown */
        return;
    }
    agent.network_request = header->request;
    if (agent.options.skip & AGENT_SKIP_NETWORK) {
        agent.network.value = value; /* programs may ask for it all the same */
    } else {
        network_told(&agent.network, &value);
    }
}

static void on_link(const struct sf_gp_header *header)
{
    agent.link_request = header->request;
    if (agent.identity.state == IDENTITY_DONE) {
        agent.network.link_due = false;
    }
}

static void on_message(void *opaque, const struct sf_gp_header *header, const uint8_t *payload)
{
    switch (header->type) {
    case SF_GP_HELLO:
        on_hello(header, payload);
        break;
    case SF_GP_IDENTITY:
        on_identity(header, payload);
        break;
    case SF_GP_NETWORK:
        on_network(header, payload);
        break;
    case SF_GP_LINK:
        on_link(header);
        break;
    default:
        if (header->type & SF_GP_REPLY) {
            slots_answer(&agent.slots, header, payload);
        } else {
            agent_log(LOG_WARNING, "the host sent message %u, which this agent does not know", header->type);
        }
    }
}

/* An empty answer that is due; tried again when there is room. */
static void answer_due(uint8_t type, uint32_t *request)
{
    if (*request != 0 && port_put(&agent.port, type | SF_GP_REPLY, *request, NULL, 0)) {
        *request = 0;
    }
}

static void announce(void)
{
    agent.announce = false;
    agent_log(LOG_NOTICE, "this VM is now clone %u of %u, %s, of %s", agent.identity.value.id,
              agent.identity.value.count, agent.identity.value.hostname, agent.identity.value.parent);
}

/* Puts out what is due: answers to the host first, then what programs wait for, then requests in turn. */
static void pump(void)
{
    enum identity_state state = agent.identity.state;
    const uint8_t *payload;
    struct slot *slot;

    if (!agent.port.greeted) {
        return;
    }
    if (agent.hello_due) {
        answer_hello();
    }
    answer_due(SF_GP_NETWORK, &agent.network_request);
    if (agent.identity_request != 0 && (state == IDENTITY_DONE || state == IDENTITY_FAILED)) {
        answer_identity();
    }
    answer_due(SF_GP_LINK, &agent.link_request);
    port_flush(&agent.port);
    if (agent.programs_wait && state == IDENTITY_DONE && !agent.network.link_due) {
        agent.programs_wait = false;
        slots_forked(&agent.slots, agent.identity.value.clone_request);
        agent.announce = true;
    }
    while (!agent.programs_wait && agent.port.greeted && agent.port.out_at == agent.port.out_length &&
           (slot = slots_next(&agent.slots, &payload))) {
        slot->sent = port_put(&agent.port, slot->type, slot->host_request, payload, slot->length);
        port_flush(&agent.port);
    }
}

/* A clone's guest may have booted anew. Not before its NIC is there, as the answer makes it the clone's. */
static void ask_who(void)
{
    agent.who_tries--;
    if (agent.port.greeted && (agent.who_tries == 0 || network_has_nic(&agent.network))) {
        agent.who_tries = port_put(&agent.port, SF_GP_WHO, 1, NULL, 0) ? 0 : agent.who_tries;
    }
}

/* ---- the socket ---- */

static void accept_programs(void)
{
    for (int i = 0; i < ACCEPTS_PER_TURN && slots_room(&agent.slots); i++) {
        int fd = accept4(agent.listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        struct ucred peer = { .uid = (uid_t)-1 };
        socklen_t length = sizeof(peer);

        if (fd < 0) {
            return;
        }
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length);
        slots_connect(&agent.slots, fd, peer.uid);
    }
}

static bool make_directory(const char *path)
{
    if (mkdir(path, 0755) < 0 && errno != EEXIST) {
        agent_log(LOG_ERR, "%s: %s", path, strerror(errno));
        return false;
    }
    return true;
}

/* One agent for each VM: the lock lives as long as the process. */
static bool take_lock(void)
{
    char path[PATH_MAX];
    int fd;

    snprintf(path, sizeof(path), "%s/agent.lock", agent.options.run_dir);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        agent_log(LOG_ERR, "%s: %s", path, strerror(errno));
        return false;
    }
    if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        agent_log(LOG_ERR, "%s: another sf-agent runs", path);
        return false;
    }
    return true;
}

static bool listen_for_programs(void)
{
    const char *path = agent.options.socket;
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    struct group *group;
    mode_t mask;
    bool bound;

    if (strlen(path) >= sizeof(address.sun_path)) {
        agent_log(LOG_ERR, "%s: longer than a unix socket's path may be", path);
        return false;
    }
    strcpy(address.sun_path, path);
    unlink(path);
    agent.listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    mask = umask(0777); /* nobody connects before the mode is set */
    bound = agent.listen_fd >= 0 && bind(agent.listen_fd, (struct sockaddr *)&address, sizeof(address)) == 0;
    umask(mask);
    if (!bound) {
        agent_log(LOG_ERR, "%s: %s", path, strerror(errno));
        return false;
    }
    group = getgrnam(agent.options.group);
    if (!group) {
        agent_log(LOG_NOTICE, "no group %s: only root may use %s", agent.options.group, path);
    } else if (chown(path, (uid_t)-1, group->gr_gid) < 0) {
        agent_log(LOG_WARNING, "%s: group %s: %s", path, agent.options.group, strerror(errno));
    }
    if (chmod(path, agent.options.mode) < 0 || listen(agent.listen_fd, BACKLOG) < 0) {
        agent_log(LOG_ERR, "%s: %s", path, strerror(errno));
        return false;
    }
    return true;
}

/* ---- the loop ---- */

static bool take_signals(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGIO);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    sigprocmask(SIG_BLOCK, &set, NULL);
    agent.signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (agent.signal_fd < 0) {
        agent_log(LOG_ERR, "signalfd: %s", strerror(errno));
    }
    return agent.signal_fd >= 0;
}

static void on_signal(void)
{
    struct signalfd_siginfo signal;

    while (read(agent.signal_fd, &signal, sizeof(signal)) == (ssize_t)sizeof(signal)) {
        if (signal.ssi_signo == SIGCHLD) {
            identity_child(&agent.identity);
        } else if (signal.ssi_signo == SIGIO) {
            port_try(&agent.port);
        } else {
            agent.stop = true;
        }
    }
}

static int next_timeout(void)
{
    int hook = identity_timeout_ms(&agent.identity);
    bool retry = !agent.port.connected || agent.who_tries > 0 || network_wants_retry(&agent.network);
    int other = agent.announce ? IDLE_MS : retry ? AGENT_RETRY_MS : -1;

    return hook < 0 ? other : other < 0 || hook < other ? hook : other;
}

/* Returns how many there are to poll. */
static nfds_t prepare(struct pollfd *polls)
{
    bool writing = agent.port.out_at < agent.port.out_length;

    polls[POLL_SIGNAL] = (struct pollfd){ .fd = agent.signal_fd, .events = POLLIN };
    polls[POLL_PORT] = (struct pollfd){ .fd = agent.port.connected ? agent.port.fd : -1,
                                        .events = (short)(POLLIN | (writing ? POLLOUT : 0)) };
    polls[POLL_LISTEN] = (struct pollfd){ .fd = slots_room(&agent.slots) ? agent.listen_fd : -1, .events = POLLIN };
    for (unsigned i = 0; i < agent.slots.end; i++) {
        struct slot *slot = &agent.slots.slot[i];

        /* A program that waits may not ask more, but its end is always seen (POLLHUP). */
        polls[POLL_SLOTS + i] = (struct pollfd){ .fd = slot->used ? slot->fd : -1,
                                                 .events = slot->pending ? 0 : POLLIN };
    }
    return POLL_SLOTS + agent.slots.end;
}

static void turn(struct pollfd *polls, nfds_t count)
{
    if (polls[POLL_PORT].revents & POLLIN) {
        port_read(&agent.port, on_message, NULL);
    } else if (polls[POLL_PORT].revents & (POLLHUP | POLLERR | POLLNVAL)) {
        port_hangup(&agent.port);
    }
    if (polls[POLL_SIGNAL].revents) {
        on_signal();
    }
    identity_expire(&agent.identity);
    pump();
    for (nfds_t i = 0; i < count - POLL_SLOTS; i++) {
        struct slot *slot = &agent.slots.slot[i];

        /* The slot may have another owner than when poll() looked: reading it is harmless, hanging up is not. */
        if (!polls[POLL_SLOTS + i].revents || !slot->used || slot->fd != polls[POLL_SLOTS + i].fd) {
            continue;
        }
        if (polls[POLL_SLOTS + i].revents & POLLIN) {
            slots_read(&agent.slots, slot);
        } else {
            slots_hangup(&agent.slots, slot);
        }
    }
    if (polls[POLL_LISTEN].revents) {
        accept_programs();
    }
    pump();
}

static void run(void)
{
    struct pollfd polls[POLL_COUNT];
    nfds_t count;
    int ready;

    while (!agent.stop) {
        if (!agent.port.connected) {
            port_try(&agent.port);
        }
        agent.slots.have_port = agent.port.fd >= 0;
        count = prepare(polls);
        ready = poll(polls, count, next_timeout());
        if (ready < 0) {
            if (errno != EINTR) {
                agent_log(LOG_ERR, "poll: %s", strerror(errno));
                return;
            }
            continue;
        }
        if (ready == 0 && agent.announce) {
            announce();
        }
        if (ready == 0 && network_wants_retry(&agent.network)) {
            network_retry(&agent.network);
        }
        if (ready == 0 && agent.who_tries > 0) {
            ask_who();
        }
        turn(polls, count);
    }
}

/* ---- options ---- */

static void usage(FILE *out)
{
    fputs("usage: sf-agent [OPTIONS]\n"
          "The guest's agent of Snowflock: passes programs' requests to the host and makes clones unique.\n"
          "\n"
          "  --port PATH          the channel to the host (default: the virtio-serial port " SF_GP_PORT ")\n"
          "  --socket PATH        where programs ask (default: " SF_GP_SOCKET ")\n"
          "  --run-dir DIR        for the file `clone` and the lock (default: " RUN_DIR ")\n"
          "  --hooks DIR          run in each clone (default: " HOOK_DIR ")\n"
          "  --names FILE         of the cluster's members (default: " NAMES_FILE ")\n"
          "  --hook-timeout MS    that one hook may take (default: 10000)\n"
          "  --group NAME         whose members may use the socket (default: " GROUP ")\n"
          "  --mode OCTAL         mode of the socket (default: 0660)\n"
          "  --skip LIST          steps not to do in a clone, of rng,clock,boot-id,hostname,hooks,network, and\n"
          "                       in a cluster's first VM of ssh: for containers and tests\n"
          "  --syslog             log to syslog instead of standard error\n"
          "  --verbose            log more\n"
          "  --version, --help\n",
          out);
}

static bool parse_skip(const char *list, unsigned *skip)
{
    static const struct {
        const char *name;
        unsigned bit;
    } steps[] = { { "rng", AGENT_SKIP_RNG },
                  { "clock", AGENT_SKIP_CLOCK },
                  { "boot-id", AGENT_SKIP_BOOT_ID },
                  { "hostname", AGENT_SKIP_HOSTNAME },
                  { "hooks", AGENT_SKIP_HOOKS },
                  { "network", AGENT_SKIP_NETWORK },
                  { "ssh", AGENT_SKIP_SSH } };

    while (*list != '\0') {
        size_t length = strcspn(list, ","), i;

        for (i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
            if (strlen(steps[i].name) == length && strncmp(list, steps[i].name, length) == 0) {
                *skip |= steps[i].bit;
                break;
            }
        }
        if (i == sizeof(steps) / sizeof(steps[0])) {
            return false;
        }
        list += length + (list[length] == ',');
    }
    return true;
}

static bool parse_number(const char *text, int base, unsigned long max, unsigned long *number)
{
    char *end;

    errno = 0;
    *number = strtoul(text, &end, base);
    return errno == 0 && end != text && *end == '\0' && *text != '-' && *number <= max;
}

/* -1: go on; else the exit status. */
static int parse_options(int argc, char **argv)
{
    enum { PORT = 1, SOCKET, RUN, HOOKS, NAMES, HOOK_TIMEOUT, GROUP_NAME, MODE, SKIP, SYSLOG, VERBOSE, VERSION, HELP };
    static const struct option options[] = {
        { "port", required_argument, NULL, PORT },
        { "socket", required_argument, NULL, SOCKET },
        { "run-dir", required_argument, NULL, RUN },
        { "hooks", required_argument, NULL, HOOKS },
        { "names", required_argument, NULL, NAMES },
        { "hook-timeout", required_argument, NULL, HOOK_TIMEOUT },
        { "group", required_argument, NULL, GROUP_NAME },
        { "mode", required_argument, NULL, MODE },
        { "skip", required_argument, NULL, SKIP },
        { "syslog", no_argument, NULL, SYSLOG },
        { "verbose", no_argument, NULL, VERBOSE },
        { "version", no_argument, NULL, VERSION },
        { "help", no_argument, NULL, HELP },
        { NULL, 0, NULL, 0 },
    };
    struct agent_options *o = &agent.options;
    unsigned long number = 0;
    int option;

    *o = (struct agent_options){ .socket = SF_GP_SOCKET, .run_dir = RUN_DIR, .hooks = HOOK_DIR, .names = NAMES_FILE,
                                 .group = GROUP, .mode = SOCKET_MODE, .hook_timeout_ms = HOOK_TIMEOUT_MS };
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        bool ok = true;

        switch (option) {
        case PORT:
            o->port = optarg;
            break;
        case SOCKET:
            o->socket = optarg;
            break;
        case RUN:
            o->run_dir = optarg;
            break;
        case HOOKS:
            o->hooks = optarg;
            break;
        case NAMES:
            o->names = optarg;
            break;
        case HOOK_TIMEOUT:
            ok = parse_number(optarg, 10, INT_MAX, &number) && number > 0;
            o->hook_timeout_ms = (unsigned)number;
            break;
        case GROUP_NAME:
            o->group = optarg;
            break;
        case MODE:
            ok = parse_number(optarg, 8, 0777, &number);
            o->mode = (mode_t)number;
            break;
        case SKIP:
            ok = parse_skip(optarg, &o->skip);
            break;
        case SYSLOG:
            o->syslog = true;
            break;
        case VERBOSE:
            o->verbose = true;
            break;
        case VERSION:
            puts("sf-agent " SF_VERSION);
            return 0;
        case HELP:
            usage(stdout);
            return 0;
        default:
            usage(stderr);
            return EXIT_USAGE;
        }
        if (!ok) {
            fprintf(stderr, "sf-agent: %s: not a value that this option takes (see --help)\n", optarg);
            return EXIT_USAGE;
        }
    }
    if (optind < argc) {
        fprintf(stderr, "sf-agent: %s: not understood (see --help)\n", argv[optind]);
        return EXIT_USAGE;
    }
    return -1;
}

int main(int argc, char **argv)
{
    int status = parse_options(argc, argv);

    if (status >= 0) {
        return status;
    }
    if (agent.options.syslog) {
        openlog("sf-agent", LOG_PID, LOG_DAEMON);
    }
    if (!make_directory(agent.options.run_dir) || !take_lock() || !take_signals() || !listen_for_programs()) {
        return EXIT_START;
    }
    port_init(&agent.port, agent.options.port);
    if (!identity_init(&agent.identity, &agent.options)) {
        return EXIT_START;
    }
    network_init(&agent.network, agent.options.names, !(agent.options.skip & AGENT_SKIP_SSH));
    slots_init(&agent.slots, &agent.identity, &agent.network);
    port_try(&agent.port);
    /* Its answer is what sf_clone() waits for in every clone, however busy the VM is. */
    agent.identity.hook_nice = getpriority(PRIO_PROCESS, 0);
    (void)!setpriority(PRIO_PROCESS, 0, AGENT_NICE);
    (void)!mlockall(MCL_CURRENT | MCL_FUTURE); /* a clone has no page to look for, then; not vital */
    run();
    unlink(agent.options.socket);
    return agent.stop ? 0 : EXIT_START;
}
