/*
 * Steps in user mode. A KVM that interprets guest code leaves user mode to the
 * processor itself: there `iretq` drops the trap flag that KVM steps by, and
 * the debug exception that ends a step goes to the guest, whose program would
 * die of it. So the flag is handed to `iretq`, and the exception taken back.
 */
#ifndef KVMGDB_AGENT_USER_STEP_H
#define KVMGDB_AGENT_USER_STEP_H

#include "trap_flag.h"

/* SDM volume 3, 6.14.2: what lies on the stack of a handler in long mode. */
struct exception_frame {
  uint64_t rip, cs, rflags, rsp, ss;
};

/* Whether a selector is one of user mode. */
bool user_step_is_user(uint64_t selector);

enum { USER_STEP_CODE = 2 };

/* Whether an instruction loads RFLAGS, and the trap flag with it. */
bool user_step_loads_flags(const uint8_t code[USER_STEP_CODE]);

/*
 * Whether the next instruction, which begins with `code`, is an `iretq` to user
 * mode whose frame, on top of the stack, has no trap flag.
 */
bool user_step_returns(const uint8_t code[USER_STEP_CODE],
                       const struct kvmgdb_agent_regs *regs,
                       const struct kvmgdb_agent_sregs *sregs,
                       trap_flag_reader *reader, void *context,
                       struct exception_frame *frame);

/*
 * Whether a step that began in user mode ended in the guest's handler of debug
 * exceptions. `frame` is then where the program goes on.
 */
bool user_step_delivered(const struct step_start *from,
                         const struct kvmgdb_agent_regs *regs,
                         const struct kvmgdb_agent_sregs *sregs,
                         trap_flag_reader *reader, void *context,
                         struct exception_frame *frame);

/* The segment of a selector, as KVM_SET_SREGS takes it; false for one that is
 * not in the GDT. */
bool user_step_segment(const struct kvmgdb_agent_sregs *sregs,
                       uint64_t selector, trap_flag_reader *reader,
                       void *context, struct kvmgdb_agent_segment *segment);

#endif
