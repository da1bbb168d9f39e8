/*
 * A guest that does what the test asks for in `mode`, and counts.
 *
 * Flat at 1 MiB. Entered in 32-bit protected mode at _start by vmm.c (each vCPU
 * by itself, its number in EBX), or at bsp_entry from a BIOS of a few
 * instructions (QEMU: one vCPU, which starts the others; a real BIOS takes
 * seconds on a host that emulates).
 */
        .set    LOAD, 0x100000
        .set    TRAMPOLINE, 0x8000
        .set    LAPIC, 0xfee00000
        .set    STACK_SIZE, 4096

        .text
        .code32
        .global _start
_start:
        jmp     entry32

        .global signature
signature:
        .ascii  "kvmgdb test guest"

bsp_entry:
        movw    $0x10, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        xorl    %ebx, %ebx
        lock incl vcpus_seen
        /* The other vCPUs: code below 1 MiB, INIT, SIPI. */
        movl    $trampoline, %esi
        movl    $TRAMPOLINE, %edi
        movl    $(trampoline_end - trampoline), %ecx
        rep movsb
        movl    $0x000c4500, LAPIC + 0x300
        /* A local APIC in user space takes its time, and drops a SIPI that
           overtakes INIT: wait, and send two, as the SDM has it. */
        movl    $2, %edx
1:      movl    $40000, %ecx
2:      loop    2b
        movl    $(0x000c4600 | (TRAMPOLINE >> 12)), LAPIC + 0x300
        decl    %edx
        jnz     1b
        jmp     long_mode

entry32:
        lock incl vcpus_seen
long_mode:
        lgdt    gdt_pointer
        movl    $0x20, %eax             /* CR4.PAE */
        movl    %eax, %cr4
        movl    $pml4, %eax
        movl    %eax, %cr3
        movl    $0xc0000080, %ecx       /* EFER */
        rdmsr
        orl     $0x900, %eax            /* LME, NXE */
        wrmsr
        movl    %cr0, %eax
        orl     $0x80000001, %eax
        movl    %eax, %cr0
        ljmp    $0x08, $entry64

        .code16
trampoline:
        cli
        xorw    %ax, %ax
        movw    %ax, %ds
        lgdtl   TRAMPOLINE + (trampoline_gdt - trampoline)
        movl    %cr0, %eax
        orl     $1, %eax
        movl    %eax, %cr0
        ljmpl   $0x18, $ap_entry
trampoline_gdt:
        .word   gdt_end - gdt - 1
        .long   gdt
trampoline_end:

        .code32
ap_entry:
        movw    $0x10, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $1, %ebx
        lock xaddl %ebx, vcpus_seen
        jmp     long_mode

        .code64
        .global entry64
entry64:
        movw    $0x10, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    %ebx, %ebx              /* number of this vCPU, for good */
        leaq    1(%rbx), %rsp
        shlq    $12, %rsp
        addq    $stacks, %rsp
        lidt    idt_pointer
        xorl    %ebp, %ebp
        xorl    %r12d, %r12d            /* number of the next I/O */

        .global main_loop
main_loop:
        call    outer
        movl    mode, %eax
        cmpl    $1, %eax
        je      do_io
        cmpl    $2, %eax
        je      do_halt
        cmpl    $3, %eax
        je      do_int3
        cmpl    $4, %eax
        je      do_stuck
        cmpl    $5, %eax
        je      do_triple_fault
        jmp     main_loop

        /* Each access must happen exactly once: the VMM counts them, and the
           count that it returns must be the guest's own. */
do_io:
        incq    %r12
        movl    %r12d, %eax
        movw    $0x10, %dx
        addl    %ebx, %edx
        outl    %eax, %dx
        movw    $0x20, %dx
        addl    %ebx, %edx
        inl     %dx, %eax
        cmpl    %r12d, %eax
        je      1f
        lock incq errors
1:      movq    $0xd0000000, %rcx
        leaq    (%rcx, %rbx, 8), %rcx
        movl    %r12d, (%rcx)
        movl    (%rcx), %eax
        cmpl    %r12d, %eax
        je      2f
        lock incq errors
2:      lock incq io_rounds
        jmp     main_loop

do_halt:
        hlt
        jmp     main_loop

        .global own_int3
do_int3:
own_int3:
        int3
        jmp     main_loop

do_stuck:
        movl    $1, %eax
        outl    %eax, $0x80
        jmp     main_loop

do_triple_fault:
        lidt    no_idt
        ud2

        .global outer
outer:
        pushq   %rbp
        movq    %rsp, %rbp
        call    middle
        popq    %rbp
        ret

        .global middle
middle:
        pushq   %rbp
        movq    %rsp, %rbp
        call    inner
        popq    %rbp
        ret

        /* The counters: plain stores to the cell of this vCPU, and a checksum
           over its own history that any lost or repeated step would break. */
        .global inner
inner:
        pushq   %rbp
        movq    %rsp, %rbp
        movq    counter(, %rbx, 8), %rax
        .global inner_add
inner_add:
        addq    $1, %rax
        .global inner_store
inner_store:
        movq    %rax, counter(, %rbx, 8)
        movq    checksum(, %rbx, 8), %rdx
        imulq   $31, %rdx
        addq    %rax, %rdx
        movq    %rdx, checksum(, %rbx, 8)
        .global inner_end
inner_end:
        popq    %rbp
        ret

on_breakpoint:
        lock incq breakpoints_taken
        iretq
on_debug:
        lock incq debugs_taken
        iretq

        .data
        .balign 4096
        .set    present, 3
        .set    large, 0x83
pml4:   .quad   pdpt + present
        .fill   255, 8, 0
        .quad   pdpt + present          /* the same 1 GiB at 0xffff8000... */
        .fill   255, 8, 0
pdpt:   .quad   pd_low + present, 0, 0, pd_high + present
        .fill   508, 8, 0
pd_low:
        .set    page, 0
        .rept   512
        .quad   page + large
        .set    page, page + 0x200000
        .endr
pd_high:
        .set    page, 0xc0000000
        .rept   512
        .quad   page + large + 0x10     /* uncached: devices */
        .set    page, page + 0x200000
        .endr

        .balign 16
gdt:    .quad   0
        .quad   0x00af9b000000ffff      /* 08: 64-bit code */
        .quad   0x00cf93000000ffff      /* 10: data */
        .quad   0x00cf9b000000ffff      /* 18: 32-bit code */
gdt_end:
gdt_pointer:
        .word   gdt_end - gdt - 1
        .quad   gdt

        .balign 16
idt:    .quad   0, 0
        .word   on_debug - LOAD, 0x08, 0x8e00, LOAD >> 16
        .quad   0
        .quad   0, 0
        .word   on_breakpoint - LOAD, 0x08, 0x8e00, LOAD >> 16
        .quad   0
idt_end:
idt_pointer:
        .word   idt_end - idt - 1
        .quad   idt
no_idt: .word   0
        .quad   0

        .balign 64
        .global mode, counter, checksum, errors, io_rounds
        .global breakpoints_taken, debugs_taken, vcpus_seen
vcpus_seen:        .long 0
mode:              .long 0
counter:           .fill 8, 8, 0
checksum:          .fill 8, 8, 0
errors:            .quad 0
io_rounds:         .quad 0
breakpoints_taken: .quad 0
debugs_taken:      .quad 0
        .balign 4096
stacks: .fill   8 * STACK_SIZE, 1, 0
image_end:

        .section .bios, "ax"
        .code16
bios_base:
bios_start:
        lgdtl   %cs:(bios_gdt - bios_base)
        movl    %cr0, %eax
        orl     $1, %eax
        movl    %eax, %cr0
        ljmpl   $0x18, $bsp_entry
bios_gdt:
        .word   gdt_end - gdt - 1
        .long   gdt
        .org    0xfff0
        jmp     bios_start
        .org    0x10000
