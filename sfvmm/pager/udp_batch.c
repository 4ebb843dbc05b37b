/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * Datagrams of one length that lie one behind the other, and a shorter one at the end, are one message with
 * UDP_SEGMENT: the kernel cuts it late, or the card does.
 *
 *       | 1400 | 1400 | 1400 | 900 |
 *
 * A kernel or an interface that can't (EIO, EINVAL) is asked once; from then on each datagram is a message, and they
 * go with one sendmmsg.
 *
 * On the way in UDP_GRO gives the same back: one message with the length of its parts beside it.
 */
#include "sfvmm/pager/udp_batch.h"

#include <errno.h>
#include <linux/udp.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#define IN_MESSAGES  16u /* of one recvmmsg */
#define IN_DATAGRAMS 64u /* without UDP_GRO a message is one datagram */
#define GRO_BUFFER   65536u

struct udp_out {
    int fd;
    struct sockaddr_storage to;
    socklen_t to_length;
    struct udp_out_stats stats;
};

/* ---- out ---- */

struct udp_out *udp_out_new(int fd, const struct sockaddr *to, socklen_t to_length)
{
    struct udp_out *out = calloc(1, sizeof(*out));

    if (out) {
        out->fd = fd;
        out->stats.offload = true;
        out->to_length = to_length;
        if (to_length) {
            memcpy(&out->to, to, to_length);
        }
    }
    return out;
}

void udp_out_free(struct udp_out *out)
{
    free(out);
}

static struct msghdr message_to(struct udp_out *out, struct iovec *iov)
{
    return (struct msghdr){
        .msg_name = out->to_length ? &out->to : NULL, .msg_namelen = out->to_length, .msg_iov = iov, .msg_iovlen = 1
    };
}

/* All in one message. -1 and errno. */
static ssize_t send_segmented(struct udp_out *out, const uint8_t *bytes, size_t length, uint16_t segment)
{
    _Alignas(struct cmsghdr) char room[CMSG_SPACE(sizeof(segment))] = { 0 };
    struct iovec iov = { .iov_base = (void *)bytes, .iov_len = length };
    struct msghdr message = message_to(out, &iov);
    struct cmsghdr *c;

    if (length > segment) {
        message.msg_control = room;
        message.msg_controllen = sizeof(room);
        c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = IPPROTO_UDP;
        c->cmsg_type = UDP_SEGMENT;
        c->cmsg_len = CMSG_LEN(sizeof(segment));
        memcpy(CMSG_DATA(c), &segment, sizeof(segment));
    }
    return sendmsg(out->fd, &message, 0);
}

/* One message for each datagram. Bytes sent, -1 and errno: none was. */
static ssize_t send_each(struct udp_out *out, const uint8_t *bytes, size_t length, size_t segment)
{
    struct mmsghdr messages[UDP_OUT_DATAGRAMS];
    struct iovec iov[UDP_OUT_DATAGRAMS];
    unsigned n = 0;
    ssize_t done = 0;
    int sent;

    for (size_t at = 0; at < length && n < UDP_OUT_DATAGRAMS; at += segment, n++) {
        iov[n] = (struct iovec){ .iov_base = (void *)(bytes + at),
                                 .iov_len = length - at < segment ? length - at : segment };
        messages[n].msg_hdr = message_to(out, &iov[n]);
    }
    sent = sendmmsg(out->fd, messages, n, 0);
    for (int i = 0; i < sent; i++) {
        done += iov[i].iov_len;
    }
    return sent > 0 ? done : -1;
}

size_t udp_out_send(struct udp_out *out, const uint8_t *bytes, size_t length, size_t segment)
{
    size_t done = 0;

    while (done < length) {
        ssize_t sent = out->stats.offload ? send_segmented(out, bytes + done, length - done, segment)
                                          : send_each(out, bytes + done, length - done, segment);
        if (sent > 0) {
            out->stats.bytes += sent;
            out->stats.datagrams += (sent + segment - 1) / segment;
            done += sent;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS) {
            break;
        } else if (out->stats.offload && length - done > segment &&
                   (errno == EIO || errno == EINVAL || errno == EOPNOTSUPP)) {
            out->stats.offload = false;                       /* the same again, one by one */
        } else if (errno != EINTR && errno != ECONNREFUSED) { /* the latter tells of an earlier one */
            out->stats.error = errno;
            out->stats.dropped++;
            done += length - done < segment ? length - done : segment;
        }
    }
    return done;
}

const struct udp_out_stats *udp_out_stats(const struct udp_out *out)
{
    return &out->stats;
}

/* ---- in ---- */

struct in_note { /* length of the parts, and the overflow counter */
    _Alignas(struct cmsghdr) char room[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(uint32_t))];
};

struct udp_in {
    int fd;
    size_t room; /* bytes of one buffer */
    unsigned n;  /* buffers */
    uint8_t *bytes;
    struct mmsghdr headers[IN_DATAGRAMS];
    struct iovec iov[IN_DATAGRAMS];
    struct in_note notes[IN_DATAGRAMS];
    uint32_t overflows; /* as told last; it wraps */
    struct udp_in_stats stats;
};

struct udp_in *udp_in_new(int fd, size_t payload, bool offload)
{
    struct udp_in *in = calloc(1, sizeof(*in));

    if (!in) {
        return NULL;
    }
    in->fd = fd;
    in->room = offload ? GRO_BUFFER : payload;
    in->n = offload ? IN_MESSAGES : IN_DATAGRAMS;
    in->bytes = malloc(in->n * in->room);
    if (!in->bytes) {
        free(in);
        return NULL;
    }
    return in;
}

void udp_in_free(struct udp_in *in)
{
    if (in) {
        free(in->bytes);
        free(in);
    }
}

static void prepare(struct udp_in *in)
{
    for (unsigned i = 0; i < in->n; i++) {
        in->iov[i] = (struct iovec){ .iov_base = in->bytes + i * in->room, .iov_len = in->room };
        in->headers[i].msg_hdr = (struct msghdr){
            .msg_iov = &in->iov[i],
            .msg_iovlen = 1,
            .msg_control = in->notes[i].room,
            .msg_controllen = sizeof(in->notes[i].room),
        };
    }
}

/* Length of the parts of a message; 0: it is one datagram. */
static size_t read_notes(struct udp_in *in, struct msghdr *header)
{
    size_t part = 0;

    for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
        if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO) {
            int length;
            memcpy(&length, CMSG_DATA(c), sizeof(length));
            part = length > 0 ? (size_t)length : 0;
        } else if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_RXQ_OVFL) {
            uint32_t count;
            memcpy(&count, CMSG_DATA(c), sizeof(count));
            in->stats.overflows += (uint32_t)(count - in->overflows);
            in->overflows = count;
        }
    }
    return part;
}

static unsigned hand_over(struct udp_in *in, struct mmsghdr *message, udp_in_handler handler, void *owner)
{
    uint8_t *bytes = message->msg_hdr.msg_iov->iov_base;
    size_t part = read_notes(in, &message->msg_hdr), length = message->msg_len;
    unsigned n = 0;

    if (message->msg_hdr.msg_flags & MSG_TRUNC) {
        in->stats.cut++;
        return 0;
    }
    in->stats.bytes += length;
    for (size_t at = 0; at < length; n++) {
        size_t one = part && part < length - at ? part : length - at;
        handler(owner, bytes + at, one);
        at += one;
    }
    in->stats.datagrams += n;
    return n;
}

unsigned udp_in_receive(struct udp_in *in, udp_in_handler handler, void *owner)
{
    unsigned n = 0;
    int got;

    prepare(in);
    got = recvmmsg(in->fd, in->headers, in->n, MSG_DONTWAIT, NULL);
    for (int i = 0; i < got; i++) {
        n += hand_over(in, &in->headers[i], handler, owner);
    }
    return n;
}

const struct udp_in_stats *udp_in_stats(const struct udp_in *in)
{
    return &in->stats;
}
