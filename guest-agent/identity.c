/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How a VM becomes a clone: new random numbers, the right time, its own boot ID, name and addresses, the hooks, the file
 * that says so.
 *
 * This stands between the first instruction of a clone and the return of sf_clone(), so it does nothing but the system
 * calls that are the job: no name service, no library that might ask one, files opened at start where possible.
 * A step that fails ends the job: the host is told why, and ends the VM, because two VMs that hold themselves for the
 * same one do harm (equal keys, equal session tokens, equal names).
 */
#include "guest-agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/random.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#include "guest-agent/boot_id.h"

#define RANDOM_DEVICE   "/dev/urandom"
#define CLONE_FILE      "clone"
#define NS_PER_S        1000000000u
#define CLONE_FILE_SIZE 256 /* the longest names included */

/* ---- the file run_dir/clone ---- */

/*
 * It is made at start, says that this is no clone, and stays mapped: to rewrite it in a clone is to store some bytes.
 * (Each system call on the way to sf_clone()'s return costs: under TCG a clone translates all kernel code that it runs
 * anew.) A comment fills it up to its fixed size.
 */
static char *put_text(char *at, const char *text)
{
    size_t length = strlen(text);

    memcpy(at, text, length);
    return at + length;
}

static char *put_number(char *at, const char *name, uint64_t value, unsigned base, unsigned digits)
{
    char text[24], *first = text + sizeof(text) - 1;

    *first = '\0';
    do {
        *--first = "0123456789abcdef"[value % base];
        value /= base;
    } while (value > 0 || (size_t)(text + sizeof(text) - 1 - first) < digits);
    return put_text(put_text(put_text(at, name), first), "\n");
}

static void write_clone_file(struct identity *identity)
{
    const struct sf_gp_identity *value = &identity->value;
    char *at = identity->file;

    at = put_number(at, "SF_ID=", value->id, 10, 1);
    at = put_number(at, "SF_COUNT=", value->count, 10, 1);
    if (value->id > 0) {
        at = put_number(at, "SF_TICKET=", value->ticket, 16, 16);
        at = put_text(put_text(put_text(at, "SF_PARENT="), value->parent), "\n");
        at = put_text(put_text(put_text(at, "SF_HOSTNAME="), value->hostname), "\n");
    }
    *at++ = '#';
    memset(at, ' ', (size_t)(identity->file + CLONE_FILE_SIZE - at));
    identity->file[CLONE_FILE_SIZE - 1] = '\n';
}

/* What an earlier agent of this VM wrote. */
static void parse_clone_file(struct identity *identity, char *text)
{
    struct sf_gp_identity *value = &identity->value;
    char *rest = NULL;

    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        if (strncmp(line, "SF_ID=", 6) == 0) {
            value->id = (uint32_t)strtoul(line + 6, NULL, 10);
        } else if (strncmp(line, "SF_COUNT=", 9) == 0) {
            value->count = (uint32_t)strtoul(line + 9, NULL, 10);
        } else if (strncmp(line, "SF_TICKET=", 10) == 0) {
            value->ticket = strtoull(line + 10, NULL, 16);
        } else if (strncmp(line, "SF_PARENT=", 10) == 0) {
            sf_gp_text_set(value->parent, sizeof(value->parent), "%s", line + 10);
        } else if (strncmp(line, "SF_HOSTNAME=", 12) == 0) {
            sf_gp_text_set(value->hostname, sizeof(value->hostname), "%s", line + 12);
        }
    }
    if (value->id >= 1 && value->id <= value->count && value->count <= SF_GP_MAX_CLONES) {
        identity->state = IDENTITY_DONE;
    } else {
        memset(value, 0, sizeof(*value));
    }
}

static bool open_clone_file(struct identity *identity)
{
    char path[PATH_MAX], old[CLONE_FILE_SIZE + 1];
    ssize_t got;
    int fd;

    snprintf(path, sizeof(path), "%s/" CLONE_FILE, identity->options->run_dir);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0) {
        agent_log(LOG_ERR, "%s: %s", path, strerror(errno));
        return false;
    }
    got = read(fd, old, CLONE_FILE_SIZE);
    old[got > 0 ? got : 0] = '\0';
    parse_clone_file(identity, old);
    /* Allocated, so that storing into the mapping cannot fail. The mode is open's: it names a ticket, but to this clone
     * the parent's tickets are of no use. */
    errno = posix_fallocate(fd, 0, CLONE_FILE_SIZE);
    identity->file = errno == 0 ? mmap(NULL, CLONE_FILE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (identity->file == MAP_FAILED) {
        agent_log(LOG_ERR, "%s: %s", path, strerror(errno));
        close(fd);
        return false;
    }
    close(fd);
    write_clone_file(identity);
    return true;
}

bool identity_init(struct identity *identity, const struct agent_options *options)
{
    memset(identity, 0, sizeof(*identity));
    identity->options = options;
    identity->state = IDENTITY_NONE;
    identity->hook_pid = -1;
    identity->rng_fd = -1;
    hooks_init(identity);
    if (!(options->skip & AGENT_SKIP_RNG)) {
        identity->rng_fd = open(RANDOM_DEVICE, O_WRONLY | O_CLOEXEC);
        if (identity->rng_fd < 0) {
            agent_log(LOG_WARNING, "%s: %s", RANDOM_DEVICE, strerror(errno));
        }
    }
    if (!(options->skip & AGENT_SKIP_BOOT_ID)) {
        identity->boot_id = boot_id_cover(options->run_dir);
    }
    return open_clone_file(identity);
}

/* ---- steps ---- */

static bool fail(struct sf_gp_error *error, const char *what)
{
    error->error = (uint32_t)errno;
    sf_gp_text_set(error->text, sizeof(error->text), "%s: %s", what, strerror(errno));
    return false;
}

/* Credits the seed to the kernel's generator, which seeds all CPUs anew: no output repeats the parent's. */
static bool reseed(const struct identity *identity, const uint8_t *seed, struct sf_gp_error *error)
{
    struct {
        int entropy_count; /* bits; layout of struct rand_pool_info */
        int buf_size;
        uint8_t buf[SF_GP_SEED_LEN];
    } entropy = { .entropy_count = SF_GP_SEED_LEN * CHAR_BIT, .buf_size = SF_GP_SEED_LEN };
    bool ok;

    memcpy(entropy.buf, seed, SF_GP_SEED_LEN);
    ok = ioctl(identity->rng_fd, RNDADDENTROPY, &entropy) == 0 && ioctl(identity->rng_fd, RNDRESEEDCRNG) == 0;
    explicit_bzero(&entropy, sizeof(entropy));
    return ok || fail(error, "new seed for " RANDOM_DEVICE);
}

static bool step_clock(uint64_t realtime, struct sf_gp_error *error)
{
    struct timespec now = { .tv_sec = (time_t)(realtime / NS_PER_S), .tv_nsec = (long)(realtime % NS_PER_S) };

    return clock_settime(CLOCK_REALTIME, &now) == 0 || fail(error, "setting the clock");
}

static void failed(struct identity *identity)
{
    identity->state = IDENTITY_FAILED;
    agent_log(LOG_ERR, "this clone could not be made unique: %s", identity->error.text);
}

/* Goes on behind a hook (or behind none): starts the next one, or ends the job. */
static void go_on(struct identity *identity)
{
    switch (hooks_start_next(identity, &identity->error)) {
    case HOOK_STARTED:
        identity->hook_timed_out = false;
        identity->hook_deadline_ms = agent_now_ms() + identity->options->hook_timeout_ms;
        identity->state = IDENTITY_HOOKS;
        break;
    case HOOK_NONE:
        write_clone_file(identity);
        identity->state = IDENTITY_DONE;
        break;
    case HOOK_FAILED:
        failed(identity);
        break;
    }
}

void identity_begin(struct identity *identity, struct sf_gp_identity *value)
{
    unsigned skip = identity->options->skip;
    struct sf_gp_error *error = &identity->error;
    bool ok;

    if (identity->hook_pid > 0) {
        kill(-identity->hook_pid, SIGKILL); /* a clone of a VM that was itself becoming one */
    }
    identity->next_hook = identity->hooks; /* none, with --skip */
    ok = (skip & AGENT_SKIP_RNG || reseed(identity, value->seed, error)) &&
         (skip & AGENT_SKIP_CLOCK || step_clock(value->realtime, error)) &&
         (skip & AGENT_SKIP_HOSTNAME || sethostname(value->hostname, strlen(value->hostname)) == 0 ||
          fail(error, "setting the hostname")) &&
         (!identity->network || network_become(identity->network, error)) &&
         (skip & AGENT_SKIP_HOOKS || hooks_begin(identity, error));
    explicit_bzero(value->seed, sizeof(value->seed));
    identity->value = *value;
    identity->managers = identity->network && !(skip & AGENT_SKIP_HOOKS) ? identity->network->managers : 0;
    if (identity->boot_id) {
        boot_id_renew(identity->boot_id);
    }
    if (ok) {
        go_on(identity);
    } else {
        failed(identity);
    }
}

void identity_child(struct identity *identity)
{
    int status;
    pid_t pid;

    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (pid != identity->hook_pid) {
            continue;
        }
        identity->hook_pid = -1;
        if (identity->state != IDENTITY_HOOKS) {
            continue;
        }
        if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
            go_on(identity);
            continue;
        }
        identity->error.error = identity->hook_timed_out ? ETIMEDOUT : ECANCELED;
        if (identity->hook_timed_out) {
            sf_gp_text_set(identity->error.text, sizeof(identity->error.text), "hook %s: not done after %u ms",
                           identity->hook_path, identity->options->hook_timeout_ms);
        } else {
            sf_gp_text_set(identity->error.text, sizeof(identity->error.text), "hook %s: %s %d", identity->hook_path,
                           WIFEXITED(status) ? "exit status" : "killed by signal",
                           WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
        }
        failed(identity);
    }
}

void identity_expire(struct identity *identity)
{
    if (identity_timeout_ms(identity) == 0) {
        identity->hook_timed_out = true;
        kill(-identity->hook_pid, SIGKILL);
    }
}

int identity_timeout_ms(const struct identity *identity)
{
    uint64_t now;

    if (identity->state != IDENTITY_HOOKS || identity->hook_timed_out) {
        return -1;
    }
    now = agent_now_ms();
    return now >= identity->hook_deadline_ms ? 0 : (int)(identity->hook_deadline_ms - now);
}
