/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Ports, PCI configuration, and the areas of memory that the parts of the tiny guest use. */
#ifndef TINY_IO_H
#define TINY_IO_H

#include <stdint.h>

#define MIB             0x100000u
#define PAGE            4096u
#define QUEUES          0x800000u       /* virtqueues, QUEUE_BYTES each */
#define QUEUE_BYTES     0x10000u
#define REQUESTS        0x900000u       /* what describes requests of disks */

static inline void out8(uint16_t port, uint8_t value) { asm volatile("outb %0, %1" :: "a"(value), "Nd"(port)); }
static inline void out16(uint16_t port, uint16_t value) { asm volatile("outw %0, %1" :: "a"(value), "Nd"(port)); }
static inline void out32(uint16_t port, uint32_t value) { asm volatile("outl %0, %1" :: "a"(value), "Nd"(port)); }

static inline uint8_t in8(uint16_t port)
{
    uint8_t value;
    asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint16_t in16(uint16_t port)
{
    uint16_t value;
    asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint32_t in32(uint16_t port)
{
    uint32_t value;
    asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

/* A register of a function of bus 0: slot * 8 + function. */
static inline uint32_t pci_read(uint32_t function, uint32_t reg)
{
    out32(0xcf8, 0x80000000u | function << 8 | reg);
    return in32(0xcfc);
}

/* The last function whose register has that value under the mask, switched on; -1: none. */
static inline int pci_find(uint32_t reg, uint32_t mask, uint32_t value)
{
    int function;

    for (function = 255; function >= 0; function--) {
        if ((pci_read(function, reg) & mask) == value && pci_read(function, 0) != 0xffffffffu) {
            out32(0xcf8, 0x80000000u | (uint32_t)function << 8 | 4);
            out32(0xcfc, 7);            /* I/O, memory, bus master */
            break;
        }
    }
    return function;
}

#endif
