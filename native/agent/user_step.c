#include "user_step.h"
#include <string.h>

/* SDM volume 3, 2.2.1; volume 1, 3.4.3: a bit of RFLAGS that is always set. */
static const uint64_t efer_lma = 1 << 10, rflags_fixed = 2;

enum {
  USER = 3, /* the privilege level, in the low bits of a selector */
  SELECTOR_LDT = 4,
  VECTOR_DEBUG = 1,
  /* SDM volume 3, 6.14.1: bytes of a gate. */
  GATE_SIZE = 16,
  /* How far one instruction gets into a handler; what it may have pushed. */
  MAX_INSTRUCTION = 15,
  MAX_PUSHED = 1,
};

static bool is_long_mode(const struct kvmgdb_agent_sregs *sregs) {
  return sregs->efer & efer_lma && sregs->cs.l;
}

bool user_step_is_user(uint64_t selector) { return (selector & USER) == USER; }

static bool is_of_user_mode(const struct exception_frame *frame) {
  return user_step_is_user(frame->cs) && frame->cs <= UINT16_MAX &&
         user_step_is_user(frame->ss) && frame->ss <= UINT16_MAX &&
         (frame->rflags & rflags_fixed);
}

bool user_step_loads_flags(const uint8_t code[USER_STEP_CODE]) {
  enum { POPF = 0x9d, IRET = 0xcf, REX_W = 0x48 };
  return code[0] == POPF || code[0] == IRET ||
         (code[0] == REX_W && code[1] == IRET);
}

bool user_step_returns(const uint8_t code[USER_STEP_CODE],
                       const struct kvmgdb_agent_regs *regs,
                       const struct kvmgdb_agent_sregs *sregs,
                       trap_flag_reader *reader, void *context,
                       struct exception_frame *frame) {
  static const uint8_t iretq[USER_STEP_CODE] = {0x48, 0xcf};
  return is_long_mode(sregs) && !(sregs->cs.selector & USER) &&
         !memcmp(code, iretq, sizeof(iretq)) &&
         reader(context, regs->rsp, frame, sizeof(*frame)) &&
         is_of_user_mode(frame) && !(frame->rflags & TRAP_FLAG);
}

static bool handler_of(const struct kvmgdb_agent_sregs *sregs, unsigned vector,
                       trap_flag_reader *reader, void *context,
                       uint64_t *handler) {
  uint64_t gate[GATE_SIZE / sizeof(uint64_t)];
  if (sregs->idt.limit < (vector + 1) * GATE_SIZE - 1 ||
      !reader(context, sregs->idt.base + (uint64_t)vector * GATE_SIZE, gate,
              sizeof(gate)))
    return false;
  *handler = (gate[0] & 0xffff) | (gate[0] >> 32 & 0xffff0000) | gate[1] << 32;
  return true;
}

bool user_step_delivered(const struct step_start *from,
                         const struct kvmgdb_agent_regs *regs,
                         const struct kvmgdb_agent_sregs *sregs,
                         trap_flag_reader *reader, void *context,
                         struct exception_frame *frame) {
  uint64_t handler;
  if (!user_step_is_user(from->cs) || !(sregs->efer & efer_lma) ||
      !handler_of(sregs, VECTOR_DEBUG, reader, context, &handler) ||
      regs->rip - handler > MAX_INSTRUCTION)
    return false;
  for (uint64_t pushed = 0; pushed <= MAX_PUSHED; pushed++)
    if (reader(context, regs->rsp + pushed * sizeof(uint64_t), frame,
               sizeof(*frame)) &&
        is_of_user_mode(frame) && (frame->rflags & TRAP_FLAG) &&
        frame->cs == from->cs && frame->ss == from->ss)
      return true;
  return false;
}

bool user_step_segment(const struct kvmgdb_agent_sregs *sregs,
                       uint64_t selector, trap_flag_reader *reader,
                       void *context, struct kvmgdb_agent_segment *segment) {
  uint64_t offset = selector & ~(uint64_t)(USER | SELECTOR_LDT), entry;
  if ((selector & SELECTOR_LDT) ||
      offset + sizeof(entry) - 1 > sregs->gdt.limit ||
      !reader(context, sregs->gdt.base + offset, &entry, sizeof(entry)))
    return false;
  bool pages = entry >> 55 & 1;
  uint32_t limit = (uint32_t)((entry & 0xffff) | (entry >> 32 & 0xf0000));
  /* SDM volume 3, 3.4.5. */
  *segment = (struct kvmgdb_agent_segment){
      .base = (entry >> 16 & 0xffffff) | (entry >> 32 & 0xff000000),
      .limit = pages ? limit << 12 | 0xfff : limit,
      .selector = (uint16_t)selector,
      .type = entry >> 40 & 0xf,
      .s = entry >> 44 & 1,
      .dpl = entry >> 45 & 3,
      .present = entry >> 47 & 1,
      .avl = entry >> 52 & 1,
      .l = entry >> 53 & 1,
      .db = entry >> 54 & 1,
      .g = pages,
  };
  return segment->present;
}
