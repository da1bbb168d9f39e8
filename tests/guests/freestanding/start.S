/*
 * 32-bit entry of PVH and multiboot alike: page tables, long mode, guest_main.
 * The other vCPUs come in real mode through the trampoline and take the same
 * way.
 */
#include "guest.h"

#define PRESENT_WRITE 0x3
#define LARGE 0x80
#define CR0_PE 0x1
#define CR0_PG 0x80000000
#define CR4_PAE 0x20
#define MSR_EFER 0xc0000080
#define EFER_LME 0x100
#define CODE64 0x08
#define DATA 0x10
#define CODE32 0x18

	.section .start, "ax"
	.code32
	.global start32
	.type start32, @function
start32:
	cli
	cld
	mov	%eax, boot_magic
	mov	%ebx, boot_information
	lgdt	gdt_pointer

	/* Level 4: entry 0 the identity, entry 511 the alias. */
	mov	$page_table_3 + PRESENT_WRITE, %eax
	mov	%eax, page_table_4
	mov	$page_table_3_alias + PRESENT_WRITE, %eax
	mov	%eax, page_table_4 + 511 * 8

	/* Level 3: four times 1 GiB; the alias is GiB 510 of its 512. */
	mov	$page_table_2 + PRESENT_WRITE, %eax
	xor	%ecx, %ecx
1:	mov	%eax, page_table_3(, %ecx, 8)
	add	$4096, %eax
	inc	%ecx
	cmp	$4, %ecx
	jne	1b
	mov	$page_table_2_alias + PRESENT_WRITE, %eax
	mov	%eax, page_table_3_alias + 510 * 8

	/* Level 2: 2048 pages of 2 MiB. */
	mov	$LARGE + PRESENT_WRITE, %eax
	xor	%ecx, %ecx
2:	mov	%eax, page_table_2(, %ecx, 8)
	add	$0x200000, %eax
	inc	%ecx
	cmp	$2048, %ecx
	jne	2b
	mov	$page_table_1_alias + PRESENT_WRITE, %eax
	mov	%eax, page_table_2_alias

	/* Level 1 of the alias: 512 pages of 4 KiB. */
	mov	$PRESENT_WRITE, %eax
	xor	%ecx, %ecx
3:	mov	%eax, page_table_1_alias(, %ecx, 8)
	add	$4096, %eax
	inc	%ecx
	cmp	$512, %ecx
	jne	3b

	mov	$start64, %ebx
	jmp	enter_long_mode

/* Goes on in 64-bit mode at %ebx. */
enter_long_mode:
	mov	$CR4_PAE, %eax
	mov	%eax, %cr4
	mov	$page_table_4, %eax
	mov	%eax, %cr3
	mov	$MSR_EFER, %ecx
	rdmsr
	or	$EFER_LME, %eax
	wrmsr
	mov	%cr0, %eax
	or	$CR0_PG | CR0_PE, %eax
	mov	%eax, %cr0
	ljmp	$CODE64, $in_long_mode

	.code64
in_long_mode:
	mov	$DATA, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	xor	%eax, %eax
	mov	%eax, %fs
	mov	%eax, %gs
	jmp	*%rbx

	.type start64, @function
	.global start64
start64:
	.cfi_startproc
	.cfi_undefined rip
	mov	$stacks + STACK_SIZE, %rsp
	xor	%ebp, %ebp
	call	first_cpu_main
1:	hlt
	jmp	1b
	.cfi_endproc
	.size start64, . - start64

	.type ap_start64, @function
	.global ap_start64
ap_start64:
	.cfi_startproc
	.cfi_undefined rip
	/* The number of this vCPU is the order in which it came. */
	mov	$1, %edi
	lock xadd %edi, next_cpu
	cmp	$MAX_CPUS, %edi
	jae	1f
	lea	1(%rdi), %eax
	imul	$STACK_SIZE, %eax, %eax
	lea	stacks(%rax), %rsp
	xor	%ebp, %ebp
	call	other_cpu_main
1:	hlt
	jmp	1b
	.cfi_endproc
	.size ap_start64, . - ap_start64

/* Copied to TRAMPOLINE; CS is its segment, IP 0. */
	.code16
	.global trampoline, trampoline_end
trampoline:
	cli
	mov	%cs, %ax
	mov	%ax, %ds
	lgdtl	trampoline_gdt - trampoline
	mov	%cr0, %eax
	or	$CR0_PE, %eax
	mov	%eax, %cr0
	ljmpl	$CODE32, $ap_start32
	.align 4
trampoline_gdt:
	.word	gdt_end - gdt - 1
	.long	gdt
trampoline_end:

	.code32
ap_start32:
	mov	$DATA, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	mov	$ap_start64, %ebx
	jmp	enter_long_mode

	.data
	.align 16
gdt:
	.quad	0
	.quad	0x00af9b000000ffff
	.quad	0x00cf93000000ffff
	.quad	0x00cf9b000000ffff
gdt_end:
	.align 4
	.word	0
gdt_pointer:
	.word	gdt_end - gdt - 1
	.quad	gdt
	.align 4
	.global next_cpu
next_cpu:
	.long	1

	.bss
	.align 4096
	.global page_table_4
page_table_4:
	.skip	4096
page_table_3:
	.skip	4096
page_table_3_alias:
	.skip	4096
page_table_2:
	.skip	4 * 4096
page_table_2_alias:
	.skip	4096
page_table_1_alias:
	.skip	4096
	.global stacks
stacks:
	.skip	MAX_CPUS * STACK_SIZE
	.section .note.GNU-stack, "", @progbits
