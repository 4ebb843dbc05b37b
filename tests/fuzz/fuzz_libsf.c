/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * libsf against any agent: the first byte chooses the call, the rest is cut into the packets that it receives. The
 * library is compiled in here with connect() replaced, so that no thread and no socket file is needed: the other end
 * of the connection has written its packets and closed before the library asks. With the first byte ARRAY, the rest is what a
 * clone handed over of an array.
 */
#include <sys/socket.h>
#include <unistd.h>

static int fuzz_connect(int fd, const struct sockaddr *address, socklen_t length);

#define connect fuzz_connect
#define SF_VERSION "fuzz"
#include "libsf/call.c"
#undef connect
#include "libsf/address.c"
#include "libsf/array.c"
#include "libsf/checkpoint.c"
#include "libsf/join.c"
#include "libsf/libsf.c"
#include "libsf/members.c"
#include "libsf/tree.c"
#include "libsf/vm.c"
#include "libsf/worker_table.c"
#include "libsf/workers.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CLONES 200
#define PER_VM 2
#define ARRAY  0xff
#define SLOTS  40

static const uint8_t *packets;
static size_t packets_left;

/*
 * The packets of one connection. Each: two bytes of length; type and request of the first 12 bytes are made to fit when
 * its top bit is set, and the next packet is that of another connection when the bit below is.
 */
static void write_packets(int fd)
{
    bool last = false;

    for (uint32_t request = 1; packets_left > 2 && !last; request++) {
        size_t length = packets[0] | (size_t)(packets[1] & 0x3f) << 8;
        bool fit = packets[1] & 0x80;
        uint8_t packet[0x8000 + SF_GP_HEADER_LENGTH];
        struct sf_gp_header header = { .version = SF_GP_VERSION, .type = packets[2] | SF_GP_REPLY,
                                       .request = request };

        last = packets[1] & 0x40;
        packets += 2;
        packets_left -= 2;
        length = length < packets_left ? length : packets_left;
        if (fit && length > 0) {
            header.length = (uint32_t)length - 1;
            sf_gp_header_pack(packet, &header);
            memcpy(packet + SF_GP_HEADER_LENGTH, packets + 1, length - 1);
            send(fd, packet, SF_GP_HEADER_LENGTH + length - 1, MSG_DONTWAIT | MSG_NOSIGNAL);
        } else {
            send(fd, packets, length, MSG_DONTWAIT | MSG_NOSIGNAL);
        }
        packets += length;
        packets_left -= length;
    }
}

static int fuzz_connect(int fd, const struct sockaddr *address, socklen_t length)
{
    int pair[2];

    (void)address;
    (void)length;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) < 0) {
        return -1;
    }
    write_packets(pair[1]);
    close(pair[1]);
    dup2(pair[0], fd);
    close(pair[0]);
    return 0;
}

/* What was taken in is handed on as it came: the runs may be others. */
static void fuzz_array(const uint8_t *data, size_t size)
{
    sf_array *array = sf_array_new(SLOTS, sizeof(uint16_t)), *copy = sf_array_new(SLOTS, sizeof(uint16_t));
    size_t length;
    unsigned char *packed;

    if (sf_array_unpack(array, data, size)) {
        packed = sf_array_pack(array, &length);
        if (!packed || !sf_array_unpack(copy, packed, length) ||
            memcmp(array->data, copy->data, SLOTS * sizeof(uint16_t)) != 0) {
            abort();
        }
        free(packed);
    }
    sf_array_free(array);
    sf_array_free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct sf_result results[CLONES];
    sf_ticket *ticket = sf_ticket_open(1), *tree = sf_ticket_new(1, 2 * PER_VM - 1, PER_VM), *granted;
    char buffer[100];
    int count;

    if (size > 0 && data[0] == ARRAY) {
        fuzz_array(data + 1, size - 1);
        size = 0;
    }
    packets = data + 1;
    packets_left = size > 0 ? size - 1 : 0;
    switch (size > 0 ? data[0] % 10 : 0) {
    case 0:
        granted = sf_request_ticket(9, 0);
        if (granted && (sf_ticket_granted(granted) > 9 || sf_ticket_id(granted) == 0)) {
            abort();
        }
        sf_ticket_free(granted);
        break;
    case 1:
        sf_clone(ticket);
        break;
    case 2:
        count = sf_join_timed(ticket, results, CLONES, 0);
        for (int i = 0; i < count && i < CLONES; i++) {
            if (results[i].id != (unsigned)i + 1 || strnlen(results[i].text, SF_TEXT_LENGTH) == SF_TEXT_LENGTH) {
                abort();
            }
        }
        break;
    case 3:
        if (sf_result_read(ticket, 1, buffer, sizeof(buffer), 0) > (ssize_t)sizeof(buffer)) {
            abort();
        }
        break;
    case 4:
        free(sf_result_get(ticket, 1, NULL));
        break;
    case 5:
        sf_sync(buffer, sizeof(buffer));
        break;
    case 6:
        sf_kill(ticket);
        break;
    case 8:
        count = sf_join_timed(tree, results, CLONES, 0);
        for (int i = 0; i < count && i < CLONES; i++) {
            if (results[i].id != (unsigned)i + 1 || strnlen(results[i].text, SF_TEXT_LENGTH) == SF_TEXT_LENGTH) {
                abort();
            }
        }
        break;
    case 9:
        if (sf_result_read(tree, 3, buffer, sizeof(buffer), 0) > (ssize_t)sizeof(buffer)) {
            abort();
        }
        break;
    default:
        if (sf_id() > (int)SF_MAX_CLONES) {
            abort();
        }
    }
    sf_ticket_free(tree);
    sf_ticket_free(ticket);
    return 0;
}
