/*
 * 64-bit entry of the Linux boot protocol, RSI the zero page: hands over to
 * linux_main with what the loader left in the processor. In a bzImage this
 * has to be at offset 0x200 of the protected-mode part.
 */
#include "guest.h"

#define MSR_EFER 0xc0000080

	.section .start, "ax"
	.code64
	.global start_linux
	.type start_linux, @function
start_linux:
	lea	stack_end, %rsp
	pushfq
	mov	$MSR_EFER, %ecx
	rdmsr
	push	%rax
	mov	%cr4, %rax
	push	%rax
	mov	%cr0, %rax
	push	%rax
	mov	%ds, %eax
	push	%rax
	mov	%cs, %eax
	push	%rax
	mov	%rsi, %rdi
	mov	%rsp, %rsi
	xor	%ebp, %ebp
	call	linux_main
1:	hlt
	jmp	1b

	.bss
	.align 16
	.skip	STACK_SIZE
stack_end:
	.section .note.GNU-stack, "", @progbits
