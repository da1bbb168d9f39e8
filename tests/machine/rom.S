/*
 * A guest that is a firmware image and nothing else: from the reset vector both
 * vCPUs go to 64-bit mode within microseconds and then count for ever. The
 * image runs from RAM at ROM_COPY, so that it can be written to.
 *
 * Memory in 64-bit mode: the first 4 MiB are mapped one to one by 2 MiB pages
 * (the second read-only), and at HIGH there are 4 KiB pages:
 *
 *   HIGH + 0x0000 -> 0x100000      HIGH + 0x2000: not present
 *   HIGH + 0x1000 -> 0x101000      HIGH + 0x3000 -> 0x300000
 *   HIGH + 0x4000 -> 0x110000      HIGH + 0x5000: a page above all RAM
 */
#define TABLES 0x10000
#define COUNTERS 0x20000
#define ROM_COPY 0x30000
#define APIC 0xfee00000
#define PRESENT 0x1
#define WRITABLE 0x2
#define DIRTY 0x60
#define LARGE 0x80
#define ENTRY (PRESENT | WRITABLE | DIRTY)

        .section .text
        .globl image
image:
        .code16
        .globl start16
start16:
        cli
        xorw %ax, %ax
        movw %ax, %ds
        lgdtl %cs:(gdt_pointer - image)
        movl %cr0, %eax
        orl $1, %eax
        movl %eax, %cr0
        ljmpl $0x08, $(0xf0000 + start32 - image)

        .code32
start32:
        movw $0x10, %ax
        movw %ax, %ds
        movw %ax, %es
        movw %ax, %ss
        /* The boot processor copies and wakes the other; both go on from there. */
        movl $0x1b, %ecx
        rdmsr
        testl $0x100, %eax
        jz enter64
        movl $(0xf0000 + tables - image), %esi
        movl $TABLES, %edi
        movl $(6 * 4096 / 4), %ecx
        rep movsl
        movl $0xf0000, %esi
        movl $ROM_COPY, %edi
        movl $(0x10000 / 4), %ecx
        rep movsl
        /* An ljmp to start16 is what the other one finds at 0x8000. */
        movb $0xea, 0x8000
        movl $(0xf0000000 + start16 - image), 0x8001
        movl $0x1ff, APIC + 0xf0
        movl $0xc4500, APIC + 0x300
        movl $0xc4608, APIC + 0x300

enter64:
        movl $0x620, %eax               /* PAE, OSFXSR, OSXMMEXCPT */
        movl %eax, %cr4
        movl $TABLES, %eax
        movl %eax, %cr3
        movl $0xc0000080, %ecx
        rdmsr
        orl $0x901, %eax                /* SCE, LME, NXE */
        wrmsr
        movl $0xc0000102, %ecx          /* KERNEL_GS_BASE */
        movl $0x55667788, %eax
        movl $0x11223344, %edx
        wrmsr
        movl %cr0, %eax
        orl $0x80010000, %eax           /* PG, WP */
        movl %eax, %cr0
        ljmpl $0x18, $(ROM_COPY + start64 - image)

        .code64
start64:
        movl $0x1b, %ecx
        rdmsr
        movl $COUNTERS, %ebx
        movl $0x2f000, %esp
        testl $0x100, %eax
        jnz 1f
        addl $8, %ebx
        subl $0x1000, %esp
1:      movabsq $0x123456789abcdef0, %r12
        movq %r12, %xmm3
        .globl count
count:  incq (%rbx)
        .globl before_call
before_call:
        call work
        .globl after_call
after_call:
        jmp count

        .globl work
work:   incq %r13
        nop
        .globl store
store:  movq %r13, COUNTERS + 0x100
        movq COUNTERS + 0x108, %rax
        nop
        ret

        .balign 8
gdt:    .quad 0
        .quad 0x00cf9b000000ffff
        .quad 0x00cf93000000ffff
        .quad 0x00af9b000000ffff
gdt_pointer:
        .word . - gdt - 1
        .long 0xf0000 + gdt - image

        .balign 4096
tables: /* root */
        .quad TABLES + 0x1000 + ENTRY
        .fill 510, 8, 0
        .quad TABLES + 0x3000 + ENTRY
        /* 0x1000: the first GiB */
        .quad TABLES + 0x2000 + ENTRY
        .fill 511, 8, 0
        /* 0x2000 */
        .quad 0x000000 + ENTRY + LARGE
        .quad 0x200000 + (ENTRY & ~WRITABLE) + LARGE
        .fill 510, 8, 0
        /* 0x3000: the last 512 GiB */
        .fill 511, 8, 0
        .quad TABLES + 0x4000 + ENTRY
        /* 0x4000: the last GiB, whose last 2 MiB but one are HIGH */
        .fill 510, 8, 0
        .quad TABLES + 0x5000 + ENTRY
        .quad 0
        /* 0x5000 */
        .quad 0x100000 + ENTRY
        .quad 0x101000 + ENTRY
        .quad 0
        .quad 0x300000 + ENTRY
        .quad 0x110000 + ENTRY
        .quad 0x7ffff000 + ENTRY
        .fill 506, 8, 0

        .org image + 0xfff0
        .code16
        .globl reset
reset:  ljmp $0xf000, $(start16 - image)
        .org image + 0x10000
