/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "virtio.h"

#define VENDOR          0x1af4u
#define FEATURES        0               /* registers */
#define TAKEN           4
#define QUEUE_ADDRESS   8
#define QUEUE_SIZE      12
#define QUEUE_SELECT    14
#define QUEUE_NOTIFY    16
#define STATUS          18
#define NEXT            1               /* of a buffer: another one follows */

static uint32_t queue_at(const struct virtio *virtio, int queue)
{
    return QUEUES + (virtio->area + queue) * QUEUE_BYTES;
}

int virtio_start(struct virtio *virtio)
{
    int queue, function;
    uint32_t *p;

    if (virtio->ports)
        return 1;
    function = pci_find(0, 0xffffffffu, (uint32_t)virtio->device << 16 | VENDOR);
    if (function < 0 || !(pci_read(function, 0x10) & 1))
        return 0;
    virtio->ports = pci_read(function, 0x10) & 0xfffc;
    out8(virtio->ports + STATUS, 0);
    out8(virtio->ports + STATUS, 3);
    out32(virtio->ports + TAKEN, in32(virtio->ports + FEATURES) & virtio->features);
    for (queue = 0; queue < VIRTIO_QUEUES; queue++) {
        out16(virtio->ports + QUEUE_SELECT, queue);
        if (!in16(virtio->ports + QUEUE_SIZE))
            continue;
        for (p = (uint32_t *)queue_at(virtio, queue); p < (uint32_t *)queue_at(virtio, queue + 1); p++)
            *p = 0;
        out32(virtio->ports + QUEUE_ADDRESS, queue_at(virtio, queue) / PAGE);
    }
    out8(virtio->ports + STATUS, 7);
    return 1;
}

int virtio_send(struct virtio *virtio, int queue, const struct virtio_buffer *buffers, int n)
{
    struct virtio_buffer *table = (struct virtio_buffer *)queue_at(virtio, queue);
    volatile uint16_t *avail, *used;
    uint16_t size;
    int i;

    out16(virtio->ports + QUEUE_SELECT, queue);
    size = in16(virtio->ports + QUEUE_SIZE);
    if (size < n)
        return 0;
    avail = (volatile uint16_t *)(table + size);
    used = (volatile uint16_t *)(((uint32_t)(avail + 3 + size) + PAGE - 1) & ~(PAGE - 1));
    for (i = 0; i < n; i++) {
        table[i] = buffers[i];
        table[i].next = i + 1;
        if (i + 1 < n)
            table[i].flags |= NEXT;
    }
    avail[2 + virtio->sent[queue] % size] = 0;
    virtio->sent[queue]++;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    avail[1] = virtio->sent[queue];
    out16(virtio->ports + QUEUE_NOTIFY, queue);
    while (used[1] != virtio->sent[queue])
        asm volatile("pause" ::: "memory");
    return 1;
}
