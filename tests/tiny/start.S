/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The tiny guest's first instructions: boot sector, protected mode, other vCPUs, interrupts. See tiny.c.
 */
    .set SELECTOR_CODE, 0x08
    .set SELECTOR_DATA, 0x10
    .set STACK_BYTES, 0x1000            /* of each vCPU, downwards from STACKS */
    .set STACKS, 0x90000

    .section .boot, "ax"
    .code16
    .globl _start
_start:
    cli
    cld
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    movw $packet, %si                   /* DL is the drive we came from */
    movb $0x42, %ah
    int $0x13
    jc fail
    inb $0x92, %al                      /* A20 */
    orb $2, %al
    andb $0xfe, %al
    outb %al, $0x92
    lgdtl gdt_pointer
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $SELECTOR_CODE, $enter
fail:
    hlt
    jmp fail

    .balign 4
packet:                                 /* read what follows this sector to behind it */
    .byte 16, 0
    .word sectors
    .word 0x7e00, 0
    .quad 1

    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff
    .quad 0x00cf93000000ffff
gdt_pointer:
    .word . - gdt - 1
    .long gdt

    .org 510
    .word 0xaa55

    .text
/* Copied to a page below 1 MiB, where STARTUP sends the other vCPUs. */
    .globl trampoline, trampoline_end
trampoline:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl gdt_pointer
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $SELECTOR_CODE, $enter
trampoline_end:

    .code32
enter:
    movw $SELECTOR_DATA, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $1, %eax
    lock xaddl %eax, vcpus              /* our number */
    movl %eax, %ecx
    imull $STACK_BYTES, %ecx
    movl $STACKS, %esp
    subl %ecx, %esp
    pushl %eax
    call tiny_main
1:  hlt
    jmp 1b

/*
 * Interrupts: each stub calls its C function between saved registers. A KVM that emulates every instruction has no iret
 * in protected mode; what it does is done by hand. The selector stays the same.
 */
    .macro return_from_interrupt
    pushl 8(%esp)
    popfl
    ret $8
    .endm

    .macro stub name
    .globl \name\()_stub
\name\()_stub:
    pushal
    cld
    call \name
    popal
    return_from_interrupt
    .endm

    stub pit_interrupt
    stub apic_interrupt
    .globl ignore_stub
ignore_stub:
    return_from_interrupt

    .data
    .globl vcpus
vcpus:
    .long 0

    .section .note.GNU-stack, "", @progbits
