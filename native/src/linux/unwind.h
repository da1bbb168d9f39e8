/* What unwinding knows on its way from frame to frame. */
#ifndef KVMGDB_LINUX_UNWIND_H
#define KVMGDB_LINUX_UNWIND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "orc.h"

/* struct pt_regs (arch/x86/include/asm/ptrace.h); an interrupt's frame, which
 * is all of a partial one, begins at ip. */
#define PT_R13 16
#define PT_BP 32
#define PT_R10 56
#define PT_AX 80
#define PT_CX 88
#define PT_DX 96
#define PT_DI 112
#define PT_IP 128
#define PT_CS 136
#define PT_SP 152
#define IRET_CS (PT_CS - PT_IP)
#define IRET_SP (PT_SP - PT_IP)

#define USER_PRIVILEGE 3

/* As the bits of struct kvmgdb_unwind_registers. */
enum {
  REG_IP,
  REG_SP,
  REG_BP,
  REG_AX,
  REG_DX,
  REG_DI,
  REG_R10,
  REG_R13,
  REG_CX,
  REGS
};

/* What a call may have changed. */
#define SCRATCH                                                                \
  (1u << REG_AX | 1u << REG_DX | 1u << REG_DI | 1u << REG_R10 |                \
   1u << REG_R13 | 1u << REG_CX)

struct unwind {
  const struct kvmgdb_unwinder *unwinder;
  const struct kvmgdb_stack *stacks;
  size_t stack_count;
  uint64_t value[REGS];
  uint32_t known;
  bool exact; /* ip was interrupted: it need not be behind a call */
  bool user;
  int source;
  uint64_t registers;
  struct kvmgdb_unwind_result *result;
};

/* Ends the chain; false. */
bool unwind_stop(struct unwind *unwind, enum kvmgdb_unwind_end end,
                 uint64_t address);

/* The copy that holds `length` bytes at `address`, or NULL. */
const struct kvmgdb_stack *unwind_stack_of(const struct unwind *unwind,
                                           uint64_t address, size_t length);

/* A word of a stack; where no copy has it, the chain ends for want of one. */
bool unwind_load(struct unwind *unwind, uint64_t address, uint64_t *value);

/* A register; where it is lost, the chain ends for that. */
bool unwind_get(struct unwind *unwind, int reg, uint64_t *value);

/* Whether cs can be that of code that an interrupt returns to. */
bool unwind_is_code_segment(uint64_t cs);

/* ip, sp and mode from the interrupt's frame at `frame`. */
bool unwind_load_entry(struct unwind *unwind, uint64_t frame);

/* The frame behind code that was marked, and whose table has no rule. */
bool unwind_leave_thunk(struct unwind *unwind);
bool unwind_leave_syscall(struct unwind *unwind);
bool unwind_leave_iret(struct unwind *unwind);

/* Behind a jump or call to no code at all: a null function pointer. */
bool unwind_leave_nothing(struct unwind *unwind);

/* Words on top of the stack that calls within the code in [start, end) left
 * there and nobody returns to (FILL_RETURN_BUFFER): how many bytes they take.
 */
uint64_t unwind_own_calls(const struct unwind *unwind, uint64_t start,
                          uint64_t end);

/* `rule`, of marked code, as it is with what the mark says. */
struct orc_rule unwind_marked_rule(const struct unwind *unwind,
                                   const struct orc_mark *mark,
                                   const struct orc_rule *rule);

#endif
