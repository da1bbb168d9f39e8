/*
 * Raw 16-bit code for --flat, wherever it is loaded: prints "flat CS:IP" of
 * its first instruction in hex to the debug console, CS first, and leaves
 * through the exit port with 0x07.
 */
	.code16
	.text
start:
	call	1f
1:	pop	%bx
	sub	$1b - start, %bx
	mov	%cs, %ax
	call	print_word
	mov	$':', %al
	out	%al, $0xe9
	mov	%bx, %ax
	call	print_word
	mov	$'\n', %al
	out	%al, $0xe9
	mov	$0x07, %al
	out	%al, $0xf4
2:	hlt
	jmp	2b

/* AX as four hex digits. */
print_word:
	mov	$4, %cx
1:	rol	$4, %ax
	mov	%ax, %dx
	and	$0x0f, %al
	add	$'0', %al
	cmp	$'9', %al
	jbe	2f
	add	$'a' - '9' - 1, %al
2:	out	%al, $0xe9
	mov	%dx, %ax
	loop	1b
	ret
	.section .note.GNU-stack, "", @progbits
