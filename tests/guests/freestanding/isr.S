/*
 * Interrupt entries. The processor pushes SS, RSP, RFLAGS, CS, RIP; pushing
 * RBP next makes a frame like that of a function called from RIP, so a chain
 * of frame pointers leads through an interrupt into what it interrupted.
 */
#include "guest.h"

	.macro	entry name, function
	.text
	.global \name
	.type \name, @function
\name:
	.cfi_startproc simple
	.cfi_signal_frame
	.cfi_def_cfa rsp, 40
	.cfi_offset rip, -40
	.cfi_offset rsp, -16
	push	%rbp
	.cfi_def_cfa_offset 48
	.cfi_offset rbp, -48
	mov	%rsp, %rbp
	.cfi_def_cfa_register rbp
	push	%rax
	push	%rcx
	push	%rdx
	push	%rsi
	push	%rdi
	push	%r8
	push	%r9
	push	%r10
	push	%r11
	cld
	/* Stacks are aligned to their size: the number follows from RSP. */
	lea	-1(%rsp), %rdi
	sub	$stacks, %rdi
	shr	$14, %rdi
	sub	$8, %rsp
	call	\function
	add	$8, %rsp
	pop	%r11
	pop	%r10
	pop	%r9
	pop	%r8
	pop	%rdi
	pop	%rsi
	pop	%rdx
	pop	%rcx
	pop	%rax
	pop	%rbp
	.cfi_def_cfa rsp, 40
	iretq
	.cfi_endproc
	.size \name, . - \name
	.endm

	.if	STACK_SIZE - 16384
	.error	"the shift above is for stacks of 16 KiB"
	.endif

	entry	timer_entry, timer_interrupt
	entry	breakpoint_entry, breakpoint_interrupt
	.weak	serial_interrupt /* echo.c alone has one */
	entry	serial_entry, serial_interrupt

	.global spurious_entry
spurious_entry:
	iretq

/* Any exception that no guest expects: print it and stop this vCPU. */
	.global exception_entry
	.type exception_entry, @function
exception_entry:
	mov	%rsp, %rdi
	and	$-16, %rsp
	call	unexpected_exception
1:	cli
	hlt
	jmp	1b
	.section .note.GNU-stack, "", @progbits
