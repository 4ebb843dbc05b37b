/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sf-garbage: what a hostile root of a guest could write to the agent's port. Run it with sf-agent stopped.
 *
 *   sf-garbage PORT noise BYTES SEED     random bytes
 *   sf-garbage PORT frames COUNT SEED    whole frames with a good checksum: any type, any length, random payload
 *   sf-garbage PORT absurd               well-formed requests that ask for what cannot be, and their answers
 *   sf-garbage PORT flood COUNT          COUNT ticket requests, no answer is read
 *   sf-garbage PORT huge BYTES           one frame that never ends
 *
 * It never waits for ever: when the host takes nothing for STALL_MS, it says how far it came and ends. That is success
 * too: a host may stop reading. Prints "wrote BYTES stalled=0|1 answers=N errors=N".
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "libsf/wire/frame.h"

#define STALL_MS       3000
#define PIECE          4096
#define HELLO_WAITS    10               /* times STALL_MS */
#define SYNC_DATA      8                /* bytes of a result */
#define UNKNOWN_TICKET 0x0123456789abcdefull

static int port;
static uint64_t written, answers, errors, state;
static int stalled, greeted;
static uint32_t hello_request;
static uint8_t hello[SF_GP_HELLO_LENGTH];
static struct sf_frame_decoder decoder;

static uint32_t next_random(void)
{
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return state >> 33;
}

static void take_answers(void)
{
    uint8_t buffer[PIECE];
    ssize_t got;

    while ((got = read(port, buffer, sizeof(buffer))) > 0) {
        const uint8_t *data = buffer, *payload;
        size_t length = got;
        struct sf_gp_header header;

        while (sf_frame_decoder_next(&decoder, &data, &length, &header, &payload)) {
            if (header.type == SF_GP_HELLO && header.length == SF_GP_HELLO_LENGTH) {
                hello_request = header.request;
                memcpy(hello, payload, sizeof(hello));
                greeted = 1;
            } else {
                answers++;
                errors += header.type == SF_GP_ERROR;
            }
        }
    }
}

static void put(const void *data, size_t length, int read_answers)
{
    const uint8_t *byte = data;

    while (length && !stalled) {
        ssize_t done = write(port, byte, length);

        if (done > 0) {
            byte += done;
            length -= done;
            written += done;
        } else if (done < 0 && errno == EAGAIN) {
            struct pollfd wait = { .fd = port, .events = POLLOUT };
            stalled = poll(&wait, 1, STALL_MS) == 0;
        } else {
            stalled = 1;
        }
        if (read_answers) {
            take_answers();
        }
    }
}

static void frame(uint8_t type, uint32_t request, const void *payload, size_t length, int read_answers)
{
    static uint8_t buffer[SF_FRAME_MAX_ENCODED];

    put(buffer, sf_frame_encode(buffer, sizeof(buffer), type, request, payload, length), read_answers);
}

/* Be taken for an agent: the host speaks first, and hears nobody who has not answered. */
static void greet(void)
{
    for (int waits = 0; !greeted && waits < HELLO_WAITS; waits++) {
        struct pollfd wait = { .fd = port, .events = POLLIN };

        poll(&wait, 1, STALL_MS);
        take_answers();
    }
    frame(SF_GP_HELLO | SF_GP_REPLY, hello_request, hello, sizeof(hello), 1);
}

static void noise(uint64_t bytes)
{
    uint8_t buffer[PIECE];

    while (bytes && !stalled) {
        size_t length = bytes < sizeof(buffer) ? bytes : sizeof(buffer);
        for (size_t i = 0; i < length; i++) {
            buffer[i] = next_random();
        }
        put(buffer, length, 1);
        bytes -= length;
    }
}

/* EXIT, KILL and RELEASE are among them: in a VM that is no clone and knows no ticket they must do nothing. */
static void frames(uint64_t count)
{
    static uint8_t payload[SF_GP_MAX_PAYLOAD];

    for (; count && !stalled; count--) {
        size_t length = next_random() % 4 ? next_random() % 64 : next_random() % sizeof(payload);
        for (size_t i = 0; i < length; i++) {
            payload[i] = next_random();
        }
        frame(next_random(), next_random(), payload, length, 1);
    }
}

static void absurd(void)
{
    uint8_t buffer[SF_GP_MAX_PAYLOAD] = { 0 };
    const uint32_t counts[] = { 0, SF_GP_MAX_CLONES + 1, 0x7fffffff, 0xffffffff };
    const struct sf_gp_sync syncs[] = { { UINT64_MAX - 7, UINT64_MAX }, { 0, SF_GP_MAX_RESULT + 1 }, { 0, SYNC_DATA } };
    uint32_t request = 1;
    int waits = 0;

    for (size_t i = 0; i < sizeof(counts) / sizeof(*counts); i++) {
        struct sf_gp_ticket ticket = { .count = counts[i] };
        frame(SF_GP_TICKET, request++, buffer, sf_gp_ticket_pack(buffer, &ticket), 1);
    }
    frame(SF_GP_CLONE, request++, buffer, sf_gp_clone_pack(buffer, &(struct sf_gp_clone){ UNKNOWN_TICKET }), 1);
    frame(SF_GP_JOIN, request++, buffer, sf_gp_join_pack(buffer, &(struct sf_gp_join){ UNKNOWN_TICKET, 0, 1 }), 1);
    frame(SF_GP_KILL, request++, buffer, sf_gp_kill_pack(buffer, &(struct sf_gp_kill){ UNKNOWN_TICKET }), 1);
    frame(SF_GP_RELEASE, request++, buffer, sf_gp_kill_pack(buffer, &(struct sf_gp_kill){ UNKNOWN_TICKET }), 1);
    frame(SF_GP_FETCH, request++, buffer,
          sf_gp_fetch_pack(buffer, &(struct sf_gp_fetch){ UNKNOWN_TICKET, 0xffffffff, 0xffffffff, UINT64_MAX }), 1);
    frame(SF_GP_EXIT, request++, buffer, sf_gp_exit_pack(buffer, &(struct sf_gp_exit){ 0 }), 1);
    for (size_t i = 0; i < sizeof(syncs) / sizeof(*syncs); i++) {
        frame(SF_GP_SYNC, request++, buffer, sf_gp_sync_pack(buffer, &syncs[i]) + SYNC_DATA, 1);
    }
    while (answers < request - 1 && waits++ < 10) {
        struct pollfd wait = { .fd = port, .events = POLLIN };
        poll(&wait, 1, STALL_MS / 10);
        take_answers();
    }
}

static void flood(uint64_t count)
{
    uint8_t buffer[SF_GP_TICKET_LENGTH];
    struct sf_gp_ticket ticket = { .count = 1 };
    size_t length = sf_gp_ticket_pack(buffer, &ticket);

    for (uint32_t request = 1; request <= count && !stalled; request++) {
        frame(SF_GP_TICKET, request, buffer, length, 0);
    }
}

static void huge(uint64_t bytes)
{
    uint8_t buffer[PIECE];

    memset(buffer, 0x55, sizeof(buffer));
    for (uint64_t done = 0; done < bytes && !stalled; done += sizeof(buffer)) {
        put(buffer, sizeof(buffer), 1);
    }
    put("", 1, 1);
}

int main(int argc, char **argv)
{
    const char *mode = argc > 2 ? argv[2] : "";
    uint64_t amount = argc > 3 ? strtoull(argv[3], NULL, 0) : 0;

    state = argc > 4 ? strtoull(argv[4], NULL, 0) : 1;
    port = argc > 2 ? open(argv[1], O_RDWR | O_NONBLOCK | O_CLOEXEC) : -1;
    if (port < 0) {
        fprintf(stderr, "sf-garbage: %s: %s\n", argc > 1 ? argv[1] : "no port", strerror(errno));
        return 1;
    }
    sf_frame_decoder_init(&decoder);
    if (strcmp(mode, "noise") == 0) {
        noise(amount);
    } else if (strcmp(mode, "frames") == 0) {
        greet();
        frames(amount);
    } else if (strcmp(mode, "absurd") == 0) {
        greet();
        absurd();
    } else if (strcmp(mode, "flood") == 0) {
        greet();
        flood(amount);
    } else if (strcmp(mode, "huge") == 0) {
        huge(amount);
    } else {
        fprintf(stderr, "sf-garbage: unknown mode %s\n", mode);
        return 1;
    }
    printf("wrote %llu stalled=%d answers=%llu errors=%llu\n", (unsigned long long)written, stalled,
           (unsigned long long)answers, (unsigned long long)errors);
    return 0;
}
