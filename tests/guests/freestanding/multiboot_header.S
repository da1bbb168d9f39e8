/* Multiboot 1: page-aligned modules and memory information, no addresses. */
	.section .multiboot, "a"
	.align 4
	.long 0x1badb002
	.long 0x3
	.long -(0x1badb002 + 0x3)
	.section .note.GNU-stack, "", @progbits
