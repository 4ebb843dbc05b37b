/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The tiny guest: a VM that tells whether it was forked right
 *
 * Boots from the first sector of a disk, needs a PC with 16 MiB, no operating system. Quick under TCG, and simple enough
 * for a KVM that emulates each instruction. Every vCPU, at each eighth interrupt of its local APIC's timer, prints
 *
 *     cpu0 17                                              a number that grows by one: none may be missing or come twice
 *     mem0 loops 4f2a sum 9e3779b1 read 9e3779b1 seed 0 pit 51
 *
 * and between interrupts writes its 16 KiB of RAM all the time, each word from the loop count and the seed. `sum` is
 * kept beside the writes, `read` is added up anew from RAM: they differ when a word was lost, or came from elsewhere.
 * `pit` counts the interrupts of the PIT, which go through the PIC or IOAPIC.
 *
 * On the same serial port vCPU 0 takes commands, and answers each with "ok LETTER" or "no LETTER":
 *
 *     sB   seed becomes byte B: VMs that were alike go different ways
 *     fB   writes one word, from the seed, to each page of the B MiB from FILL on
 *     bB   gives the 256 pages of MiB number B to the balloon (virtio-balloon, transitional)
 *     rB   reports the same pages as free (free page reporting)
 *     vB   reads the first MiB of the last virtio-blk disk into MiB number B; cB: virtio-scsi, aB: AHCI
 *     oB   such reads begin B sectors later in memory, and are 2 B shorter
 *
 *     0x07c00  this program           0x100000  what each vCPU writes, 16 KiB each
 *     0x60000  start of other vCPUs   0x800000  virtqueues, requests
 *     0x90000  stacks, downwards      0x1000000 FILL
 */
#include <stdint.h>

#include "disks.h"
#include "io.h"
#include "virtio.h"

#define COM1            0x3f8
#define PIC1            0x20
#define PIC2            0xa0
#define PIT             0x40
#define PIT_HZ          1193182
#define TICK_HZ         100
#define APIC            0xfee00000u
#define APIC_TIMER_COUNT 625000         /* of 1 GHz / 16: 100 a second under QEMU */
#define LINE_TICKS      8
#define VECTOR_PIT      0x20            /* IRQ 0 to 7 follow */
#define VECTOR_APIC     0x40
#define VECTOR_SPURIOUS 0x4f
#define VECTORS         256
#define SELECTOR_CODE   0x08
#define TRAMPOLINE      0x60000u
#define WORK            0x100000u
#define WORK_WORDS      4096u
#define FILL            0x1000000u
#define MAX_VCPUS       8

extern uint32_t vcpus;
extern const uint8_t trampoline[], trampoline_end[];
extern void pit_interrupt_stub(void), apic_interrupt_stub(void), ignore_stub(void);
void tiny_main(uint32_t vcpu);
void pit_interrupt(void);
void apic_interrupt(void);

static volatile uint32_t ticks[MAX_VCPUS];
static volatile uint32_t pit_ticks, seed, serial_lock;
static uint64_t idt[VECTORS];

static volatile uint32_t *apic(uint32_t reg)
{
    return (volatile uint32_t *)(APIC + reg);
}

/* The printer's number: one vCPU at a time. */
static void serial_take(void)
{
    while (__atomic_exchange_n(&serial_lock, 1, __ATOMIC_ACQUIRE))
        asm volatile("pause");
}

static void serial_give(void)
{
    __atomic_store_n(&serial_lock, 0, __ATOMIC_RELEASE);
}

static void put(char c)
{
    while (!(in8(COM1 + 5) & 0x20))
        ;
    out8(COM1, c);
}

static void put_text(const char *text)
{
    while (*text)
        put(*text++);
}

static void put_number(uint32_t value, uint32_t base)
{
    char digits[11];
    int n = 0;

    do {
        digits[n++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    while (n)
        put(digits[--n]);
}

static void put_field(const char *name, uint32_t value)
{
    put_text(name);
    put_number(value, 16);
}

void pit_interrupt(void)
{
    pit_ticks++;
    out8(PIC1, 0x20);
}

void apic_interrupt(void)
{
    ticks[(*apic(0x20) >> 24) % MAX_VCPUS]++;
    *apic(0xb0) = 0;
}

static void gate(int vector, void (*stub)(void))
{
    uint32_t at = (uint32_t)stub;

    idt[vector] = (uint64_t)(at & 0xffff0000u) << 32 | 0x8e00ull << 32 | SELECTOR_CODE << 16 | (at & 0xffffu);
}

static void interrupts_on(void)
{
    struct __attribute__((packed)) {
        uint16_t limit;
        uint32_t base;
    } pointer = { sizeof(idt) - 1, (uint32_t)idt };

    asm volatile("lidt %0" :: "m"(pointer));
    *apic(0xf0) = 0x100 | VECTOR_SPURIOUS;
    *apic(0x3e0) = 3;                   /* divide by 16 */
    *apic(0x320) = 0x20000 | VECTOR_APIC; /* periodic */
    *apic(0x380) = APIC_TIMER_COUNT;
    asm volatile("sti" ::: "memory");
}

/* What the first vCPU does for all: interrupt table, PIC, PIT, serial port, and the other vCPUs. */
static void machine_init(void)
{
    static const uint8_t pic[][2] = { { 0, 0x11 }, { 1, VECTOR_PIT }, { 1, 4 }, { 1, 1 } };
    uint32_t i;

    for (i = 0; i < VECTORS; i++)
        gate(i, ignore_stub);
    gate(VECTOR_PIT, pit_interrupt_stub);
    gate(VECTOR_APIC, apic_interrupt_stub);
    for (i = 0; i < 4; i++)
        out8(PIC1 + pic[i][0], pic[i][1]);
    out8(PIC1 + 1, 0xfe);               /* the PIT alone */
    out8(PIC2 + 1, 0xff);
    *apic(0x350) = 0x700;               /* LINT0: the PIC */
    out8(PIT + 3, 0x34);
    out8(PIT, (PIT_HZ / TICK_HZ) & 0xff);
    out8(PIT, (PIT_HZ / TICK_HZ) >> 8);
    out8(COM1 + 3, 0x80);               /* 115200 8n1, FIFO on */
    out8(COM1, 1);
    out8(COM1 + 1, 0);
    out8(COM1 + 3, 3);
    out8(COM1 + 2, 7);

    for (i = 0; i < (uint32_t)(trampoline_end - trampoline); i++)
        ((volatile uint8_t *)TRAMPOLINE)[i] = trampoline[i];
    *apic(0xf0) = 0x100 | VECTOR_SPURIOUS;
    *apic(0x300) = 0xc4500;             /* INIT, then STARTUP, to all others */
    for (i = 0; i < 10000; i++)
        in8(0x80);
    *apic(0x300) = 0xc4600 | TRAMPOLINE >> 12;
}

/* --- virtio-balloon, as far as giving pages away goes --- */

#define BALLOON_REPORTING (1u << 5)
#define QUEUE_INFLATE   0
#define QUEUE_REPORT    3
#define BALLOON_PAGES   256u

static struct virtio balloon = { .device = 0x1002, .area = 0, .features = BALLOON_REPORTING };

static int balloon_give(uint32_t mib, int report)
{
    uint32_t *pfn = (uint32_t *)REQUESTS, i;
    struct virtio_buffer buffer = { mib * MIB, MIB, VIRTIO_WRITE, 0 };

    if (!virtio_start(&balloon))
        return 0;
    if (report)
        return virtio_send(&balloon, QUEUE_REPORT, &buffer, 1);
    for (i = 0; i < BALLOON_PAGES; i++)
        pfn[i] = mib * (MIB / PAGE) + i;
    buffer = (struct virtio_buffer){ (uint32_t)pfn, BALLOON_PAGES * sizeof(*pfn), 0, 0 };
    return virtio_send(&balloon, QUEUE_INFLATE, &buffer, 1);
}

/* --- commands --- */

static int fill(uint32_t mib)
{
    uint32_t at;

    for (at = FILL; at < FILL + mib * MIB; at += PAGE)
        *(volatile uint32_t *)at = at * 2654435761u ^ seed;
    return 1;
}

/* So many sectors behind the MiB that is asked for, and as many fewer are read: pages at both ends are read in part. */
static uint32_t shift;

static int read_disk(uint8_t letter, uint32_t mib)
{
    uint32_t address = mib * MIB + shift * 512, bytes = MIB - 2 * shift * 512;

    switch (letter) {
    case 'v':
        return disk_read_virtio_blk(address, bytes);
    case 'c':
        return disk_read_virtio_scsi(address, bytes);
    default:
        return disk_read_ahci(address, bytes);
    }
}

static void take_command(void)
{
    uint8_t letter, argument;
    int ok = 0;

    if (!(in8(COM1 + 5) & 1))
        return;
    letter = in8(COM1);
    while (!(in8(COM1 + 5) & 1))
        ;
    argument = in8(COM1);
    switch (letter) {
    case 's':
        seed = argument;
        ok = 1;
        break;
    case 'f':
        ok = fill(argument);
        break;
    case 'b':
    case 'r':
        ok = balloon_give(argument, letter == 'r');
        break;
    case 'o':
        shift = argument;
        ok = 1;
        break;
    case 'v':
    case 'c':
    case 'a':
        ok = read_disk(letter, argument);
        break;
    }
    serial_take();
    put_text(ok ? "ok " : "no ");
    put(letter);
    put('\n');
    serial_give();
}

void tiny_main(uint32_t vcpu)
{
    volatile uint32_t *work = (volatile uint32_t *)WORK + vcpu * WORK_WORDS;
    uint32_t loops = 0, sum = 0, line = 0, at, next, read, i, value;

    if (vcpu >= MAX_VCPUS)
        return;
    if (!vcpu)
        machine_init();
    at = (*apic(0x20) >> 24) % MAX_VCPUS;
    for (i = 0; i < WORK_WORDS; i++)
        work[i] = 0;
    interrupts_on();
    for (next = ticks[at] + LINE_TICKS;; loops++) {
        value = (loops + 1) * 2654435761u ^ seed;
        i = (loops * 17u) % WORK_WORDS;
        sum += value - work[i];
        work[i] = value;
        if ((int32_t)(ticks[at] - next) < 0)
            continue;
        next = ticks[at] + LINE_TICKS;
        for (read = 0, i = 0; i < WORK_WORDS; i++)
            read += work[i];
        serial_take();
        put_text("cpu");
        put_number(vcpu, 10);
        put(' ');
        put_number(line++, 10);
        put_text("\nmem");
        put_number(vcpu, 10);
        put_field(" loops ", loops);
        put_field(" sum ", sum);
        put_field(" read ", read);
        put_field(" seed ", seed);
        put_field(" pit ", pit_ticks);
        put('\n');
        serial_give();
        if (!vcpu)
            take_command();
    }
}
