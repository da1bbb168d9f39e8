/* XEN_ELFNOTE_PHYS32_ENTRY: where PVH enters. */
	.section .note.pvh, "a", @note
	.align 4
	.long 4, 8, 18
	.asciz "Xen"
	.quad start32
	.section .note.GNU-stack, "", @progbits
