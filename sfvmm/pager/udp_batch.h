/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * udp_batch: many datagrams in few system calls, of a nonblocking UDP socket (udp_group.h). Belongs to one thread.
 *
 *     udp_out   datagrams that lie one behind the other leave together: UDP_SEGMENT where the kernel can, else
 *               sendmmsg
 *     udp_in    recvmmsg, and UDP_GRO where the socket has it
 */
#ifndef SF_PAGER_UDP_BATCH_H
#define SF_PAGER_UDP_BATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

struct udp_out;

/* to: copied; length 0: the socket is connected. NULL: no memory. */
struct udp_out *udp_out_new(int fd, const struct sockaddr *to, socklen_t to_length);
void udp_out_free(struct udp_out *out);

#define UDP_OUT_DATAGRAMS 64u /* of one udp_out_send() */
#define UDP_OUT_BYTES     65000u

/*
 * Sends bytes as datagrams of `segment` bytes each, the last shorter or as long. Returns how many bytes are done with:
 * less than length when the socket takes no more now (EPOLLOUT tells when; then call again for the rest). A datagram
 * that the kernel refuses is dropped, and done with: nobody is promised that one arrives.
 */
size_t udp_out_send(struct udp_out *out, const uint8_t *bytes, size_t length, size_t segment);

struct udp_out_stats {
    uint64_t datagrams, bytes; /* sent; payload */
    uint64_t dropped;          /* datagrams that the kernel refused */
    int error;                 /* errno of the last of them */
    bool offload;              /* UDP_SEGMENT is in use */
};
const struct udp_out_stats *udp_out_stats(const struct udp_out *out);

struct udp_in;

/* payload: bytes of the largest datagram; a larger one is cut, and so dropped. offload: the socket has UDP_GRO. */
struct udp_in *udp_in_new(int fd, size_t payload, bool offload);
void udp_in_free(struct udp_in *in);

/*
 * What has come, up to a bound, so that others get their turn: how many datagrams; 0: none. The handler may change the
 * bytes.
 */
typedef void (*udp_in_handler)(void *owner, uint8_t *bytes, size_t length);
unsigned udp_in_receive(struct udp_in *in, udp_in_handler handler, void *owner);

struct udp_in_stats {
    uint64_t datagrams, bytes;
    uint64_t overflows; /* datagrams that found the buffer full, as the kernel counts (SO_RXQ_OVFL) */
    uint64_t cut;       /* were too long */
};
const struct udp_in_stats *udp_in_stats(const struct udp_in *in);

#endif
