#ifndef KVMGDB_SYMBOLS_FRAMES_H
#define KVMGDB_SYMBOLS_FRAMES_H

#include "../linux/orc.h"
#include "buffer.h"

/*
 * What a row of the unwind table says, as CIEs: a class of frame, and whether
 * the address that it leads to was interrupted. Rows of one class differ only
 * in where the frame is and where rbp was saved.
 */
enum frame_class {
  FRAME_CALL,    /* a return address below the CFA */
  FRAME_REGS,    /* struct pt_regs below the CFA */
  FRAME_PARTIAL, /* what the processor pushed for an interrupt below the CFA */
  FRAME_OUTER,   /* nothing called this */
  FRAME_SYSCALL, /* user mode's address in rcx */
  FRAME_IRET, /* what the processor pushed somewhere near: see frame_rows.c */
  FRAME_CLASSES,
};

enum frame_class frame_class_of(const struct orc_rule *rule);

/* Whether the CFA may lie on another stack. */
bool frame_switches_stack(const struct orc_rule *rule);

/* The CIE of a class; its place in `out`. */
uint32_t frame_put_cie(struct buffer *out, enum frame_class class, bool signal);

/* The instructions that turn row `before` (NULL: the CIE's) into `rule`. */
void frame_put_row(struct buffer *out, const struct orc_rule *before,
                   const struct orc_rule *rule);

/* The same for a rule by the stack pointer of code in [start, end) that may
 * have left addresses of its own on the stack. */
void frame_put_counted_row(struct buffer *out, const struct orc_rule *rule,
                           uint64_t start, uint64_t end);

/* Fills an entry up to the alignment, and in its length at `start`. */
void frame_end_entry(struct buffer *out, size_t start);

#endif
