/*
 * Frames behind code without a rule: retpolines (arch/x86/lib/retpoline.S), and
 * the kernel's entry before and after it is on a task's stack (arch/x86/entry/
 * entry_64.S). Nothing here is taken on trust that can be checked.
 */
#include <string.h>

#include "unwind.h"

/* FILL_RETURN_BUFFER makes no more calls. */
#define MAX_OWN_CALLS 64

#define USER_IP_BITS 56
#define USER_SS 0x2b
/* What is pushed above an interrupt's frame on the way out: di, ax. */
#define MAX_PUSHED 2

static void found(struct unwind *unwind, uint64_t ip, uint64_t sp) {
  unwind->value[REG_IP] = ip;
  unwind->value[REG_SP] = sp;
  unwind->known &= ~SCRATCH;
  unwind->exact = false;
  unwind->source = KVMGDB_FRAME_STACK_TOP;
  unwind->registers = 0;
}

static bool is_thunk(const struct unwind *unwind, uint64_t ip) {
  const struct orc_mark *mark = orc_find_mark(unwind->unwinder, ip);
  return mark && mark->code == KVMGDB_CODE_THUNK;
}

/* A retpoline's own call is the only one that leads back into a thunk. */
bool unwind_leave_thunk(struct unwind *unwind) {
  uint64_t sp = unwind->value[REG_SP], ip;
  if (!unwind_load(unwind, sp, &ip))
    return false;
  if (is_thunk(unwind, ip)) {
    sp += 8;
    if (!unwind_load(unwind, sp, &ip))
      return false;
  }
  found(unwind, ip, sp + 8);
  return true;
}

bool unwind_leave_nothing(struct unwind *unwind) {
  uint64_t sp = unwind->value[REG_SP], ip;
  if (!unwind_load(unwind, sp, &ip))
    return false;
  found(unwind, ip, sp + 8);
  return true;
}

bool unwind_leave_syscall(struct unwind *unwind) {
  uint64_t ip;
  if (!unwind_get(unwind, REG_CX, &ip))
    return false;
  if (ip >> USER_IP_BITS)
    return unwind_stop(unwind, KVMGDB_UNWIND_NO_ENTRY, unwind->value[REG_IP]);
  /* Up to the first instructions, sp is still that of user mode. */
  bool is_user_stack = unwind->value[REG_SP] >> USER_IP_BITS == 0 &&
                       unwind->value[REG_SP] % 4096;
  unwind->value[REG_IP] = ip;
  unwind->value[REG_SP] = is_user_stack ? unwind->value[REG_SP] : 0;
  unwind->exact = true;
  unwind->user = true;
  unwind->source = KVMGDB_FRAME_USER_REGISTERS;
  unwind->registers = 0;
  return true;
}

static bool is_user_entry(struct unwind *unwind, uint64_t frame) {
  uint64_t word[5];
  const struct kvmgdb_stack *stack =
      unwind_stack_of(unwind, frame, sizeof(word));
  if (!stack)
    return false;
  memcpy(word, (const char *)stack->data + (frame - stack->address),
         sizeof(word));
  return word[0] >> USER_IP_BITS == 0 && unwind_is_code_segment(word[1]) &&
         (word[1] & USER_PRIVILEGE) == USER_PRIVILEGE &&
         (word[4] & 0xffff) == USER_SS;
}

bool unwind_leave_iret(struct unwind *unwind) {
  uint64_t sp = unwind->value[REG_SP], ip = unwind->value[REG_IP], frame;
  for (uint64_t pushed = 0; pushed <= MAX_PUSHED; pushed++)
    if (is_user_entry(unwind, sp + 8 * pushed))
      return unwind_load_entry(unwind, sp + 8 * pushed);
  if (!unwind_get(unwind, REG_DI, &frame))
    return false;
  /* While it is copied: di points at the saved di, ax and then the frame. */
  frame += PT_IP - PT_DI;
  uint64_t word;
  if (frame >> 63 && !unwind_load(unwind, frame, &word))
    return false;
  if (!is_user_entry(unwind, frame))
    return unwind_stop(unwind, KVMGDB_UNWIND_NO_ENTRY, ip);
  return unwind_load_entry(unwind, frame);
}

uint64_t unwind_own_calls(const struct unwind *unwind, uint64_t start,
                          uint64_t end) {
  uint64_t sp = unwind->value[REG_SP], bytes = 0;
  for (; bytes < 8 * MAX_OWN_CALLS; bytes += 8) {
    uint64_t word;
    const struct kvmgdb_stack *stack =
        unwind_stack_of(unwind, sp + bytes, sizeof(word));
    if (!stack)
      break;
    memcpy(&word, (const char *)stack->data + (sp + bytes - stack->address),
           sizeof(word));
    if (word - start >= end - start)
      break;
  }
  return bytes;
}

struct orc_rule unwind_marked_rule(const struct unwind *unwind,
                                   const struct orc_mark *mark,
                                   const struct orc_rule *rule) {
  struct orc_rule marked = *rule;
  if (mark->code == KVMGDB_CODE_CALLS_ITSELF && rule->type == ORC_TYPE_CALL &&
      rule->sp_register == ORC_SP)
    marked.sp_offset =
        (int16_t)(mark->detail +
                  unwind_own_calls(unwind, mark->start, mark->end));
  return marked;
}
