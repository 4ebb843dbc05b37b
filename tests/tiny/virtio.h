/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Transitional virtio devices, one request at a time. */
#ifndef TINY_VIRTIO_H
#define TINY_VIRTIO_H

#include "io.h"

#define VIRTIO_QUEUES   4               /* of one device, at most */
#define VIRTIO_WRITE    2               /* the device writes this buffer */

struct virtio {
    uint16_t device;                    /* its PCI id: 0x1000 + ... */
    uint8_t area;                       /* its first one of QUEUES */
    uint32_t features;                  /* that are taken if offered */
    uint16_t ports;                     /* I/O ports, 0: not found yet */
    uint16_t sent[VIRTIO_QUEUES];
};

struct virtio_buffer {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
};

/* Finds the device at the first call. 0: there is none. */
int virtio_start(struct virtio *virtio);
/* Gives n buffers to a queue as one request, and waits until it comes back. 0: no such queue. */
int virtio_send(struct virtio *virtio, int queue, const struct virtio_buffer *buffers, int n);

#endif
